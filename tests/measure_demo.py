"""Measure the demo's checkpoint on identities nobody looked at while choosing its settings.

    python -m tests.measure_demo      # after make demo
"""

import torch

from helpers.__main__ import ROOT
from helpers.checkpoints import checkpoint
from helpers.config import DegradeConfig, preset
from helpers.degradation.pipeline import degrade
from helpers.evaluation import results as evaluate
from helpers.faces.avatars import render_avatar
from helpers.model.enhancer import SplatEnhancer

config = preset("demo")
model = SplatEnhancer.from_pretrained(config.model, device="cpu")
saved, _ = checkpoint.newest([ROOT / "runs" / "demo"])
model.load_trained({name.removeprefix("model/"): tensor for name, tensor in saved.tensors.items()
                    if name.startswith("model/")})
avatars = [render_avatar(1_000_100 + i, config.data.size_px) for i in range(24)]
clean, regions = (torch.stack(part) for part in zip(*avatars, strict=True))
metrics = evaluate.Metrics(config.loss, device="cpu")
for name, damage in (("demo damage", config.degrade), ("default damage", DegradeConfig())):
    degraded = degrade(clean, regions, damage, torch.arange(24) + 950_000)
    pairs = zip(clean.split(4), degraded.split(4), strict=True)
    print(name, evaluate.format_table(evaluate.evaluate(model.enhance, pairs, metrics)), sep="\n")
