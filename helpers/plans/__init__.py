"""What a run will take before it starts: memory of a step, bytes to download."""

from .budget import plan_memory
from .downloads import plan_downloads
