"""Pictures for people: grids, charts, sheets, sliders, live training, the report of a run.

The only room with matplotlib and ipywidgets.
"""

from .charts import training_curve, transfer_chart
from .display import compare, save_figure, save_image, show
from .grids import degradation_grid, effect_grid, pairs_grid, side_by_side
from .live import LiveTraining
from .pictures import color_regions
from .report import write_report
from .sheets import sheet, show_sheet
from .sliders import DegradationSliders
