"""Synthetic degradation: clean faces in, faces with the defects of a Gaussian-splat render out.

Lengths are shares of the image side and random fields are drawn on grids of fixed size, so one seed
looks the same at 128 and at 512 pixels. Samples are processed one by one and every stage has its
own generator: neither the neighbours in a batch nor the other stages change a result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .config import DegradeConfig
from .regions import REGIONS

BLUR = (0.020, 0.010, 0.015, 0.018, 0.016, 0.006)  # Gaussian width at amount 1, share of the side
SMEAR = (0.0, 0.0, 0.8, 0.3, 0.8, 1.5)  # weight at amount 1 of the smear along edges and strands
FIELD_SIZE = 64  # smooth random fields are drawn on this grid
DETAIL_SIZE = 256  # masks, smears and blotches are computed at about this side; nobody sees it


@dataclass(frozen=True)
class Stage:
    """One named step of the pipeline.

    Args:
        name: key of its picture in `stages` and of its random numbers.
        amounts: the fields of `DegradeConfig` that drive it; with all of them 0 it is skipped.
        apply: `(image (1, 3, H, W), regions (1, H, W), settings, generator) -> image`.
    """

    name: str
    amounts: tuple[str, ...]
    apply: Callable[[Tensor, Tensor, DegradeConfig, Generator], Tensor]


@torch.no_grad()
def degrade(clean: Tensor, regions: Tensor, settings: DegradeConfig, seeds: Tensor, *,
            strengths: Tensor | None = None) -> Tensor:
    """Damage faces as splat renders are damaged.

    Args:
        clean: float32 (B, 3, H, W) in [0, 1].
        regions: uint8 (B, H, W), indices into `REGIONS`.
        settings: the amounts; all 0 returns the input bit for bit.
        seeds: int64 (B,); each sample depends on its own seed only.
        strengths: (B,) in [0, 1], see `sample_strengths`; without it `settings.strength` for all.

    Returns:
        Degraded images: shape, dtype and device of `clean`, in [0, 1].

    Raises:
        ValueError: a wrong shape, dtype or range.
    """
    _check_clean(clean, regions)
    _check_regions(regions, seeds)
    knobs = [settings.strength] * len(seeds) if strengths is None else strengths.tolist()
    right_shape = strengths is None or strengths.shape == seeds.shape
    _expect(right_shape and all(0 <= knob <= 1 for knob in knobs), "strengths",
            f"{len(seeds)} values in [0, 1]", knobs, "use sample_strengths")
    samples = zip(clean.split(1), regions.split(1), knobs, seeds.tolist(), strict=True)
    return torch.cat([_run(image, parts, scale_amounts(settings, knob), seed)["degraded"]
                      for image, parts, knob, seed in samples])


@torch.no_grad()
def stages(clean: Tensor, regions: Tensor, settings: DegradeConfig, seed: int) -> dict[str, Tensor]:
    """Keep the picture after every stage of `degrade`, for the preview.

    Args:
        clean: float32 (1, 3, H, W) in [0, 1].
        regions: uint8 (1, H, W).
        settings: the amounts, scaled by `settings.strength`.
        seed: the sample's seed.

    Returns:
        Stage name → (1, 3, H, W), in order: "clean", every name in `STAGES`, "degraded".
    """
    _check_clean(clean, regions)
    _check_regions(regions, torch.tensor([seed]))
    return _run(clean, regions, scale_amounts(settings, settings.strength), seed)


def sample_strengths(settings: DegradeConfig, seeds: Tensor) -> Tensor:
    """Draw each sample's strength from [strength_min, 1] · strength, by its seed: float32 (B,)."""
    shares = [torch.rand((), generator=_generator(seed, "strength")) for seed in seeds.tolist()]
    low = settings.strength_min
    return (settings.strength * (low + (1 - low) * torch.tensor(shares))).to(seeds.device)


def scale_amounts(settings: DegradeConfig, strength: float) -> DegradeConfig:
    """Multiply every amount by a strength; the contrast `variation` is no amount."""
    names = [name for stage in STAGES for name in stage.amounts]
    scaled = {name: getattr(settings, name) * strength for name in names}
    return dataclasses.replace(settings, strength=1.0, strength_min=0.0, **scaled)


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
    samples = zip(regions.split(1), seeds.tolist(), strict=True)
    return torch.cat([_vary(parts, settings.variation, _generator(seed, "regions"))[:, 0]
                      for parts, seed in samples])


def blur_regions(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """Smear and blur each region by its own amount, patchily.

    The maps of width and weight carry the feathered masks, so outside them nothing changes.
    """
    factor = max(1, min(image.shape[2:]) // DETAIL_SIZE)
    coarse = regions[:, ::factor, ::factor]
    amounts = _vary(coarse, settings.variation, rng) * _look_up(
        coarse, [getattr(settings, name) for name in REGIONS])
    sigma = _feather(amounts * _look_up(coarse, BLUR)) * min(image.shape[2:])
    weight = _feather(amounts * _look_up(coarse, SMEAR)).clamp(max=1)
    smeared = _smear(_resize(image, coarse.shape[1:]), length=0.04)
    image = image.lerp(_resize(smeared, image.shape[2:]), _resize(weight, image.shape[2:]))
    return _blur(image, _resize(sigma, image.shape[2:]))


def warp(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """Move the picture along a smooth flow, as misplaced Gaussians do."""
    flow = (_noise(rng, 2, 5) + 0.4 * _noise(rng, 2, 12)).to(image.device)
    flow = _resize(flow, image.shape[2:]).permute(0, 2, 3, 1)
    return _sample(image, _grid(image) + 0.02 * settings.warp * flow)


def blur_surface(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """Bilateral blur over two rings of taps: flattens texture, keeps edges.

    Source: Tomasi and Manduchi 1998, with 1 / (1 + d²) in place of the Gaussian range kernel.
    """
    reach = max(2, round(0.012 * min(image.shape[2:])))
    luma = _luma(image)
    total, weights = image.clone(), torch.ones_like(luma)
    rings = [(reach, k / 8) for k in range(8)] + [(reach / 2, k / 4) for k in range(4)]
    for radius, angle in rings:
        dy, dx = _polar(radius, angle)
        weight = (_shift(luma, dy, dx) - luma).mul_(12).square_().add_(1).reciprocal_()
        total.addcmul_(_shift(image, dy, dx), weight)
        weights += weight
    return image.lerp(total / weights, settings.surface_blur)


def drift_brightness(image: Tensor, regions: Tensor, settings: DegradeConfig,
                     rng: Generator) -> Tensor:
    """Exposure error, lighter or darker, uneven over the picture."""
    draw = 2 * torch.rand((), generator=rng).item() - 1
    overall = math.copysign(0.3 + 0.7 * abs(draw), draw)  # never 0
    return image * (1 + 0.35 * settings.brightness * (overall + 0.5 * _field(image, rng, 1, 3)))


def jitter_color(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """Gain error of each channel, uneven as view-dependent colour is."""
    overall = torch.randn(1, 3, 1, 1, generator=rng).to(image.device)
    return image * (1 + 0.12 * settings.color_jitter * (overall + 0.5 * _field(image, rng, 3, 5)))


def desaturate(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """Mix in the grey picture."""
    return image.lerp(_luma(image).expand_as(image), settings.desaturation)


def blur_all(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """Blur the whole picture evenly."""
    sigma = 0.006 * settings.blur * min(image.shape[2:])
    return _blur(image, torch.full_like(image[:, :1], sigma))


def lose_resolution(image: Tensor, regions: Tensor, settings: DegradeConfig,
                    rng: Generator) -> Tensor:
    """Shrink the picture, to 96 pixels or half its side at amount 1, and interpolate it back."""
    side = min(image.shape[2:])
    scale = (min(96, side / 2) / side) ** settings.downscale
    small = [max(1, round(length * scale)) for length in image.shape[2:]]
    return _resize(_resize(image, small), image.shape[2:])


def add_blocks(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """Patches of irregular cells of constant colour along edges: footprints of few Gaussians."""
    detail = _resize(image, [DETAIL_SIZE, DETAIL_SIZE])
    along = _strands(detail)
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    jitter = _field(detail, rng, 2, 48).permute(0, 2, 3, 1)
    place = _grid(detail) + 0.05 * jitter[..., :1] * along + 0.012 * jitter[..., 1:] * across
    blotches = _sample(_resize(image, [64, 64]), place, mode="nearest")
    patches = torch.sigmoid(3 * _field(image, rng, 1, 9) + 4 * settings.blocks - 1)
    weight = patches * (1 - (1 - settings.blocks) ** 3)
    return image.lerp(_resize(blotches, image.shape[2:]), weight)


def add_ghost(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """A translucent second contour beside strong edges and the silhouette."""
    angle, reach = torch.rand(2, generator=rng).tolist()
    dy, dx = _polar((0.018 + 0.02 * reach) * min(image.shape[2:]), angle)
    dy = dy if dy or dx else 1
    edges = 4 * _gradient(_luma(image)) + 2 * _gradient((regions > 0).float()[:, None])
    factor = max(1, min(image.shape[2:]) // DETAIL_SIZE)
    near = F.max_pool2d(_shift(edges, dy, dx), factor, ceil_mode=True)
    near = _resize(_feather(_feather(near)).clamp(max=1), image.shape[2:])
    weight = near * torch.sigmoid(2 + 3 * _field(image, rng, 1, 6))
    return image.lerp(_shift(image, dy, dx), 0.8 * settings.ghosting * weight)


def add_noise(image: Tensor, regions: Tensor, settings: DegradeConfig, rng: Generator) -> Tensor:
    """Grain of a fixed size relative to the picture, mostly grey."""
    grain = torch.randn(1, 4, DETAIL_SIZE, DETAIL_SIZE, generator=rng)
    grain = _resize((grain[:, :3] + grain[:, 3:]).to(image.device), image.shape[2:])
    return image + 0.035 * settings.noise * grain


STAGES = (
    Stage("regions", REGIONS, blur_regions),
    Stage("warp", ("warp",), warp),
    Stage("surface_blur", ("surface_blur",), blur_surface),
    Stage("brightness", ("brightness",), drift_brightness),
    Stage("color_jitter", ("color_jitter",), jitter_color),
    Stage("desaturation", ("desaturation",), desaturate),
    Stage("blur", ("blur",), blur_all),
    Stage("downscale", ("downscale",), lose_resolution),
    Stage("blocks", ("blocks",), add_blocks),
    Stage("ghosting", ("ghosting",), add_ghost),
    Stage("noise", ("noise",), add_noise),
)


def _run(image: Tensor, regions: Tensor, settings: DegradeConfig, seed: int) -> dict[str, Tensor]:
    pictures = {"clean": image.clone()}
    for stage in STAGES:
        if any(getattr(settings, name) > 0 for name in stage.amounts):
            rng = _generator(seed, stage.name)
            image = stage.apply(image, regions, settings, rng).clamp(0, 1)
        pictures[stage.name] = image
    return pictures | {"degraded": image}


def _vary(regions: Tensor, contrast: float, rng: Generator) -> Tensor:
    # One field per region, turned and stretched 2.5 times: (1, 1, H, W) in [1 - contrast, 1].
    noise = torch.randn(len(REGIONS), 1, 16, 16, generator=rng)
    angle = math.pi * torch.rand(len(REGIONS), generator=rng)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([0.35 * cos, 0.35 * sin, zero, -0.9 * sin, 0.9 * cos, zero], 1)
    place = F.affine_grid(turn.view(-1, 2, 3), [len(REGIONS), 1, FIELD_SIZE, FIELD_SIZE],
                          align_corners=False)
    fields = torch.sigmoid(4 * _sample(noise, place)).transpose(0, 1).to(regions.device)
    own = _resize(fields, regions.shape[1:]).gather(1, regions.long()[:, None])
    return 1 - contrast * (1 - own)


def _blur(image: Tensor, sigma_px: Tensor) -> Tensor:
    # Halving and interpolating back has a variance of about 0.9 px², each further octave 4 times.
    return _blur_octaves(image, 0.5 * torch.log2(1 + 3 * sigma_px.square() / 0.9))


def _blur_octaves(image: Tensor, octaves: Tensor) -> Tensor:
    # Collapses a pyramid: any width costs the same and no sharp picture shines through.
    if octaves.max() <= 0 or min(image.shape[2:]) < 2:
        return image
    half = [math.ceil(length / 2) for length in image.shape[2:]]
    coarse = _blur_octaves(_resize(image, half), _resize((octaves - 1).clamp(min=0), half))
    return image.lerp(_resize(coarse, image.shape[2:]), octaves.clamp(max=1))


def _smear(image: Tensor, *, length: float) -> Tensor:
    # Averages along edges and strands, as long Gaussians do.
    place, step = _grid(image), _strands(image) * length
    taps = [_sample(image, place + share * step) for share in (-1, -0.67, -0.33, 0.33, 0.67, 1)]
    return torch.stack([image, *taps]).mean(0)


def _strands(image: Tensor) -> Tensor:
    # Unit vectors (1, H, W, 2) along edges: the weak axis of the smoothed structure tensor.
    luma = _luma(image)
    gx = _shift(luma, 0, -1) - _shift(luma, 0, 1)
    gy = _shift(luma, -1, 0) - _shift(luma, 1, 0)
    tensor = _resize(torch.cat([gx * gx - gy * gy, 2 * gx * gy], 1), [FIELD_SIZE, FIELD_SIZE])
    double = _resize(tensor, image.shape[2:])
    angle = 0.5 * torch.atan2(double[:, 1], double[:, 0]) + math.pi / 2
    return torch.stack([angle.cos(), angle.sin()], -1)


def _feather(mask: Tensor) -> Tensor:
    # A box of compact support: what was exactly 0 stays exactly 0 a few pixels out.
    radius = max(1, round(min(mask.shape[2:]) / 128))
    return F.avg_pool2d(mask, 2 * radius + 1, 1, radius, count_include_pad=False)


def _look_up(regions: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, device=regions.device)[regions.long()][:, None]


def _noise(rng: Generator, channels: int, cells: int) -> Tensor:
    noise = torch.randn(1, channels, cells, cells, generator=rng)
    return F.interpolate(noise, size=(FIELD_SIZE, FIELD_SIZE), mode="bicubic")


def _field(like: Tensor, rng: Generator, channels: int, cells: int) -> Tensor:
    return _resize(_noise(rng, channels, cells).to(like.device), like.shape[2:])


def _grid(image: Tensor) -> Tensor:
    # Where each pixel lies for grid_sample: (1, H, W, 2), x before y, in (-1, 1).
    ys, xs = ((torch.arange(n, device=image.device) * 2 + 1) / n - 1 for n in image.shape[2:])
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)[None]


def _sample(image: Tensor, place: Tensor, mode: str = "bilinear") -> Tensor:
    return F.grid_sample(image, place, mode, padding_mode="reflection", align_corners=False)


def _resize(image: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bilinear", antialias=True)


def _shift(image: Tensor, dy: int, dx: int) -> Tensor:
    # Moves the picture down and right; the border repeats.
    height, width = image.shape[2:]
    padded = F.pad(image, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)), mode="replicate")
    return padded[:, :, max(-dy, 0):max(-dy, 0) + height, max(-dx, 0):max(-dx, 0) + width]


def _gradient(image: Tensor) -> Tensor:
    return (image - _shift(image, 0, 1)).abs() + (image - _shift(image, 1, 0)).abs()


def _luma(image: Tensor) -> Tensor:
    return 0.299 * image[:, :1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:]  # ITU-R BT.601


def _polar(radius: float, turns: float) -> tuple[int, int]:
    angle = 2 * math.pi * turns
    return round(radius * math.sin(angle)), round(radius * math.cos(angle))


def _generator(seed: int, stage: str) -> Generator:
    digest = hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _check_clean(clean: Tensor, regions: Tensor) -> None:
    _expect(clean.ndim == 4 and clean.shape[1] == 3 and clean.numel() > 0
            and clean.dtype == torch.float32,
            "clean", "float32 (B, 3, H, W)", clean, "convert the images to RGB float")
    _expect(regions.shape == (len(clean), *clean.shape[2:]) and regions.device == clean.device,
            "regions", f"{(len(clean), *clean.shape[2:])} on {clean.device}", regions,
            "pass one map per image, of its size")
    low, high = (bound.item() for bound in clean.aminmax())
    _expect(low >= 0 and high <= 1, "clean", "finite values in [0, 1]", f"[{low:g}, {high:g}]",
            "divide bytes by 255")


def _check_regions(regions: Tensor, seeds: Tensor) -> None:
    _expect(regions.ndim == 3 and regions.dtype == torch.uint8 and regions.numel() > 0,
            "regions", "uint8 (B, H, W)", regions, "use data.py's region maps")
    _expect(seeds.shape == regions.shape[:1] and seeds.dtype == torch.int64,
            "seeds", f"int64 ({len(regions)},)", seeds, "pass one seed per image")
    _expect(int(regions.max()) < len(REGIONS), "regions", f"values 0 to {len(REGIONS) - 1}",
            int(regions.max()), "map the parser's labels by name")


def _expect(right: bool, name: str, expected: str, got: object, remedy: str) -> None:
    if not right:
        if isinstance(got, Tensor):
            got = f"{got.dtype} {tuple(got.shape)} on {got.device}"
        raise ValueError(f"{name}: expected {expected}, got {got}; {remedy}")
