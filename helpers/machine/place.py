"""Where this is: Colab, Kaggle, or anybody's own machine."""

from __future__ import annotations

import os
from typing import Literal

Place = Literal["colab", "kaggle", "local"]
# What people set anywhere to reach Kaggle, as they do KAGGLEHUB_…
KAGGLE_CREDENTIALS = {"KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR"}


def this_place() -> Place:
    """The place, by what its environment says; Kaggle's images set Colab's variable, too."""
    if any(name.startswith("KAGGLE_") for name in set(os.environ) - KAGGLE_CREDENTIALS):
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"
