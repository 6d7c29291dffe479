"""The demo's enhancer trained and measured on real photographs with true masks.

    python -m tests.measure_photographs [folder]      # needs ../shared; goes on where it stopped

300 steps at 128 pixels on 160 photographs, measured on 24 others and on all further sets, by
LPIPS (SqueezeNet, real weights), too. In the folder (`runs/photographs`) lie the figures and the
report; the weights, learned from people's faces, are deleted at the end.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from helpers import config as settings
from helpers.__main__ import ROOT
from helpers.checkpoints import newest
from helpers.distances import EnhancerLoss, Metrics
from helpers.distances.perceptual import load_lpips
from helpers.evaluation import HeldOut, evaluate_run, format_sets, format_table, write_metrics
from helpers.faces import prepare
from helpers.machine import Bar
from helpers.model import SplatEnhancer
from helpers.pairs import prepare_pairs
from helpers.training import train
from helpers.views import write_report

SHARED = ROOT.parent / "shared"
CHANGES = {"data.source": str(SHARED / "faces" / "images"), "data.train_images": 160,
           "data.test_images": 24, "data.fitted_images": 24, "data.strength_images": 8,
           "run.name": "photographs"}


def measure(folder: Path) -> None:
    """Train from where the run stands, measure it, write figures and report, print the tables."""
    os.environ["TORCH_HOME"] = str(SHARED / "lpips")
    config = settings.preset("demo").with_(CHANGES)
    faces = prepare(config.data, folder / "data", seed=config.run.seed)
    sources = prepare_pairs(config, faces, folder / "data")
    model = SplatEnhancer.from_pretrained(config.model, device="cpu", caches=[folder],
                                          seed=config.run.seed)
    loss = EnhancerLoss(config.loss, device="cpu", seed=config.run.seed)
    started = time.monotonic()
    with Bar(total=config.optim.steps, desc="Training", unit="step") as bar:
        for record in train(config, model, faces, loss, folder=folder / "run", sources=sources):
            bar.update(record.step - bar.n)
    print(f"trained in {time.monotonic() - started:.0f} s")
    metrics = Metrics(config.loss, device="cpu")
    metrics.networks["lpips_squeeze"] = load_lpips("squeeze", pretrained=True)
    saved, _ = newest([folder / "run"])
    held_out = HeldOut(config, faces, device="cpu", folder=folder / "data" / "held_out")
    measured = evaluate_run(config, model, faces, metrics, held_out, saved, sources=sources,
                            folder=folder / "measured")
    write_metrics(folder / "results", measured)
    write_report(folder / "results", measured)
    print(format_sets(measured.sets), *measured.notes(), sep="\n\n")
    for name, result in measured.sets.items():
        print(f"\n{name}: {format_table(result)}")
    for weights in (folder / "run").glob("*.safetensors"):
        weights.unlink()


if __name__ == "__main__":
    measure(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "photographs")
