"""Clean faces with their regions: procedural heads, CelebA-HQ, or a folder of photographs.

`prepare` makes one Arrow folder of them, once; `Faces` reads it. A procedural `Head` can be seen
from anywhere.
"""

from .avatars import Head, look_at_head, studio_wall
from .data import Faces, draw_batch, from_pngs, load_batches, prepare, read_image, to_png, to_tensor
from .head import Cloud
from .regions import FACE_PARSER, PARSER_FILES, REGIONS
from .sources import (
    CELEBA_HQ,
    IMAGE_ERRORS,
    TEST_SHARE,
    derive_number,
    has_masks,
    left_out,
    own_file,
    readable,
    square,
    store_name,
)
from .store import PartialStore, damaged, read_contents

__all__ = ["CELEBA_HQ", "FACE_PARSER", "IMAGE_ERRORS", "PARSER_FILES", "REGIONS", "TEST_SHARE",
           "Cloud", "Faces", "Head", "PartialStore", "damaged", "derive_number", "draw_batch",
           "from_pngs", "has_masks", "left_out", "load_batches", "look_at_head", "own_file",
           "prepare", "read_contents", "read_image", "readable", "square", "store_name",
           "studio_wall", "to_png", "to_tensor"]
