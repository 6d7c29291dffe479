"""Synthetic degradation: clean faces in, faces with the defects of a Gaussian-splat render out.

Every stage has random numbers of its own, drawn per sample: neither the neighbours in a batch nor
the other stages change a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import DegradeConfig
from ..faces import REGIONS
from ..pictures import check_images
from ..splats import Draws, drawing_device
from . import effects
from .resplat import DEFECTS, resplat


@dataclass(frozen=True)
class Stage:
    """One named step of the pipeline."""

    name: str  # key of its picture in a `Preview` and of its random numbers
    amounts: tuple[str, ...]  # fields of `DegradeConfig` that drive it; all 0, and it is skipped
    apply: Callable[[Tensor, Tensor, effects.Amounts, Draws], Tensor]  # see `effects`
    varies: bool = False  # whether `DegradeConfig.variation` matters to it


STAGES = (
    Stage("regions", REGIONS, effects.blur_regions, varies=True),
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
GROUPS = {stage.name: (*stage.amounts, *(("variation",) if stage.varies else ()))
          for stage in STAGES if len(stage.amounts) > 1}  # those with a picture of their own


@torch.no_grad()
def degrade(clean: Tensor, regions: Tensor, settings: DegradeConfig, seeds: Tensor, *,
            amounts: Tensor | None = None) -> Tensor:
    """Damage faces as splat renders are damaged.

    On CUDA all at once; else one by one on the CPU, bit for bit the same alone or in any batch.

    Args:
        clean: float32 (B, 3, H, W) in [0, 1].
        regions: uint8 (B, H, W), indices into `REGIONS`.
        settings: the amounts; all 0 returns the input bit for bit.
        seeds: int64 (B,); each sample depends on its own seed only.
        amounts: float32 (B, len(AMOUNTS)) in [0, 1], see `draw_amounts`; without it those of the
            settings, times `settings.strength`, for all.

    Returns:
        Degraded images: shape, dtype and device of `clean`, in [0, 1].

    Raises:
        ValueError: a wrong shape, dtype or range.
    """
    _check_clean(clean, regions)
    _check_regions(regions, seeds)
    amounts = _scaled(settings, len(seeds)) if amounts is None else amounts.cpu()
    degraded = torch.empty_like(clean, memory_format=torch.contiguous_format)
    home = drawing_device(clean.device)
    step = 1 if home.type == "cpu" else len(clean)
    for own in (slice(i, i + step) for i in range(0, len(clean), step)):
        degraded[own] = degrade_batch(clean[own].to(home), regions[own].to(home), amounts[own],
                                      settings.variation, seeds[own].tolist())
    return degraded


@torch.no_grad()
def degrade_batch(image: Tensor, regions: Tensor, amounts: Tensor, variation: float,
                  seeds: Sequence[int]) -> Tensor:
    """Run all stages on a whole batch at once, unchecked: what `degrade` is made of.

    Shapes as there, amounts on the CPU. Where no sample has any amount, it returns `image` itself.
    """
    named = _named(amounts, variation, image.device)
    for stage in STAGES:
        image = _apply(stage, image, regions, named, seeds)
    return image


def draw_amounts(settings: DegradeConfig, seeds: Tensor) -> Tensor:
    """Draw the damage of training samples, each by its own seed.

    Args:
        settings: a sample is left clean with probability `clean_share`; else it gets a strength
            from [strength_min, 1] · strength, and of each amount a share from [amount_min, 1].
        seeds: int64 (B,).

    Returns:
        float32 (B, len(AMOUNTS)) in [0, 1], for `degrade`.
    """
    dice = Draws(seeds.tolist(), "amounts", seeds.device).uniform(2 + len(AMOUNTS))
    strength = settings.strength_min + (1 - settings.strength_min) * dice[:, 1:2]
    shares = settings.amount_min + (1 - settings.amount_min) * dice[:, 2:]
    damaged = dice[:, :1] >= settings.clean_share
    return _scaled(settings, len(seeds)).to(dice.device) * strength * shares * damaged


@torch.no_grad()
def variation_mask(regions: Tensor, settings: DegradeConfig, seeds: Tensor) -> Tensor:
    """The patchy mask that multiplies the regional blur, as an overlay.

    Args:
        regions: uint8 (B, H, W).
        settings: only `variation` counts; 0 gives a mask of ones.
        seeds: int64 (B,), as for `degrade`.

    Returns:
        float32 (B, H, W) in [0, 1]; every region of every sample has its own pattern.
    """
    _check_regions(regions, seeds)
    contrast = torch.tensor(settings.variation, device=regions.device)
    return torch.cat([effects.vary(parts, contrast, Draws([seed], "regions", regions.device))[:, 0]
                      for parts, seed in zip(regions.split(1), seeds.tolist(), strict=True)])


class Preview:
    """The pictures of one sample after every stage; a new call computes only what has changed.

    Args:
        clean: float32 (1, 3, H, W) in [0, 1].
        regions: uint8 (1, H, W).

    Raises:
        ValueError: a wrong shape, dtype or range.
    """

    def __init__(self, clean: Tensor, regions: Tensor) -> None:
        _check_clean(clean, regions)
        _expect(len(clean) == 1, "clean", "one image", clean, "preview them one by one")
        _check_regions(regions, torch.zeros(1, dtype=torch.int64))
        self.clean, self.regions = clean.clone(), regions.clone()
        self._causes: list[tuple | None] = []  # what each stage's picture follows from
        self._pictures: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, settings: DegradeConfig, seed: int) -> dict[str, Tensor]:
        """Stage name → (1, 3, H, W), in order: "clean", every name in `STAGES`, "degraded".

        The pictures are kept for the next call: look at them, but do not change them.
        """
        amounts, image = _scaled(settings, 1), self.clean
        named = _named(amounts, settings.variation, image.device)
        for place, stage in enumerate(STAGES):
            cause = _cause(stage, amounts, settings.variation, seed)
            if self._causes[place:place + 1] != [cause]:
                del self._causes[place:], self._pictures[place:]
                self._pictures.append(
                    _apply(stage, image, self.regions, named, [seed]))
                self._causes.append(cause)
            image = self._pictures[place]
        names = [stage.name for stage in STAGES]
        return {"clean": self.clean, **dict(zip(names, self._pictures, strict=True)),
                "degraded": image}


def _named(amounts: Tensor, variation: float, device: torch.device) -> effects.Amounts:
    columns = dict(zip(AMOUNTS, amounts.unbind(1), strict=True))
    return effects.Amounts(columns | {"variation": torch.full((len(amounts),), variation)}, device)


def _apply(stage: Stage, image: Tensor, regions: Tensor, amounts: effects.Amounts,
           seeds: Sequence[int]) -> Tensor:
    used = torch.stack([amounts.known[name] > 0 for name in stage.amounts]).any(0)
    if not used.any():
        return image
    changed = stage.apply(image, regions, amounts, Draws(seeds, stage.name, image.device))
    if changed.data_ptr() != image.data_ptr():  # what has not been computed needs no clamp
        changed.clamp_(0, 1)
    if used.all():
        return changed
    used = torch.cat([amounts[name] > 0 for name in stage.amounts], 1).any(1, keepdim=True)
    return torch.where(used, changed, image)


def _cause(stage: Stage, amounts: Tensor, variation: float, seed: int) -> tuple | None:
    own = tuple(_amounts_of(stage, amounts)[0].tolist())
    return (seed, own, variation if stage.varies else None) if any(own) else None


def _amounts_of(stage: Stage, amounts: Tensor) -> Tensor:
    return amounts[:, [AMOUNTS.index(name) for name in stage.amounts]]


def _scaled(settings: DegradeConfig, count: int) -> Tensor:
    values = [getattr(settings, name) * settings.strength for name in AMOUNTS]
    return torch.tensor(values, dtype=torch.float32).expand(count, -1)


def _check_clean(clean: Tensor, regions: Tensor) -> None:
    _expect(clean.ndim == 4 and clean.shape[1] == 3 and clean.numel() > 0
            and clean.dtype == torch.float32,
            "clean", "float32 (B, 3, H, W)", clean, "convert the images to RGB float")
    _expect(regions.shape == (len(clean), *clean.shape[2:]) and regions.device == clean.device,
            "regions", f"{(len(clean), *clean.shape[2:])} on {clean.device}", regions,
            "pass one map per image, of its size")
    check_images(clean, "clean")


def _check_regions(regions: Tensor, seeds: Tensor) -> None:
    _expect(regions.ndim == 3 and regions.dtype == torch.uint8 and regions.numel() > 0,
            "regions", "uint8 (B, H, W)", regions, "use data.py's region maps")
    _expect(seeds.shape == regions.shape[:1] and seeds.dtype == torch.int64,
            "seeds", f"int64 ({len(regions)},)", seeds, "pass one seed per image")
    most = int(regions.max())
    _expect(most < len(REGIONS), "regions", f"values 0 to {len(REGIONS) - 1}", most,
            "map the parser's labels by name")


def _expect(right: bool, name: str, expected: str, got: object, remedy: str) -> None:
    if not right:
        if isinstance(got, Tensor):
            got = f"{got.dtype} {tuple(got.shape)} on {got.device}"
        raise ValueError(f"{name}: expected {expected}, got {got}; {remedy}")
