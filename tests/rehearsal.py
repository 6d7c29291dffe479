"""The whole run at SD-Turbo's true shapes, on random weights in the hub's own file layout.

    python -m tests.rehearsal FOLDER    # 3 GB in FOLDER, some 15 GB of memory, ten minutes or more

Builds the base, trains two steps at 512 px with batch 1 on the CPU, saves, resumes in a new
process, evaluates two images. Each phase is a process of its own, whose peak memory is recorded in
`results/rehearsal.json`. Times are of two shared CPU cores and say nothing about a GPU.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from helpers import data, evaluate
from helpers.config import ASSETS, TINY_BASE, Config, preset
from helpers.losses import EnhancerLoss
from helpers.model import SplatEnhancer
from helpers.train import train

RESULT = Path(__file__).resolve().parent.parent / "results" / "rehearsal.json"
UNET = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
        "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
       "sample_size": 512, "scaling_factor": 0.18215,
       "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
        "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512,
        "vocab_size": 49408, "max_position_embeddings": 77}


def make_base(folder: Path) -> dict:
    """Write unet, vae and text_encoder in fp16 files, and the tokenizer and schedule of ours."""
    sizes = {}
    for part, kind, config in (("unet", UNet2DConditionModel, UNET), ("vae", AutoencoderKL, VAE),
                               ("text_encoder", CLIPTextModel, CLIPTextConfig(**TEXT))):
        torch.manual_seed(0)
        network: nn.Module = kind(**config) if isinstance(config, dict) else kind(config)
        sizes[f"{part}_parameters"] = sum(p.numel() for p in network.parameters())
        network.half().save_pretrained(folder / part, variant="fp16", safe_serialization=True,
                                       max_shard_size="10GB")
        del network
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(ASSETS / TINY_BASE / part, folder / part, dirs_exist_ok=True)
    sizes["base_gb"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e9
    return sizes


def rehearsal_config(folder: Path, steps: int) -> Config:
    """The `t4` preset on the base in the folder, with avatars instead of the hub's photographs."""
    return preset("t4").with_({
        "model.base": str(folder / "base"), "data.source": "avatars", "data.train_images": 2,
        "data.test_images": 2, "loss.pretrained": False, "loss.clip": 0.0, "optim.steps": steps,
        "optim.batch": 1, "run.name": "rehearsal", "run.save_every_steps": 1})


def build(folder: Path, dtype: torch.dtype = torch.float32) -> SplatEnhancer:
    """The enhancer by the real loading code."""
    return SplatEnhancer.from_pretrained(rehearsal_config(folder, 1).model, device="cpu",
                                         dtype=dtype, cache_dir=folder / "run")


def run(folder: Path, steps: int) -> dict:
    """Train to this many steps, from wherever the run stands."""
    config = rehearsal_config(folder, steps)
    faces = data.prepare(config.data, folder / "data", progress=None)
    model = build(folder)
    loss = EnhancerLoss(config.loss, device="cpu")
    records = list(train(config, model, faces, loss, folder=folder / "run"))
    file = next((folder / "run").glob("latest*"))
    return {"steps": [record.step for record in records],
            "losses": [record.losses["total"] for record in records],
            "skipped": sum(record.skipped for record in records),
            "seconds_per_step": [record.seconds for record in records],
            "checkpoint_mb": file.stat().st_size / 1e6}


def measure(folder: Path) -> dict:
    """Evaluate the resumed model on two held-out faces."""
    config = rehearsal_config(folder, 3)
    faces = data.prepare(config.data, folder / "data", progress=None)
    model = build(folder)
    loss = EnhancerLoss(config.loss, device="cpu")
    resumed = list(train(config, model, faces, loss, folder=folder / "run"))
    pairs = evaluate.held_out_pairs(config, faces, device="cpu", batch=1)
    with model.merged():
        result = evaluate.evaluate(model.enhance, pairs, evaluate.Metrics(config.loss,
                                                                          device="cpu"))
    return {"resumed_at": resumed[0].step, "psnr": result.restored["psnr"], "n": result.n}


PHASES = {"make_base": lambda folder: make_base(folder / "base"),
          "build_fp16": lambda folder: {"dtype": str(build(folder, torch.float16).unet.dtype)},
          "two_steps": lambda folder: run(folder, 2), "resume_and_evaluate": measure}


def phase(name: str, folder: Path) -> None:
    """Run one phase in this process, and print what it found as JSON."""
    torch.set_num_threads(2)
    started = time.perf_counter()
    found = PHASES[name](folder)
    found["seconds"] = time.perf_counter() - started
    found["peak_rss_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def main(folder: Path) -> None:
    """Run all phases, each in a process of its own, and write what they found."""
    found = {"machine": f"2 CPU threads, torch {torch.__version__}, fp32 training, fp16 files"}
    for name in PHASES:
        done = subprocess.run([sys.executable, "-m", "tests.rehearsal", str(folder), name],
                              check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout.strip().splitlines()[-1])
        print(name, json.dumps(found[name]), flush=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        phase(sys.argv[2], Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]))
