"""SD-Turbo's true shapes with random weights: what a step takes, counted; a rehearsal on a disk.

    python -m tools.bench training_budget    # work and memory, counted in a minute
    python -m tools.bench full_size          # a base of SD-Turbo's size on a disk, 3 GB

Counting runs enhancer, loss and trainer on "meta" tensors, which have no content; the workspace of
cuDNN and the CUDA context come on top. The rehearsal writes a base in the hub's layout, saves,
resumes and trains on the CPU; each phase is a process of its own (on Linux).
"""

from __future__ import annotations

import re
import shutil
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from splat_enhancer.config import ASSETS, TINY_BASE, Config, preset
from splat_enhancer.distributed import processes
from splat_enhancer.environment import detect
from splat_enhancer.losses.loss import EnhancerLoss
from splat_enhancer.model.base import read_alpha_bar
from splat_enhancer.model.enhancer import SplatEnhancer
from splat_enhancer.run import Run
from splat_enhancer.training.checkpoint import NAMES, lock, save
from splat_enhancer.training.train import default_training_step, resume, train
from splat_enhancer.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
Shapes = dict[str, dict[str, Any]]  # what is left out is the default of diffusers, transformers
SD_TURBO: Shapes = {
    "unet": {"sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
             "block_out_channels": (320, 640, 1280, 1280), "use_linear_projection": True},
    "vae": {"sample_size": 768, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
            "latent_channels": 4, "scaling_factor": 0.18215,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4},
    "text_encoder": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
                     "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512,
                     "vocab_size": 49408, "max_position_embeddings": 77},
    "clip": {}}  # of the loss: ViT-B/32


def random_networks(shapes: Shapes) -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """VAE and UNet in float32 with torch's own initialisation, equal on each call."""
    torch.manual_seed(0)
    return (AutoencoderKL.from_config(shapes["vae"]),
            UNet2DConditionModel.from_config(shapes["unet"]))


def random_model(config: Config, shapes: Shapes, *, device: str, dtype: torch.dtype,
                 for_training: bool = True) -> SplatEnhancer:
    """The enhancer of a config on a random base, made on its device, "meta" included."""
    alpha_bar = read_alpha_bar(TINY_BASE, config.timestep)  # SD-Turbo's schedule
    with torch.device(device):
        vae, unet = random_networks(shapes)
        prompt = torch.randn(1, 77, unet.config.cross_attention_dim)
        return SplatEnhancer(config, vae=vae, unet=unet, alpha_bar=alpha_bar, seed=config.seed,
                             prompt_embedding=prompt, for_training=for_training).to(dtype)


def random_loss(config: Config, shapes: Shapes, *, device: str, dtype: torch.dtype) -> EnhancerLoss:
    """The loss of a config with a random VGG16 and CLIP."""
    offline = config.replace(lambda_clipsim=0.0, lpips_weights="random")
    with torch.device(device):
        loss = EnhancerLoss(offline, device=device, dtype=dtype)
        if config.lambda_clipsim:
            loss.clip = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
                **shapes["clip"])).requires_grad_(False).eval().to(dtype)
    loss.weights["clip"] = config.lambda_clipsim
    return loss


def random_step(config: Config, shapes: Shapes, *, device: str,
                dtype: torch.dtype) -> tuple[Callable[[], bool], Trainer]:
    """A training step as `train` takes it, on noise; it says whether it was skipped."""
    model = random_model(config, shapes, device=device, dtype=dtype)
    loss = random_loss(config, shapes, device=device, dtype=dtype)
    trainer, forward = Trainer(config, model.train()), default_training_step(model, loss)
    noise = torch.rand(2, config.train_batch_size, 3, *(config.resolution,) * 2,
                       generator=torch.Generator().manual_seed(0)).to(device)
    skips = torch.ones(config.train_batch_size, device=device)

    def step() -> bool:
        trainer.backward(forward(*noise, skips)["total"])
        return trainer.update()[1]

    return step, trainer


def fill_optimiser(trainer: Trainer) -> None:
    """Take a step without a forward pass: from then on AdamW has its moments."""
    weights = torch.stack([p.float().sum() for p in trainer.working.values()])
    trainer.backward(1e-3 * weights.sum())  # scaled to what fp16 gradients can hold
    trainer.update()


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of one call; the queue of a GPU is empty before and after."""
    wait = torch.cuda.synchronize if device == "cuda" else int
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def median_s(work: Callable[[], object], rounds: int = 12, warm_up: int = 2) -> float:
    """Median seconds of a call."""
    return statistics.median([seconds(work) for _ in range(rounds + warm_up)][warm_up:])


def training_budget(config: Config | None = None, shapes: Shapes = SD_TURBO) -> dict[str, float]:
    """What the preset `t4` takes in fp16, by the names of `results/benchmark.json`, without CLIP.

    TFLOP are 10^12 operations, 2 per multiply-add; GiB of all storages that are alive at once.
    """
    config = (config or preset("t4")).replace(lambda_clipsim=0.0)
    budget, on_meta = {}, {"device": "meta", "dtype": torch.float16}
    for name, mode in (("train_peak_gib_batch2", "off"), ("train_peak_gib_batch2_lean", "on")):
        with meta_run() as meter:
            step, trainer = random_step(config.replace(gradient_checkpointing=mode), shapes,
                                        **on_meta)
            fill_optimiser(trainer)
            meter.peak = meter.now
            step()
            budget[name] = meter.peak / 2**30
            if mode == "off":  # in a step of its own: the counter keeps tensors alive
                budget["train_tflop_per_image"] = count_tflop(step) / config.train_batch_size
    with meta_run(), torch.no_grad():
        model = random_model(config, shapes, for_training=False, **on_meta)
        image = torch.zeros(1, 3, config.resolution, config.resolution, device="meta")
        return budget | {"inference_tflop_per_image": count_tflop(lambda: model(image))}


def count_tflop(work: Callable[[], object]) -> float:
    """The operations of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


class Meter(TorchDispatchMode):
    """Adds up the storages of "meta" tensors, each from the operation that makes it to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0  # bytes
        self.alive: set[int] = set()

    def __torch_dispatch__(self, operation: Callable, types: tuple, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        if operation is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 0.0  # all is finite, no gradient overflowed
        result = operation(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.alive:
                    self.alive.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._remove, key, size).atexit = False
        return result

    def _remove(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.now -= size


@contextmanager
def meta_run() -> Iterator[Meter]:
    """Count storages, and run attention as a GPU does: on "meta", torch would keep every score."""
    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
              *_: Any, scale: float | None = None, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, torch.is_grad_enabled(), scale=scale)[0]

    with patch.object(functional, "scaled_dot_product_attention", fused), Meter() as meter:
        yield meter


def rehearsal_run(folder: Path, steps: int = 1, **changes: Any) -> Run:
    """The preset `t4` on the base in the folder, with the embedded heads, on the CPU."""
    config = preset("t4").replace(**{
        "pretrained_model_name_or_path": str(folder / "base"), "source": "heads",
        "max_train_samples": 2, "max_test_samples": 2, "weight_fit": 0.0, "lambda_clipsim": 0.0,
        "lpips_weights": "stlpips", "max_train_steps": steps, "train_batch_size": 1,
        "run_name": "rehearsal", "checkpointing_steps": 1, "dataloader_num_workers": 0, **changes})
    cpu = replace(detect(), device=torch.device("cpu"), dtype=torch.float32)
    return Run(config, environment=cpu, output_dir=folder)


def make_base(folder: Path, shapes: Shapes = SD_TURBO) -> dict[str, Any]:
    """Write a random base in the hub's layout, as fp16 files; returns its size in GB."""
    vae, unet = random_networks(shapes)
    text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**shapes["text_encoder"]))
    for part, network in {"unet": unet, "vae": vae, "text_encoder": text_encoder}.items():
        network.half().save_pretrained(folder / "base" / part, variant="fp16",
                                       max_shard_size="10GB")
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(ASSETS / TINY_BASE / part, folder / "base" / part, dirs_exist_ok=True)
    files = [file for file in (folder / "base").rglob("*") if file.is_file()]
    return {"base_gb": sum(file.stat().st_size for file in files) / 1e9}


def build_fp16(folder: Path, **changes: Any) -> SplatEnhancer:
    """Build the enhancer by the real loading code, as for a GPU."""
    return SplatEnhancer.from_pretrained(rehearsal_run(folder, **changes).config, device="cpu",
                                         dtype=torch.float16, cache=[folder])


def save_and_resume(folder: Path, **changes: Any) -> dict[str, Any]:
    """Save what a GPU would, and go on: lock, find, verify, load."""
    model, folder = build_fp16(folder, **changes), folder / "saved"
    trainer = Trainer(model.config, model)
    fill_optimiser(trainer)

    def go_on() -> None:
        with lock(folder):
            resume(model.config, model, folder, group=processes())

    return {"checkpoint_save_s": median_s(lambda: save(trainer.checkpoint(), folder), 7),
            "resume_s": median_s(go_on, 3, 1),
            "checkpoint_mb": (folder / NAMES[0]).stat().st_size / 1e6}


def train_steps(folder: Path, steps: int = 2, **changes: Any) -> dict[str, Any]:
    """Train to this many steps, from wherever the run stands."""
    run = rehearsal_run(folder, steps, **changes)
    records = list(train(run.config, run.model, run.loss, run.faces, run.pairs, folder=run.folder,
                         trained_on=run.pairs.trained_on))
    return {name: [getattr(record, name) for record in records]
            for name in ("step", "losses", "skipped", "seconds")}


PHASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "make_base": make_base, "save_and_resume": save_and_resume,
    "build_fp16": lambda folder: {"parameters": build_fp16(folder).parameter_table()}}


def run_phase(name: str, folder: Path) -> dict[str, Any]:
    """Run one phase, and add the peak memory of this process."""
    found = PHASES[name](folder)
    # Not getrusage: its peak begins with the parent's
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return found | {"peak_rss_gib": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20}


def in_own_process(name: str, folder: Path) -> dict[str, Any]:
    """Run one phase in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run_phase, name, folder).result()
