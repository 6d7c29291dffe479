"""What a checkpoint fits: which settings it is bound to, which may change, what must be in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..config import Config
from .checkpoint import Checkpoint

# Fields that change what the trained tensors mean, or which images they have seen so far
BINDING = ("model.base", "model.timestep", "model.unet_rank", "model.vae_rank", "model.prompt",
           "model.mask",
           "data.source", "data.size_px", "data.train_images", "run.seed")
NAMED = ("avatars", "celeba-hq")  # sources that are no folder


def refuse_other_run(saved: Checkpoint, config: Config,
                     faces: str | Sequence[str] = "") -> None:
    """Raise ValueError where config or faces differ in what the trained tensors mean.

    How many images a step takes is fixed too, for it is their place in the order of images. How
    they are divided is not: `batch` 1 with `accumulate` 2 goes on from `batch` 2. In a folder of
    photos that has changed, a face may be held out now that was trained on then. Where the folder
    lies, and how its path is written, does not matter: the photographs in it do.

    Args:
        faces: what the images are known by, and perhaps what older files call them.
    """
    then, now = _fields(saved.config), _fields(config)
    names = [name for name in ((faces,) if isinstance(faces, str) else faces) if name]
    if saved.faces and names and not {then["data.source"], now["data.source"]} & set(NAMED):
        then["data.source"] = now["data.source"]
    changed = [f"{path}: {then[path]!r} then, {now[path]!r} now"
               for path in (*BINDING, "optim.batch · optim.accumulate") if then[path] != now[path]]
    if changed:
        raise ValueError(f"run {config.run.name!r}: expected the settings it was started with, got "
                         f"{'; '.join(changed)}; set them back, or choose another run.name")
    if saved.faces and names and saved.faces not in names:
        raise ValueError(f"run {config.run.name!r}: expected to train on the {saved.faces} that it "
                         f"was started with, got {names[0]}; give {config.data.source} the images "
                         "and names that it had, or choose another run.name")


def harmless_changes(saved: Config, now: Config) -> dict[str, list[Any]]:
    """What differs and may: {"optim.steps": [300, 500]}, the old value first."""
    then, later = _fields(saved), _fields(now)
    return {path: [then[path], later[path]] for path in then
            if path not in BINDING and "·" not in path and then[path] != later[path]}


def refuse_lone_moments(saved: Checkpoint) -> None:
    """Raise ValueError where AdamW could not take over its moments: each has its like and shape."""
    trained = saved.trained
    for name, tensor in saved.tensors.items():
        kind, _, own = name.partition("/")
        twin = {"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"}.get(kind)
        if twin and (own not in trained or f"{twin}/{own}" not in saved.tensors
                     or tensor.shape != trained[own].shape or "updates" not in saved.tensors):
            raise ValueError(f"{name}: expected beside it {twin} of the same shape and the number "
                             "of updates, got not all of them; use another copy")


def _fields(config: Config) -> dict[str, Any]:
    """Every field by its path, and how many images a step takes."""
    sections = {name: part for name, part in asdict(config).items() if name != "preset"}
    flat = {f"{section}.{name}": value for section, part in sections.items()
            for name, value in part.items()}
    flat["optim.batch · optim.accumulate"] = config.optim.batch * config.optim.accumulate
    return {"preset": config.preset} | flat
