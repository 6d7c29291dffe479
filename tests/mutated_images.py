"""Damaged picture files through the reader: each is read rightly, or refused by its name.

    python -m tests.mutated_images 100000

Read rightly means: a whole picture, finite, in [0, 1], no larger than allowed. Whether a flipped
bit in a format without checksums (BMP, TIFF, JPEG) changed a colour, nobody can know.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter

import numpy as np
import torch

from helpers.pictures import LARGEST_PIXELS, UnusablePicture, read_picture
from tests.pictures.files import every_kind, mutated


def try_them(count: int, seed: int = 0) -> Counter[str]:
    """Read so many damaged files; returns how many were read, and how many refused.

    Raises:
        AssertionError: one was read wrongly, or refused without its name, or warned of.
    """
    dice, kinds, found = np.random.default_rng(seed), every_kind(), Counter()
    names = sorted(kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(count):
            kind = names[number % len(names)]
            name, content = f"{number}-{kind}", mutated(kinds[kind], dice)
            try:
                picture = read_picture(content, name)
            except UnusablePicture as error:
                assert str(error).startswith(f"{name}: "), error
                found["refused by name"] += 1
                continue
            rgb, alpha = picture.rgb, picture.alpha
            assert rgb.shape[1:] == picture.size[::-1] and rgb[0].numel() <= LARGEST_PIXELS, name
            for part in (rgb, *(() if alpha is None else (alpha,))):
                low, high = part.aminmax()
                assert part.dtype == torch.float32 and 0 <= low <= high <= 1, name
            assert picture.to_image().mode == "RGB"
            found["read"] += 1
    return found


if __name__ == "__main__":
    wanted, begun = int(sys.argv[1]), time.process_time()
    print(dict(try_them(wanted)), f"of {wanted:,} in {time.process_time() - begun:.0f} s of CPU")
