"""Synthetic degradation: clean faces in, faces with the defects of a Gaussian-splat render out.

Every stage has random numbers of its own, drawn per sample: neither the neighbours in a batch nor
the other stages change a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import DegradationConfig
from ..gaussians.rasterizer import drawing_device
from ..gaussians.rng import SeededRandom
from ..images import check_images
from . import effects
from .effects import REGIONS, Amounts
from .splat_effects import DEFECTS, resplat


class Stage(NamedTuple):
    """One named step of the pipeline."""

    name: str  # key of its picture in a `Preview` and of its random numbers
    amounts: tuple[str, ...]  # fields of `DegradationConfig`; where all are 0, it is skipped
    apply: Callable[[Tensor, Tensor, Amounts, SeededRandom], Tensor]  # see `effects`


STAGES = (
    Stage("regions", REGIONS, effects.blur_regions),
    Stage("splat", DEFECTS, resplat),
    Stage("warp", ("warp",), effects.warp),
    Stage("surface_blur", ("surface_blur",), effects.blur_surface),
    Stage("brightness", ("brightness",), effects.drift_brightness),
    Stage("color_jitter", ("color_jitter",), effects.jitter_color),
    Stage("desaturation", ("desaturation",), effects.desaturate),
    Stage("blur", ("blur",), effects.blur_all),
    Stage("downscale", ("downscale",), effects.lose_resolution),
    Stage("blocks", ("blocks",), effects.add_blocks),
    Stage("ghosting", ("ghosting",), effects.add_ghost),
    Stage("noise", ("noise",), effects.add_noise),
)
AMOUNTS = tuple(name for stage in STAGES for name in stage.amounts)
# Named degradations: what differs from the defaults, in the order of AMOUNTS
DEGRADATION_PRESETS: dict[str, dict[str, float]] = {
    "light": dict(zip(AMOUNTS, (
        0.15, 0.25, 0.4, 0.3, 0.45, 0.3, 0.1, 0.05, 0.1, 0.15, 0.1, 0.2, 0.15, 0.1,
        0.1, 0.1, 0.15, 0.15, 0.05, 0.0, 0.0, 0.0, 0.15, 0.0), strict=True)),
    "medium": {},
    "heavy": dict(zip(AMOUNTS, (
        0.5, 0.7, 1.0, 0.8, 1.0, 0.8, 0.7, 0.3, 0.6, 0.6, 0.6, 0.8, 0.7, 0.5,
        0.4, 0.2, 0.5, 0.5, 0.2, 0.1, 0.1, 0.1, 0.5, 0.1), strict=True)),
    "splat": dict.fromkeys(AMOUNTS, 0.0) | dict(zip(
        DEFECTS, (0.5, 0.2, 0.5, 0.5, 0.5, 0.7, 0.6, 0.4), strict=True)),
}


def degradation_preset(name: str) -> DegradationConfig:
    """The settings of a named degradation, a key of `DEGRADATION_PRESETS`."""
    if name not in DEGRADATION_PRESETS:
        raise ValueError(f"degradation preset: expected one of {', '.join(DEGRADATION_PRESETS)}, "
                         f"got {name}; pick one of them")
    return DegradationConfig(**DEGRADATION_PRESETS[name])


@torch.no_grad()
def degrade(clean: Tensor, regions: Tensor, settings: DegradationConfig, seeds: Tensor, *,
            amounts: Tensor | None = None) -> Tensor:
    """Degrade faces as splat renders are degraded.

    On CUDA all at once; else one by one on the CPU, bit for bit the same alone or in any batch.

    Args:
        clean: float32 (B, 3, H, W) in [0, 1]; so is what is returned.
        regions: uint8 (B, H, W), indices into `REGIONS`.
        settings: the amounts; all 0 returns the input bit for bit.
        seeds: int64 (B,); each sample depends on its own seed only.
        amounts: float32 (B, len(AMOUNTS)) in [0, 1], see `draw_amounts`; without it those of the
            settings, times `settings.strength`, for all.
    """
    _check(clean, regions, seeds)
    amounts = _scaled(settings, len(seeds)) if amounts is None else amounts.cpu()
    degraded = torch.empty_like(clean, memory_format=torch.contiguous_format)
    device = drawing_device(clean.device)
    step = 1 if device.type == "cpu" else len(clean)
    for rows in (slice(i, i + step) for i in range(0, len(clean), step)):
        image, parts = clean[rows].to(device), regions[rows].to(device)
        named = _named(amounts[rows], settings.variation, device)
        for stage in STAGES:
            image = _apply(stage, image, parts, named, seeds[rows].tolist())
        degraded[rows] = image
    return degraded


def draw_amounts(settings: DegradationConfig, seeds: Tensor) -> Tensor:
    """Draw the amounts (B, len(AMOUNTS)) of training samples, each by its own seed, for `degrade`.

    A sample is left clean with probability `clean_share`; else it gets a strength from
    [strength_min, 1] · strength, and of each amount a share from [amount_min, 1].
    """
    numbers = SeededRandom(seeds.tolist(), "amounts", seeds.device).uniform(2 + len(AMOUNTS))
    strength = settings.strength_min + (1 - settings.strength_min) * numbers[:, 1:2]
    shares = settings.amount_min + (1 - settings.amount_min) * numbers[:, 2:]
    degraded = numbers[:, :1] >= settings.clean_share
    return _scaled(settings, len(seeds)).to(numbers.device) * strength * shares * degraded


@torch.no_grad()
def variation_mask(regions: Tensor, settings: DegradationConfig, seeds: Tensor) -> Tensor:
    """The patchy mask (B, H, W) in [0, 1] that multiplies the regional blur, as an overlay."""
    contrast = torch.tensor(settings.variation, device=regions.device)
    masks = [effects.vary(part, contrast, SeededRandom([seed], "regions", regions.device))
             for part, seed in zip(regions.split(1), seeds.tolist(), strict=True)]
    return torch.cat(masks)[:, 0]


class Preview:
    """The pictures of one sample after every stage; a call computes only what has changed since."""

    def __init__(self, clean: Tensor, regions: Tensor) -> None:
        _check(clean, regions, torch.zeros(1, dtype=torch.int64))
        self.clean, self.regions = clean, regions
        self._cache: list[tuple[tuple, Tensor]] = []  # of each stage: its causes, its picture

    @torch.no_grad()
    def __call__(self, settings: DegradationConfig, seed: int) -> dict[str, Tensor]:
        """Stage name → (1, 3, H, W), not to be changed, from "clean" by STAGES to "degraded"."""
        amounts = _named(_scaled(settings, 1), settings.variation, self.clean.device)
        pictures, image = {"clean": self.clean}, self.clean
        for number, stage in enumerate(STAGES):
            values = [float(amounts.on_cpu[name]) for name in stage.amounts]
            causes = (seed, settings.variation, *values) if any(values) else ()
            if self._cache[number:] and self._cache[number][0] == causes:
                image = self._cache[number][1]
            else:
                image = _apply(stage, image, self.regions, amounts, [seed])
                self._cache[number:] = [(causes, image)]  # what follows it is dropped
            pictures[stage.name] = image
        return pictures | {"degraded": image}


def _apply(stage: Stage, image: Tensor, regions: Tensor, amounts: Amounts,
           seeds: Sequence[int]) -> Tensor:
    used = torch.stack([amounts.on_cpu[name] > 0 for name in stage.amounts]).any(0)
    if not used.any():
        return image
    changed = stage.apply(image, regions, amounts, SeededRandom(seeds, stage.name, image.device))
    if changed.data_ptr() != image.data_ptr():  # what has not been computed needs no clamp
        changed.clamp_(0, 1)
    if used.all():
        return changed
    used = torch.cat([amounts[name] > 0 for name in stage.amounts], 1).any(1, keepdim=True)
    return torch.where(used, changed, image)


def _named(amounts: Tensor, variation: float, device: torch.device) -> Amounts:
    columns = dict(zip(AMOUNTS, amounts.unbind(1), strict=True))
    return Amounts(columns | {"variation": torch.full((len(amounts),), variation)}, device)


def _scaled(settings: DegradationConfig, count: int) -> Tensor:
    values = [getattr(settings, name) * settings.strength for name in AMOUNTS]
    return torch.tensor(values, dtype=torch.float32).expand(count, -1)


def _check(clean: Tensor, regions: Tensor, seeds: Tensor) -> None:
    check_images("clean", clean)
    if clean.dtype != torch.float32:
        raise ValueError(f"clean: expected float32, got {clean.dtype}; convert it")
    expected = {"regions": (regions, torch.uint8, (len(clean), *clean.shape[2:])),
                "seeds": (seeds, torch.int64, (len(clean),))}
    for name, (tensor, dtype, shape) in expected.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {dtype} {shape}, got {tensor.dtype} "
                             f"{tuple(tensor.shape)}; pass one for each image, of its size")
    if (largest := int(regions.max())) >= len(REGIONS):
        raise ValueError(f"regions: expected values 0 to {len(REGIONS) - 1}, got {largest}; "
                         "map the parser's labels by name")
