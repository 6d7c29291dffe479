"""Pictures for people: grids, curves, sliders, live training. The only room with matplotlib."""

from .display import (
    LiveTraining,
    color_regions,
    compare,
    degradation_grid,
    effect_grid,
    ranked_comparison,
    save_figure,
    save_image,
    show,
    side_by_side,
    training_curve,
)
from .sliders import DegradationSliders
