"""The command line: one module per family of commands; flags are the fields of dataclasses.

`command.py` has what all share: exit codes (0 good, 1 something failed or could not be read, 2
wrong usage, 130 stopped), `--json`, one line for an error. The only room that knows tyro.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

from ..config import PACKAGE
from ..machine import ROOT, prepare_packages, processes, this_place
from .command import WRONG_USAGE
from .notebook import NOTEBOOK, execute_notebook

COMMANDS = {  # name → module, class, what it does
    "prepare": ("runs", "Prepare", "download or draw the faces, and make the pairs"),
    "train": ("runs", "Train", "train, or go on with a run, and export it"),
    "evaluate": ("runs", "Evaluate", "measure a run on held-out faces; figures and a report"),
    "enhance": ("enhance", "Enhance", "restore pictures, folders, patterns, videos, splats"),
    "head": ("enhance", "Head", "write a head of ours as a splat, .ply, to try enhance on"),
    "bench": ("bench", "Bench", "how fast this machine restores, degrades and saves"),
    "transfer": ("figures", "Transfer", "train on each kind of pair, test on each"),
    "ablate": ("figures", "Ablate", "train with one change at a time, test on the same sets"),
    "metrics": ("figures", "Metrics", "print the figures of a run"),
    "notebook": ("notebook", "Notebook", "execute the notebook"),
    "tidy": ("notebook", "Tidy", "make a notebook that Colab saved open on GitHub")}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code, raises SystemExit for wrong usage."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    called = Path(sys.argv[0]).stem
    prog = "splat-enhancer" if called == "splat-enhancer" else f"python -m {PACKAGE}"
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # not every console on Windows has arrows
    if name in ("-h", "--help"):
        print(_usage(prog))
        return 0
    if name not in COMMANDS:
        print(f"{_usage(prog)}\n\n{prog}: error: expected a command, got {name!r}", file=sys.stderr)
        raise SystemExit(WRONG_USAGE)
    if this_place() != "local":
        with processes().one_before_others(), redirect_stdout(sys.stderr):
            prepare_packages(this_place())  # before anything brings peft
    module, kind, _ = COMMANDS[name]
    command = getattr(import_module(f".{module}", __package__), kind)
    prog = f"{prog} {name}"
    return command.parse(rest, prog).carry_out(prog)


def _usage(prog: str) -> str:
    lines = (f"  {name:<10}{text}" for name, (_, _, text) in COMMANDS.items())
    return "\n".join([f"usage: {prog} COMMAND [--help]", "", *lines])
