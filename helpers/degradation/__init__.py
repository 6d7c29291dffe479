"""Damage drawn on a clean face, tuned by amounts: a pure function of image, settings and seed.

Read `pipeline.py` first; `presets.py` has the named damages.
"""

from .pipeline import AMOUNTS, GROUPS, STAGES, Preview, degrade, draw_amounts, variation_mask
from .presets import DAMAGE, IMITATES, as_changes, damage, in_words, keep_damage, kept_damage
from .resplat import gaussian_count
