"""What is measured of an image against its clean original."""

from __future__ import annotations

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from ..config import LossConfig
from .perceptual import load_lpips
from .stlpips import load_stlpips


class Metrics:
    """The distances of images to their clean originals, one value per image.

    `stlpips_alex` ranks, in every preset: its network is never the loss's, and its weights come
    with a package. Where the loss knows torchvision's VGG16, `lpips_alex` and `lpips_vgg` (the
    loss's own network) stand beside it. `psnr` and `ssim` are guards: people disagree with them.

    Args:
        config: only `vgg` matters here.
        device: where the networks live.

    Raises:
        RuntimeError: weights could not be loaded; the message names them and the remedy.
    """

    def __init__(self, config: LossConfig, *, device: torch.device | str) -> None:
        self.device = device
        self.networks = {"stlpips_alex": load_stlpips("alex").to(device)}
        if config.vgg == "lpips":
            self.networks |= {f"lpips_{net}": load_lpips(net, pretrained=True).to(device)
                              for net in ("alex", "vgg")}

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, in the order they are reported."""
        return (*self.networks, "psnr", "ssim")

    @torch.no_grad()
    def __call__(self, images: Tensor, clean: Tensor) -> dict[str, list[float]]:
        """Measure a batch: images and clean (B, 3, H, W), clamped to [0, 1] first."""
        images, clean = (x.to(self.device, torch.float32).clamp(0, 1) for x in (images, clean))
        values = {name: net(images, clean, normalize=True).flatten()
                  for name, net in self.networks.items()}
        values |= {"psnr": psnr(images, clean), "ssim": ssim(images, clean)}
        return {name: value.tolist() for name, value in values.items()}


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
