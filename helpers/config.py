"""Every setting of a run, in frozen dataclasses: built once, checked, saved beside the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import refused
from .storage import write_whole

PACKAGE = __name__.partition(".")[0]  # "helpers" in a checkout, "splat_enhancer" installed
ASSETS = Path(__file__).parent / "assets"
TINY_BASE = "tiny-sd-turbo"  # ours, embedded in helpers/assets
SD_TURBO = "stabilityai/sd-turbo"
LONGEST_NAME = 100
NO_FILE_NAMES = {"con", "prn", "aux", "nul", *(f"{device}{number}" for device in ("com", "lpt")
                                               for number in range(1, 10))}  # on Windows


@dataclass(frozen=True)
class DataConfig:
    """Which faces, how many, how large."""

    source: str = "avatars"  # "avatars" (embedded), "celeba-hq" (hub), or a folder of images
    size_px: int = 128  # side of the square images, a multiple of 64 (VAE ÷8, UNet ÷8 again)
    train_images: int = 128  # how many it learns from
    test_images: int = 24  # held out: never trained on, whatever train_images is
    fitted_images: int = 8  # of these, also measured as underfitted Gaussians and damaged otherwise
    strength_images: int = 1  # of these, also measured at each strength and under each effect alone
    rendered_views: int = 1  # of each test head that are measured, inside the arc and outside each

    def __post_init__(self) -> None:
        _text(self, "source")
        _numbers(self, size_px=(64, 2048), train_images=(1, 30_000), test_images=(1, 2_000),
                 fitted_images=(1, 2_000), strength_images=(1, 2_000), rendered_views=(1, 100))
        if self.size_px % 64:
            raise refused("data.size_px", "a multiple of 64", self.size_px, "use 128, 256 or 512")


@dataclass(frozen=True)
class DegradeConfig:
    """How a clean face is damaged: every amount lies in [0, 1], 0 leaves the image untouched.

    The defaults are the preset "medium" of `DAMAGE`.
    """

    strength: float = 1.0  # one knob over all amounts below
    # Training draws the damage of each sample anew; evaluation and preview do not. What follows
    # stands in the order in which it is applied
    strength_min: float = 0.0  # each sample's strength lies in [this, 1] · strength: all of them
    amount_min: float = 0.5  # then each of its amounts in [this, 1] · the amount
    clean_share: float = 0.05  # share of samples left untouched: a good render must stay one
    # Blur by face region: eyes, nose and mouth heavy, skin and hair soft
    skin: float = 0.5  # blurred
    eyes: float = 0.8  # smeared and blurred: lids and iris run together
    nose: float = 0.6  # blurred, and smeared a little
    mouth: float = 0.9  # smeared and blurred: lips and teeth run together
    hair: float = 0.6  # smeared along the strands, which merge
    background: float = 0.3  # slightly blurred
    variation: float = 0.7  # contrast of the patchy mask that modulates the regional blur
    # Re-rendered as Gaussian splats: what the fit of a real avatar gets wrong
    sparsity: float = 0.15  # too few Gaussians: 24,000 at 0, 1,000 at 1
    oversize: float = 0.1  # too large ones: strands and features merge
    needles: float = 0.2  # some stretched to needles
    holes: float = 0.3  # some missing, in patches: a matte background shows
    floaters: float = 0.2  # some misplaced, in front of the face
    translucency: float = 0.4  # thin silhouettes: the background bleeds in
    doubling: float = 0.3  # the silhouette a second time, beside the face
    color_error: float = 0.2  # wrong low-order colour, blotchy
    # Effects on the whole image
    warp: float = 0.2  # low-frequency geometric error
    surface_blur: float = 0.2  # bilateral: flattens skin, keeps edges
    brightness: float = 0.3  # exposure drift, either way
    color_jitter: float = 0.3  # per-channel gain drift
    desaturation: float = 0.1  # colours fade towards grey
    blur: float = 0.05  # overall softness
    downscale: float = 0.05  # resolution lost and interpolated back
    blocks: float = 0.05  # blotches of constant colour
    ghosting: float = 0.3  # a translucent, shifted second contour
    noise: float = 0.05  # mostly grey grain, its size a fixed share of the picture

    def __post_init__(self) -> None:
        _numbers(self, **dict.fromkeys(vars(self), (0.0, 1.0)))


@dataclass(frozen=True)
class PairsConfig:
    """Which kinds of pairs it learns from; the shares are relative to their sum."""

    drawn: float = 0.25  # damage drawn on a face, by the amounts of `degrade`
    fitted: float = 0.15  # a face described by Gaussians, stopped early and disturbed
    rendered: float = 0.6  # a 3D fit of a procedural head, seen from a new view
    own_share: float = 0.0  # renders and photographs of one's own
    own: str = ""  # their folder, with renders/ and photos/ of equal names; empty: none
    own_held_out: float = 0.125  # share of one's own photographs that is only measured
    fitted_faces: int = 64  # training faces that are fitted too; at most data.train_images

    def __post_init__(self) -> None:
        if not isinstance(self.own, str):
            raise _refused_field(self, "own", "the path of a folder, or an empty text")
        _numbers(self, drawn=(0.0, 1.0), fitted=(0.0, 1.0), rendered=(0.0, 1.0),
                 own_share=(0.0, 1.0), own_held_out=(0.0, 1.0), fitted_faces=(1, 30_000))
        if self.drawn + self.fitted + self.rendered + self.own_share == 0:
            raise refused("pairs", "at least one share above 0", "all 0", "raise pairs.drawn")


@dataclass(frozen=True)
class ModelConfig:
    """The base network and what is trained on top of it."""

    base: str = TINY_BASE  # TINY_BASE, a hub name, or a folder in diffusers layout
    # The single step. 999 as in pix2pix-turbo: the input is taken for noise, and errors of the UNet
    # grow 14.6 times. 249, one of the four that SD-Turbo was distilled for: 0.7 times, and the
    # first output is near the input. 199 as in DIFIX: 0.6 times
    timestep: int = 999  # 0 to 999
    unet_rank: int = 8  # LoRA rank, as in pix2pix-turbo
    vae_rank: int = 4  # LoRA rank of the decoder (the encoder is frozen)
    skip_init: float = 1e-5  # the skip convolutions start as almost nothing
    skip_dropout: float = 0.3  # share of training samples that see no skips
    mask: bool = False  # a repair mask decides per pixel; off, pix2pix-turbo is reproduced
    prompt: str = "a sharp, detailed photograph of a person's face"  # one for all images

    def __post_init__(self) -> None:
        _text(self, "base")
        _text(self, "prompt")
        _numbers(self, timestep=(0, 999), unet_rank=(1, 256), vae_rank=(1, 256),
                 skip_init=(0.0, 1.0), skip_dropout=(0.0, 1.0))
        _flag(self, "mask")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the training loss; a weight of 0 means its network is not even loaded."""

    l1: float = 2.0  # mean absolute difference: keeps colours and places
    lpips: float = 0.5  # VGG16 features
    gram: float = 1.0  # texture statistics on the same VGG16 features; at 0.01 it does nothing
    clip: float = 0.5  # 1 - cosine similarity of CLIP image embeddings
    mask: float = 0.1  # cross-entropy of the repair mask and which picture is closer
    vgg_view_px: int = 0  # VGG16 sees a random square of this side (at least 16); 0: all
    vgg: str = "lpips"  # whose VGG16: "lpips", a download; "stlpips", from a package; "random"

    def __post_init__(self) -> None:
        _numbers(self, l1=(0.0, 1_000.0), lpips=(0.0, 1_000.0), gram=(0.0, 1_000.0),
                 clip=(0.0, 1_000.0), mask=(0.0, 1_000.0), vgg_view_px=(0, 2048))
        if 0 < self.vgg_view_px < 16:
            raise refused("loss.vgg_view_px", "0, or 16 and more", self.vgg_view_px, "use 64")
        if self.vgg not in ("lpips", "stlpips", "random"):
            raise _refused_field(self, "vgg", "'lpips', 'stlpips' or 'random'")
        if self.l1 + self.lpips + self.gram + self.clip == 0:
            raise refused("loss", "at least one weight above 0", "all 0", "raise l1")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW over the trained tensors, linear warm-up, cosine decay to a tenth."""

    steps: int = 300  # in all, those before a resume included
    batch: int = 2  # images that pass through the network at once
    accumulate: int = 1  # batches whose gradients are averaged into one step
    learning_rate: float = 5e-5  # at the end of the warm-up
    skip_rate: float = 1.0  # factor on it for the skip convolutions
    warmup_steps: int = 20  # steps until the full learning rate
    weight_decay: float = 0.01  # AdamW's own default
    clip_norm: float = 1.0  # largest norm of the whole gradient
    memory: str = "auto"  # "full", "lean" (half the memory, a third more work), or what fits

    def __post_init__(self) -> None:
        _numbers(self, steps=(1, 10_000_000), batch=(1, 1_024), accumulate=(1, 1_024),
                 learning_rate=(1e-9, 1.0), skip_rate=(0.0, 1e3),
                 warmup_steps=(0, 100_000), weight_decay=(0.0, 1.0), clip_norm=(1e-6, 1e6))
        if self.memory not in ("auto", "full", "lean"):
            raise _refused_field(self, "memory", "'auto', 'full' or 'lean'")


@dataclass(frozen=True)
class RunConfig:
    """Name, seed and rhythm of a run."""

    name: str = "demo"  # the run's folder under runs/
    seed: int = 0  # all that is random in step n follows from this and n
    save_every_steps: int = 100  # a crash costs at most the steps since the last save
    save_every_s: int = 300  # and at most this many seconds of them
    loader_workers: int = 0  # processes that read faces ahead; 1 where a GPU would wait for them
    preview_every_steps: int = 25  # steps between two pictures of the live display

    def __post_init__(self) -> None:
        _text(self, "name")
        whole = self.name.strip(".") == self.name and all(c.isalnum() or c in "-_."
                                                          for c in self.name)
        if not whole or self.name.split(".")[0].lower() in NO_FILE_NAMES:
            raise refused("run.name", "letters, digits, '-', '_' and '.' within, and no name that "
                          "Windows keeps to itself", self.name, "rename it")
        if len(self.name.encode()) > LONGEST_NAME:
            raise refused("run.name", f"{LONGEST_NAME} bytes at most, for it names folders",
                          f"{self.name[:20]}… of {len(self.name.encode())}", "shorten it")
        _numbers(self, seed=(0, 2**31 - 1), save_every_steps=(1, 1_000_000),
                 save_every_s=(1, 86_400), loader_workers=(0, 64),
                 preview_every_steps=(1, 1_000_000))


@dataclass(frozen=True)
class Config:
    """One run, whole. `preset()` builds it, `with_()` changes it, `save()` and `load()` keep it."""

    preset: str = "demo"
    data: DataConfig = field(default_factory=DataConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.preset not in list(PRESETS):  # a list also takes what cannot be hashed
            raise refused("preset", f"one of {sorted(PRESETS)} or 'auto'", self.preset,
                          "pick one of them")

    def with_(self, changes: Mapping[str, Any]) -> Config:
        """Return a copy with some fields changed, named `section.field`.

        Args:
            changes: for example `{"optim.steps": 500, "data.size_px": 256}`.

        Raises:
            ValueError: an unknown field, or a value its section refuses.
        """
        if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes):
            raise refused("changes", "a dict like {'optim.steps': 500}", changes, "write ':'")
        sections: dict[str, dict[str, Any]] = {}
        for path, value in changes.items():
            section, _, name = path.partition(".")
            known = {f.name for f in dataclasses.fields(getattr(self, section, None) or object)} \
                if section in _SECTIONS else set()
            if name not in known:
                raise refused("changes", "fields named section.field", path,
                              f"sections are {sorted(_SECTIONS)}; {section} has {sorted(known)}")
            sections.setdefault(section, {})[name] = value
        return dataclasses.replace(
            self, **{s: dataclasses.replace(getattr(self, s), **v) for s, v in sections.items()})

    def to_json(self) -> str:
        """The config as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what `to_json` wrote, perhaps by an older version: what it lacks is the preset's.

        What was not there yet (mask, other pairs than drawn ones) stays away.

        Raises:
            ValueError: not such a text, a field that is not known, or a value that is refused.
        """
        try:
            loaded = json.loads(text)
            flat = {f"{s}.{k}": v for s, d in loaded.items() if s != "preset" for k, v in d.items()}
            config = preset(loaded["preset"])
            flat = _BEFORE | _renamed(flat)
        except (AttributeError, KeyError, json.JSONDecodeError) as error:
            raise refused("config", "JSON written by Config.to_json", text[:60],
                          "save the config again") from error
        return config.with_(flat)

    def save(self, path: Path) -> None:
        """Write `to_json()` to a file, whole or not at all."""
        write_whole(path, (self.to_json() + "\n").encode())


_SECTIONS = {f.name: f for f in dataclasses.fields(Config) if f.name != "preset"}

# What runs did before these fields were there, whatever their preset does now
_BEFORE = {"model.mask": False, "loss.mask": 0.0, "pairs.drawn": 1.0,
           "pairs.fitted": 0.0, "pairs.rendered": 0.0,
           "optim.skip_rate": 1.0}

_SD_TURBO_RUN: dict[str, Any] = {
    "data.source": "celeba-hq", "data.size_px": 512, "data.test_images": 50,
    "data.strength_images": 4,
    "model.base": SD_TURBO, "model.mask": True, "model.timestep": 249,
    # Rendered pairs are of procedural heads, 128 pixels wide: here there are photographs
    "pairs.drawn": 0.5, "pairs.fitted": 0.5, "pairs.rendered": 0.0,
    "run.loader_workers": 1,  # a GPU would wait for the faces
}
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "data.train_images": 192,
        "model.mask": True,
        "model.timestep": 1,  # see helpers/README.md, "Decisions"
        "model.skip_dropout": 0.1,  # of so few steps, most must train the skips
        "loss.lpips": 1.0,
        "loss.gram": 0.0,  # 64-pixel views tell little of texture
        "loss.clip": 0.0,  # CLIP's weights live on the hub, and the demo is offline
        "loss.vgg": "stlpips",
        "loss.vgg_view_px": 64,  # on two CPU cores the whole image would take half of each step
        "optim.steps": 240, "optim.learning_rate": 8e-4, "optim.warmup_steps": 10,
        "optim.skip_rate": 0.08,  # see there, too
        "run.preview_every_steps": 40,
    },
    "t4": _SD_TURBO_RUN | {
        "run.name": "t4", "data.train_images": 300, "pairs.fitted_faces": 300,
        "optim.steps": 1_000, "run.save_every_steps": 100, "run.preview_every_steps": 100,
    },
    "full": _SD_TURBO_RUN | {
        "run.name": "full", "data.train_images": 450, "pairs.fitted_faces": 350,
        "optim.steps": 5_000, "run.save_every_steps": 250, "run.preview_every_steps": 250,
    },
}


def preset(name: str) -> Config:
    """Build the config of a preset.

    Args:
        name: "demo", "t4" or "full" ("auto" is resolved by `runtime.choose_preset`).

    Raises:
        ValueError: an unknown name.
    """
    return Config(preset=name).with_(PRESETS[name])


def _renamed(flat: dict[str, Any]) -> dict[str, Any]:
    """Fields of older versions by today's names."""
    pretrained = flat.pop("loss.pretrained", None)
    return flat if pretrained is None else flat | {"loss.vgg": "lpips" if pretrained else "random"}


def _numbers(config: object, **limits: tuple[float, float]) -> None:
    for name, (low, high) in limits.items():
        value, kind = getattr(config, name), type(config).__annotations__[name]
        kinds = int if kind == "int" else (int, float)
        right_type = isinstance(value, kinds) and not isinstance(value, bool)
        if not right_type or not low <= value <= high:
            noun = "a whole number" if kind == "int" else "a number"
            raise _refused_field(config, name, f"{noun} from {low} to {high}")


def _text(config: object, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, str) or not value.strip():
        raise _refused_field(config, name, "a non-empty text")


def _flag(config: object, name: str) -> None:
    if not isinstance(getattr(config, name), bool):
        raise _refused_field(config, name, "True or False")


def _refused_field(config: object, name: str, expected: str) -> ValueError:
    section = type(config).__name__.removesuffix("Config").lower()
    return refused(f"{section}.{name}", expected, getattr(config, name),
                   "choose another value")
