"""What an enhancer does to faces it never saw, against doing nothing: figures with intervals.

`sets.py` says what it is measured on, `results.py` how; `transfer.py` compares what it was trained
on.
"""

from .results import Result, evaluate, format_sets, format_table, read_metrics, write_metrics
from .sets import Batch, HeldOut, held_out_pairs, rendered_views, underfitted_pairs
from .transfer import format_transfer, standard_variants, transfer
