"""Clean faces with their regions: procedural heads, CelebA-HQ, or a folder of photographs.

`prepare` makes one Arrow folder of them, once; `Faces` reads it. A procedural `Head` can be seen
from anywhere.
"""

from .avatars import Head, look_at_head, studio_wall
from .data import Faces, draw_batch, load_batches, prepare, read_image, to_tensor
from .head import Cloud
from .regions import FACE_PARSER, PARSER_FILES, REGIONS
from .sources import CELEBA_HQ, TEST_SHARE, has_masks, store_name

__all__ = [
           "CELEBA_HQ",
           "FACE_PARSER",
           "PARSER_FILES",
           "REGIONS",
           "TEST_SHARE",
           "Cloud",
           "Faces",
           "Head",
           "draw_batch",
           "has_masks",
           "load_batches",
           "look_at_head",
           "prepare",
           "read_image",
           "store_name",
           "studio_wall",
           "to_tensor",
]
