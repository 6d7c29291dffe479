"""A run's state on the disk and on Drive: saved whole, resumed from the newest good file.

One trainer at a time claims a run; copies on Drive are read back before they count.
"""

from .checkpoint import (
    BEST,
    LATEST,
    PREVIOUS,
    Checkpoint,
    harmless_changes,
    load,
    newest,
    refuse_lone_moments,
    refuse_other_run,
    save,
    step_or_none,
    trained_digest,
)
from .claims import Claim, claim
from .publisher import Publisher
