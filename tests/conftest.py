"""What all tests share: one thread, and the sibling module's import name."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path[:0] = [path for path in (str(ROOT),) if path not in sys.path]
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of measuring material beside the checkout; absent for users, and then skipped."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with measuring material is not here")
    return SHARED
