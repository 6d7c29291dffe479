"""The machine a run is on: its place (Colab, Kaggle, local), device, memory, Drive; bars and stops.

The only room that knows Colab and Kaggle.
"""

from . import packages  # noqa: F401  first: it names what the others would miss
from .drive import mount_drive
from .packages import prepare_packages
from .progress import Bar
from .runtime import Runtime, choose_preset, detect, report, workspace
from .stop import Stopped, StopRequests

__all__ = ["Bar", "Runtime", "StopRequests", "Stopped", "choose_preset", "detect", "mount_drive",
           "prepare_packages", "report", "workspace"]
