"""The training loop, the state it changes, and when that is saved. Read `loop.py` first."""

from .fit import CELLS, folders_of, recall, refuse_unfit
from .loop import Record, train
from .shares import gradient_shares
from .trainer import Trainer
