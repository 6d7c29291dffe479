"""The whole run at SD-Turbo's true shapes, on random weights in the hub's own file layout.

    python -m tests.rehearsal FOLDER    # 3 GB in FOLDER, some 15 GB of memory, ten minutes or more

Builds the base, saves once, trains two steps at 512 px with batch 1 on the CPU, resumes in a new
process, evaluates two images. Each phase is a process of its own, whose peak memory is recorded in
`results/rehearsal.json`. Times are of two shared CPU cores and say nothing about a GPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from helpers import evaluation
from helpers.__main__ import ROOT
from helpers.checkpoints import checkpoint
from helpers.config import ASSETS, SD_TURBO, TINY_BASE, Config, preset
from helpers.distances import Metrics
from helpers.distances.losses import EnhancerLoss
from helpers.faces import data
from helpers.model.enhancer import SplatEnhancer
from helpers.plans import budget
from helpers.storage.whole import write_whole
from helpers.training.loop import Record, train
from helpers.training.trainer import Trainer

RESULT = ROOT / "results" / "rehearsal.json"
TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
        "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512,
        "vocab_size": 49408, "max_position_embeddings": 77}


def random_networks(base: str, device: str) -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """VAE and UNet of a base's shapes in float32, with torch's own initialisation.

    Equal on each call, as far as the device is the same.
    """
    vae, unet = budget.network_configs(base)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoencoderKL.from_config(vae), UNet2DConditionModel.from_config(unet)


def make_base(folder: Path, *, base: str = SD_TURBO, text: dict = TEXT, device: str = "cpu",
              half: bool = True) -> dict:
    """Write a base of such shapes with random weights in the hub's layout: parameters, size in GB.

    Args:
        base: whose shapes it has, see `budget.network_configs`; `text` are the text encoder's.
        half: fp16 files under the names of that variant, or fp32 files under the plain names.
    """
    vae, unet = random_networks(base, device)
    with torch.device(device):
        parts: dict[str, nn.Module] = {"unet": unet, "vae": vae,
                                       "text_encoder": CLIPTextModel(CLIPTextConfig(**text))}
    sizes = {}
    for part, network in parts.items():
        sizes[f"{part}_parameters"] = sum(p.numel() for p in network.parameters())
        if half:
            network.half()
        network.save_pretrained(folder / part, variant="fp16" if half else None,
                                safe_serialization=True, max_shard_size="10GB")
    shutil.copytree(ASSETS / TINY_BASE / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    DDPMScheduler.from_pretrained(ASSETS / TINY_BASE / "scheduler", timestep_spacing="trailing",
                                  ).save_pretrained(folder / "scheduler")  # as the hub's own
    sizes["base_gb"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e9
    return sizes


def rehearsal_config(folder: Path, steps: int) -> Config:
    """The `t4` preset on the base in the folder, with avatars instead of the hub's photographs."""
    return preset("t4").with_({
        "model.base": str(folder / "base"), "data.source": "avatars", "data.train_images": 2,
        "data.test_images": 2, "loss.vgg": "stlpips", "loss.clip": 0.0, "optim.steps": steps,
        "optim.batch": 1, "run.name": "rehearsal", "run.save_every_steps": 1})


def build(folder: Path, dtype: torch.dtype = torch.float32) -> SplatEnhancer:
    """The enhancer by the real loading code."""
    return SplatEnhancer.from_pretrained(rehearsal_config(folder, 1).model, device="cpu",
                                         dtype=dtype, caches=[folder / "run"])


def save_once(folder: Path) -> dict:
    """Save a trainer that has taken one step, as on a GPU: its size does not depend on more."""
    config, model = rehearsal_config(folder, 1), build(folder, torch.float16)
    trainer = Trainer(config, model)
    weights = torch.stack([p.float().sum() for p in model.trainable().values()])
    trainer.backward(1e-3 * weights.sum())  # scaled to what fp16 gradients can hold
    trainer.update()
    file = checkpoint.save(trainer.checkpoint(), folder / "one")
    return {"checkpoint_mb": file.stat().st_size / 1e6}


def run(folder: Path, steps: int) -> tuple[SplatEnhancer, list[Record]]:
    """Train to this many steps, from wherever the run stands."""
    config, model = rehearsal_config(folder, steps), build(folder)
    faces = data.prepare(config.data, folder / "data", progress=None)
    loss = EnhancerLoss(config.loss, device="cpu")
    return model, list(train(config, model, faces, loss, folder=folder / "run"))


def two_steps(folder: Path) -> dict:
    """The first two steps of a run."""
    _, records = run(folder, 2)
    return {"steps": [record.step for record in records],
            "losses": [record.losses["total"] for record in records],
            "skipped": sum(record.skipped for record in records),
            "seconds_per_step": [record.seconds for record in records]}


def measure(folder: Path) -> dict:
    """Evaluate the resumed model on two held-out faces."""
    (model, resumed), config = run(folder, 3), rehearsal_config(folder, 3)
    faces = data.prepare(config.data, folder / "data", progress=None)
    pairs = evaluation.held_out_pairs(config, faces, device="cpu", batch=1)
    with model.merged():
        result = evaluation.evaluate(model.enhance, pairs, Metrics(config.loss, device="cpu"))
    return {"resumed_at": resumed[0].step, "psnr": result.restored["psnr"], "n": result.n}


PHASES = {"make_base": lambda folder: make_base(folder / "base"),
          "build_fp16": lambda folder: {"dtype": str(build(folder, torch.float16).unet.dtype)},
          "save_once": save_once,
          "two_steps": two_steps, "resume_and_evaluate": measure}


def peak_rss_gib() -> float:
    """The most memory that this process has held."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**30 if sys.platform == "darwin" else 2**20)


def phase(name: str, folder: Path) -> None:
    """Run one phase in this process, and print what it found as JSON."""
    torch.set_num_threads(2)
    started = time.perf_counter()
    found = PHASES[name](folder)
    found["seconds"] = time.perf_counter() - started
    found["peak_rss_gib"] = peak_rss_gib()
    print(json.dumps(found))


def in_own_process(name: str, folder: Path) -> dict:
    """Run one phase in a process of its own, and return what it found."""
    done = subprocess.run([sys.executable, "-m", "tests.rehearsal", str(folder), name], cwd=ROOT,
                          check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(folder: Path) -> None:
    """Run all phases, and write what they found."""
    found = {"machine": f"2 CPU threads, torch {torch.__version__}, fp32 training, fp16 files"}
    for name in PHASES:
        found[name] = in_own_process(name, folder)
        print(name, json.dumps(found[name]), flush=True)
    write_whole(RESULT, (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        phase(sys.argv[2], Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]).resolve())
