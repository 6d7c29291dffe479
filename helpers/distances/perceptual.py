"""LPIPS and Gram distance, on one walk through VGG16 that keeps as little as it can.

At 512 px the first tap alone has 64 channels of full size: kept in float32, in three copies and for
two images, it would be the peak of a training step. So what is computed from a tap is computed at
once, in float32, and of the tap only what came out of VGG16 is kept for the backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import lpips
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..errors import refused

VGG_NAMES = {"lpips": "lpips_vgg", "stlpips": "stlpips_vgg", "random": "lpips_vgg_random"}


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


def vgg_distances(network: lpips.LPIPS, ours: Tensor, theirs: Tensor, *, dtype: torch.dtype,
                  terms: Collection[str] = ("lpips", "gram")) -> dict[str, Tensor]:
    """LPIPS and Gram distance from the same features, each backbone layer run once per image.

    The taps of VGG16 are relu1_2, 2_2, 3_3, 4_3 and 5_3. LPIPS equals the package's forward.

    Args:
        network: from `load_lpips`.
        ours: (B, 3, H, W) in [0, 1], scaled here to what the backbone was trained on.
        theirs: of the same shape; receives no gradient.
        dtype: of the backbone and its taps; what is computed from them is float32.
        terms: which of the two.

    Returns:
        By term, float32 (B,).
    """
    ours, theirs = (network.scaling_layer(2 * x.float() - 1).to(dtype) for x in (ours, theirs))
    layers: dict[str, list[Tensor]] = {name: [] for name in terms}
    for number, head in enumerate(network.lins, start=1):
        block = getattr(network.net, f"slice{number}")
        ours = block(ours)
        with torch.no_grad():
            theirs = block(theirs)
        if "gram" in layers:
            layers["gram"].append(gram_distance(ours, theirs))
        if "lpips" in layers:
            layers["lpips"].append(_recomputed_layer(head, ours, theirs))
    return {name: torch.stack(values).sum(0) for name, values in layers.items()}


def lpips_layer(head: nn.Module, ours: Tensor, theirs: Tensor) -> Tensor:
    """What one tap (B, C, H, W) adds to LPIPS, float32 (B,)."""
    return lpips.spatial_average(lpips_cells(head, ours, theirs)).flatten()


def lpips_cells(head: nn.Module, ours: Tensor, theirs: Tensor) -> Tensor:
    """What each place of one tap (B, C, H, W) adds to LPIPS, float32 (B, 1, H, W).

    Source: Zhang et al. 2018, equation 1; https://arxiv.org/abs/1801.03924
    """
    a, b = (unit_vectors(tap.float()) for tap in (ours, theirs))
    return head((a - b) ** 2)


def unit_vectors(features: Tensor) -> Tensor:
    """Divide (B, C, H, W) by their lengths over the channels, as the package does.

    Zero vectors stay zero, with a finite gradient: the root has none there.
    """
    squares = (features**2).sum(1, keepdim=True)
    return features / (torch.where(squares > 0, squares, 1).sqrt() + 1e-10)


def gram_matrix(features: Tensor) -> Tensor:
    """Channel correlations (B, C, C) of one tap (B, C, H, W), per sample, divided by C·H·W.

    In float32: half precision overflows on the undivided sum.
    Source: Johnson et al. 2016, equation 3; https://arxiv.org/abs/1603.08155
    """
    return _Gram.apply(features)


def gram_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices of one tap (B, C, H, W), float32 (B,)."""
    return ((gram_matrix(ours) - gram_matrix(theirs)) ** 2).mean((1, 2))


class _Gram(torch.autograd.Function):
    """Keeps the features as they came, not a float32 copy, and takes one product back, not two."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        flat = features.float().flatten(2)  # (B, C, H·W)
        return flat @ flat.transpose(1, 2) / flat[0].numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        features, = ctx.saved_tensors
        flat = features.float().flatten(2)
        gradient = (slope + slope.transpose(1, 2)) @ flat / flat[0].numel()
        return gradient.view_as(features).to(features.dtype)


def _recomputed_layer(head: nn.Module, ours: Tensor, theirs: Tensor) -> Tensor:
    """`lpips_layer`, computed anew in the backward pass, one sample after the other."""
    pairs = zip(ours.split(1), theirs.split(1), strict=True)
    return torch.cat([checkpoint(lpips_layer, head, *pair, use_reentrant=False,
                                 preserve_rng_state=False) for pair in pairs])


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
    backbone = load_or_explain(
        lambda: weights.get_state_dict(progress=True, check_hash=True),
        f"torchvision's {model} (ImageNet)",
        "use the 'demo' preset or loss.vgg='stlpips', or set loss.lpips and loss.gram to 0")
    heads_file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    heads = torch.load(heads_file, map_location="cpu", weights_only=True)
    # The package's slices keep torchvision's layer numbers: net.slice3.10.bias is features.10.bias
    renamed = {name: "features." + name.split(".", 2)[2] for name in wanted if name[:3] == "net"}
    return heads | {ours: backbone[theirs] for ours, theirs in renamed.items()}


def load_or_explain(load: Callable[[], Any], what: str, remedy: str) -> Any:
    """What `load` returns; RuntimeError that names the weights and the remedy if it fails."""
    try:
        return load()
    except Exception as error:  # urllib, the hub's client, torch and pickle each raise their own
        raise RuntimeError(f"expected the weights of {what}, got {type(error).__name__}: {error}; "
                           f"check the connection, or {remedy}") from error
