"""Clean faces with their regions: procedural heads, CelebA-HQ, or a folder of photographs.

`prepare` makes one Arrow folder of them, once; `Faces` reads it. A procedural `Head` can be seen
from anywhere.
"""

from .avatars import Head, look_at_head, studio_wall
from .data import Faces, draw_batch, from_pngs, load_batches, prepare, to_png, to_tensor
from .head import Cloud
from .regions import FACE_PARSER, PARSER_FILES, REGIONS
from .sources import (
    IMAGE_ERRORS,
    TEST_SHARE,
    derive_number,
    enlarged,
    has_masks,
    left_out,
    note_size,
    own_file,
    picture_print,
    read_image,
    readable,
    square,
    store_name,
)
from .store import (
    PartialStore,
    as_prepared,
    open_rows,
    print_of,
    read_column,
    read_contents,
    read_prints,
)
from .stream import CELEBA_HQ
