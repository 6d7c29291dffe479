"""What is trained on the frozen base: LoRA layers and skip convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

ALPHA = 8  # peft's default: the scale alpha / rank is 1 at rank 8 (UNet), 2 at rank 4 (VAE)
UNET_TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut",
                "conv_out", "proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"]
DECODER_TARGETS = (r"decoder\.(.*\.)?"  # a pattern, since the encoder has layers of these names too
                   r"(to_[kqv]|to_out\.0|conv|conv1|conv2|conv_shortcut|conv_out|conv_in)")


def skip_convolutions(widths: Sequence[int], value: float) -> nn.ModuleList:
    """Build the 1×1 convolutions from a VAE's encoder to its decoder, deepest first.

    Args:
        widths: channels of the VAE's blocks, from the image inwards.
        value: of all their weights at the start.
    """
    sources = [widths[0], *widths[:-1]][::-1]  # channels entering the encoder blocks, deepest first
    targets = [widths[-1], *widths[:0:-1]]  # channels entering the decoder blocks
    skips = nn.ModuleList(nn.Conv2d(source, target, 1, bias=False)
                          for source, target in zip(sources, targets, strict=True))
    for skip in skips:
        nn.init.constant_(skip.weight, value)
    return skips


def add_lora(network: nn.Module, rank: int, targets: list[str] | str) -> None:
    """Add LoRA layers to a diffusers network, in place, drawn from the global generator.

    Args:
        network: a UNet or VAE of diffusers.
        rank: of the layers.
        targets: ends of layer names, or a pattern of whole names.
    """
    network.add_adapter(LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=targets,
                                   init_lora_weights="gaussian"))


@contextmanager
def merged_lora(network: nn.Module) -> Iterator[None]:
    """Fold LoRA into the base weights for a while: faster, nothing can be trained meanwhile.

    The original weights are set aside (1.9 GB for SD-Turbo in fp16) and put back bit-equal:
    subtracting what was added would leave rounding errors in the frozen weights.
    """
    layers = [m for m in network.modules() if isinstance(m, LoraLayer) and not m.merged]
    originals = [layer.get_base_layer().weight.data for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.merge(safe_merge=True)  # into a copy; refuses non-finite weights
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = original
