"""What one change of a setting is worth: whole runs beside each other, measured on the same sets.

Every variant is trained from the same seed with the same budget and measured like any other run,
and each part of it is kept: interrupted, a table goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import newest
from ..config import Config
from ..distances import EnhancerLoss, Metrics
from ..errors import refused
from ..faces import REGIONS, Faces
from ..machine import Bar
from ..model import SplatEnhancer
from ..pairs import prepare_pairs
from ..storage import write_whole
from ..training import train
from .run import evaluate_run
from .sets import HeldOut

KINDS = ("drawn", "fitted", "rendered")
Variants = Mapping[str, Mapping[str, Any]]


def transfer_variants(config: Config) -> dict[str, dict[str, Any]]:
    """Each kind of pair alone, and all of them by the config's shares.

    Returns:
        Name → changes to the config, as `Config.with_` takes them.
    """
    alone = {kind: {f"pairs.{other}": float(other == kind) for other in KINDS} for kind in KINDS}
    return alone | {"all": {}}


def ablation_variants(config: Config) -> dict[str, dict[str, Any]]:
    """The run as it is, and one change at a time: what each part of it is worth."""
    steps = [step for step in (12, 199, 999) if step != config.model.timestep]
    return {
        "as it is": {},
        **{f"timestep {step}": {"model.timestep": step} for step in steps},
        "no skips": {"model.skip_dropout": 1.0},  # never trained, they stay almost nothing
        "no skip dropout": {"model.skip_dropout": 0.0},
        **({"no Gram": {"loss.gram": 0.0}} if config.loss.gram else {"Gram": {"loss.gram": 1.0}}),
        "no blur of regions": {f"degrade.{region}": 0.0 for region in REGIONS},
        "no mask": {"model.mask": False},
        **{f"no {kind} pairs": {f"pairs.{kind}": 0.0} for kind in KINDS
           if getattr(config.pairs, kind)}}


def run_variants(config: Config, faces: Faces, folder: Path, variants: Variants, *,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
                 data: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and measure every variant, and write `table.json`.

    Args:
        config: of the run that all variants change; its test sets are everybody's.
        faces: prepared.
        folder: gets a run and a result for each variant; what it has is not made again.
        variants: name → changes.
        device, dtype: where and in what the networks work.
        data: the folder of prepared faces, where fitted pairs and test sets are kept too.
        say: told in one line of each variant.

    Returns:
        Name of the variant → name of the set → summary, as in `metrics.json`.

    Raises:
        ValueError: a change that the config refuses, or a folder with another experiment.
    """
    held_out = HeldOut(config, faces, device=device, folder=data / "held_out")
    table: dict[str, Any] = {}
    for name, changes in variants.items():
        changed = config.with_(changes)
        slug = "".join(c if c.isalnum() else "-" for c in name)
        path = folder / f"{slug}.json"
        wanted = json.loads(json.dumps([asdict(changed), held_out.origin]))
        if path.is_file():
            found = json.loads(path.read_bytes())
            if found["of"] != wanted:
                raise refused(str(path), "a result of these settings", "one of others",
                              "choose another folder, or delete it")
            say(f"{name}: there already")
        else:
            say(f"{name}: {dict(changes) or 'as it is'}")
            started = time.monotonic()
            sets = _run(changed, faces, folder / slug, held_out, device=device, dtype=dtype,
                        data=data, say=say)
            found = {"of": wanted, "sets": sets}
            write_whole(path, json.dumps(found, indent=1, allow_nan=False).encode())
            say(f"{name}: {time.monotonic() - started:.0f} s")
        table[name] = found["sets"]
        write_whole(folder / "table.json", json.dumps(table, indent=1).encode())
    return table


def _run(config: Config, faces: Faces, folder: Path, held_out: HeldOut, *,
         device: torch.device | str, dtype: torch.dtype, data: Path,
         say: Callable[[str], None]) -> dict[str, Any]:
    """One variant: trained to its end from where it stands, and measured."""
    config, seed = config.with_({"run.name": folder.name}), config.run.seed
    sources = prepare_pairs(config, faces, data, device=device)
    model = SplatEnhancer.from_pretrained(config.model, device=device, dtype=dtype, seed=seed)
    loss = EnhancerLoss(config.loss, device=device, dtype=dtype, seed=seed)
    with Bar(total=config.optim.steps, desc="Training", unit="step") as bar:
        for record in train(config, model, faces, loss, folder=folder, sources=sources):
            bar.update(record.step - bar.n)
    saved, _ = newest([folder])
    measured = evaluate_run(config, model, faces, Metrics(config.loss, device=device), held_out,
                            saved, sources=sources, folder=folder / "measured", strengths=False,
                            say=say)
    return {name: {part: of for part, of in result.summary().items() if part != "worst"}
            for name, result in measured.sets.items()}
