"""Pictures from outside and to outside: one reader, one writer, one check of tensors.

Whatever a file says about its pixels (depth, palette, colour space, alpha, which way is up) is
heeded here and nowhere else: what comes out is upright sRGB. What cannot be read rightly is
refused, with its name.
"""

from .contract import check_images
from .kinds import SUFFIXES, UNREAD_SUFFIXES
from .overlays import mask_overlay, repaired, tint
from .reading import (
    GONE,
    LARGEST_PIXELS,
    Picture,
    UnusablePicture,
    opened,
    orientation,
    read_labels,
    read_picture,
    upright,
)
from .writing import restored_path, source_of, to_image, write_picture
