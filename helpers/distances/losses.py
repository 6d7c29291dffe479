"""The training loss: L1, LPIPS, Gram and CLIP similarity, with VGG16 run once per image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import LossConfig
from ..errors import refused
from ..pictures import check_images
from ..storage import TRANSFORMERS_WEIGHTS, fetch, load_whole
from .detail import detail, window_mean
from .perceptual import VGG_NAMES, load_lpips, load_or_explain, vgg_distances
from .stlpips import load_stlpips

CLIP_NAME = "openai/clip-vit-base-patch32"
CLIP_FILES = (("config.json",), TRANSFORMERS_WEIGHTS)
TERM_NAMES = {"l1": "L1", "lpips": "LPIPS", "gram": "Gram", "clip": "CLIP", "mask": "mask"}
DETAIL_WEIGHT, COLOR_WEIGHT = 2.0, 40.0  # of what the mask is judged by; a logit of 4 is certain
Choice = tuple[Tensor, Tensor, Tensor]  # degraded, decoded, logit of the mask
MIN_SIZE_PX = 16  # VGG16 halves the image four times before its last tap


class EnhancerLoss(nn.Module):
    """Weighted sum of pixel, perceptual, texture and semantic distances to the clean image.

    Every network is frozen and stays in evaluation mode; a term of weight 0 loads none.
    VGG16 runs once on the restored and once on the clean batch, for LPIPS and Gram together.

    Args:
        config: weights of the terms, and whose VGG16.
        device: where the networks live.
        dtype: of the networks (float16 on a T4); the arithmetic on features is float32.
        seed: of a random VGG16; unused with real weights.
        clip_name: CLIP checkpoint, a hub name or a local folder.

    Raises:
        RuntimeError: weights could not be loaded; the message names them and the remedy.
    """

    def __init__(self, config: LossConfig, *, device: torch.device | str,
                 dtype: torch.dtype = torch.float32, seed: int = 0,
                 clip_name: str = CLIP_NAME) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.lpips = self.clip = None
        if config.lpips or config.gram:
            self.lpips = (load_stlpips("vgg") if config.vgg == "stlpips" else load_lpips(
                "vgg", pretrained=config.vgg == "lpips", seed=seed)).to(device)
            self.lpips.net.to(dtype)
        if config.clip:
            self.clip = load_clip(clip_name).to(device, dtype)

    def describe(self) -> str:
        """The weighted sum, and which VGG16 sees what of each image."""
        weighted = " + ".join(f"{weight:g} × {label}" for name, label in TERM_NAMES.items()
                              if (weight := getattr(self.config, name)))
        if self.lpips is None:
            return weighted
        side = self.config.vgg_view_px
        view = f"a random square of {side} px" if side else "the whole image"
        return f"{weighted}; VGG16 ({VGG_NAMES[self.config.vgg]}) sees {view}"

    def train(self, mode: bool = True) -> EnhancerLoss:
        """Stay in evaluation mode: LPIPS's heads hold a dropout that would make the loss random."""
        return super().train(False)

    def forward(self, restored: Tensor, clean: Tensor, *, choice: Choice | None = None,
                view_seed: int = 0) -> dict[str, Tensor]:
        """Compare two batches.

        Args:
            restored: (B, 3, H, W), RGB; values outside [0, 1] are not clamped.
            clean: (B, 3, H, W), RGB in [0, 1]; receives no gradient.
            choice: what a repair mask chose from: degraded and decoded (B, 3, H, W), and its logit
                (B, 1, H, W); None without one.
            view_seed: of the square that VGG16 sees, where the config limits it.

        Returns:
            Scalars: the active terms "l1", "lpips", "gram", "clip", "mask", unweighted, and
            "total".

        Raises:
            ValueError: the shapes differ, or are not (B, 3, H, W) of a usable size.
        """
        _check_pair(restored, clean)
        clean = clean.detach()
        terms = {"l1": functional.l1_loss(restored, clean)} if self.config.l1 else {}
        if self.lpips is not None:
            views = random_view(restored, clean, self.config.vgg_view_px, view_seed)
            terms |= self._vgg_terms(*views)
        if self.clip is not None:
            terms["clip"] = self._clip_term(restored, clean)
        if self.config.mask and choice:
            terms["mask"] = mask_loss(*choice, clean)
        weighted = [getattr(self.config, name) * value for name, value in terms.items()]
        return terms | {"total": torch.stack(weighted).sum()}

    def _vgg_terms(self, restored: Tensor, clean: Tensor) -> dict[str, Tensor]:
        active = [name for name in ("lpips", "gram") if getattr(self.config, name)]
        values = vgg_distances(self.lpips, restored, clean, dtype=self.dtype, terms=active)
        return {name: value.mean() for name, value in values.items()}

    def _clip_term(self, restored: Tensor, clean: Tensor) -> Tensor:
        ours = clip_embedding(self.clip, restored, dtype=self.dtype)
        with torch.no_grad():
            theirs = clip_embedding(self.clip, clean, dtype=self.dtype)
        return (1 - functional.cosine_similarity(ours, theirs)).mean()


def mask_loss(degraded: Tensor, decoded: Tensor, logit: Tensor, clean: Tensor) -> Tensor:
    """Cross-entropy of the repair mask and which of two pictures is closer to the truth.

    Closer is what has detail of the right energy at each size (`detail`), and the right colour,
    around a pixel. Squared error would be no judge: it prefers blur, so the mask would stay shut.

    Args:
        degraded, decoded, clean: (B, 3, H, W); none of them receives a gradient.
        logit: (B, 1, H, W), of the mask.

    Returns:
        A scalar.
    """
    with torch.no_grad():
        degraded, decoded, truth = (x.float() for x in (degraded, decoded, clean))
        wanted = detail(truth)
        before, after = (
            DETAIL_WEIGHT * (detail(x) - wanted).abs().sum(1, keepdim=True)
            + COLOR_WEIGHT * window_mean((x - truth).abs().sum(1, keepdim=True))
            for x in (degraded, decoded))
        closer = (before - after).sigmoid()
    return functional.binary_cross_entropy_with_logits(logit, closer)


def random_view(restored: Tensor, clean: Tensor, side_px: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cut the same random square out of both batches; `side_px` 0 or too large keeps them whole."""
    limits = [side - side_px for side in restored.shape[-2:]]
    if not side_px or min(limits) <= 0:
        return restored, clean
    dice = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(limit + 1, (), generator=dice)) for limit in limits)
    square = (..., slice(top, top + side_px), slice(left, left + side_px))
    return restored[square], clean[square]


def load_clip(name: str = CLIP_NAME) -> nn.Module:
    """CLIP's image tower with its projection, frozen, from the hub or a local folder."""
    from transformers import CLIPVisionModelWithProjection  # slow import, needed by this term only

    def load() -> nn.Module:
        return load_whole(CLIPVisionModelWithProjection, fetch(name, *CLIP_FILES), name)

    model = load_or_explain(load, f"CLIP '{name}'", "set loss.clip to 0")
    return model.requires_grad_(False).eval()


def clip_embedding(model: nn.Module, images: Tensor, *, dtype: torch.dtype) -> Tensor:
    """CLIP embeddings (B, D) in float32 of images (B, 3, H, W) in [0, 1], squeezed to a square."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    side = model.config.image_size
    small = functional.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    mean, std = (small.new_tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return model(pixel_values=((small - mean) / std).to(dtype)).image_embeds.float()


def _check_pair(restored: Tensor, clean: Tensor) -> None:
    shape = tuple(restored.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 3 or min(shape[2:]) < MIN_SIZE_PX:
        raise refused("restored", f"(B, 3, H, W) with sides of {MIN_SIZE_PX} px or more", shape,
                      "pass a batch of RGB images")
    if not (restored.is_floating_point() and clean.is_floating_point()):
        raise refused("images", "floats in [0, 1]", (restored.dtype, clean.dtype),
                      "divide 8-bit images by 255")
    if clean.shape != restored.shape:
        raise refused("clean", f"the shape of restored {shape}", tuple(clean.shape),
                      "pass the two halves of the same pairs")
    check_images(clean, "clean")
