"""Pictures for people: grids, curves, sliders, live training. The only room with matplotlib."""

from .display import (
    LiveTraining,
    compare,
    degradation_grid,
    effect_grid,
    pairs_grid,
    ranked_comparison,
    save_figure,
    save_image,
    show,
    side_by_side,
    training_curve,
    transfer_chart,
)
from .pictures import color_regions
from .sliders import DegradationSliders
