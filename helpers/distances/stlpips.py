"""Shift-tolerant LPIPS: a perceptual distance whose trained weights come with a pip package.

`lpips` downloads its backbones; the wheel of `stlpips-pytorch` carries backbones and heads. Only
its weight files are read: its code imports packages it does not ask for, and parts of that code
are licensed for non-commercial use only (the wheel itself is BSD-2).

Source: Ghildyal and Liu, ECCV 2022, https://arxiv.org/abs/2207.13686; topology as in
https://github.com/abhijay9/ShiftTolerant-LPIPS, stlpips_pytorch/invariant_networks.py.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import count
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import refused
from .perceptual import lpips_layer

PACKAGE = "stlpips_pytorch"
BRING_IT = "run pip install --no-deps stlpips-pytorch"  # it asks for nothing; torch stays as it is
MIN_SIZE_PX = {"vgg": 18, "alex": 21}  # on less, the last blur would mirror more than there is


def load_stlpips(net: str) -> ShiftTolerantLPIPS:
    """Build one of the published networks with its trained weights, frozen, on the CPU in float32.

    Args:
        net: "vgg" (taps relu1_2, 2_2, 3_3, 4_3, 5_3 of VGG16) or "alex" (relu1 to relu5 of AlexNet,
            a quarter of the work).

    Raises:
        ValueError: an unknown `net`.
        RuntimeError: the package with the weights is not installed; the message says how to get it.

    Source: stlpips_pytorch 0.0.2, weights/vST0.0.
    """
    if net not in MIN_SIZE_PX:
        raise refused("net", "'vgg' or 'alex'", net, "use 'vgg'")
    file = _weights_file(net)
    state = torch.load(file, map_location="cpu", weights_only=True)
    heads = {name: f"lins.{name[3]}.weight" for name in state if name.startswith("lin")}
    with torch.device("meta"):  # no time is spent on weights that are about to be replaced
        network = ShiftTolerantLPIPS(net)
    network.load_state_dict({heads.get(name, name): w for name, w in state.items()}, assign=True)
    return network.requires_grad_(False).eval()


class ShiftTolerantLPIPS(nn.Module):
    """The network of `load_stlpips`, in the parts that `vgg_distances` walks as well.

    Attributes:
        scaling_layer: from RGB in [-1, 1] to what the backbone was trained on.
        net: the backbone, `slice1` to `slice5`, each ending in a tap.
        lins: the trained weight of each channel of a tap.
        min_size_px: the smallest side of an image.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.min_size_px = MIN_SIZE_PX[net]
        self.scaling_layer = lpips.ScalingLayer()
        self.net, self.lins, number = nn.Module(), nn.ModuleList(), count()
        for part, layers in enumerate(_vgg() if net == "vgg" else _alex(), start=1):
            block = nn.Sequential()
            for layer in layers:  # numbered through, as the weight files have it
                block.add_module(str(next(number)), layer)
            self.net.add_module(f"slice{part}", block)
            width = [layer for layer in layers if isinstance(layer, nn.Conv2d)][-1].out_channels
            self.lins.append(nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, images: Tensor, clean: Tensor, normalize: bool = False) -> Tensor:
        """Distance of each image to its clean one; 0 for equal images, rarely above 1.

        Args:
            images: (B, 3, H, W), RGB in [-1, 1], or in [0, 1] with `normalize`.
            clean: of the same shape and range.
            normalize: as `lpips.LPIPS` has it.

        Returns:
            (B, 1, 1, 1), float32.

        Raises:
            ValueError: the shapes differ, or are not (B, 3, H, W) of a usable size.
        """
        _check_pair(images, clean, self.min_size_px)
        a, b = (self.scaling_layer(2 * x - 1 if normalize else x) for x in (images, clean))
        total = torch.zeros(len(a), device=a.device)
        for block, head in zip(self.net.children(), self.lins, strict=True):
            a, b = block(a), block(b)
            total = total + lpips_layer(head, a, b)
        return total.view(-1, 1, 1, 1)


class _Blur(nn.Module):
    """Binomial 3 x 3 filter of stride 2, two mirrored pixels around (Zhang 2019, BlurPool)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))  # the weight files bring it

    def forward(self, taps: Tensor) -> Tensor:
        mirrored = functional.pad(taps, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(mirrored, self.filt, stride=2, groups=len(self.filt))


def _vgg() -> list[list[nn.Module]]:
    parts, width = [], 3
    for wider, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        parts.append([nn.MaxPool2d(2, stride=1), _Blur(width)] if parts else [])
        for _ in range(depth):
            parts[-1] += _conv(width, wider, 3, padding=1)
            width = wider
    return parts


def _alex() -> list[list[nn.Module]]:
    conv, relu = _conv(3, 64, 11, padding=2)
    return [[conv, _Blur(64), relu],
            [nn.MaxPool2d(3, stride=1), _Blur(64), *_conv(64, 192, 5, padding=2)],
            [nn.MaxPool2d(3, stride=1), _Blur(192), *_conv(192, 384, 3, padding=1)],
            _conv(384, 256, 3, padding=1), _conv(256, 256, 3, padding=1)]


def _conv(width: int, wider: int, side: int, *, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(width, wider, side, padding=padding), nn.ReLU(inplace=True)]


def _weights_file(net: str) -> Path:
    spec = find_spec(PACKAGE)  # where it lies, without importing it
    if spec is None or spec.origin is None:
        raise RuntimeError(f"weights of ST-LPIPS: expected the package {PACKAGE}, got none; "
                           f"{BRING_IT}")
    return Path(spec.origin).parent / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"


def _check_pair(images: Tensor, clean: Tensor, min_size_px: int) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < min_size_px:
        raise refused("images", f"(B, 3, H, W) with sides of {min_size_px} px or more", shape,
                      "pass a batch of RGB images")
    if clean.shape != images.shape:
        raise refused("clean", f"the shape of images {shape}", tuple(clean.shape),
                      "pass the two halves of the same pairs")
