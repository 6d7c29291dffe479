"""Damage not seen in training: a picture fitted by too few Gaussians, stopped too early.

Wu et al. (DIFIX3D+, 2025) make training pairs by underfitting a reconstruction; here the same
pairs, from one picture instead of a scene, are for evaluation only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .config import refused
from .data import to_tensor
from .draws import Draws
from .files import write_whole
from .gaussians import LIMIT, Gaussians, describe
from .progress import Bar
from .splat import drawing_device, rasterise

GAUSSIANS = 2_000  # at 512 px each paints 130 pixels: strands and lashes merge; 500 at 128 px
STEPS = 25  # the face is there; needles, specks and blotches are not yet fitted away
FIRST_SEED = 800_000  # picture i of an evaluation set is fitted by this seed plus i
# Per step of Adam. Kerbl et al. (2023) give sizes and turns more than places; all are larger here
# by the 30,000 steps they take to our few, and overshoot: that is where the blotches come from.
RATES = {"places": 4e-3, "lengths": 0.2, "angles": 0.3, "colors": 0.1, "opacities": 0.3}


@torch.enable_grad()
def fit_splats(image: Tensor, gaussians: int, steps: int, *, seeds: Tensor,
               progress: Callable[..., Iterable[int]] | None = None) -> Tensor:
    """Fit Gaussians to each picture by gradient descent, and stop before they do it justice.

    They start as a sparse point cloud does: misplaced, round, small, translucent, greyish, of
    random size and depth, before a wall of the picture's mean colour. Adam minimises the mean
    absolute difference. On CUDA all at once; else one by one on the CPU, bit for bit the same
    alone or in any batch.

    Args:
        image: float32 (B, 3, H, W) in [0, 1].
        gaussians: how many for each picture, 1 to `gaussians.LIMIT`.
        steps: how many of Adam; 0 returns the start.
        seeds: int64 (B,); each sample depends on its own seed only.
        progress: wraps the steps as `tqdm` does; None shows nothing.

    Returns:
        The render, in [0, 1], of the shape and on the device of `image`.

    Raises:
        ValueError: a wrong shape, dtype or range.
    """
    _check(image, gaussians, steps, seeds)
    home = drawing_device(image.device)
    size = 1 if home.type == "cpu" else len(image)
    ticks: Iterable[int] = range(-(-len(image) // size) * steps)
    if progress:
        ticks = progress(ticks, desc="Fitting splats", unit="step")
    left, fitted = iter(ticks), torch.empty_like(image, memory_format=torch.contiguous_format)
    for own in (slice(i, i + size) for i in range(0, len(image), size)):
        there = image[own].detach().to(home, copy=True)
        fitted[own] = _fit(there, gaussians, steps, seeds[own].tolist(), left)
    next(left, None)  # lets a progress bar close
    return fitted


def fitted_pairs(clean: Iterable[Tensor], folder: Path, *, gaussians: int = GAUSSIANS,
                 steps: int = STEPS, first_seed: int = FIRST_SEED, batches: int | None = None,
                 progress: Callable[..., Iterable[Tensor]] | None = Bar,
                 ) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pictures with their underfitted renders; renders are kept, and made only once.

    Picture i lies in the folder as 8-bit `0000i.png`; `0000i.json` beside it says from what it was
    made. Where the two do not belong together, or to this call, the picture is made again.

    Args:
        clean: batches, each float32 (B, 3, H, W) in [0, 1].
        folder: where the renders are kept; made if need be.
        gaussians, steps: see `fit_splats`.
        first_seed: picture i is fitted by this seed plus i.
        batches: how many there will be, for the time left; None asks `clean` for its length.
        progress: wraps `clean` as `tqdm` does; None shows nothing.

    Yields:
        clean and fitted, each (B, 3, H, W) in [0, 1]; fitted in steps of 1/255.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if progress:  # a set that is kept already is read faster than a bar can be
        clean = progress(clean, total=batches, desc="Fitting splats", unit="batch", delay=2)
    count = 0
    for batch in clean:
        seeds = torch.arange(len(batch)) + first_seed + count
        paths = [Path(folder) / f"{count + i:05d}.png" for i in range(len(batch))]
        recipes = [_recipe(*sample, gaussians, steps)
                   for sample in zip(batch, seeds.tolist(), strict=True)]
        kept = [_read(*own) for own in zip(paths, recipes, strict=True)]
        missing = [i for i, png in enumerate(kept) if png is None]
        if missing:
            made = fit_splats(batch[missing], gaussians, steps, seeds=seeds[missing])
            for i, render in zip(missing, made, strict=True):
                kept[i] = _keep(paths[i], recipes[i], render)
        yield batch, torch.cat([_from_png(png) for png in kept]).to(batch.device)
        count += len(batch)


def _fit(image: Tensor, count: int, steps: int, seeds: list[int], ticks: Iterator[int]) -> Tensor:
    values, depths = _start(image, count, seeds)
    wall = image.mean((2, 3), keepdim=True).expand_as(image)
    optimiser = torch.optim.Adam([{"params": [values[name]], "lr": rate}
                                  for name, rate in RATES.items()], eps=1e-15)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (_draw(values, depths, wall) - image).abs().mean((1, 2, 3)).sum()
        loss.backward()
        optimiser.step()
        next(ticks)
    with torch.no_grad():
        return _draw(values, depths, wall).clamp(0, 1)


def _start(image: Tensor, count: int, seeds: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    """What is learned, name → (B, N, ...), lengths as logarithms and opacities as logits."""
    draws = Draws(seeds, "fit", image.device)
    with torch.no_grad():
        drawn = describe(image, torch.full((len(image),), count, device=image.device), draws)
        grey = image.mean((2, 3))[:, None].expand_as(drawn.colors)
        spacing = 0.4 * drawn.lengths.log().mean(-1, keepdim=True).exp()
        values = {
            "places": drawn.places + 0.05 * draws.normal(count, 2),
            "lengths": (spacing.log() + 0.8 * draws.normal(count, 1)).repeat(1, 1, 2),
            "angles": torch.pi * draws.uniform(count),
            "colors": drawn.colors.lerp(grey, 0.8),
            "opacities": torch.full_like(drawn.depths, -1.0),  # 0.27: translucent
        }
    return {name: v.requires_grad_() for name, v in values.items()}, draws.uniform(count)


def _draw(values: dict[str, Tensor], depths: Tensor, wall: Tensor) -> Tensor:
    lengths, opacities = values["lengths"].exp(), values["opacities"].sigmoid()
    found = Gaussians(values["places"], lengths, values["angles"], values["colors"], opacities,
                      depths)
    return rasterise(found.splats(*wall.shape[2:]), *wall.shape[2:], background=wall)[0]


def _recipe(clean: Tensor, seed: int, gaussians: int, steps: int) -> dict[str, Any]:
    digest = hashlib.sha256(clean.cpu().contiguous().numpy().tobytes()).hexdigest()
    return {"size": list(clean.shape[1:]), "clean": digest, "seed": seed, "gaussians": gaussians,
            "steps": steps, "rates": RATES}


def _label(recipe: dict[str, Any], png: bytes) -> bytes:
    content = recipe | {"png": hashlib.sha256(png).hexdigest()}
    return (json.dumps(content, indent=2) + "\n").encode()


def _read(path: Path, recipe: dict[str, Any]) -> bytes | None:
    beside = path.with_suffix(".json")
    if not path.is_file() or not beside.is_file():
        return None
    png = path.read_bytes()
    return png if beside.read_bytes() == _label(recipe, png) else None


def _keep(path: Path, recipe: dict[str, Any], render: Tensor) -> bytes:
    """Write the picture, then its label: a label is never about a picture that is not there."""
    buffer = BytesIO()
    pixels = render.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    png = buffer.getvalue()
    write_whole(path, png)
    write_whole(path.with_suffix(".json"), _label(recipe, png))
    return png


def _from_png(png: bytes) -> Tensor:
    return to_tensor(Image.open(BytesIO(png)))


def _check(image: Tensor, gaussians: int, steps: int, seeds: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or not image.numel() or image.dtype != torch.float32:
        raise refused("image", "float32 (B, 3, H, W)", _described(image), "convert to RGB float")
    low, high = (bound.item() for bound in image.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise refused("image", "finite values in [0, 1]", (low, high), "divide bytes by 255")
    if seeds.shape != image.shape[:1] or seeds.dtype != torch.int64:
        raise refused("seeds", f"int64 ({len(image)},)", _described(seeds), "pass one per image")
    for name, value, least in (("gaussians", gaussians, 1), ("steps", steps, 0)):
        most = LIMIT if name == "gaussians" else 30_000
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise refused(name, f"a whole number from {least} to {most}", value,
                          f"use {GAUSSIANS if name == 'gaussians' else STEPS}")


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
