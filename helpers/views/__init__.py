"""Pictures for people: grids, charts, sheets, sliders, live training, the report of a run.

The only room with matplotlib and ipywidgets. What is handed out here cannot stop a run: `guard.py`.
"""

from . import before_after, charts, display, grids, live, report, sheets
from .before_after import BeforeAfter
from .guard import guarded, guarded_methods
from .pictures import color_regions
from .sliders import DegradationSliders
from .uploads import offer, take_uploads

LiveTraining = guarded_methods(live.LiveTraining)
training_curve, transfer_chart = map(guarded, (charts.training_curve, charts.transfer_chart))
save_figure, show, show_restored = map(guarded, (
    display.save_figure, display.show, before_after.show_restored))
degradation_grid, effect_grid, pairs_grid, side_by_side = map(guarded, (
    grids.degradation_grid, grids.effect_grid, grids.pairs_grid, grids.side_by_side))
sheet, show_sheet = map(guarded, (sheets.sheet, sheets.show_sheet))
write_report = report.write_report
