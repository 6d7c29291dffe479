"""What training on each kind of pair is worth on each kind of damage: the transfer table.

Every variant is a whole run from the same seed with the same budget, trained and measured like any
other, and each part of it is kept: interrupted, the table goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..distances import EnhancerLoss, Metrics
from ..errors import refused
from ..faces import Faces
from ..machine import Bar
from ..model import SplatEnhancer
from ..pairs import prepare_pairs
from ..storage import write_whole
from ..training import train
from .results import evaluate
from .sets import HeldOut

KINDS = ("drawn", "fitted", "rendered")
Variants = Mapping[str, Mapping[str, Any]]


def standard_variants(config: Config) -> dict[str, dict[str, Any]]:
    """What is compared: each kind of pair alone, all of them, and one change at a time.

    Returns:
        Name → changes to the config, as `Config.with_` takes them.
    """
    alone = {kind: {f"pairs.{other}": float(other == kind) for other in KINDS} for kind in KINDS}
    other_step = 199 if config.model.timestep != 199 else 999
    return alone | {"all": {}, "all, no mask": {"model.mask": False},
                    f"all, timestep {other_step}": {"model.timestep": other_step},
                    "all, timestep 999": {"model.timestep": 999}}


def transfer(config: Config, faces: Faces, folder: Path, *, variants: Variants | None = None,
             device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
             data: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and measure every variant, and write `table.json`.

    Args:
        config: of the run that all variants change.
        faces: prepared.
        folder: gets a run and a result for each variant; what it has is not made again.
        variants: name → changes; None is `standard_variants`.
        device, dtype: where and in what the networks work.
        data: the folder of prepared faces, where fitted pairs are kept too.
        say: told in one line of each variant.

    Returns:
        Name of the variant → name of the set → summary, as in `metrics.json`.

    Raises:
        ValueError: a change that the config refuses, or a folder with another experiment.
    """
    table: dict[str, Any] = {}
    variants = standard_variants(config) if variants is None else variants
    for name, changes in variants.items():
        changed = config.with_(changes)
        slug = "".join(c if c.isalnum() else "-" for c in name)
        path = folder / f"{slug}.json"
        wanted = json.loads(json.dumps(asdict(changed)))
        if path.is_file():
            found = json.loads(path.read_bytes())
            if found["config"] != wanted:
                raise refused(str(path), "a result of these settings", "one of others",
                              "choose another folder, or delete it")
            say(f"{name}: there already")
        else:
            say(f"{name}: {changes or 'as it is'}")
            sets = _run(changed, faces, folder / slug, device=device, dtype=dtype, data=data)
            found = {"config": wanted, "sets": sets}
            write_whole(path, json.dumps(found, indent=1).encode())
        table[name] = found["sets"]
    write_whole(folder / "table.json", json.dumps(table, indent=1).encode())
    return table


def _run(config: Config, faces: Faces, folder: Path, *, device: torch.device | str,
         dtype: torch.dtype, data: Path) -> dict[str, Any]:
    """One variant: trained to its end from where it stands, and measured."""
    seed = config.run.seed
    sources = prepare_pairs(config, faces, data, device=device)
    model = SplatEnhancer.from_pretrained(config.model, device=device, dtype=dtype, seed=seed)
    loss = EnhancerLoss(config.loss, device=device, dtype=dtype, seed=seed)
    with Bar(total=config.optim.steps, desc="Training", unit="step") as bar:
        for record in train(config, model, faces, loss, folder=folder, sources=sources):
            bar.update(record.step - bar.n)
    held_out = HeldOut(config, faces, device=device, folder=data / "transfer-fitted")
    metrics = Metrics(config.loss, device=device)
    with model.merged():
        return {name: evaluate(model.enhance, pairs, metrics).summary()
                for name, pairs in held_out.items()}


def format_transfer(table: Mapping[str, Any], metric: str = "stlpips_alex") -> str:
    """The table in Markdown: gain in the metric and difference in PSNR, a row per variant.

    Args:
        table: from `transfer`.
        metric: a distance.
    """
    sets = list(next(iter(table.values())))
    rows = [["trained on", *sets], ["---"] * (1 + len(sets))]
    for name, results in table.items():
        rows.append([name, *(_cell(results[each], metric) for each in sets)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(summary: Mapping[str, Any], metric: str) -> str:
    """Gain and PSNR difference; where nothing was degraded, what came out."""
    if metric in summary["gain"]:
        return (f"{summary['gain'][metric]['mean']:+.0f} %, "
                f"{summary['gain']['psnr']['mean']:+.2f} dB")
    restored = summary["restored"]
    return f"{restored[metric]['mean']:.3f}, {restored['psnr']['mean']:.1f} dB"
