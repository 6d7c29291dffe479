"""Fit procedural heads by too few 3D Gaussians, and look at them from where no camera stood.

    python -m tests.fit_head   # some two minutes; writes results/degradation/real_fit.jpg

No damage is painted on: the optimisation of 3D Gaussian Splatting runs, without densification, from
a poor point cloud (strays, gaps) and few views of a limited arc whose cameras are known roughly.
What it gets wrong can be compared with the damage that `degrade` imitates.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from helpers.__main__ import ROOT
from helpers.faces.avatars import _Dice, _light, _person
from helpers.splats.rasteriser import Camera, Splats, project, rasterise

SIZE_PX = 192
MATTE = (0.22, 0.72, 0.33)  # studio green, as avatars are filmed: what shines through is seen
PEOPLE = (6, 3, 7)  # avatar seeds
ARC_DEG = (-35, 35)  # the training cameras stand within, the outer views lie beyond
TRAINING_VIEWS = 10
VIEWS = tuple((yaw, 2.0) for yaw in (-60, -48, -30, 4, 27, 48, 60))  # shown: yaw, pitch in degrees
GAUSSIANS = 3_500  # a tenth of the pixels: far too few for hair and lashes
STEPS = 200  # of 30,000
CAMERA_ERROR_DEG = 0.7  # of the head tracker: contours are fitted where they never all are
SPREAD = 0.5  # deviation at the start, as a share of the distance to the nearest neighbours
STRAYS = 0.12  # share of the points that lie anywhere around the head: they end as floaters
GAP = 0.2  # radius, in head units, of eight places without points: they end as holes
OPACITY = -0.5  # logit at the start: 0.38
# Per step of Adam: mostly above those of Kerbl et al. (2023), for so few steps; head units
RATES = {"means": 3e-3, "lengths": 5e-2, "turns": 3e-2, "colors": 1.5e-2, "slopes": 8e-3,
         "opacities": 5e-2}


class Head:
    """A true head: its cloud, and the dice from where its light is drawn."""

    def __init__(self, seed: int) -> None:
        self.seed, self.dice = seed, _Dice(seed)
        self.cloud = _person(self.dice, spacing=0.023 * 128 / SIZE_PX)
        self.state = self.dice.generator.get_state()

    def render(self, camera: Camera) -> Tensor:
        """The truth (3, H, W) in front of the matte, drawn as `render_avatar` does."""
        self.dice.generator.set_state(self.state)  # the same light in every view
        cloud, lit = self.cloud, _light(self.dice, self.cloud, camera)
        facing = ((cloud.means - camera.position) * cloud.normals).sum(-1) < 0.05
        covariances = cloud.axes @ cloud.axes.transpose(1, 2)
        splats = project(cloud.means[facing], covariances[facing], lit[facing],
                         torch.full_like(cloud.gloss, 0.95)[facing], camera)
        return _over_matte(splats)


def look_from(yaw_deg: float, pitch_deg: float) -> Camera:
    """A camera on the sphere around the head, yaw positive to the viewer's right."""
    (cy, sy), (cp, sp) = ((math.cos(t), math.sin(t))
                          for t in (math.radians(yaw_deg), math.radians(pitch_deg)))
    turn = torch.tensor([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    rotation = torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ turn
    away = rotation.T @ torch.tensor([0.0, 0.0, 5.2])
    return Camera(rotation, torch.tensor([0.0, -0.12, 0.0]) + away, 2.0 * SIZE_PX, SIZE_PX, SIZE_PX)


def start(head: Head, generator: Generator) -> dict[str, Tensor]:
    """A sparse, noisy point cloud of what the training cameras see, with strays and gaps."""
    cloud = head.cloud
    seen = torch.nonzero((cloud.normals[:, 2] > -0.3) & (cloud.means[:, 1] > -1.5))[:, 0]
    gaps = cloud.means[seen[torch.randint(len(seen), (8,), generator=generator)]]
    seen = seen[torch.cdist(cloud.means[seen], gaps).amin(1) > GAP]
    chosen = seen[torch.randperm(len(seen), generator=generator)[:GAUSSIANS]]
    means = cloud.means[chosen] + 0.04 * torch.randn(len(chosen), 3, generator=generator)
    stray = torch.rand(len(chosen), 1, generator=generator) < STRAYS
    box = torch.tensor([1.0, 1.1, 1.3]) * (2 * torch.rand(means.shape, generator=generator) - 1)
    means = torch.where(stray, box + torch.tensor([0.0, 0.0, 0.4]), means)
    near = torch.cdist(means, means).topk(4, largest=False).values[:, 1:].mean(1)
    noise = 0.15 * torch.randn(len(means), 3, generator=generator)
    values = {
        "means": means, "lengths": (SPREAD * near).log()[:, None].repeat(1, 3),
        "turns": normalize(torch.randn(len(means), 4, generator=generator), dim=1),
        "colors": cloud.colors[chosen].lerp(torch.tensor(0.4), 0.4) + noise,
        "slopes": torch.zeros(len(means), 3, 3), "opacities": torch.full_like(near, OPACITY)}
    return {name: value.requires_grad_() for name, value in values.items()}


def render(values: dict[str, Tensor], camera: Camera) -> Tensor:
    """The fit (3, H, W) from a camera; colours vary with direction to first order."""
    axes = _rotations(values["turns"]) * values["lengths"].exp()[:, None]
    away = normalize(values["means"].detach() - camera.position, dim=1)
    colors = values["colors"] + (values["slopes"] @ away[:, :, None])[..., 0]
    return _over_matte(project(values["means"], axes @ axes.mT, colors.clamp(min=0),
                               values["opacities"].sigmoid(), camera))


def fit(head: Head) -> dict[str, Tensor]:
    """Fit to the training views, one a step, each seen from a little beside its known camera."""
    generator = Generator().manual_seed(head.seed)
    values = start(head, generator)
    optimiser = torch.optim.Adam([{"params": [values[name]], "lr": rate}
                                  for name, rate in RATES.items()], eps=1e-15)
    views = training_views()
    errors = CAMERA_ERROR_DEG * torch.randn(len(views), 2, generator=generator)
    truths = [head.render(look_from(yaw + dy, pitch + dp))
              for (yaw, pitch), (dy, dp) in zip(views, errors.tolist(), strict=True)]
    order = torch.randint(len(views), (STEPS,), generator=generator).tolist()
    for view in tqdm(order, desc=f"Fitting head {head.seed}", unit="step"):
        optimiser.zero_grad()
        (render(values, look_from(*views[view])) - truths[view]).abs().mean().backward()
        optimiser.step()
    return {name: value.detach() for name, value in values.items()}


def training_views() -> list[tuple[float, float]]:
    """Yaw and pitch in degrees, from above and below in turns."""
    yaws = torch.linspace(*ARC_DEG, TRAINING_VIEWS).tolist()
    return [(yaw, 8.0 if n % 2 else -5.0) for n, yaw in enumerate(yaws)]


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    return -10 * math.log10(float((first - second).square().mean()))


def compare(head: Head, values: dict[str, Tensor]) -> Image.Image:
    """Truth above, fit below, from the shown views, with their figures."""
    pairs = [(head.render(camera), render(values, camera).clamp(0, 1))
             for camera in (look_from(*view) for view in VIEWS)]
    rows = torch.cat([torch.cat(row, 2) for row in zip(*pairs, strict=True)], 1)
    trained = [psnr(head.render(camera), render(values, camera).clamp(0, 1))
               for camera in (look_from(*view) for view in training_views())]
    page = Image.new("RGB", (rows.shape[2], rows.shape[1] + 22), "white")
    page.paste(Image.fromarray((255 * rows).round().byte().permute(1, 2, 0).numpy()))
    text, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for n, ((yaw, _), pair) in enumerate(zip(VIEWS, pairs, strict=True)):
        place = "inside" if ARC_DEG[0] <= yaw <= ARC_DEG[1] else "outside"
        label = f"{yaw:+d}°, {place} the arc: {psnr(*pair):.1f} dB"
        text.text((n * SIZE_PX + 4, rows.shape[1] + 3), label, "black", font)
        print(label)
    print(f"head {head.seed}: trained views {np.mean(trained):.1f} dB")
    return page


def _rotations(turns: Tensor) -> Tensor:
    """Quaternions (N, 4), of any length, to rotation matrices (N, 3, 3)."""
    w, x, y, z = normalize(turns, dim=1).unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, 1).unflatten(1, (3, 3))


def _over_matte(splats: Splats) -> Tensor:
    matte = torch.tensor(MATTE)[:, None, None].expand(3, SIZE_PX, SIZE_PX)
    return rasterise(splats, SIZE_PX, SIZE_PX, background=matte)[0]


def main() -> None:
    """Fit every head, and write the comparison."""
    torch.set_num_threads(1)  # of so little work, two threads make no more speed
    pages = []
    for seed in PEOPLE:
        head = Head(seed)
        pages.append(compare(head, fit(head)))
    sheet = Image.new("RGB", (pages[0].width, sum(page.height for page in pages)), "white")
    for n, page in enumerate(pages):
        sheet.paste(page, (0, n * page.height))
    target = ROOT / "results" / "degradation" / "real_fit.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, quality=90)
    print(f"Wrote {target}")


if __name__ == "__main__":
    main()
