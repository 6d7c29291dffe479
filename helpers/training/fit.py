"""What was made knows what it was made of: asked before it is used, answered by a cell's name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ..checkpoints import Checkpoint, newest, refuse_lone_moments, refuse_other_run
from ..config import Config, DataConfig
from ..degradation import kept_damage
from ..distances import EnhancerLoss
from ..faces import Faces
from ..model import Learned, SplatEnhancer
from ..pairs import Sources, known_as, made_by
from ..storage import own_path

CELLS = {"model": "Build the enhancer", "faces": "Prepare the faces", "loss": "Load the loss",
         "sources": "Mix the pairs", "folder": "Choose the folders",
         "damage": "Take over the tuned damage", "run": "Train",
         "measured": "Measure on held-out faces"}  # titles in the notebook
OF_TRAINING = ("model.skip_dropout",)  # no built model depends on it


class Measured(Protocol):
    """Whose weights figures are of."""

    run: str
    step: int
    sha256: str  # `Checkpoint.digest`


def refuse_unfit(config: Config, *, model: SplatEnhancer | None = None, faces: Faces | None = None,
                 loss: EnhancerLoss | None = None, sources: Sources | None = None,
                 folder: Path | None = None, seeded: bool = True) -> None:
    """Raise ValueError, with the cell to run again, where something was made by other settings.

    Args:
        config: of the run.
        model, faces, loss, sources: what it is to use; what does not know is not asked.
        folder: of the run.
        seeded: whether the model's own start matters, and with it its seed.
    """
    folders_of(config, folder)
    if folder and (kept := kept_damage([folder])) and kept != config.degrade:
        _refuse("damage", _named("degrade", kept), _named("degrade", config.degrade))
    if isinstance(model, SplatEnhancer):
        seeds = ({"run.seed": model.seed}, {"run.seed": config.run.seed}) if seeded else ({}, {})
        _refuse("model", _named("model", model.config) | seeds[0],
                _named("model", config.model) | seeds[1])
    if faces is not None and faces.made_of:
        _refuse("faces", _of_faces(*faces.made_of), _of_faces(config.data, config.run.seed))
    if isinstance(loss, EnhancerLoss):
        _refuse("loss", _named("loss", loss.config), _named("loss", config.loss))
    made = getattr(sources, "made_by", None)
    if made is not None and faces is not None:
        wanted = made_by(config, faces)
        _refuse("sources", {name: made.get(name) for name in wanted}, wanted)


def folders_of(config: Config, *folders: Path | None) -> list[Path]:
    """Those that are there, None left out; ValueError for one of another run.

    A folder under `runs/` bears its run's name.
    """
    for folder in filter(None, folders):
        if folder.parent.name == "runs":
            _refuse("folder", {"run.name": folder.name}, {"run.name": config.run.name})
    return [folder for folder in folders if folder]


def recall(config: Config, model: SplatEnhancer, *, folder: Path, drive: Path | None = None,
           faces: Faces | None = None, sources: Sources | None = None,
           measured: Measured | None = None) -> Checkpoint:
    """Bring what a run has learned last into the model, wherever the kernel stands.

    Args:
        config: of the run.
        model: built for it; trained, or not, or by another run.
        folder, drive: where the run saved.
        faces, sources: that are to be used with it.
        measured: whose weights the figures at hand are of; None asks for none.

    Returns:
        The checkpoint: its config is what its weights were trained with.

    Raises:
        ValueError: nothing was trained, something does not fit, or figures are of other weights;
            it says which cell to run.
    """
    refuse_unfit(config, model=model, faces=faces, sources=sources, folder=folder, seeded=False)
    saved, passed_over = newest([folder] + ([drive] if drive else []),
                                fits=lambda found: refuse_lacking(found, config, model))
    for line in passed_over:
        print("Passed over", line)
    if saved is None:
        raise ValueError(f"run {config.run.name!r}: expected a checkpoint in {folder}, got none; "
                         f"run the cell *{CELLS['run']}* first")
    names = known_as(faces, sources or {}, config.pairs) if faces else ()
    refuse_other_run(saved, config, names if sources is not None else names[:0])
    if measured and (measured.run, measured.sha256) != (config.run.name, saved.digest):
        raise ValueError(f"figures: expected those of run {config.run.name!r} after step "
                         f"{saved.step}, got others (run {measured.run!r}, step "
                         f"{measured.step}); run the cell *{CELLS['measured']}* again")
    model.take_over(saved.trained, Learned(saved.config, saved.step))
    return saved


def refuse_lacking(saved: Checkpoint, config: Config, model: SplatEnhancer) -> None:
    """Raise ValueError for a state of this run that the model could not take over."""
    try:
        refuse_other_run(saved, config)
    except ValueError:
        return  # of other settings: refused later, and not for what it lacks
    refuse_lone_moments(saved)
    model.refuse_other_tensors(saved.trained)


def _of_faces(data: DataConfig, seed: int) -> dict[str, Any]:
    source = data.source if data.source in ("avatars", "celeba-hq") else os.path.realpath(
        own_path(data.source))
    found = {"data.source": source, "data.size_px": data.size_px,
             "data.train_images": data.train_images, "data.test_images": data.test_images}
    return found if source == "avatars" else found | {"run.seed": seed}


def _named(section: str, settings: Any) -> dict[str, Any]:
    found = {f"{section}.{name}": value for name, value in asdict(settings).items()}
    return {name: value for name, value in found.items() if name not in OF_TRAINING}


def _refuse(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"{name} {then.get(name)!r} (the settings say {value!r})"
               for name, value in now.items() if then.get(name) != value]
    if changed:
        raise ValueError(f"{what}: expected one made by these settings, got one of "
                         f"{'; '.join(changed[:3])}; run the cell *{CELLS[what]}* again, and those "
                         "below it")
