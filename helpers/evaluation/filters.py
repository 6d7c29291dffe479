"""A cheap filter to beat: what anybody would try first, chosen on training faces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from skimage.restoration import denoise_bilateral
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ..config import Config
from ..distances import Metrics
from ..faces import Faces, draw_batch
from ..pairs import Sources, draw_each

SAMPLES = 3  # training faces that the filter is chosen on, each under every kind of damage


@dataclass(frozen=True)
class Filter:
    """A filter with its parameters; radii are those at 128 px, and grow with the picture."""

    name: str  # "unsharp" or "bilateral"
    radius: float  # in pixels, the deviation of the Gaussian
    amount: float  # of sharpening; of a bilateral filter, the deviation of the colours it mixes

    def __str__(self) -> str:
        return f"{self.name}, radius {self.radius:g}, " + (
            f"amount {self.amount:g}" if self.name == "unsharp" else f"range {self.amount:g}")

    def __call__(self, images: Tensor) -> Tensor:
        """Filter images (B, 3, H, W) in [0, 1]; shape, device and range stay.

        Source: Tomasi and Manduchi 1998 for the bilateral filter, through scikit-image.
        """
        radius = self.radius * min(images.shape[2:]) / 128
        side = 2 * max(2, round(2.5 * radius)) + 1
        if self.name == "unsharp":
            soft = gaussian_blur(images, [side, side], [radius, radius])
            return (images + self.amount * (images - soft)).clamp(0, 1)
        smooth = [denoise_bilateral(image, win_size=side, sigma_color=self.amount,
                                    sigma_spatial=radius, channel_axis=-1)
                  for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
        return torch.from_numpy(np.stack(smooth)).permute(0, 3, 1, 2).to(images).clamp(0, 1)


CANDIDATES = tuple(Filter(name, radius, amount) for name, radius, amount in (
    ("unsharp", 1.0, 0.5), ("unsharp", 1.0, 1.0), ("unsharp", 2.0, 0.5), ("unsharp", 2.0, 1.0),
    ("bilateral", 1.0, 0.05), ("bilateral", 1.0, 0.1)))


def choose_filter(config: Config, faces: Faces, sources: Sources, metrics: Metrics, *,
                  device: torch.device | str = "cpu") -> tuple[Filter, dict[str, float]]:
    """The better of bilateral and unsharp, by the ranking metric on pairs of training faces.

    Args:
        config: of the run; the pairs are of the kinds that it trains on.
        faces: prepared.
        sources: of pairs that are not drawn, from `prepare_pairs`.
        metrics: the first one ranks.
        device: where pairs are made.

    Returns:
        The filter, and the mean distance that each candidate leaves, "nothing" among them.
    """
    drawn = draw_batch(faces, seed=config.run.seed, step=0, batch=SAMPLES)
    found: dict[str, list[float]] = {}
    for degraded, clean in draw_each(config, sources, drawn, device).values():
        kinds = {"nothing": degraded} | {str(one): one(degraded) for one in CANDIDATES}
        for name, of in metrics.each(kinds, clean).items():
            found.setdefault(name, []).extend(of[metrics.names[0]])
    left = {name: float(np.mean(values)) for name, values in found.items()}
    return min(CANDIDATES, key=lambda one: left[str(one)]), left
