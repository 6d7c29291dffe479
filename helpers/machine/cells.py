"""What a notebook says where a name is missing: the cell that makes it, instead of a traceback."""

from __future__ import annotations

from typing import Any

from IPython import get_ipython

MADE_BY = {  # name → title of its cell; the tests read the notebook
    "Find where this notebook came from": ("REPOSITORY", "ADDRESS", "BRANCH", "os", "shutil",
                                           "sys"),
    "Find the helpers": ("CLONE", "IN_DRIVE", "places"),
    "Look at this machine": ("machine", "mended"),
    "Import": ("Markdown", "checkpoints", "evaluation", "views", "settings", "as_changes",
               "damage", "in_words", "kept_damage", "EnhancerLoss", "Metrics", "draw_batch",
               "prepare", "choose_preset", "free_gib", "free_memory", "mount_drive", "report",
               "workspace", "SplatEnhancer",
               "add_metrics", "export", "write_picture", "RestoreConfig", "count",
               "find", "restore_all", "zipped", "draw_each",
               "prepare_pairs", "with_shares", "plan_downloads", "plan_memory", "put", "folders_of",
               "gradient_shares", "recall", "refuse_unfit", "train"),
    "Choose the settings": ("USE_DRIVE", "preset", "reason", "config", "untuned", "unmixed"),
    "Choose the folders": ("work", "drive", "run_folder", "results_folder", "drive_folder",
                           "faces_on_drive"),
    "Prepare the faces": ("faces",),
    "Look at the faces": ("clean", "regions"),
    "Take over the tuned damage": ("kept",),
    "Mix the pairs": ("sources",),
    "Build the enhancer": ("model",),
    "Plan the memory": ("plan",),
    "Load the loss": ("loss",),
    "Train": ("watched", "live"),
    "Export the enhancer": ("enhancer",),
    "Measure on held-out faces": ("measured",),
    "Choose your renders": ("RENDERS", "UPLOAD", "uploads"),
    "Restore your renders": ("how", "outcomes", "archive"),
}


def explain(error: NameError) -> str | None:
    """One line on a missing name: which cell to run; None for names that no cell makes."""
    title = next((title for title, names in MADE_BY.items() if error.name in names), None)
    return title and (f"{error.name}: expected to be made by the cell *{title}*, got nothing yet; "
                      "run that cell first, and those above it that were not run")


def name_the_cells() -> None:
    """In a notebook, let a missing name be told by `explain`."""
    if shell := get_ipython():
        shell.set_custom_exc((NameError,), _tell)


def _tell(shell: Any, kind: type, error: NameError, trace: Any,
          tb_offset: int | None = None) -> None:
    if line := explain(error):
        print(line)
    else:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
