"""The enhancer: a frozen SD-Turbo, LoRA and skips on it, one step; tiles; exports.

To learn how it is built read `enhancer.py`, then `adapters.py` and `base.py`.
"""

from .base import PARTS, is_embedded, part_files
from .enhancer import SplatEnhancer
from .exports import add_metrics, export, fingerprint, load
from .hub import push
from .pix2pix_turbo import from_pix2pix_turbo
from .trained import Learned
