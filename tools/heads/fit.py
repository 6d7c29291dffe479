"""Fit a procedural head by 3D Gaussians from few views, and draw the fit from other views.

The optimisation of 3D Gaussian Splatting runs, without densification, from a poor point cloud and
few pictures that do not quite agree with each other. Of the floaters, some remain from the start,
and some are added in the space around the head.

Source: Kerbl et al. (2023), "3D Gaussian Splatting"; colours vary with direction to first order.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from splat_enhancer.gaussians.rasterizer import Camera
from splat_enhancer.gaussians.scene import rotations

from .head import BACKGROUND, HAIR, Cloud
from .person import Rng, look_at_head, studio_wall, wide_head
from .rasterizer import rasterize
from .recipes import Recipe

# Per step of Adam: mostly above those of Kerbl et al., for so few steps; head units
RATES = {"means": 2e-3, "lengths": 4e-2, "turns": 3e-2, "colors": 1.5e-2, "slopes": 8e-3,
         "opacities": 5e-2}
FRAME = 2.9  # head units that fill a fitted picture

Values = dict[str, Tensor]  # what is learned, by the names of RATES, for N Gaussians
Shot = tuple[Camera, Tensor, Tensor]  # where the tracker says a camera stood, backdrop, picture


def fit_head(recipe: Recipe) -> Values:
    """Fit one head.

    Returns:
        means (N, 3), lengths (N, 3) as logarithms, turns (N, 4) as quaternions, colors (N, 3),
        slopes (N, 3, 3) of the colours by direction, opacities (N,) as logits.
    """
    generator = Rng(recipe.identity, "fit").generator
    shots, cloud = take_shots(recipe)
    values = start(cloud, recipe, generator)
    values = {name: value.requires_grad_() for name, value in values.items()}
    factors = dict.fromkeys(RATES, recipe.rate) | {
        "slopes": recipe.rate * recipe.slope_rate, "opacities": recipe.rate * recipe.fade_rate}
    optimizer = torch.optim.Adam([{"params": [values[name]], "lr": rate * factors[name]}
                                  for name, rate in RATES.items()], eps=1e-15, fused=True)
    settling = recipe.settle * recipe.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 ** (
        max(0.0, step - recipe.steps + settling) / max(settling, 1)))
    for view in torch.randint(len(shots), (recipe.steps,), generator=generator).tolist():
        camera, backdrop, picture = shots[view]
        optimizer.zero_grad()
        (render(values, camera, backdrop) - picture).abs().mean().backward()
        optimizer.step()
        schedule.step()
    fitted = {name: value.detach() for name, value in values.items()}
    floaters = draw_floaters(cloud, recipe.floaters, generator)
    return {name: torch.cat([value, floaters[name]]) for name, value in fitted.items()}


def render(values: Values, camera: Camera, backdrop: Tensor) -> Tensor:
    """A fit from a camera, before a backdrop: (3, H, W), differentiable, not clamped."""
    axes = rotations(values["turns"]) * values["lengths"].exp()[:, None]
    away = normalize(values["means"].detach() - camera.position, dim=1)
    colors = values["colors"] + (values["slopes"] * away[:, None]).sum(-1)
    return rasterize(values["means"], axes, colors.clamp(min=0), values["opacities"].sigmoid(),
                     camera, backdrop)[0]


@torch.no_grad()
def take_shots(recipe: Recipe) -> tuple[list[Shot], Cloud]:
    """The pictures that are fitted, and the true head's surface."""
    rng = Rng(recipe.identity, "shots")
    size_px, generator = recipe.size_px, rng.generator
    head = wide_head(recipe.identity, picture=recipe.picture)
    moved = wide_head(recipe.identity, recipe.movement, recipe.picture) \
        if recipe.moved_share else head
    backdrop = draw_backdrop(recipe.backdrop, Rng(recipe.identity, "backdrop"), size_px)
    line = torch.linspace(-1, 1, size_px)
    shots = []
    for view in range(recipe.views):
        place = (view + rng.between(0.25, 0.75)) / recipe.views * 2 - 1
        yaw, pitch = recipe.arc_deg * place, recipe.pitch_deg * rng.between(-1, 1)
        off_yaw, off_pitch = (recipe.camera_error_deg * torch.randn(
            2, generator=generator)).tolist()
        assumed, true = (
            look_at_head(math.radians(y), math.radians(p), size_px=size_px, frame=FRAME)
            for y, p in ((yaw, pitch), (yaw + off_yaw, pitch + off_pitch)))
        subject = moved if rng.chance(recipe.moved_share) else head
        picture, _, matte = subject.render(true, backdrop)
        light, color, tilt = torch.randn(7, generator=generator).split((1, 3, 3))
        gain = 1 + recipe.exposure * (light + 0.3 * color)[:, None, None] \
            + recipe.exposure * (tilt[0] * line + tilt[1] * line[:, None])
        picture = backdrop + matte * (picture * gain - backdrop)
        if recipe.backdrop != "wall":
            picture = leak(picture, recipe.leaks, rng)
        shots.append((assumed, backdrop, picture.clamp(0, 1)))
    return shots, head.cloud


def leak(picture: Tensor, specks: float, rng: Rng) -> Tensor:
    """What a matte lets through: soft specks of a room's colours."""
    line = torch.linspace(-1, 1, picture.shape[-1])
    room = 0.6 * torch.rand(3, generator=rng.generator)
    for _ in range(int(specks * rng.between(0, 2) + rng.between(0, 1))):
        x, y = line - rng.between(-1, 1), line[:, None] - rng.between(-1, 0.7)
        turn = rng.between(0, 6.3)
        along = (x * math.cos(turn) + y * math.sin(turn)) / rng.geometric(0.01, 0.1)
        across = (y * math.cos(turn) - x * math.sin(turn)) / rng.geometric(0.01, 0.03)
        tint = torch.randn(3, generator=rng.generator) * torch.tensor([1.0, 0.4, 0.4])
        color = room + 0.3 * tint
        weight = rng.between(0.2, 0.9) * torch.exp(-0.5 * (along**2 + across**2))
        picture = picture.lerp(color.clamp(0, 1)[:, None, None], weight)
    return picture


def start(cloud: Cloud, recipe: Recipe, generator: Generator) -> Values:
    """A sparse, noisy point cloud of what the cameras see, with strays and gaps."""
    a = torch.atan2(cloud.means[:, 0], cloud.means[:, 2]).abs()
    seen = (a < math.radians(recipe.arc_deg + 70)) & (cloud.means[:, 1] > -1.7)
    for gap in cloud.means[torch.randint(len(seen), (recipe.gaps,), generator=generator)]:
        seen &= (cloud.means - gap).norm(dim=1) > recipe.gap_radius
    chosen = torch.nonzero(seen)[:, 0]
    weights = cloud.axes[chosen].norm(dim=1).prod(-1) ** (2 / 3)  # equal areas, equal chances,
    face = (cloud.labels[chosen] != BACKGROUND) & (cloud.labels[chosen] != HAIR)
    weights = weights * torch.where(face & (cloud.means[chosen, 1] > -1), 3.0, 1.0)  # but for faces
    chosen = chosen[torch.multinomial(weights, min(recipe.gaussians, len(chosen)),
                                      generator=generator)]
    count = len(chosen)
    means = cloud.means[chosen] + recipe.depth_error * torch.randn(count, 3, generator=generator)
    ball = normalize(torch.randn(count, 3, generator=generator), dim=1) \
        * torch.rand(count, 1, generator=generator) ** 0.5 * recipe.stray_radius
    stray = torch.rand(count, 1, generator=generator) < recipe.strays
    means = torch.where(stray, ball + torch.tensor([0.0, -0.1, 0.0]), means)
    near = nearest_distance(means).clamp(0.005, 0.07)
    near = near * torch.where(stray[:, 0], recipe.stray_size, 1.0)
    gray = cloud.colors[chosen].mean(1, keepdim=True)
    noise = 0.1 * torch.randn(count, 3, generator=generator)
    return {
        "means": means, "lengths": (recipe.spread * near).log()[:, None].repeat(1, 3),
        "turns": normalize(torch.randn(count, 4, generator=generator), dim=1),
        "colors": cloud.colors[chosen].lerp(gray, 0.3) + noise,
        "slopes": torch.zeros(count, 3, 3), "opacities": torch.full_like(near, recipe.opacity)}


def draw_floaters(cloud: Cloud, count: int, generator: Generator) -> Values:
    """Specks and needles around a head, of its colours and of grey and pink."""
    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    place = normalize(torch.randn(count, 3, generator=generator), dim=1)
    place = place * (1.05 + 0.75 * uniform(1)) * torch.tensor([0.95, 1.0, 0.95])
    colors = cloud.colors[torch.randint(len(cloud.colors), (count,), generator=generator)]
    tint = 0.5 * uniform(1) + 0.25 * (uniform(3) - 0.5) * torch.tensor([1.0, 0.5, 0.5])
    lengths = torch.log(torch.tensor(0.012)) + 1.3 * uniform(1) + 0.9 * uniform(3)
    return {
        "means": place, "lengths": lengths,
        "turns": normalize(torch.randn(count, 4, generator=generator), dim=1),
        "colors": colors.lerp(tint + 0.2, uniform(1)), "slopes": torch.zeros(count, 3, 3),
        "opacities": 4 * uniform() - 3.5}


def nearest_distance(points: Tensor) -> Tensor:
    """Mean distance (N,) of each point to its three nearest neighbours."""
    from scipy.spatial import cKDTree
    distances = cKDTree(points.numpy()).query(points.numpy(), 4)[0]
    return torch.from_numpy(distances[:, 1:].mean(1)).float()


def draw_backdrop(kind: str, rng: Rng, size_px: int) -> Tensor:
    """What stands behind a head: (3, size, size) in [0, 1]."""
    if kind == "wall":
        return studio_wall(rng, size_px)
    color = {"white": torch.ones(3), "black": torch.zeros(3)}.get(kind)
    if color is None:
        color = torch.rand(3, generator=rng.generator)
    return color[:, None, None].expand(3, size_px, size_px).contiguous()
