"""Which pairs made from single photographs transfer to true splat renders of real heads?

    python -m tools.transfer [--steps 300]      # needs ../shared

A small residual U-Net is trained on 160 photographs at 128 px, once for each mix of kinds of
pairs, and tested on true renders of other people's heads. The shares of the presets `t4` and
`full` follow from the table. Weights learned from people's faces are deleted; the pairs too.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from splat_enhancer.config import DegradationConfig
from splat_enhancer.degradation.pipeline import degrade
from splat_enhancer.degradation.wrong_detail import wrong_detail
from splat_enhancer.gaussians.fit import underfit
from splat_enhancer.losses.metrics import psnr
from splat_enhancer.losses.perceptual import load_lpips, load_stlpips
from tools.build_base import HALF

ROOT = Path(__file__).resolve().parents[1]
SHARED, OUT = ROOT.parent / "shared", ROOT / "results" / "transfer"
SIDE_PX, PHOTOGRAPHS, BATCH = 128, 160, 4
# CelebAMask-HQ's 19 classes as regions: background, skin, eyes, nose, mouth, hair
REGION_OF_CLASS = torch.tensor([0, 1, 3, 2, 2, 2, 1, 1, 1, 1, 4, 4, 4, 5, 0, 0, 0, 1, 0])
MIXES = {  # share of each kind of pairs
    "synthetic": {"synthetic": 1.0},
    "2D fit": {"fit": 1.0},
    "wrong detail": {"wrong_detail": 1.0},
    "synthetic + 2D fit": {"synthetic": 0.5, "fit": 0.5},
    "wrong detail + 2D fit": {"wrong_detail": 0.75, "fit": 0.25},
}
Pairs = tuple[Tensor, Tensor]  # clean and degraded, (N, 3, H, W) in [0, 1]


class Block(nn.Sequential):
    """Two convolutions."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv2d(channels, out_channels, 3, padding=1), nn.SiLU(),
                         nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.SiLU())


class SmallUNet(nn.Module):
    """A residual U-Net of 1.1 M parameters that starts as the identity."""

    def __init__(self, widths: Sequence[int] = (24, 48, 96, 128)) -> None:
        super().__init__()
        self.down = nn.ModuleList(Block(i, o) for i, o in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(Block(low + high, high) for low, high
                                in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → the same, not clamped."""
        hidden, skips = images, []
        for level, block in enumerate(self.down):
            hidden = block(functional.avg_pool2d(hidden, 2) if level else hidden)
            skips.append(hidden)
        hidden = skips.pop()
        for block in self.up:
            enlarged = functional.interpolate(hidden, scale_factor=2, mode="bilinear")
            hidden = block(torch.cat([enlarged, skips.pop()], 1))
        return images + self.last(hidden)


def photographs(count: int) -> tuple[Tensor, Tensor]:
    """Clean (N, 3, H, W) in [0, 1] and regions (N, H, W) of the first photographs."""
    clean, regions = [], []
    for path in tqdm(sorted((SHARED / "faces" / "images").glob("*.jpg"))[:count], desc="Reading"):
        image = Image.open(path).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        mask = Image.open(SHARED / "faces" / "masks" / f"{path.stem}.png").resize(
            (SIDE_PX, SIDE_PX), Image.Resampling.NEAREST)
        clean.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
        regions.append(REGION_OF_CLASS[torch.from_numpy(np.array(mask)).long()].byte())
    return torch.stack(clean), torch.stack(regions)


def make_pairs(kind: str, clean: Tensor, regions: Tensor) -> Pairs:
    """Each photograph degraded twice in one way."""
    parts = []
    for variant in range(2):
        for start in tqdm(range(0, len(clean), 8), desc=f"{kind} {variant + 1}/2"):
            images, labels = clean[start:start + 8], regions[start:start + 8]
            seeds = torch.arange(start, start + len(images)) + 10_000 * variant
            if kind == "synthetic":
                parts.append((images, degrade(images, labels, DegradationConfig(), seeds)))
            elif kind == "fit":
                parts.append((images, underfit(images, seeds)))
            else:
                parts.append(wrong_detail(images, labels > 0, seeds))
    targets, degraded = (torch.cat(side) for side in zip(*parts, strict=True))
    return targets, degraded


def train(mix: dict[str, float], pairs: dict[str, Pairs], steps: int) -> SmallUNet:
    """Train a new network on a mix: L1 and ST-LPIPS-VGG on a random 64-pixel square."""
    torch.manual_seed(0)
    network, rng = SmallUNet(), np.random.default_rng(0)
    vgg = load_stlpips("vgg")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, steps)
    kinds = rng.choice(list(mix), size=(steps, BATCH), p=list(mix.values()))
    for step in tqdm(range(steps), desc=" + ".join(mix)):
        rows = [(kind, rng.integers(len(pairs[kind][0]))) for kind in kinds[step]]
        clean, degraded = (torch.stack([pairs[k][side][i] for k, i in rows]) for side in (0, 1))
        if rng.random() < 0.5:
            clean, degraded = clean.flip(-1), degraded.flip(-1)
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            restored = network(degraded)
        top, left = rng.integers(SIDE_PX - 63, size=2)
        crop = (..., slice(top, top + 64), slice(left, left + 64))
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            perceptual = vgg(restored[crop], clean[crop], normalize=True).mean()
        loss = functional.l1_loss(restored, clean) + 0.1 * perceptual
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def measure(restore: Callable[[Tensor], Tensor], networks: dict[str, nn.Module]) -> dict:
    """Values per true render of a real head: metric → kind of view → mean."""
    heads = np.load(SHARED / "real_heads" / "real_heads_256.npz")
    render, photo = (functional.avg_pool2d(
        torch.from_numpy(heads[name]).permute(0, 3, 1, 2) / 255, 2) for name in ("render", "photo"))
    restored = torch.cat([restore(x[None]).clamp(0, 1) for x in render])
    values = {name: torch.cat([network(a[None], b[None], normalize=True).flatten()
                               for a, b in zip(restored, photo, strict=True)])
              for name, network in networks.items()} | {"psnr": psnr(restored, photo)}
    inside = torch.from_numpy(heads["inside"])
    return {name: {"interpolated": float(value[inside].mean()),
                   "extrapolated": float(value[~inside].mean())} for name, value in values.items()}


def to_markdown(figures: dict[str, dict], steps: int) -> str:
    """The table: gains over the untouched render."""
    views = ("interpolated", "extrapolated")
    columns = "`stlpips_alex`, LPIPS-squeeze, PSNR; half blended with the input"
    lines = [f"| trained on | {' | '.join(f'{view}: {columns}' for view in views)} |",
             "|---|---|---|"]
    start = figures["input"]
    for name, row in figures.items():
        if name == "input" or name.endswith(", half"):
            continue
        cells = []
        for view in views:
            parts = []
            for one in (row, figures[f"{name}, half"]):
                alex, squeeze = (100 * (1 - one[m][view] / start[m][view])
                                 for m in ("stlpips_alex", "lpips_squeeze"))
                gap = one["psnr"][view] - start["psnr"][view]
                parts.append(f"{alex:+.0f} %, {squeeze:+.0f} %, {gap:+.2f} dB")
            cells.append("; half: ".join(parts))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{steps} steps of {BATCH}, one seed, 43 renders of 3 people.\n"


def main() -> None:
    """Train and measure every mix that is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    os.environ["TORCH_HOME"] = str(SHARED / "lpips")
    networks = {"stlpips_alex": load_stlpips("alex"),
                "lpips_squeeze": load_lpips("squeeze", pretrained=True)}
    OUT.mkdir(parents=True, exist_ok=True)
    table = OUT / "table.json"
    figures = json.loads(table.read_text()) if table.exists() else {
        "input": measure(lambda x: x, networks)}
    clean, regions = photographs(PHOTOGRAPHS)
    pairs = {kind: make_pairs(kind, clean, regions)
             for kind in ("synthetic", "fit", "wrong_detail")}
    for name, mix in MIXES.items():
        if name in figures:
            continue
        network = train(mix, pairs, steps)
        figures[name] = measure(network, networks)
        figures[f"{name}, half"] = measure(lambda x, n=network: (x + n(x)) / 2, networks)
        table.write_text(json.dumps(figures, indent=1) + "\n")
        print(to_markdown(figures, steps))
    (OUT / "README.md").write_text(
        "# Pairs from single photographs, tested on true renders of real heads\n\n"
        "`python -m tools.transfer`: a small residual U-Net, trained on 160 photographs of "
        "CelebA-HQ at 128 px with each mix of pairs, tested on true splat renders of other "
        "people's heads. Gains over the untouched render. Weights are deleted, and no picture of "
        f"a person is kept.\n\n{to_markdown(figures, steps)}")


if __name__ == "__main__":
    main()
