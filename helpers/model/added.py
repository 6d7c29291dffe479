"""What is added to a frozen base: LoRA, skips and the repair mask.

The mask decides per pixel whether the decoder's picture is closer to the truth than the input: a
base loses more detail than a good render lacks. It learns beside the decoder, see `mask_loss`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from ..losses.loss import detail

ALPHA = 8  # peft's default: the scale alpha / rank is 1 at rank 8 (UNet), 2 at rank 4 (VAE)
UNET_TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut",
                "conv_out", "proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"]
DECODER_TARGETS = (r"decoder\.(.*\.)?"  # a pattern: the encoder has layers of these names too
                   r"(to_[kqv]|to_out\.0|conv|conv1|conv2|conv_shortcut|conv_out|conv_in)")
WIDTH, SCALE = 24, 4  # channels; decided at a quarter of the size: the mask has no hard edges
START = -0.5  # logit before training: the input is kept, nearly
SHARPNESS = 4.0  # factor on the logit: half a decision blends two pictures to a blurred third
BIAS = -0.15  # on the logit: the most repair that costs 0.25 dB or less in interpolated views


def add_lora(network: nn.Module, rank: int, targets: list[str] | str) -> None:
    """Put trainable low-rank matrices beside layers, in place: W·x becomes W·x + scale·B·A·x.

    A is drawn from the global generator and B is zero. Targets are ends of layer names, or a
    pattern of whole names.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, equation 3.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow, and only training needs it

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=targets,
                                       init_lora_weights="gaussian"), network)


@torch.no_grad()
def merge_trained(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take trained tensors into a network without LoRA, in place: W += scale·B·A; others replace.

    They have their names in the trained network, such as `to_q.lora_A.default.weight`.
    """
    weights = dict(network.named_parameters())
    for name, tensor in tensors.items():
        layer, is_lora, adapter = name.partition(".lora_A.")
        if ".lora_B." in name:
            continue  # taken with its A
        weight, update = weights.get(f"{layer}.weight" if is_lora else name), tensor.float()
        if is_lora and weight is not None:
            up = tensors[f"{layer}.lora_B.{adapter}"].float().flatten(1)  # (out, rank)
            product = up @ update.flatten(1) * (ALPHA / len(tensor))
            update = weight.float() + product.view_as(weight).to(weight.device)
        if weight is None or weight.shape != update.shape:
            raise ValueError(f"{name}: expected a tensor of this base, got another shape or name; "
                             "use the base that the enhancer was trained on")
        weight.copy_(update)


def skip_convolutions(widths: Sequence[int], value: float) -> nn.ModuleList:
    """1×1 convolutions, all weights `value`, from a VAE's encoder to its decoder, deepest first."""
    sources = [widths[0], *widths[:-1]][::-1]  # channels entering the encoder blocks, deepest first
    targets = [widths[-1], *widths[:0:-1]]  # channels entering the decoder blocks
    skips = nn.ModuleList(nn.Conv2d(source, target, 1, bias=False)
                          for source, target in zip(sources, targets, strict=True))
    for skip in skips:
        nn.init.constant_(skip.weight, value)
    return skips


class RepairMask(nn.Module):
    """Judges by how much detail of what size there is in the input, the output and their change.

    Given that, three 1×1 layers learn in hundreds of steps. Each place also sees the means of the
    whole picture, for a spot alone cannot tell a good render from a bad one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(22, WIDTH, 1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 1)
        self.last = nn.Conv2d(WIDTH, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, START)

    def forward(self, degraded: Tensor, decoded: Tensor) -> Tensor:
        """The logit (B, 1, H, W), float32, of the chance that the decoder's picture is closer."""
        # No gradient: the decoder is not to please the mask
        degraded, decoded = degraded.detach().float(), decoded.detach().float()
        change, before = decoded - degraded, detail(degraded)
        features = torch.cat([before, 3 * (detail(decoded) - before), detail(change),
                              10 * change.mean(1, keepdim=True), degraded], 1)  # (B, 13, H, W)
        small = avg_pool2d(features, SCALE)
        whole = small[:, :9].mean((2, 3), keepdim=True).expand(-1, -1, *small.shape[2:])
        hidden = torch.cat([small, whole], 1).to(self.first.weight.dtype)
        logit = self.last(silu(self.second(silu(self.first(hidden))))).float()
        return interpolate(logit, scale_factor=SCALE, mode="bilinear")


def decide(logit: Tensor) -> Tensor:
    """The mask (B, 1, H, W) in [0, 1] of a logit: 0 keeps the input, 1 takes the decoder's."""
    return (SHARPNESS * (logit + BIAS)).sigmoid()
