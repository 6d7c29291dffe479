"""Every setting of a run, in two frozen dataclasses, and the presets.

Fields carry the names that users of img2img-turbo and diffusers know. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ASSETS = Path(__file__).parent / "assets"
TINY_BASE = "tiny-sd-turbo"
EMBEDDED_BASES = (TINY_BASE, "tiny-restorer")  # the demo's, the shipped enhancer's
SD_TURBO = "stabilityai/sd-turbo"
PAIR_KINDS = ("synthetic", "wrong_detail", "fit", "novel_view", "own")


def option(default: Any, text: str, low: float = 0, high: float = math.inf) -> Any:
    return field(default=default, metadata={"help": text, "limits": (low, high)})


def _amount(default: float, group: str, text: str) -> Any:
    return field(default=default, metadata={"help": text, "group": group, "limits": (0, 1)})


@dataclass(frozen=True)
class DegradationConfig:
    """How a clean face is degraded, by default as the preset "medium"; amounts 0 change nothing.

    The help says what each imitates in a real render; they are applied in the order of `STAGES` in
    `degradation/pipeline.py`.
    """

    strength: float = _amount(1.0, "overall", "How far the fit failed: multiplies every amount")
    strength_min: float = _amount(
        0.0, "training", "Weakest training sample, as a share of strength: avatars differ")
    amount_min: float = _amount(
        0.5, "training", "Least share of each amount in a sample: no two renders fail alike")
    clean_share: float = _amount(
        0.05, "training", "Share of samples left untouched: a good render must stay one")
    skin: float = _amount(0.5, "regions", "Pores and wrinkles lost: skin like wax")
    eyes: float = _amount(0.8, "regions", "Lids and iris run together, as where people blinked")
    nose: float = _amount(0.6, "regions", "Nostrils and ridge washed out")
    mouth: float = _amount(0.9, "regions", "Lips and teeth run together, as where people moved")
    hair: float = _amount(0.6, "regions", "Strands merge into smeared locks")
    background: float = _amount(0.3, "regions", "What lies behind the head is out of focus")
    variation: float = _amount(
        0.7, "overall", "How patchy the blur of the regions is: 0 even, 1 from none to full")
    sparsity: float = _amount(0.15, "splats", "Too few Gaussians: detail is lost everywhere")
    oversize: float = _amount(0.1, "splats", "Gaussians too large: strands and features merge")
    needles: float = _amount(0.2, "splats", "Gaussians stretched to needles: thin streaks")
    holes: float = _amount(0.3, "splats", "Gaussians missing in patches: a matte wall shows")
    floaters: float = _amount(0.2, "splats", "Gaussians misplaced in the air before the face")
    translucency: float = _amount(0.4, "splats", "Thin silhouettes: the background bleeds in")
    doubling: float = _amount(0.3, "splats", "Misaligned views: the silhouette a second time")
    color_error: float = _amount(0.2, "splats", "Wrong low-order colour: blotches and a cast")
    warp: float = _amount(0.2, "image", "Geometry slightly off: features lean and bulge")
    surface_blur: float = _amount(0.2, "image", "Texture flattened between sharp edges")
    brightness: float = _amount(0.3, "image", "Exposure differs between views, unevenly")
    color_jitter: float = _amount(0.3, "image", "White balance differs between views")
    desaturation: float = _amount(0.1, "image", "Averaged views: colours fade towards grey")
    blur: float = _amount(0.05, "image", "Overall softness of the render")
    downscale: float = _amount(0.05, "image", "Rendered small and enlarged")
    blocks: float = _amount(0.05, "image", "Footprints of Gaussians: blotches of one colour")
    ghosting: float = _amount(0.3, "image", "Misaligned views: a translucent second contour")
    noise: float = _amount(0.05, "image", "Grain of Gaussians fitted to single pixels")

    def __post_init__(self) -> None:
        _check_fields(self, "degradation.")


@dataclass(frozen=True)
class Config:
    """One run. `preset()` builds it, `replace()` changes it; the defaults are the preset demo."""

    preset: str = option("demo", "demo, t4, full or published")
    # Data
    source: str = option("heads", "heads (embedded), celeba-hq, or a folder of photographs")
    resolution: int = option(128, "side of the square images in pixels, a multiple of 64")
    max_train_samples: int = option(192, "faces to train on", 1)
    max_test_samples: int = option(24, "faces held out", 1)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    # Pairs: the weights are relative to their sum
    weight_synthetic: float = option(0.18, "pairs of a face degraded by the pipeline")
    weight_wrong_detail: float = option(0.28, "pairs of a face whose detail is made wrong")
    weight_fit: float = option(0.11, "pairs of a face described by too few 2D Gaussians")
    weight_novel_view: float = option(0.43, "pairs of a 3D fit of a head seen from a new view")
    weight_own: float = option(0.0, "your own pairs")
    own_pairs: str = option("", "folder of your own pairs: renders/ and photos/ of equal names")
    own_held_out: float = option(0.125, "share of your photographs that is only measured", 0, 1)
    fit_samples: int = option(64, "training faces that 2D Gaussians are fitted to", 1)
    # Model
    pretrained_model_name_or_path: str = option(TINY_BASE, "base: hub name or diffusers folder")
    timestep: int = option(1, "timestep of the single step, 0 to 999", 0, 999)
    lora_rank_unet: int = option(8, "LoRA rank of the UNet", 1)
    lora_rank_vae: int = option(4, "LoRA rank of the VAE decoder; the encoder is frozen", 1)
    train_base: Literal["lora", "full"] = option("lora", "full trains UNet and decoder, no LoRA")
    blend: Literal["none", "mask", "residual", "masked_residual", "correction"] = option(
        "masked_residual", "how the decoded picture and the input are mixed")
    skip_init: float = option(1e-5, "first weight of the skip convolutions")
    skip_dropout: float = option(0.1, "share of training samples that see no skips", 0, 1)
    prompt: str = option("a sharp, detailed photograph of a person's face", "for all images")
    init_from: str = option("", "an exported enhancer, or shipped: start from its weights")
    # Loss: a weight of 0 means that its network is not loaded
    lambda_l1: float = option(2.0, "mean absolute difference")
    lambda_lpips: float = option(1.0, "LPIPS on VGG16")
    lambda_gram: float = option(0.0, "Gram matrices of the VGG16 features: texture")
    lambda_clipsim: float = option(0.0, "1 - cosine similarity of CLIP image embeddings")
    lambda_mask: float = option(0.1, "cross-entropy of the repair mask, where there is one")
    lpips_crop: int = option(64, "VGG16 sees a random square of this side in pixels; 0: all")
    lpips_weights: Literal["lpips", "stlpips", "random"] = option("stlpips", "whose VGG16")
    # Optimisation: AdamW, linear warm-up, cosine decay to a tenth
    max_train_steps: int = option(240, "steps in all, those before a resume included", 1)
    train_batch_size: int = option(2, "images that pass through the network at once", 1)
    gradient_accumulation_steps: int = option(1, "batches averaged into one step", 1)
    learning_rate: float = option(8e-4, "at the end of the warm-up", 1e-9)
    skip_learning_rate_factor: float = option(0.08, "times learning_rate, for the skips")
    lr_warmup_steps: int = option(10, "steps until the full learning rate")
    adam_weight_decay: float = option(0.01, "weight decay")
    max_grad_norm: float = option(1.0, "largest norm of the whole gradient", 1e-6)
    gradient_checkpointing: Literal["auto", "on", "off"] = option("auto", "half the memory")
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = option("auto", "working copies")
    # Run
    run_name: str = option("demo", "names the run's folder")
    seed: int = option(0, "all that is random in step n follows from this and n", 0, 2**31 - 1)
    checkpointing_steps: int = option(100, "steps between two checkpoints", 1)
    checkpointing_s: int = option(300, "seconds between two checkpoints, whichever comes first", 1)
    dataloader_num_workers: int = option(0, "processes that read ahead")
    validation_steps: int = option(40, "steps between two previews with the held-out distance", 1)
    # Evaluation
    test_fit_samples: int = option(8, "test faces also measured as 2D fits and by preset", 1)
    max_test_pairs: int = option(32, "novel-view or own pairs measured, of each set", 1)

    def __post_init__(self) -> None:
        _check_fields(self)
        for name, fits, expected in (
                ("preset", self.preset in PRESETS, f"one of {', '.join(PRESETS)}"),
                ("resolution", self.resolution and self.resolution % 64 == 0,
                 "a multiple of 64; use 128, 256 or 512"),
                ("lpips_crop", self.lpips_crop == 0 or self.lpips_crop >= 16, "0, or 16 or more"),
                ("run_name", re.fullmatch(r"\w([\w.-]{0,98}\w)?", self.run_name),
                 "at most 100 letters, digits, '_', and '-' or '.' between them"),
                ("own_pairs", self.own_pairs.strip() or not self.weight_own,
                 "a folder, since weight_own is above 0"),
                ("weight_synthetic", any(getattr(self, f"weight_{kind}") for kind in PAIR_KINDS),
                 "a weight of pairs above 0: they are all 0"),
                ("lambda_l1", self.lambda_l1 or self.lambda_lpips or self.lambda_gram
                 or self.lambda_clipsim, "a weight of the loss above 0: they are all 0")):
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    @property
    def pair_weights(self) -> dict[str, float]:
        """The share of each kind of pairs, in the order of PAIR_KINDS; their sum is 1."""
        weights = {kind: getattr(self, f"weight_{kind}") for kind in PAIR_KINDS}
        return {kind: weight / sum(weights.values()) for kind, weight in weights.items()}

    def replace(self, **changes: Any) -> Config:
        """A copy with some fields changed; of the degradation as `**{"degradation.eyes": 0.4}`."""
        amounts = {name.removeprefix("degradation."): changes.pop(name)
                   for name in list(changes) if name.startswith("degradation.")}
        for cls, names, prefix in ((DegradationConfig, amounts, "degradation."),
                                   (Config, changes, "")):
            known = [f.name for f in dataclasses.fields(cls)]
            for name in set(names) - set(known):
                near = [prefix + other for other in difflib.get_close_matches(name, known) or known]
                raise ValueError(f"config: expected a known field, got {prefix + name!r}; near "
                                 f"it: {', '.join(near)}")
        if amounts:
            before = changes.get("degradation", self.degradation)
            changes["degradation"] = dataclasses.replace(before, **amounts)
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The config as text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Config:
        """Read what `to_json` wrote; a field that it lacks is the preset's."""
        try:
            fields = json.loads(text)
            amounts = {f"degradation.{name}": v for name, v in fields.pop("degradation").items()}
            config = preset(fields["preset"])
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"config: expected JSON of Config, got {text[:60]!r}") from error
        return config.replace(**fields, **amounts)


_SD_TURBO_RUN: dict[str, Any] = {
    "source": "celeba-hq", "resolution": 512, "max_test_samples": 50,
    # As in the row of results/transfer that does no harm, and some for the sliders
    "weight_wrong_detail": 0.7, "weight_fit": 0.2, "weight_synthetic": 0.1, "weight_novel_view": 0,
    "pretrained_model_name_or_path": SD_TURBO, "timestep": 249, "blend": "mask",
    "skip_dropout": 0.3, "lambda_lpips": 0.5, "lambda_gram": 1.0, "lambda_clipsim": 0.5,
    "lpips_crop": 0, "lpips_weights": "lpips",
    "learning_rate": 5e-5, "skip_learning_rate_factor": 1.0, "lr_warmup_steps": 20,
    "dataloader_num_workers": 1,  # a GPU would wait for the faces
}
_FULL_RUN = _SD_TURBO_RUN | {
    "max_train_samples": 450, "fit_samples": 350, "max_train_steps": 5_000,
    "checkpointing_steps": 250, "validation_steps": 250, "run_name": "full"}
PRESETS: dict[str, dict[str, Any]] = {  # changes from Config()
    "demo": {},
    "t4": _SD_TURBO_RUN | {
        "max_train_samples": 300, "fit_samples": 300, "max_train_steps": 1_000,
        "checkpointing_steps": 100, "validation_steps": 100, "run_name": "t4"},
    "full": _FULL_RUN,
    "published": _FULL_RUN | {  # the technical test's own recipe, to compare with its LPIPS
        "weight_synthetic": 1.0, "weight_wrong_detail": 0.0, "weight_fit": 0.0, "timestep": 999,
        "blend": "none", "lambda_gram": 0.01, "lambda_mask": 0.0, "run_name": "published"},
}


def preset(name: str) -> Config:
    """Build the config of a preset; `environment.choose_preset` resolves "auto"."""
    return Config(preset=name, **PRESETS.get(name, {}))


def _check_fields(config: object, prefix: str = "") -> None:
    """Compare each value with its type, or the texts of a Literal, and a number with its limits."""
    kinds = get_type_hints(type(config))
    for f in dataclasses.fields(config):
        kind, value, (low, high) = kinds[f.name], getattr(config, f.name), f.metadata.get(
            "limits", (0, 0))
        if get_origin(kind) is Literal:
            expected, fits = " or ".join(map(repr, get_args(kind))), value in get_args(kind)
        else:
            expected, types = kind.__name__, (int, float) if kind is float else kind
            fits = isinstance(value, types) and not isinstance(value, bool)
            if fits and isinstance(value, int | float):
                expected, fits = f"{expected} from {low:g} to {high:g}", low <= value <= high
        if not fits:
            raise ValueError(f"{prefix}{f.name}: expected {expected}, got {value!r}")
