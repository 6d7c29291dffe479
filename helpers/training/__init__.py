"""The training loop, the state it changes, and when that is saved. Read `loop.py` first."""

from .loop import Record, train
from .shares import gradient_shares
from .trainer import Trainer
