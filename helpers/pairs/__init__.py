"""What training learns from: pairs (degraded, clean), and where each comes from.

*Drawn* damage is that of `degradation`; *fitted* photographs are described by Gaussians and
stopped early; *rendered* heads are fitted by few 3D Gaussians from few views and seen from others;
*own* pairs are a user's. Their shares are settings, and everything in a pair follows from its
sample's seed. Read `mix.py` first.
"""

from .fits import HEAD_SETS, Fit, load_fits, read_fits, to_scene, write_fits, write_head
from .fitted import FittedPairs, prepare_fitted
from .mix import (
    Sources,
    draw_each,
    draw_kinds,
    draw_pairs,
    known_as,
    made_by,
    prepare_pairs,
    shares,
    trained_on,
    with_shares,
)
from .own import OwnPairs, prepare_own
from .pair import KINDS, PairSource
from .recipes import Recipe, draw_recipe
from .reconstruct import reconstruct
from .rendered import RenderedPairs, draw_view, render_pair
from .underfit import fit_poorly
