"""What an enhancer does to faces it never saw, against doing nothing and a cheap filter.

`sets.py` says what it is measured on, `measuring.py` how, `result.py` how that is summed up, and
`run.py` all that belongs to a run; `comparing.py` measures other tools on the same sets,
`variants.py` other settings.
"""

from .batch import Batch
from .comparing import compare, write_sets
from .files import read_metrics, to_csv, write_metrics
from .filters import Filter, choose_filter
from .measuring import SHOWN, Measured, Shown, evaluate, measure, pick
from .result import KINDS, Result, Row, summarise
from .rows import Rows
from .run import Evaluation, Weights, evaluate_run, restore_by, timed
from .sets import HeldOut, held_out_pairs
from .strengths import STRENGTHS, measure_strengths
from .tables import format_compared, format_sets, format_table
from .variants import ablation_variants, run_variants, transfer_variants
