"""What an enhancer does to faces it never saw, against doing nothing: figures with intervals.

`sets.py` says what it is measured on, `results.py` how.
"""

from .results import Result, evaluate, format_table, read_metrics, write_metrics
from .sets import Batch, held_out_pairs, held_out_sets, rendered_views, underfitted_pairs

__all__ = ["Batch", "Result", "evaluate", "format_table", "held_out_pairs", "held_out_sets",
           "read_metrics", "rendered_views", "underfitted_pairs", "write_metrics"]
