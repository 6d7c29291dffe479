"""The machine a run is on: its place (Colab, Kaggle, local), device, memory, Drive; bars and stops;
the processes that work on it together.

The only room that knows Colab and Kaggle.
"""

from . import packages
from .browser import receive, send
from .cells import explain, name_the_cells
from .drive import mount_drive
from .memory import free_gib, free_memory, is_out_of_memory
from .packages import needed, prepare_packages, versions
from .place import this_place
from .processes import ALONE, Processes, place_in_launch, processes
from .progress import Bar
from .runtime import ROOT, Runtime, choose_preset, detect, report, workspace
from .stop import Stopped, StopRequests
