"""Restore what a user has, by a model that is named, or else by the newest there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from .. import checkpoints
from ..config import PACKAGE
from ..errors import refused
from ..machine import Bar, Runtime, processes, workspace
from ..model import SplatEnhancer
from ..model import load as load_export
from ..pairs import write_head
from ..restoring import RestoreConfig, count, find, restore_all, zipped
from ..storage import own_path
from .command import Command
from .runs import Precision, machine_with

LISTED = 1_000  # results and failures that JSON names; the counts are of all


@dataclass(frozen=True, kw_only=True)
class Enhance(Command):
    """Restore pictures and all else that is a render; done ones are skipped, so it can be repeated.

    Results lie beside the inputs as <name>_restored, or in the same tree within --output_dir.
    """

    published: ClassVar[dict[str, str]] = {"model_path": "model"}
    together: ClassVar[bool] = True

    inputs: tyro.conf.Positional[tuple[str, ...]]  # files, folders, patterns such as "a/**/*.png"
    settings: Annotated[RestoreConfig, tyro.conf.arg(name="")] = field(
        default_factory=RestoreConfig)
    model: str = ""  # folder of an export, or a hub name; none: the newest of the work folder
    output_dir: Path | None = None  # gets the results; none: they lie beside the inputs
    zip: Path | None = None  # a file that gets all results, too
    work_dir: Path | None = None  # where runs and exports lie; none: the notebook's folder
    mixed_precision: Precision = "auto"  # of frozen weights: float32 on a CPU, fp16 on a GPU

    def __post_init__(self) -> None:
        if self.inputs == ():
            raise refused("inputs", "files, folders or patterns", "none", "name some")
        if self.zip and (self.zip.suffix.lower() != ".zip" or self.zip.is_dir()):
            raise refused("--zip", "a file called .zip, which is written over", str(self.zip),
                          "name another")

    def run(self) -> dict[str, Any]:
        """Restore; launched processes share the files, and the first counts for all."""
        team, output = processes(), self.output_dir and own_path(self.output_dir)
        if self.zip and team.ranks > 1:
            raise refused("--zip", "one process, which alone sees all results", team.ranks,
                          "leave it out, and zip them afterwards by the same with one process")
        total = count(self.inputs, output)  # what is wrong is told before a model is built
        machine = machine_with(self.mixed_precision)
        with team.one_before_others():
            model, origin = chosen_model(self.model, machine, workspace(machine, self.work_dir))
        print(f"{total} to restore by {origin}")
        outcomes = restore_all(model, find(self.inputs, output=output, say=Bar.write),
                               self.settings, output=output, total=total,
                               share=(team.rank, team.ranks))
        found: dict[str, Any] = {"model": origin, "restored": 0, "skipped": 0, "failed": 0,
                                 "results": [], "errors": {}}
        for one in zipped(outcomes, own_path(self.zip)) if self.zip else outcomes:
            found["failed" if one.error else "skipped" if one.skipped else "restored"] += 1
            for note in one.notes:
                Bar.write(f"{one.path}: {note}")
            if one.error:
                Bar.write(f"failed in {one.path.parent}: {one.error}")
            if one.error and found["failed"] <= LISTED:
                found["errors"][str(one.path)] = one.error
            found["results"] += one.files[:max(0, LISTED - len(found["results"]))]
        found = merged(team.gather(found))
        print(", ".join(f"{found[what]} {what}" for what in ("restored", "skipped", "failed")))
        example = "".join(f", such as {file}" for file in found["results"][:1])
        print(f"results: {output or 'beside the inputs'}{example}")
        return found


@dataclass(frozen=True, kw_only=True)
class Head(Command):
    """Write a procedural head, fitted by 3D Gaussians from its front, as a trained scene (.ply)."""

    out: tyro.conf.Positional[Path] = Path("head.ply")  # the file
    identity: int = 700_000  # which head; a wrong number is answered with those there are

    def run(self) -> dict[str, Any]:
        """Write it."""
        if self.out.exists():
            raise refused(str(self.out), "a name that is free", "a file that is there",
                          "name another, or remove it")
        file = write_head(self.out, self.identity)
        print(f"{file}: restore it by `enhance {file} --arc_deg 120`")
        return {"head": file}


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What processes found, as if one had: counts added up, lists put together."""
    whole = dict(parts[0])
    for part in parts[1:]:
        for name in ("restored", "skipped", "failed"):
            whole[name] += part[name]
        whole["results"] = (whole["results"] + part["results"])[:LISTED]
        whole["errors"] = dict(list((whole["errors"] | part["errors"]).items())[:LISTED])
    return whole


def chosen_model(name: str, machine: Runtime, work: Path) -> tuple[SplatEnhancer, str]:
    """The model of an export, of the hub, or the newest of a work folder; and which, in words.

    Raises:
        ValueError: there is none, or it is damaged.
        RuntimeError: the hub did not give it.
    """
    exports = (work / "results").glob("*/enhancer/card.json")
    runs = (work / "runs").glob(f"*/{checkpoints.LATEST}")
    newest = None if name else max([*exports, *runs], key=lambda p: p.stat().st_mtime_ns,
                                   default=None)
    if not name and newest is None:
        raise refused("--model", f"an export, a hub name, or a run in {work}", "none",
                      f"run `python -m {PACKAGE} train` first (minutes with --preset demo), or "
                      "name one")
    if name or newest.name == "card.json":
        name = name or str(newest.parent)
        return load_export(name, device=machine.device, dtype=machine.dtype), name
    saved, _ = checkpoints.newest([newest.parent])
    if saved is None:
        raise refused(str(newest), "a whole checkpoint", "a damaged one", "name a --model")
    model = SplatEnhancer.from_pretrained(saved.config.model, device=machine.device,
                                          dtype=machine.dtype, caches=[newest.parent])
    model.load_trained(saved.trained)
    return model.eval(), f"run {saved.config.run.name!r}, step {saved.step}"
