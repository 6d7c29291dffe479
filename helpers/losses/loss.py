"""The training loss: L1, LPIPS, Gram and CLIP similarity, with VGG16 run once per image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import Config
from .perceptual import clip_embedding, load_clip, load_lpips, load_stlpips, perceptual_distances

WEIGHTS = {"l1": "lambda_l1", "lpips": "lambda_lpips", "gram": "lambda_gram",
           "clip": "lambda_clipsim", "mask": "lambda_mask"}  # of each term, in the config
DETAIL_SIZES_PX = (3, 7, 15)  # detail finer than this: lashes, strands, locks
WINDOW_PX = 9  # around each pixel
FAINTEST = 1e-5  # energy, in squared brightness: below it all is flat
DETAIL_WEIGHT, COLOR_WEIGHT = 2.0, 40.0  # of what the mask is judged by; a logit of 4 is certain


class EnhancerLoss(nn.Module):
    """Weighted sum of pixel, perceptual, texture and semantic distances to the clean image.

    Every network is frozen and stays in evaluation mode; a term of weight 0 loads none. Training
    sets `crop_seed`, of the square that VGG16 sees where the config limits it.

    The networks have a dtype (float16 on a T4); the arithmetic on their features is float32. The
    seed is of a random VGG16; CLIP's name that of a repository or a folder.
    """

    def __init__(self, config: Config, *, device: torch.device | str,
                 dtype: torch.dtype = torch.float32, seed: int = 0, clip_name: str = "") -> None:
        super().__init__()
        self.weights = {term: getattr(config, field) for term, field in WEIGHTS.items()}
        self.crop_px, self.dtype, self.crop_seed = config.lpips_crop, dtype, 0
        self.lpips = self.clip = None
        if config.lambda_lpips or config.lambda_gram:
            self.lpips = (load_stlpips("vgg") if config.lpips_weights == "stlpips" else load_lpips(
                "vgg", pretrained=config.lpips_weights == "lpips", seed=seed)).to(device)
            self.lpips.net.to(dtype)
        if config.lambda_clipsim:
            self.clip = load_clip(clip_name).to(device, dtype)

    def train(self, mode: bool = True) -> EnhancerLoss:
        """Stay in evaluation mode: LPIPS's heads hold a dropout that would make the loss random."""
        return super().train(False)

    def forward(self, restored: Tensor, clean: Tensor, *,
                choice: tuple[Tensor, Tensor, Tensor] | None = None,
                crop_seed: int | None = None) -> dict[str, Tensor]:
        """Compare two batches: the active terms of WEIGHTS as scalars, unweighted, and "total".

        Args:
            restored: (B, 3, H, W), RGB; values outside [0, 1] are not clamped.
            clean: (B, 3, H, W), RGB in [0, 1]; receives no gradient.
            choice: of a repair mask: degraded and decoded (B, 3, H, W), and its logit (B, 1, H, W).
            crop_seed: None is the attribute.
        """
        if restored.shape != clean.shape or restored.shape[1:2] != (3,) or restored.ndim != 4:
            raise ValueError("restored: expected (B, 3, H, W) and clean of the same shape, got "
                             f"{tuple(restored.shape)} and {tuple(clean.shape)}")
        clean, terms = clean.detach(), {}
        if self.weights["l1"]:
            terms["l1"] = functional.l1_loss(restored, clean)
        if self.lpips is not None:
            active = [name for name in ("lpips", "gram") if self.weights[name]]
            seed = self.crop_seed if crop_seed is None else crop_seed
            terms |= {name: value.mean() for name, value in perceptual_distances(
                self.lpips, *random_crop(restored, clean, self.crop_px, seed), dtype=self.dtype,
                terms=active).items()}
        if self.clip is not None:
            embedding = clip_embedding(self.clip, restored, dtype=self.dtype)
            with torch.no_grad():
                target = clip_embedding(self.clip, clean, dtype=self.dtype)
            terms["clip"] = (1 - functional.cosine_similarity(embedding, target)).mean()
        if self.weights["mask"] and choice:
            terms["mask"] = mask_loss(*choice, clean)
        return terms | {"total": torch.stack([
            self.weights[name] * value for name, value in terms.items()]).sum()}


def random_crop(restored: Tensor, clean: Tensor, side_px: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cut the same random square out of both batches; `side_px` 0 or too large keeps them whole."""
    limits = [side - side_px for side in restored.shape[2:]]
    if not side_px or min(limits) <= 0:
        return restored, clean
    rng = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(limit + 1, (), generator=rng)) for limit in limits)
    square = (..., slice(top, top + side_px), slice(left, left + side_px))
    return restored[square], clean[square]


def mask_loss(degraded: Tensor, decoded: Tensor, logit: Tensor, clean: Tensor) -> Tensor:
    """Cross-entropy of the repair mask and which of two pictures is closer to the truth.

    Closer is what has detail of the right energy at each size (`detail`), and the right colour,
    around a pixel. Squared error would be no judge: it prefers blur, so the mask would stay shut.
    Only the logit (B, 1, H, W) receives a gradient, no picture (B, 3, H, W).
    """
    with torch.no_grad():
        degraded, decoded, truth = (x.float() for x in (degraded, decoded, clean))
        target = detail(truth)
        before, after = (
            DETAIL_WEIGHT * (detail(x) - target).abs().sum(1, keepdim=True)
            + COLOR_WEIGHT * window_mean((x - truth).abs().sum(1, keepdim=True))
            for x in (degraded, decoded))
        closer = (before - after).sigmoid()
    return functional.binary_cross_entropy_with_logits(logit, closer)


def detail(images: Tensor) -> Tensor:
    """Log energy (B, 3, H, W), about -2.3 to 3.5, of detail finer than each of DETAIL_SIZES_PX."""
    grey = images.mean(1, keepdim=True)
    energies = [window_mean((grey - window_mean(grey, side)) ** 2) for side in DETAIL_SIZES_PX]
    return (torch.log(torch.cat(energies, 1) + FAINTEST) + 7) / 2


def window_mean(images: Tensor, side_px: int = WINDOW_PX) -> Tensor:
    """The mean over a square of odd side around each pixel of (B, C, H, W), mirrored outside."""
    padded = functional.pad(images, (side_px // 2,) * 4, mode="reflect")
    columns = functional.avg_pool2d(padded, (side_px, 1), 1)  # a quarter of the time
    return functional.avg_pool2d(columns, (1, side_px), 1)
