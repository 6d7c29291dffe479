"""Clean faces with their regions: procedural heads, CelebA-HQ, or a folder of photographs.

`prepare` makes one Arrow folder of them, once; `Faces` reads it.
"""

from .data import Faces, draw_batch, load_batches, prepare, to_tensor
from .regions import FACE_PARSER, PARSER_FILES, REGIONS
from .sources import CELEBA_HQ, TEST_SHARE, has_masks, read_image, store_name
