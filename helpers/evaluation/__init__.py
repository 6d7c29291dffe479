"""What an enhancer does to faces it never saw, against doing nothing: figures with intervals."""

from .results import (
    Result,
    evaluate,
    format_table,
    held_out_pairs,
    read_metrics,
    underfitted_pairs,
    write_metrics,
)
