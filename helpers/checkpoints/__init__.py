"""A run's state on the disk and on Drive: saved whole, resumed from the newest good file.

One trainer at a time claims a run; copies on Drive are read back before they count.
"""

from .belonging import harmless_changes, refuse_lone_moments, refuse_other_run
from .checkpoint import (
    ASIDE,
    BEST,
    LATEST,
    NAMES,
    PREVIOUS,
    STATE,
    Checkpoint,
    load,
    save,
    step_or_none,
    trained_digest,
    whole_step,
)
from .choosing import newest, set_aside_unusable
from .claims import Claim, claim
from .publisher import Publisher
