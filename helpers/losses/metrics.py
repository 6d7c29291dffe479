"""What is measured of an image against its clean original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cosine_similarity, one_hot

from ..config import Config
from ..images import check_images
from .perceptual import clip_embedding, distance_map, load_clip, load_lpips, load_stlpips

MIN_SIZE_PX = 32  # of a side: less leaves the last layer of a network without a place


class Metrics:
    """The distances of images to their clean originals, one value per image.

    `stlpips_alex` ranks, in every preset: its network is never the loss's, and its weights come
    with a package. Where the loss uses torchvision's VGG16, `lpips_alex` and `lpips_vgg` (the
    loss's own network) stand beside it. `psnr` and `ssim` prefer blur: they are sanity metrics.
    `identity`, the cosine of CLIP image embeddings, is there where CLIP (a hub name or a folder)
    lies on this machine. `absent` says what is not measured, and why.
    """

    def __init__(self, config: Config, *, device: torch.device | str, clip_name: str = "") -> None:
        networks = {"stlpips_alex": load_stlpips("alex")}
        if config.lpips_weights == "lpips":
            networks |= {f"lpips_{net}": load_lpips(net) for net in ("alex", "vgg")}
        self.networks = {name: network.to(device, memory_format=torch.channels_last)  # faster
                         for name, network in networks.items()}
        self.device, self.clip, self.absent = device, None, {}
        try:
            self.clip = load_clip(clip_name, local_only=True).to(device)
        except ConnectionError:
            self.absent["identity"] = "CLIP is not on this machine, and is not downloaded for it"
        self.names = (*self.networks, "psnr", "ssim", *(["identity"] if self.clip else []))

    @torch.no_grad()
    def each(self, kinds: Mapping[str, Tensor], clean: Tensor, *, regions: Tensor | None = None,
             labels: Sequence[str] = ()) -> dict[str, dict[str, list[float]]]:
        """Measure several kinds of pictures of the same truth, which the networks see once.

        Args:
            kinds: name → float (B, 3, H, W) in [0, 1], sides of MIN_SIZE_PX or more.
            clean: the truth, of the same shape.
            regions: uint8 (B, H, W), for the perceptual distances within each.
            labels: the names of the regions, by their numbers.

        Returns:
            Kind → a value per image for each of `names`, and with regions for `<network>/<label>`,
            which is NaN where a picture has nothing of that region.
        """
        for name, images in {"clean": clean, **kinds}.items():
            check_images(name, images)
            if images.shape != clean.shape or min(images.shape[2:]) < MIN_SIZE_PX:
                raise ValueError(f"{name}: expected sides of {MIN_SIZE_PX} px or more and the "
                                 f"shape of clean {tuple(clean.shape)}, got {tuple(images.shape)}")
        clean = clean.to(self.device, torch.float32)
        images = torch.cat([images.to(clean) for images in kinds.values()])
        maps = {name: distance_map(network, images, clean).split(len(clean))
                for name, network in self.networks.items()}
        target = clip_embedding(self.clip, clean, dtype=torch.float32) if self.clip else None
        measured = {}
        for i, (kind, part) in enumerate(zip(kinds, images.split(len(clean)), strict=True)):
            values = {name: parts[i].mean((1, 2)) for name, parts in maps.items()}
            values |= {"psnr": psnr(part, clean), "ssim": ssim(part, clean)}
            if self.clip:
                embedding = clip_embedding(self.clip, part, dtype=torch.float32)
                values["identity"] = cosine_similarity(embedding, target)
            if regions is not None:
                inside = one_hot(regions.to(self.device).long(), len(labels)).double()  # (B,H,W,R)
                for name, parts in maps.items():
                    means = torch.einsum("bhw,bhwr->rb", parts[i].double(), inside) \
                        / inside.sum((1, 2)).T
                    values |= {f"{name}/{label}": means[j] for j, label in enumerate(labels)}
            measured[kind] = {name: value.tolist() for name, value in values.items()}
        return measured


def psnr(images: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of (B, 3, H, W) in [0, 1]; inf for equal images."""
    error = (images.cpu().double() - clean.cpu().double()).square().mean((1, 2, 3))
    return -10 * error.log10()


def ssim(images: Tensor, clean: Tensor) -> Tensor:
    """Structural similarity (B,) of (B, 3, H, W) in [0, 1], at least 11 pixels a side.

    Source: Wang et al. 2004, equation 13, with the paper's Gaussian window; as scikit-image's.
    """
    window = torch.exp(-torch.arange(-5, 6, dtype=torch.float64) ** 2 / (2 * 1.5**2))
    window = window / window.sum()

    def smooth(x: Tensor) -> Tensor:  # (B, 3, H, W), valid part only
        flat = x.flatten(0, 1)[:, None]
        return conv2d(conv2d(flat, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    a, b = images.cpu().double(), clean.cpu().double()
    mean_a, mean_b = smooth(a), smooth(b)
    variances = smooth(a * a) - mean_a**2 + smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                  / ((mean_a**2 + mean_b**2 + c1) * (variances + c2)))
    return similarity.view(len(images), -1).mean(1)
