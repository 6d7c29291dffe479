"""Perceptual distances: LPIPS and Gram on one walk through a network, a map of LPIPS, and CLIP.

At 512 px the first layer alone, in float32, would be the peak of a training step. So what is
computed from a layer is computed at once, and again in the backward pass.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CLIP_NAME = "openai/clip-vit-base-patch32"


def load_lpips(net: str, *, pretrained: bool = True, seed: int = 0) -> nn.Module:
    """Build the `lpips` package's network ("vgg", "alex", "squeeze"), frozen, on the CPU.

    Not `pretrained`, it is a distance of untrained textures, drawn from `seed`: for tests.

    Source: Zhang et al. 2018, equation 1; https://arxiv.org/abs/1801.03924
    """
    import lpips

    def load() -> nn.Module:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            torch.random.default_generator.manual_seed(seed)
            return lpips.LPIPS(net=net, pretrained=pretrained, pnet_rand=not pretrained,
                               verbose=False)

    network = _load(load, f"LPIPS {net} (torchvision, ImageNet)",
                    "use lpips_weights='stlpips', or set lambda_lpips and lambda_gram to 0")
    if not pretrained:  # drawn heads would make a distance below 0
        for head in network.lins:
            nn.init.constant_(head.model[-1].weight, 1 / len(network.lins))
    return network.requires_grad_(False).eval()


def load_stlpips(net: str) -> ShiftTolerantLPIPS:
    """Build shift-tolerant LPIPS, whose weights come with a pip package, frozen, on the CPU.

    `lpips` downloads its backbones; the wheel of `stlpips-pytorch` (0.0.2, weights/vST0.0) carries
    backbones and heads. Only its weight files are read: its code imports packages it does not ask
    for, and parts of it are licensed for non-commercial use only (the wheel itself is BSD-2).

    `net` is "vgg" (VGG16) or "alex" (AlexNet, a quarter of the work).

    Source: Ghildyal and Liu 2022, https://arxiv.org/abs/2207.13686; topology as in
    https://github.com/abhijay9/ShiftTolerant-LPIPS, stlpips_pytorch/invariant_networks.py.
    """
    package = find_spec("stlpips_pytorch")  # where it lies, without importing it
    if package is None:
        raise ModuleNotFoundError("stlpips_pytorch: expected this package, got none; run "
                                  "pip install --no-deps stlpips-pytorch")
    file = Path(package.origin).parent / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    heads = {name: f"lins.{name[3]}.weight" for name in state if name.startswith("lin")}
    with torch.device("meta"):  # no time is spent on weights that are about to be replaced
        network = ShiftTolerantLPIPS(net)
    network.load_state_dict({heads.get(name, name): w for name, w in state.items()}, assign=True)
    return network.requires_grad_(False).eval()


def perceptual_distances(network: nn.Module, restored: Tensor, clean: Tensor, *,
                         dtype: torch.dtype, terms: Collection[str] = ("lpips", "gram"),
                         ) -> dict[str, Tensor]:
    """LPIPS and Gram distance, by term float32 (B,), each layer run once per image.

    The taps of VGG16 are relu1_2, 2_2, 3_3, 4_3 and 5_3. LPIPS equals the package's forward.

    Args:
        network: from `load_lpips` or `load_stlpips`.
        restored, clean: (B, 3, H, W) in [0, 1]; clean receives no gradient.
        dtype: of the backbone; what is computed from its features is float32.
    """
    functions = {"lpips": lambda head, a, b: lpips_cells(head, a, b).mean((2, 3)).flatten(),
                 "gram": lambda _, a, b: gram_distance(a, b)}

    def distances(head: nn.Module, a: Tensor, b: Tensor) -> Tensor:  # of one sample: (1, terms)
        return torch.stack([functions[term](head, a, b) for term in terms], 1)

    a, b = (network.scaling_layer(2 * x.float() - 1).to(dtype) for x in (restored, clean))
    layers = []
    for number, head in enumerate(network.lins, start=1):
        block = getattr(network.net, f"slice{number}")
        a = block(a)
        with torch.no_grad():
            b = block(b)
        layers.append(torch.cat([
            checkpoint(distances, head, *pair, use_reentrant=False, preserve_rng_state=False)
            for pair in zip(a.split(1), b.split(1), strict=True)]))  # (B, terms)
    return dict(zip(terms, torch.stack(layers).sum(0).unbind(1), strict=True))


def lpips_cells(head: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """What each place of a layer (B, C, H, W) adds to LPIPS, float32 (B, 1, H, W)."""
    return head((unit_vectors(a.float()) - unit_vectors(b.float())) ** 2)


def unit_vectors(features: Tensor) -> Tensor:
    """Divide (B, C, H, W) by their lengths over the channels, as the package does.

    Zero vectors stay zero, with a finite gradient: the root has none there.
    """
    squares = (features**2).sum(1, keepdim=True)
    return features / (torch.where(squares > 0, squares, 1).sqrt() + 1e-10)


def gram_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of the channel correlations of a layer (B, C, H, W), float32 (B,).

    Source: Johnson et al. 2016, equation 3; https://arxiv.org/abs/1603.08155
    """
    flat = [x.float().flatten(2) for x in (a, b)]  # half precision overflows on the sum
    first, second = (x @ x.mT / x[0].numel() for x in flat)
    return ((first - second) ** 2).mean((1, 2))


@torch.no_grad()
def distance_map(network: nn.Module, images: Tensor, clean: Tensor) -> Tensor:
    """Where a network sees a difference, (K·B, H, W); the mean is the distance of the picture.

    Images are (K·B, 3, H, W) in [0, 1]: K pictures of each truth in `clean`, kind after kind. The
    interpolated map of the `lpips` package has another mean.
    """
    size, kinds = images.shape[2:], len(images) // len(clean)
    a, b = (network.scaling_layer(2 * x - 1) for x in (images, clean))
    total = images.new_zeros(len(images), 1, *size)
    for number, head in enumerate(network.lins, start=1):
        block = getattr(network.net, f"slice{number}")
        a, b = block(a), block(b)
        total += spread(lpips_cells(head, a, b.repeat(kinds, 1, 1, 1)), size)
    same = (images == clean.repeat(kinds, 1, 1, 1)).flatten(1).all(1)
    return total[:, 0].masked_fill(same.view(-1, 1, 1), 0)  # not 1e-15, as sums in another order


def spread(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay cells (B, C, h, w) over a picture of a size, each over the same area: the mean stays."""
    overlaps = []  # how much of each pixel of a line lies in each cell: (pixels, cells)
    for pixels, parts in zip(size, cells.shape[2:], strict=True):
        ends = [torch.arange(n + 1, dtype=torch.float64) / n for n in (pixels, parts)]
        low = torch.maximum(ends[0][:-1, None], ends[1][None, :-1])
        high = torch.minimum(ends[0][1:, None], ends[1][None, 1:])
        overlaps.append(((high - low).clamp(min=0) * pixels).to(cells))
    return overlaps[0] @ cells @ overlaps[1].T


def load_clip(name: str = "", *, local_only: bool = False) -> nn.Module:
    """CLIP's image tower, frozen, by hub name or folder; `local_only`: nothing is downloaded."""
    from transformers import CLIPVisionModelWithProjection  # slow, and only few need it

    name = name or CLIP_NAME
    model = _load(lambda: CLIPVisionModelWithProjection.from_pretrained(
        name, local_files_only=local_only), f"CLIP {name}", "set lambda_clipsim to 0")
    return model.requires_grad_(False).eval()


def clip_embedding(model: nn.Module, images: Tensor, *, dtype: torch.dtype) -> Tensor:
    """CLIP embeddings (B, D) in float32 of images (B, 3, H, W) in [0, 1], squeezed to a square."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    side = model.config.image_size
    small = functional.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    mean, std = (small.new_tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return model(pixel_values=((small - mean) / std).to(dtype)).image_embeds.float()


def _load(load: Callable[[], Any], what: str, remedy: str) -> Any:
    try:
        return load()
    except Exception as error:  # urllib, the hub's client, torch and pickle each raise their own
        raise ConnectionError(f"weights of {what}: expected to load them, got "
                              f"{type(error).__name__}: {error}; check the connection, or {remedy}"
                              ) from error


class ShiftTolerantLPIPS(nn.Module):
    """The network of `load_stlpips`, in the parts that `lpips.LPIPS` has as well."""

    def __init__(self, net: str) -> None:
        super().__init__()
        self.net, self.lins, number = nn.Module(), nn.ModuleList(), count()
        self.scaling_layer = _Scaling()
        conv, relu = _conv(3, 64, 11, padding=2)
        parts = [[conv, _Blur(64), relu],  # of AlexNet
                 [nn.MaxPool2d(3, stride=1), _Blur(64), *_conv(64, 192, 5, padding=2)],
                 [nn.MaxPool2d(3, stride=1), _Blur(192), *_conv(192, 384, 3, padding=1)],
                 _conv(384, 256, 3, padding=1), _conv(256, 256, 3, padding=1)]
        if net == "vgg":
            parts, width = [], 3
            for wider, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
                parts.append([nn.MaxPool2d(2, stride=1), _Blur(width)] if parts else [])
                for _ in range(depth):
                    parts[-1] += _conv(width, wider, 3, padding=1)
                    width = wider
        for part, layers in enumerate(parts, start=1):
            named = {str(next(number)): layer for layer in layers}  # as the weight files have it
            self.net.add_module(f"slice{part}", nn.Sequential(OrderedDict(named)))
            width = [layer for layer in layers if isinstance(layer, nn.Conv2d)][-1].out_channels
            self.lins.append(nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, images: Tensor, clean: Tensor, normalize: bool = False) -> Tensor:
        """As `lpips.LPIPS`: (B, 1, 1, 1) of RGB in [-1, 1], or [0, 1] with `normalize`."""
        a, b = (self.scaling_layer(2 * x - 1 if normalize else x) for x in (images, clean))
        total = 0
        for block, head in zip(self.net.children(), self.lins, strict=True):
            a, b = block(a), block(b)
            total = total + lpips_cells(head, a, b).mean((2, 3), keepdim=True)
        return total


class _Scaling(nn.Module):
    """From [-1, 1] to ImageNet's mean 0 and deviation 1."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("shift", "scale"):
            self.register_buffer(name, torch.zeros(1, 3, 1, 1))  # the weight files bring it

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


class _Blur(nn.Module):
    """Binomial 3 x 3 filter of stride 2, two mirrored pixels around (Zhang 2019, BlurPool)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))  # the weight files bring it

    def forward(self, taps: Tensor) -> Tensor:
        mirrored = functional.pad(taps, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(mirrored, self.filt, stride=2, groups=len(self.filt))


def _conv(width: int, wider: int, side: int, *, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(width, wider, side, padding=padding), nn.ReLU(inplace=True)]
