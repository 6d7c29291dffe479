"""What training learns from: pairs (degraded, clean), and where each comes from.

*Drawn* damage is that of `degradation`; *fitted* photographs are described by Gaussians and
stopped early; *rendered* heads are 3D fits seen from new views; *own* pairs are a user's. Their
shares are settings, and everything in a pair follows from its sample's seed. Read `mix.py` first.
"""

from .fitted import FittedPairs, prepare_fitted
from .mix import Sources, draw_kinds, draw_pairs, prepare_pairs, shares, trained_on
from .own import OwnPairs, prepare_own
from .pair import KINDS, PairSource, RenderedSource
from .underfit import fit_poorly

__all__ = [
    "KINDS",
    "FittedPairs",
    "OwnPairs",
    "PairSource",
    "RenderedSource",
    "Sources",
    "draw_kinds",
    "draw_pairs",
    "fit_poorly",
    "prepare_fitted",
    "prepare_own",
    "prepare_pairs",
    "shares",
    "trained_on",
]
