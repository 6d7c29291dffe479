"""Train the demo with one change at a time, and measure all on the same pictures.

    python -m tools.ablate [--steps 120] [--only "no skips" "blend none"]

Every row is a `Run` with the same seed and as many steps; interrupted, the same command goes on.
Writes `results/ablate/README.md` and `table.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

from splat_enhancer.config import Config, preset
from splat_enhancer.degradation.effects import REGIONS
from splat_enhancer.environment import progress
from splat_enhancer.evaluation.evaluate import evaluate
from splat_enhancer.evaluation.test_sets import TestSets
from splat_enhancer.files import atomic_write
from splat_enhancer.model.enhancer import SplatEnhancer
from splat_enhancer.run import Run

ROOT = Path(__file__).resolve().parents[1]
AS_IT_IS, BYPASSED, UNTRAINED = "as it is", "as it is, UNet bypassed", "trained without the UNet"
PAGE = """# One change at a time

Every row is a run of {steps} steps with the same seed, measured on the same pictures: gain in
`stlpips_alex` over the input, and change in PSNR; intervals in `table.json`. Where the UNet is
bypassed, the decoder gets the encoder's latent. Made by `python -m tools.ablate`.

{table}
"""


def variants(config: Config) -> dict[str, dict[str, Any]]:
    """Name → changes to the config."""
    blends = get_args(get_type_hints(Config)["blend"])
    return {
        AS_IT_IS: {}, BYPASSED: {}, UNTRAINED: {},
        **{f"timestep {step}": {"timestep": step} for step in (1, 249, 999)
           if step != config.timestep},
        "no skips": {"skip_dropout": 1.0},  # never trained, they stay almost nothing
        "no skip dropout": {"skip_dropout": 0.0},
        **{f"blend {blend}": {"blend": blend} for blend in blends if blend != config.blend},
        **{f"no {kind} pairs": {f"weight_{kind}": 0.0}
           for kind, weight in config.pair_weights.items() if 0 < weight < 1},
        "no blur of regions": {f"degradation.{region}": 0.0 for region in REGIONS}}


def bypass_unet(model: SplatEnhancer) -> None:
    """Let the UNet predict the noise with which the single step returns its latent unchanged."""
    share = (1 - math.sqrt(model.alpha_bar)) / math.sqrt(1 - model.alpha_bar)
    model.unet.forward = lambda latent, *_, **__: SimpleNamespace(sample=share * latent)


def ablate(config: Config, only: Sequence[str], *, work: Path, out: Path) -> dict[str, Any]:
    """Train and measure variants, all of them if not `only` some: name → set → gains."""
    base, baseline, file = Run(config, output_dir=work), None, out / "table.json"
    test_sets = TestSets(config, base.faces, base.pairs, device=base.environment.device,
                         folder=base.data_folder / "held_out")
    table = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    table = {name: sets for name, sets in table.items() if list(sets) == list(test_sets)}
    for name, changes in variants(config).items():
        if only and name not in only:
            continue
        run_name = re.sub(r"\W+", "-", AS_IT_IS if name == BYPASSED else name)
        run = Run(config.replace(**changes, run_name=run_name), output_dir=work)
        if name == UNTRAINED:
            bypass_unet(run.model)
        for _ in progress(run.train(), total=config.max_train_steps, desc=name, unit="step"):
            pass
        saved = run.latest()
        if name == BYPASSED:
            bypass_unet(run.model)
        evaluation = evaluate(run.model, test_sets, run.metrics, baseline=baseline, step=saved.step,
                              folder=run.folder / ("bypassed" if name == BYPASSED else "measured"))
        baseline, summary = evaluation.baseline, evaluation.summary()["sets"]
        table[name] = {key: {"n": of_set["n"], "gain": {  # of whole pictures, not of regions
            metric: gain for metric, gain in of_set["gain"].items() if "/" not in metric}}
            for key, of_set in summary.items()}
        atomic_write(file, (json.dumps(table, indent=1) + "\n").encode())
        page = PAGE.format(steps=config.max_train_steps, table=to_markdown(table))
        atomic_write(out / "README.md", page.encode())
    return table


def to_markdown(table: dict[str, Any]) -> str:
    """A row for each variant, a column for each set."""
    names = list(next(iter(table.values())))
    lines = [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for variant, sets in table.items():
        gains = [sets[name]["gain"] for name in names]
        cells = [f"{gain['stlpips_alex']['mean']:+.1f} %, {gain['psnr']['mean']:+.2f} dB"
                 if {"stlpips_alex", "psnr"} <= gain.keys() else "–" for gain in gains]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Ablate the preset demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--only", nargs="+", default=(), choices=variants(preset("demo")))
    args = parser.parse_args()
    print(to_markdown(ablate(
        preset("demo").replace(max_train_steps=args.steps), args.only,
        work=ROOT / "work" / f"ablate-{args.steps}", out=ROOT / "results" / "ablate")))


if __name__ == "__main__":
    main()
