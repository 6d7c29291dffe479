"""A tiny run that tests share: faces of 64 px, a random base, no VGG, six steps of a blink each."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from splat_enhancer.config import Config, DegradationConfig, preset
from splat_enhancer.data.faces import Faces, prepare_faces
from splat_enhancer.data.pairs import Pairs, prepare_pairs
from splat_enhancer.losses.loss import EnhancerLoss
from splat_enhancer.model.enhancer import SplatEnhancer
from splat_enhancer.training.checkpoint import Checkpoint, newest
from splat_enhancer.training.train import Record, train

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "base"
PROMPT = torch.zeros(1, 77, 32)  # embedded, for that base, which has no text encoder
# Of the degradation, what takes no time
DEGRADATION = DegradationConfig(**dict.fromkeys((
    "skin", "eyes", "nose", "mouth", "hair", "background", "sparsity", "oversize", "needles",
    "holes", "floaters", "translucency", "doubling", "color_error", "surface_blur", "downscale",
    "blocks", "ghosting"), 0.0), noise=0.3)
TINY: dict[str, Any] = {
    "resolution": 64, "max_train_samples": 6, "max_test_samples": 2, "degradation": DEGRADATION,
    "weight_synthetic": 1.0, "weight_wrong_detail": 0.0, "weight_fit": 0.0,
    "weight_novel_view": 0.0,
    "pretrained_model_name_or_path": str(GOLDEN), "lambda_lpips": 0.0, "lpips_weights": "random",
    "blend": "mask", "train_batch_size": 1, "max_train_steps": 6, "learning_rate": 1e-3,
    "lr_warmup_steps": 2, "skip_learning_rate_factor": 1.0, "run_name": "test",
    "checkpointing_steps": 2, "validation_steps": 3}
WALL_CLOCK = ("seconds", "images_per_s")  # of a record: the only part that may differ


def write_faces(folder: Path, count: int = 8, side_px: int = 64) -> Path:
    """Write smooth coloured pictures and masks as CelebAMask-HQ has them; returns the folder."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        small = rng.integers(40, 220, (6, 6, 3), np.uint8)
        face = Image.fromarray(small).resize((side_px, side_px), Image.Resampling.BICUBIC)
        face.save(folder / "images" / f"{number}.png")
        mask = np.zeros((side_px, side_px), np.uint8)
        mask[side_px // 4:, side_px // 4:] = 1 + number % 2
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def tiny_config(folder: Path, **changes: Any) -> Config:
    """The config of a tiny run; its faces are written below the folder."""
    source = folder / "faces"
    return preset("demo").replace(**{
        **TINY, "source": str(source if source.is_dir() else write_faces(source)), **changes})


def tiny_data(config: Config, folder: Path) -> tuple[Faces, Pairs]:
    """Faces and pairs of a config, prepared below the folder."""
    faces = prepare_faces(config, folder / "data")
    return faces, prepare_pairs(config, faces, folder / "data")


def tiny_model(config: Config, dtype: torch.dtype = torch.float32) -> SplatEnhancer:
    """A fresh model on the random base."""
    return SplatEnhancer.from_pretrained(config, device="cpu", dtype=dtype, seed=config.seed,
                                         prompt_embedding=PROMPT)


def keep_prompt(config: Config, folder: Path) -> None:
    """Put the embedded prompt where a `Run` of this config looks for it: in the run's folder."""
    text = f"{config.pretrained_model_name_or_path}\n{config.prompt}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"prompt_embedding": PROMPT}, folder / f"prompt-{digest}.safetensors")


def train_some(config: Config, data: tuple[Faces, Pairs], folder: Path, steps: int | None = None,
               *, dtype: torch.dtype = torch.float32, loss: Any = None, training_step: Any = None,
               **options: Any) -> tuple[SplatEnhancer, list[Record]]:
    """Train a fresh model for some steps (all that are left); returns it, and the records.

    Args:
        loss: in place of the config's own.
        training_step: model and loss → a training step; None: the default one.
    """
    model, loss = tiny_model(config, dtype), loss or EnhancerLoss(config, device="cpu")
    step = training_step and training_step(model, loss)
    records: Iterator[Record] = train(config, model, loss, *data, step, folder=folder, **options)
    done = list(islice(records, steps))
    records.close()
    return model, done


def differences(one: Checkpoint | Path, other: Checkpoint | Path) -> list[str]:
    """What is not equal, bit for bit, in the newest states of two runs."""
    a, b = (newest([state]) if isinstance(state, Path) else state for state in (one, other))
    parts = [part for part in ("step", "config", "loss_scale", "trained_on")
             if getattr(a, part) != getattr(b, part)]
    histories = [[{k: v for k, v in record.items() if k not in WALL_CLOCK}
                  for record in state.history] for state in (a, b)]
    parts += ["history"] if str(histories[0]) != str(histories[1]) else []  # NaN equals NaN
    return parts + [name for name in a.tensors.keys() | b.tensors.keys()
                    if not torch.equal(a.tensors[name], b.tensors[name])]


def saved_step(*folders: Path) -> int | None:
    """The step that a run in these folders goes on from."""
    found = newest(folders)
    return found and found.step


def wait_for(reached: Callable[[], object], longest_s: float = 20) -> None:
    """For another thread or process."""
    until = time.monotonic() + longest_s
    while not reached() and time.monotonic() < until:
        time.sleep(0.005)
    assert reached()
