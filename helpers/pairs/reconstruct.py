"""Fit a procedural head by too few 3D Gaussians from too few views.

No damage is painted on: the optimisation of 3D Gaussian Splatting runs, without densification, from
a poor point cloud (strays, gaps) and few views of a limited arc whose cameras are known roughly.

Source: Kerbl et al. (2023), "3D Gaussian Splatting"; colours vary with direction to first order.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from ..errors import refused
from ..faces import Cloud, Head, look_at_head, studio_wall
from ..splats import Camera, Draws, project, rasterise, rotations
from .recipes import FEWEST_GAUSSIANS, Recipe

# Per step of Adam: mostly above those of Kerbl et al., for so few steps; head units
RATES = {"means": 3e-3, "lengths": 5e-2, "turns": 3e-2, "colors": 1.5e-2, "slopes": 8e-3,
         "opacities": 5e-2}
GREEN = (0.22, 0.72, 0.33)  # as people are filmed before
MATTES = (GREEN, (1.0, 1.0, 1.0), (0.02, 0.02, 0.02), (0.5, 0.5, 0.5), (0.1, 0.25, 0.75))
CHANGING = 16  # different backdrops that take turns
GREY = 0.4  # the colour that starting points are mixed with: their photographs were badly exposed

Values = dict[str, Tensor]  # what is learned, by the names of RATES, for N Gaussians


def reconstruct(recipe: Recipe) -> Values:
    """Fit one head.

    Args:
        recipe: which, and how.

    Returns:
        means (N, 3), lengths (N, 3) as logarithms, turns (N, 4) as unit quaternions,
        colors (N, 3), slopes (N, 3, 3) of the colours by direction, opacities (N,) as logits.
    """
    head = Head.of(recipe.identity, recipe.size_px)
    generator = Generator().manual_seed(recipe.identity)
    values = start(head.cloud, recipe, generator)
    return _optimise(values, _Studio(head, recipe, generator), recipe, generator)


def start(cloud: Cloud, recipe: Recipe, generator: Generator) -> Values:
    """A sparse, noisy point cloud of what the training cameras see, with strays and gaps.

    Raises:
        ValueError: the gaps leave too few points.
    """
    seen = torch.nonzero((cloud.normals[:, 2] > -0.3) & (cloud.means[:, 1] > -1.5))[:, 0]
    gaps = cloud.means[seen[torch.randint(len(seen), (recipe.gaps,), generator=generator)]]
    for gap in gaps:
        seen = seen[(cloud.means[seen] - gap).norm(dim=1) > recipe.gap_radius]
    chosen = seen[torch.randperm(len(seen), generator=generator)[:recipe.gaussians]]
    if len(chosen) < FEWEST_GAUSSIANS:
        raise refused("gaps of a recipe", f"{FEWEST_GAUSSIANS} points outside them or more",
                      len(chosen), "use fewer or smaller gaps")
    means = cloud.means[chosen] + 0.04 * torch.randn(len(chosen), 3, generator=generator)
    stray = torch.rand(len(chosen), 1, generator=generator) < recipe.strays
    box = torch.tensor([1.0, 1.1, 1.3]) * (2 * torch.rand(means.shape, generator=generator) - 1)
    means = torch.where(stray, box + torch.tensor([0.0, 0.0, 0.4]), means)
    near = torch.cdist(means, means).topk(4, largest=False).values[:, 1:].mean(1)
    noise = 0.15 * torch.randn(len(means), 3, generator=generator)
    return {
        "means": means, "lengths": (recipe.spread * near).log()[:, None].repeat(1, 3),
        "turns": normalize(torch.randn(len(means), 4, generator=generator), dim=1),
        "colors": cloud.colors[chosen].lerp(torch.tensor(GREY), 0.4) + noise,
        "slopes": torch.zeros(len(means), 3, 3), "opacities": torch.full_like(near, recipe.opacity)}


def render(values: Values, camera: Camera, backdrop: Tensor) -> Tensor:
    """A fit from a camera, before a backdrop: (3, H, W), differentiable, not clamped."""
    axes = rotations(values["turns"]) * values["lengths"].exp()[:, None]
    away = normalize(values["means"].detach() - camera.position, dim=1)
    colors = values["colors"] + (values["slopes"] @ away[:, :, None])[..., 0]
    splats = project(values["means"], axes @ axes.mT, colors.clamp(min=0),
                     values["opacities"].sigmoid(), camera)
    return rasterise(splats, camera.height_px, camera.width_px, background=backdrop)[0]


def fitted_backdrop(recipe: Recipe, view: int, size_px: int) -> Tensor:
    """What stands behind the head in one of the fitted views: (3, size, size) in [0, 1]."""
    if recipe.backdrop in ("matte", "green"):
        colour = torch.tensor(GREEN) if recipe.backdrop == "green" else _matte(recipe.identity)
        return colour[:, None, None].expand(3, size_px, size_px)
    other = view % CHANGING if recipe.backdrop == "changing" else 0
    return studio_wall(CHANGING * recipe.identity + other, size_px)


class _Studio:
    """The fitted views: where the tracker says each camera stood, and what it saw from there."""

    def __init__(self, head: Head, recipe: Recipe, generator: Generator) -> None:
        errors = recipe.camera_error_deg * torch.randn(recipe.views, 2, generator=generator)
        yaws = torch.linspace(-recipe.arc_deg, recipe.arc_deg, recipe.views).tolist()
        self.cameras, self.backdrops, self.truths = [], [], []
        for view, (yaw, error) in enumerate(zip(yaws, errors.tolist(), strict=True)):
            pitch = recipe.tilt_deg + recipe.pitch_deg * (1 if view % 2 else -1)
            backdrop = fitted_backdrop(recipe, view, recipe.size_px)
            self.cameras.append(_camera(yaw, pitch, recipe.size_px))
            self.backdrops.append(backdrop)
            true_camera = _camera(yaw + error[0], pitch + error[1], recipe.size_px)
            self.truths.append(head.render(true_camera, backdrop)[0])

    def loss(self, values: Values, view: int) -> Tensor:
        """Mean absolute difference in one view."""
        fit = render(values, self.cameras[view], self.backdrops[view])
        return (fit - self.truths[view]).abs().mean()


def _matte(identity: int) -> Tensor:
    """A colour (3,): for half of the identities one of MATTES, for the others any."""
    draws = Draws([identity], "backdrop", "cpu")
    colour, (known, which) = draws.uniform(3)[0], draws.uniform(2)[0].tolist()
    return torch.tensor(MATTES[int(which * len(MATTES))]) if known < 0.5 else colour


def _camera(yaw_deg: float, pitch_deg: float, size_px: int) -> Camera:
    return look_at_head(math.radians(yaw_deg), math.radians(pitch_deg), size_px=size_px)


@torch.enable_grad()
def _optimise(values: Values, studio: _Studio, recipe: Recipe, generator: Generator) -> Values:
    values = {name: value.clone().requires_grad_() for name, value in values.items()}
    optimiser = torch.optim.Adam([{"params": [values[name]], "lr": rate * recipe.rate}
                                  for name, rate in RATES.items()], eps=1e-15)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _fall(step, recipe))
    order = torch.randint(recipe.views, (recipe.steps,), generator=generator).tolist()
    for view in order:
        optimiser.zero_grad()
        studio.loss(values, view).backward()
        optimiser.step()
        schedule.step()
    found = {name: value.detach() for name, value in values.items()}
    return found | {"turns": normalize(found["turns"], dim=1)}


def _fall(step: int, recipe: Recipe) -> float:
    """Factor on the rates: 1, then geometrically to 0.1 over the settling share."""
    settling = recipe.settle * recipe.steps
    late = step - (recipe.steps - settling)
    return 0.1 ** (late / settling) if late > 0 else 1.0
