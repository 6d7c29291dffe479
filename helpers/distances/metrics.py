"""What is measured of an image against its clean original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..config import LossConfig
from ..errors import refused
from ..storage import is_cached
from .losses import CLIP_FILES, CLIP_NAME, clip_embedding, load_clip
from .perceptual import load_lpips
from .spatial import distance_map, region_means
from .stlpips import load_stlpips

MIN_SIZE_PX = 32  # of a side: less leaves the last tap of a network without a place
IN_WORDS = {
    "stlpips_alex": "perceptual distance (ST-LPIPS, AlexNet): it ranks, and no loss knows it",
    "lpips_alex": "perceptual distance (LPIPS, AlexNet)",
    "lpips_vgg": "perceptual distance (LPIPS, VGG16): the loss's own network, no judge of it",
    "psnr": "a guard: it prefers blur, and people often disagree with it",
    "ssim": "a guard, like PSNR",
    "identity": "cosine of CLIP image embeddings, with the truth",
    "identity_to_input": "the same with the input: what a restoration changed",
}


class Metrics:
    """The distances of images to their clean originals, one value per image.

    `stlpips_alex` ranks, in every preset: its network is never the loss's, and its weights come
    with a package. Where the loss knows torchvision's VGG16, `lpips_alex` and `lpips_vgg` (the
    loss's own network) stand beside it. `psnr` and `ssim` are guards: people disagree with them.
    `identity`, the cosine of CLIP image embeddings, is there where CLIP lies on this machine.

    Args:
        config: only `vgg` matters here.
        device: where the networks live.
        clip_name: CLIP checkpoint, a hub name or a folder; nothing is fetched for it.

    Raises:
        RuntimeError: weights could not be loaded; the message names them and the remedy.
    """

    def __init__(self, config: LossConfig, *, device: torch.device | str,
                 clip_name: str = CLIP_NAME) -> None:
        self.device, self.clip = device, None
        networks = {"stlpips_alex": load_stlpips("alex")}
        if config.vgg == "lpips":
            networks |= {f"lpips_{net}": load_lpips(net, pretrained=True)
                         for net in ("alex", "vgg")}
        self.networks = {name: net.to(device, memory_format=torch.channels_last)  # a third faster
                         for name, net in networks.items()}
        if Path(clip_name).is_dir() or is_cached(clip_name, CLIP_FILES):
            self.clip = load_clip(clip_name).to(device)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, in the order they are reported; the first one ranks."""
        clip = ("identity", "identity_to_input") if self.clip is not None else ()
        return (*self.networks, "psnr", "ssim", *clip)

    @property
    def absent(self) -> dict[str, str]:
        """What is not measured here, and why."""
        return {} if self.clip is not None else {
            "identity": "CLIP is not on this machine, and nothing is downloaded for it"}

    def __call__(self, images: Tensor, clean: Tensor, **others: Any) -> dict[str, list[float]]:
        """Measure images (B, 3, H, W); see `each` for the rest."""
        return self.each({"": images}, clean, **others)[""]

    @torch.no_grad()
    def each(self, kinds: Mapping[str, Tensor], clean: Tensor, *, degraded: Tensor | None = None,
             regions: Tensor | None = None, labels: Sequence[str] = (),
             ) -> dict[str, dict[str, list[float]]]:
        """Measure several kinds of pictures of the same truth, which the networks see once.

        Args:
            kinds: name → float (B, 3, H, W) in [0, 1], sides of MIN_SIZE_PX or more.
            clean: the truth, of the same shape.
            degraded: what they were made from, for `identity_to_input`; None: themselves.
            regions: uint8 (B, H, W), for the perceptual distances within each.
            labels: the names of the regions, by their numbers.

        Returns:
            Kind → a value per image for each of `names`, and with regions for `<network>/<label>`,
            which is NaN where a picture has nothing of that region.

        Raises:
            ValueError: another shape, type or range, or values that are not finite.
        """
        for name, part in {**kinds, "clean": clean, "degraded": degraded}.items():
            if part is not None:
                _check(name or "images", part, clean)
        clean = clean.to(self.device, torch.float32)
        images = torch.cat([part.to(clean) for part in kinds.values()])
        maps = {name: distance_map(network, images, clean).split(len(clean))
                for name, network in self.networks.items()}
        found = {}
        for i, (kind, part) in enumerate(zip(kinds, images.split(len(clean)), strict=True)):
            own = {name: each[i] for name, each in maps.items()}
            values = {name: one.mean((1, 2)) for name, one in own.items()}
            values |= {"psnr": psnr(part, clean), "ssim": ssim(part, clean)}
            if self.clip is not None:
                values |= self._identity(part, clean, part if degraded is None else degraded)
            if regions is not None:
                values |= _by_region(own, regions, labels)
            found[kind] = {name: value.tolist() for name, value in values.items()}
        return found

    def _identity(self, images: Tensor, clean: Tensor, degraded: Tensor) -> dict[str, Tensor]:
        found, truth, before = (clip_embedding(self.clip, x.to(clean), dtype=torch.float32)
                                for x in (images, clean, degraded))
        return {"identity": cosine_similarity(found, truth),
                "identity_to_input": cosine_similarity(found, before)}


def psnr(images: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of (B, 3, H, W) in [0, 1]; inf for equal images."""
    error = (images.cpu().double() - clean.cpu().double()).square().mean((1, 2, 3))
    return -10 * error.log10()


def ssim(images: Tensor, clean: Tensor) -> Tensor:
    """Structural similarity (B,) of (B, 3, H, W) in [0, 1], at least 11 pixels a side.

    Gaussian window of 11 pixels, σ = 1.5, population covariance: the setting of the paper.
    Source: Wang et al. 2004, through scikit-image.
    """
    pairs = zip(images.cpu().double().numpy(), clean.cpu().double().numpy(), strict=True)
    return torch.tensor([
        structural_similarity(a, b, data_range=1.0, channel_axis=0, gaussian_weights=True,
                              sigma=1.5, use_sample_covariance=False)
        for a, b in pairs
    ], dtype=torch.float64)


def _by_region(maps: Mapping[str, Tensor], regions: Tensor,
               labels: Sequence[str]) -> dict[str, Tensor]:
    found = {}
    for name, one in maps.items():
        inside = region_means(one, regions.to(one.device), len(labels)).T
        found |= {f"{name}/{label}": inside[i] for i, label in enumerate(labels)}
    return found


def _check(name: str, images: Tensor, clean: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 3 or min(shape[2:]) < MIN_SIZE_PX \
            or not images.is_floating_point():
        raise refused(name, f"floats (B, 3, H, W) with sides of {MIN_SIZE_PX} px or more",
                      (images.dtype, shape), "pass a batch of RGB images")
    if clean.shape != images.shape:
        raise refused(name, f"the shape of clean {tuple(clean.shape)}", shape,
                      "pass the two halves of the same pairs")
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise refused(name, "finite values in [0, 1]", f"[{low:g}, {high:g}]",
                      "divide bytes by 255, clamp what a network returns")
