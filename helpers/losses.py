"""The training loss: L1, LPIPS, Gram and CLIP similarity, with VGG16 run once per image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lpips
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from .config import LossConfig, refused

CLIP_NAME = "openai/clip-vit-base-patch32"
MIN_SIZE_PX = 16  # VGG16 halves the image four times before its last tap


class EnhancerLoss(nn.Module):
    """Weighted sum of pixel, perceptual, texture and semantic distances to the clean image.

    Every network is frozen and stays in evaluation mode; a term of weight 0 loads none.
    VGG16 runs once on the restored and once on the clean batch, for LPIPS and Gram together.

    Args:
        config: weights of the terms; `pretrained=False` swaps in a random VGG16 (see `load_lpips`).
        device: where the networks live.
        dtype: of the networks (float16 on a T4); the arithmetic on features is float32.
        seed: of the random VGG16; unused with real weights.
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
            self.lpips = load_lpips("vgg", pretrained=config.pretrained, seed=seed).to(device)
            self.lpips.net.to(dtype)
        if config.clip:
            self.clip = load_clip(clip_name).to(device, dtype)

    def train(self, mode: bool = True) -> EnhancerLoss:
        """Stay in evaluation mode: LPIPS's heads hold a dropout that would make the loss random."""
        return super().train(False)

    def forward(self, restored: Tensor, clean: Tensor, *, view_seed: int = 0) -> dict[str, Tensor]:
        """Compare two batches.

        Args:
            restored: (B, 3, H, W), RGB; values outside [0, 1] are not clamped.
            clean: (B, 3, H, W), RGB in [0, 1]; receives no gradient.
            view_seed: of the square that VGG16 sees, where the config limits it.

        Returns:
            Scalars: the active terms "l1", "lpips", "gram", "clip", unweighted, and "total".

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
        weighted = [getattr(self.config, name) * value for name, value in terms.items()]
        return terms | {"total": torch.stack(weighted).sum()}

    def _vgg_terms(self, restored: Tensor, clean: Tensor) -> dict[str, Tensor]:
        ours = vgg_features(self.lpips, restored, dtype=self.dtype)
        with torch.no_grad():
            theirs = vgg_features(self.lpips, clean, dtype=self.dtype)
        terms = {}
        if self.config.lpips:
            terms["lpips"] = lpips_distance(self.lpips, ours, theirs).mean()
        if self.config.gram:
            terms["gram"] = gram_distance(ours, theirs).mean()
        return terms

    def _clip_term(self, restored: Tensor, clean: Tensor) -> Tensor:
        ours = clip_embedding(self.clip, restored, dtype=self.dtype)
        with torch.no_grad():
            theirs = clip_embedding(self.clip, clean, dtype=self.dtype)
        return (1 - functional.cosine_similarity(ours, theirs)).mean()


def random_view(restored: Tensor, clean: Tensor, side_px: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cut the same random square out of both batches; `side_px` 0 or too large keeps them whole."""
    limits = [side - side_px for side in restored.shape[-2:]]
    if not side_px or min(limits) <= 0:
        return restored, clean
    dice = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(limit + 1, (), generator=dice)) for limit in limits)
    square = (..., slice(top, top + side_px), slice(left, left + side_px))
    return restored[square], clean[square]


def perceptual_name(config: LossConfig) -> str:
    """What the VGG16 distance is called wherever it is printed or saved."""
    return "lpips_vgg" if config.pretrained else "lpips_vgg_random"


def load_lpips(net: str, *, pretrained: bool, seed: int = 0) -> lpips.LPIPS:
    """Build the `lpips` package's network, frozen, on the CPU in float32.

    With `pretrained`, the backbone is torchvision's ImageNet one and the heads are the published
    ones. Without, it is an untrained texture distance (see `_random_weights`), not LPIPS, and is
    to be named `lpips_vgg_random`.

    Args:
        net: "vgg", "alex" or "squeeze".
        pretrained: real weights, or random ones.
        seed: of the random weights; the global generator is left alone.

    Raises:
        ValueError: an unknown `net`.
        RuntimeError: the backbone's weights could not be downloaded.
    """
    if net not in ("vgg", "alex", "squeeze"):
        raise refused("net", "'vgg', 'alex' or 'squeeze'", net, "use 'vgg'")
    # On "meta" because the package first builds the whole classifier, 0.5 GB for VGG16; and it
    # calls torchvision with the deprecated `pretrained=` whatever it is asked for.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    wanted = {name: value.shape for name, value in network.named_parameters()}
    state = _pretrained_weights(net, wanted) if pretrained else _random_weights(wanted, seed)
    state |= dict(network.named_buffers())  # the input scaling: real numbers, not on "meta"
    state |= {f"lins.{i}.model.1.weight": state[f"lin{i}.model.1.weight"] for i in range(network.L)}
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def vgg_features(network: lpips.LPIPS, images: Tensor, *, dtype: torch.dtype) -> Sequence[Tensor]:
    """The taps of LPIPS's backbone (relu1_2, 2_2, 3_3, 4_3, 5_3 of VGG16) in float32.

    Args:
        network: from `load_lpips`.
        images: (B, 3, H, W) in [0, 1], scaled here to what the backbone was trained on.
        dtype: of the backbone.
    """
    scaled = network.scaling_layer(2 * images.float() - 1)
    return [tap.float() for tap in network.net(scaled.to(dtype))]


def lpips_distance(
        network: lpips.LPIPS, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """LPIPS (B,) from features already computed; equals the package's forward.

    Source: Zhang et al. 2018, equation 1; https://arxiv.org/abs/1801.03924
    """
    layers = [
        lpips.spatial_average(head((lpips.normalize_tensor(a) - lpips.normalize_tensor(b)) ** 2))
        for head, a, b in zip(network.lins, ours, theirs, strict=True)
    ]
    return torch.stack(layers).sum(0).flatten()


def gram_matrix(features: Tensor) -> Tensor:
    """Channel correlations (B, C, C) of one tap (B, C, H, W), per sample, divided by C·H·W.

    In float32: half precision overflows on the undivided sum.
    Source: Johnson et al. 2016, equation 3; https://arxiv.org/abs/1603.08155
    """
    flat = features.float().flatten(2)  # (B, C, H·W)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def gram_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of Gram matrices (B,), summed over the taps."""
    squares = [(gram_matrix(a) - gram_matrix(b)) ** 2 for a, b in zip(ours, theirs, strict=True)]
    return torch.stack([square.mean((1, 2)) for square in squares]).sum(0)


def load_clip(name: str = CLIP_NAME) -> nn.Module:
    """CLIP's image tower with its projection, frozen, from the hub or a local folder."""
    from transformers import CLIPVisionModelWithProjection  # slow import, needed by this term only

    load = CLIPVisionModelWithProjection.from_pretrained
    model = _load_or_explain(lambda: load(name), f"CLIP '{name}'", "set loss.clip to 0")
    return model.requires_grad_(False).eval()


def clip_embedding(model: nn.Module, images: Tensor, *, dtype: torch.dtype) -> Tensor:
    """CLIP embeddings (B, D) in float32 of images (B, 3, H, W) in [0, 1], squeezed to a square."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    side = model.config.image_size
    small = functional.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    mean, std = (small.new_tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return model(pixel_values=((small - mean) / std).to(dtype)).image_embeds.float()


def _random_weights(wanted: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Kaiming normal, no bias; the first layer's filters have zero mean, to see edges as trained
    ones do, rather than brightness. The published heads only make sense on trained features, so
    every head weight is 1/L: the squared distance of unit feature vectors, averaged over L layers.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = sum(name.startswith("lin") for name in wanted)

    def draw(name: str, shape: torch.Size) -> Tensor:
        if name.startswith("lin"):
            return torch.full(shape, 1 / heads)
        weight = torch.zeros(shape)
        if weight.dim() > 1:
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        if shape[1:2] == (3,):  # the layer that sees RGB
            weight -= weight.mean((2, 3), keepdim=True)
        return weight

    return {name: draw(name, shape) for name, shape in wanted.items()}


def _pretrained_weights(net: str, wanted: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    model = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}[net]
    weights = torchvision.models.get_model_weights(model).IMAGENET1K_V1
    backbone = _load_or_explain(
        lambda: weights.get_state_dict(progress=True, check_hash=True),
        f"torchvision's {model} (ImageNet)",
        "use the 'demo' preset or loss.pretrained=False, or set loss.lpips and loss.gram to 0")
    heads_file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    heads = torch.load(heads_file, map_location="cpu", weights_only=True)
    # The package's slices keep torchvision's layer numbers: net.slice3.10.bias is features.10.bias
    renamed = {name: "features." + name.split(".", 2)[2] for name in wanted if name[:3] == "net"}
    return heads | {ours: backbone[theirs] for ours, theirs in renamed.items()}


def _load_or_explain(load: Callable[[], Any], what: str, remedy: str) -> Any:
    try:
        return load()
    except Exception as error:  # urllib, the hub's client, torch and pickle each raise their own
        raise RuntimeError(f"expected the weights of {what}, got {type(error).__name__}: {error}; "
                           f"check the connection, or {remedy}") from error


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
