"""A run, as the notebook's cells make it: prepared, trained, exported, measured."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro

from .. import checkpoints
from ..config import Config, preset
from ..degradation import as_changes, in_words, kept_damage
from ..distances import EnhancerLoss, Metrics
from ..errors import refused
from ..faces import Faces, prepare
from ..machine import Bar, Runtime, choose_preset, detect, free_gib, processes, report, workspace
from ..model import SplatEnhancer, add_metrics, export
from ..pairs import Sources, prepare_pairs
from ..plans import plan_downloads, plan_memory
from ..storage import put
from ..training import folders_of, recall, train
from .command import Command, refusing, translated

Precision = Literal["auto", "no", "fp16", "bf16"]
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SECTIONS = {f"{s.name}.{f.name}" for s in dataclasses.fields(Config) if s.name != "preset"
            for f in dataclasses.fields(getattr(Config(), s.name))}
OFTEN = Counter(path.partition(".")[2] for path in SECTIONS)
PUBLISHED = {  # as img2img-turbo and diffusers call them
    "batch_size": "optim.batch", "train_batch_size": "optim.batch",
    "max_train_steps": "optim.steps", "gradient_accumulation_steps": "optim.accumulate",
    "lr_warmup_steps": "optim.warmup_steps", "adam_weight_decay": "optim.weight_decay",
    "max_grad_norm": "optim.clip_norm", "lambda_l1": "loss.l1", "lambda_lpips": "loss.lpips",
    "lambda_gram": "loss.gram", "lambda_clipsim": "loss.clip", "resolution": "data.size_px",
    "dataset_folder": "data.source", "max_train_samples": "data.train_images",
    "lora_rank_unet": "model.unet_rank", "lora_rank_vae": "model.vae_rank",
    "pretrained_model_name_or_path": "model.base", "run_name": "run.name",
    "checkpointing_steps": "run.save_every_steps", "dataloader_num_workers": "run.loader_workers",
    } | {"learning_rate": "optim.learning_rate", "seed": "run.seed"}


def machine_with(precision: Precision) -> Runtime:
    """This machine, with another precision of the frozen working copies if one is named."""
    machine = detect()
    if precision == "fp16" and machine.device.type == "cpu":
        raise refused("--mixed_precision", "no or bf16 on a CPU", precision, "leave it out")
    return machine if precision == "auto" else dataclasses.replace(machine, dtype=DTYPES[precision])


@dataclass
class Run:
    """The parts of a run, each made when it is first asked for, by the notebook's calls."""

    config: Config
    machine: Runtime
    work: Path  # holds data/, runs/ and results/, as for the notebook
    drive: Path | None = None

    def __post_init__(self) -> None:
        name = self.config.run.name
        self.folder, self.results = self.work / "runs" / name, self.work / "results" / name
        self.copies = self.drive / "runs" / name if self.drive else None
        self.faces_copies = self.drive / "data" if self.drive else None

    @cached_property
    def faces(self) -> Faces:
        """What it learns from and is tested on."""
        return prepare(self.config.data, self.work / "data", device=self.machine.device,
                       seed=self.config.run.seed, drive=self.faces_copies)

    @cached_property
    def sources(self) -> Sources:
        """Its pairs that are not drawn."""
        return prepare_pairs(self.config, self.faces, self.work / "data",
                             device=self.machine.device, drive=self.faces_copies)

    @cached_property
    def model(self) -> SplatEnhancer:
        """Untrained at first; it recomputes activations where they do not fit in memory."""
        model = SplatEnhancer.from_pretrained(
            self.config.model, device=self.machine.device, dtype=self.machine.dtype,
            caches=[self.folder, self.copies], seed=self.config.run.seed)
        plan = plan_memory(self.config, dtype=self.machine.dtype,
                           free_gib=free_gib(self.machine.device, model.parameters()))
        model.use_lean_memory(plan.lean)
        print(plan)
        return model

    def recall(self, **parts: Any) -> checkpoints.Checkpoint:
        """Its newest state, brought into the model."""
        return recall(self.config, self.model, folder=self.folder, drive=self.copies, **parts)

    def export(self) -> tuple[Path, checkpoints.Checkpoint]:
        """Export its newest state; returns the folder and that state."""
        saved = self.recall()
        folder = export(self.model, saved.config, self.results / "enhancer", trained=saved.trained,
                        step=saved.step)
        put(folder, self.copies / "enhancer" if self.copies else None)
        return folder, saved


@dataclass(frozen=True, kw_only=True)
class OfRun(Command):
    """What the commands about a run share."""

    published: ClassVar[dict[str, str]] = {"work_dir": "output_dir"}  # as enhance calls it

    output_dir: Path | None = None  # holds data/, runs/ and results/; none: the notebook's folder
    drive_dir: Path | None = None  # gets a copy of every save, as Drive does; none: no copies
    mixed_precision: Precision = "auto"  # of frozen weights: float32 on a CPU, fp16 on a GPU


@dataclass(frozen=True, kw_only=True)
class Prepare(OfRun):
    """Download or draw the faces of a run, and make its pairs; what is there is not made again."""

    published: ClassVar[dict[str, str]] = PUBLISHED | OfRun.published
    together: ClassVar[bool] = True

    config: Annotated[Config, tyro.conf.arg(name="")]

    @classmethod
    def parse(cls, arguments: list[str], prog: str, default: Any = None) -> Command:
        """Flags change what `--preset` says; a field that no other section has needs no section."""
        name, rest = "auto", []
        left = iter(translated(arguments, {p.partition(".")[2]: p for p in SECTIONS
                                           if OFTEN[p.partition(".")[2]] == 1}))
        for argument in left:
            flag, equals, value = argument.partition("=")
            if flag == "--preset":
                name = value if equals else next(left, "")
            else:
                rest.append(argument)
        with refusing(prog):
            config = preset(choose_preset(name, detect())[0])
        return super().parse(rest, prog, cls(config=config))

    def start(self) -> Run:
        """The run that the flags describe, said in words; damage tuned in the notebook is taken."""
        machine = machine_with(self.mixed_precision)
        run = Run(self.config, machine, workspace(machine, self.output_dir), self.drive_dir)
        untuned = self.config.degrade
        folders = folders_of(run.config, run.folder, run.copies)
        kept = processes().from_first(lambda: kept_damage(folders))
        run.config = run.config.with_(as_changes(kept or untuned))
        print(report(machine, run.config.preset, f"of run {run.config.run.name!r}"))
        if kept:
            print("training uses", in_words(kept, untuned))
        print(plan_downloads(run.config, faces=run.work / "data", drive=run.faces_copies,
                             caches=[run.folder, run.copies]))
        return run

    def run(self) -> dict[str, Any]:
        """Prepare."""
        run = self.start()
        with processes().one_before_others():
            print(run.faces)
            run.sources  # noqa: B018  (made when it is asked for)
        kinds = {"drawn": len(run.faces.train)} | {n: len(of) for n, of in run.sources.items()}
        print("pairs:", ", ".join(f"{name} of {count}" for name, count in kinds.items()))
        return {"data": run.work / "data", "train": len(run.faces.train),
                "test": len(run.faces.test), "pairs": kinds}


@dataclass(frozen=True, kw_only=True)
class Train(Prepare):
    """Train to --max_train_steps and export; a run that was begun, in the notebook too, goes on."""

    def run(self) -> dict[str, Any]:
        """Train and export."""
        run, team = self.start(), processes()
        with team.one_before_others():
            faces, sources, model = run.faces, run.sources, run.model
            loss = EnhancerLoss(run.config.loss, device=run.machine.device,
                                dtype=run.machine.dtype, seed=run.config.run.seed)
        with Bar(total=run.config.optim.steps, desc="Training", unit="step") as bar:
            for record in train(run.config, model, faces, loss, folder=run.folder,
                                drive=run.copies, sources=sources):
                bar.initial = bar.initial or record.step - 1
                bar.set_postfix(loss=f"{record.losses['total']:.3f}", refresh=False)
                bar.update(record.step - bar.n)
        if not team.first:
            return {}
        folder, saved = run.export()
        print(f"Exported step {saved.step} to {folder}")
        losses = saved.history[-1]["losses"] if saved.history else {}
        return {"run": run.config.run.name, "step": saved.step, "losses": losses,
                "checkpoints": run.folder, "export": folder}


@dataclass(frozen=True, kw_only=True)
class Evaluate(OfRun):
    """Measure a run on held-out faces: metrics.json, metrics.csv and a report; with its settings.

    Interrupted, the same command goes on with what is missing.
    """

    run_name: str = ""  # which run of the work folder; none: the newest

    def run(self) -> dict[str, Any]:
        """Measure."""
        from .. import evaluation
        from ..views import write_report

        machine = machine_with(self.mixed_precision)
        work = workspace(machine, self.output_dir)
        name = self.run_name or newest_run(work)
        places = [place / "runs" / name for place in (work, self.drive_dir) if place]
        found, _ = checkpoints.newest(places)
        if found is None:
            raise refused("run", "a trained one", f"none in {places[0]}", "train it first")
        run = Run(found.config, machine, work, self.drive_dir)
        print(report(machine, run.config.preset, f"of run {name!r}, step {found.step}"))
        saved = run.recall(faces=run.faces, sources=run.sources)
        held_out = evaluation.HeldOut(run.config, run.faces, device=machine.device,
                                      own=run.sources.get("own"), folder=work / "data" / "held_out")
        measured = evaluation.evaluate_run(
            saved.config, run.model, run.faces, Metrics(run.config.loss, device=machine.device),
            held_out, saved, sources=run.sources, folder=run.folder / "measured")
        figures = evaluation.write_metrics(run.results, measured)
        enhancer, _ = run.export()
        add_metrics(enhancer, figures["sets"], sha256=measured.weights.sha256)
        print("\n".join(measured.notes()), evaluation.format_sets(measured.sets), sep="\n")
        page = write_report(run.results, measured)
        for part in (".", "displays", "comparisons"):
            put(run.results / part, run.copies / "results" / part if run.copies else None)
        return {"run": name, "step": saved.step, "metrics": run.results / "metrics.json",
                "report": page, "sets": {n: of["gain"] for n, of in figures["sets"].items()}}


def newest_run(work: Path) -> str:
    """The run of a work folder that was saved last; ValueError where there is none."""
    saved = list((work / "runs").glob(f"*/{checkpoints.LATEST}"))
    if not saved:
        raise refused("run", "a trained one", f"none in {work / 'runs'}",
                      "train one first, or name its folder by --output_dir")
    return max(saved, key=lambda path: path.stat().st_mtime_ns).parent.name
