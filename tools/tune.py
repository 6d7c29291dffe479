"""Tune the shipped enhancer to one person, once with sane settings and once with wrong ones.

    python -m tools.tune    # a procedural head that no training saw; results/tuning.json

Each time the held-out photographs decide whether the tuned enhancer is exported.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from splat_enhancer.config import preset
from splat_enhancer.run import Run
from tools.heads.fit import fit_head
from tools.heads.pairs import SETS, render_pairs
from tools.heads.recipes import draw_recipe

ROOT = Path(__file__).resolve().parents[1]
IDENTITY, VIEWS = SETS["test"] + 500, 48
SETTINGS = {"sane": {"learning_rate": 1e-4, "max_train_steps": 150},
            "wrong": {"learning_rate": 2e-2, "max_train_steps": 30}}


def write_pairs(folder: Path, degraded: np.ndarray, clean: np.ndarray) -> None:
    """Write uint8 (N, H, W, 3) as own pairs: renders/ and photos/ of equal names."""
    for part, pictures in (("renders", degraded), ("photos", clean)):
        (folder / part).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / part / f"{number:03d}.png")


def tune(pairs: Path, work: Path, name: str) -> dict[str, object]:
    """Train on a folder of own pairs, and say what became of it."""
    config = preset("demo").replace(
        run_name=name, init_from="shipped", own_pairs=str(pairs), weight_own=1.0,
        weight_synthetic=0.0, weight_wrong_detail=0.0, weight_fit=0.0, weight_novel_view=0.0,
        resolution=128, own_held_out=0.25, validation_steps=10_000, **SETTINGS[name])
    run, started = Run(config, output_dir=work), time.monotonic()
    for _ in run.train():
        pass
    try:
        run.export()
        exported, message = True, run._check_tuned()
    except ValueError as error:
        exported, message = False, str(error)
    print(f"{name}: {message}", flush=True)
    return {"settings": SETTINGS[name], "pairs_trained_on": len(run.pairs.own.train),
            "exported": exported, "message": message, "seconds": round(time.monotonic() - started)}


def main() -> None:
    """Tune twice, and write the figures."""
    torch.set_num_threads(1)
    recipe = draw_recipe(IDENTITY)
    pairs = render_pairs(recipe, fit_head(recipe), 128, VIEWS)
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder) / "pairs", pairs["degraded"], pairs["clean"])
        outcomes = {name: tune(Path(folder) / "pairs", Path(folder), name) for name in SETTINGS}
    text = json.dumps({"head": IDENTITY, "views": VIEWS} | outcomes, indent=2)
    (ROOT / "results" / "tuning.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
