"""How far a picture is from its clean original: perceptual networks, the loss, the metrics."""

from .detail import detail
from .losses import CLIP_FILES, CLIP_NAME, TERM_NAMES, EnhancerLoss
from .metrics import IN_WORDS, Metrics
