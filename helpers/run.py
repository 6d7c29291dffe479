"""One run: what it learns from, its model, its training, its figures and its export.

    run = Run("demo")
    for record in run.train():
        print(record.step, record.losses)
    print(run.evaluate().overview())

Notebook and command line share this object. Everything is made when it is first asked for; other
settings are another `Run`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from shutil import copyfile, copytree
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .config import Config, DegradationConfig, preset
from .data.faces import Faces, prepare_faces
from .data.pairs import Pairs, load_novel_views, prepare_pairs
from .degradation.pipeline import degrade
from .distributed import processes
from .environment import Environment, choose_preset, detect, progress, workspace
from .files import atomic_write, user_path, with_timeout
from .losses.loss import EnhancerLoss
from .losses.metrics import Metrics
from .losses.perceptual import distance_map, load_stlpips
from .model.enhancer import SplatEnhancer
from .model.export import add_metrics, export, load, read, start_from
from .training.checkpoint import Checkpoint, compare_settings, newest
from .training.train import Record, TrainingStep, train

if TYPE_CHECKING:
    from .enhance.restore import Outcome
    from .evaluation.evaluate import Evaluation

HELD_OUT = 8  # images whose distance is measured while training


class Run:
    """A run by its config; a run of the same name that was begun goes on.

    Args:
        config: or the name of a preset, "auto" included.
        environment: of this machine; None looks.
        output_dir: holds data/, runs/ and results/; None: the place's own folder.
        drive_dir: this project's folder on Drive, which gets copies; None: no copies.

    Attributes:
        reason: why this preset, in words.
        folder, results, data_folder: of checkpoints, of what is shown and exported, of images.
        drive: this run's folder on Drive, or None.
    """

    _training: ClassVar[dict[Path, Iterator[Record]]] = {}  # by folder: not closed yet

    def __init__(self, config: Config | str = "auto", *, environment: Environment | None = None,
                 output_dir: Path | str | None = None, drive_dir: Path | None = None) -> None:
        self.environment, self.reason = environment or detect(), "its settings say so"
        if isinstance(config, str):
            name, self.reason = choose_preset(config, self.environment)
            config = preset(name)
        if config.init_from:
            config = config.replace(**read(config.init_from)[0]["model"])
        self.environment = replace(
            self.environment, dtype=working_dtype(config.mixed_precision, self.environment))
        work = workspace(self.environment, output_dir)
        self.folder, self.results = (work / part / config.run_name for part in ("runs", "results"))
        self.data_folder, self.data_drive = work / "data", drive_dir and drive_dir / "data"
        self.drive = drive_dir and drive_dir / "runs" / config.run_name
        self.group, self._folders = processes(), [*filter(None, (self.folder, self.drive))]
        self._untuned = config.degradation
        self.config = config.replace(degradation=self._tuned_degradation() or config.degradation)

    @property
    def degradation(self) -> DegradationConfig:
        """How training degrades faces; set, it is kept in the run's folder, also for later runs."""
        return self.config.degradation

    @degradation.setter
    def degradation(self, tuned: DegradationConfig) -> None:
        if tuned == self.degradation:
            return
        self.config = self.config.replace(degradation=tuned)
        self.__dict__.pop("pairs", None)  # they degrade by these settings
        kept = {"degradation": asdict(tuned), "tuned_from": asdict(self._untuned)}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = atomic_write(self.folder / "config.json", json.dumps(kept, indent=2).encode())
        self._copy_to_drive(file, file.name)

    @cached_property
    def faces(self) -> Faces:
        """The faces to learn from and to be tested on."""
        with self.group.one_first():
            return prepare_faces(self.config, self.data_folder, device=self.environment.device,
                                 drive=self.data_drive)

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs, degraded and clean, of all kinds."""
        faces = self.faces
        with self.group.one_first():
            return prepare_pairs(self.config, faces, self.data_folder,
                                 device=self.environment.device, drive=self.data_drive)

    @cached_property
    def model(self) -> SplatEnhancer:
        """The enhancer, untrained, or with the weights that `init_from` names."""
        with self.group.one_first():
            model = SplatEnhancer.from_pretrained(
                self.config, device=self.environment.device, dtype=self.environment.dtype,
                cache=self._folders, seed=self.config.seed)
        if self.config.init_from:
            start_from(model, self.config.init_from)
        return model

    @cached_property
    def loss(self) -> EnhancerLoss:
        """The training loss."""
        with self.group.one_first():
            return EnhancerLoss(self.config, device=self.environment.device,
                                dtype=self.environment.dtype, seed=self.config.seed)

    @cached_property
    def metrics(self) -> Metrics:
        """What evaluation measures."""
        return Metrics(self.config, device=self.environment.device)

    def train(self, training_step: TrainingStep | None = None) -> Iterator[Record]:
        """Train from where the run stands to `max_train_steps`; see `training.train.train`."""
        if earlier := self._training.pop(self.folder, None):
            earlier.close()  # a cell that was stopped by an error keeps it open
        steps = self._training[self.folder] = train(
            self.config, self.model, self.loss, self.faces, self.pairs, training_step,
            folder=self.folder, drive=self.drive, trained_on=self.pairs.trained_on,
            validate=self._validate)
        return steps

    def latest(self) -> Checkpoint | None:
        """Load the newest checkpoint into the model; None if there is none."""
        saved = newest(self._folders)
        if saved:
            compare_settings(saved, self.config)
            self.model.load_trained(saved.trained)
            self.model.eval()
        return saved

    def evaluate(self) -> Evaluation:
        """Measure the newest checkpoint, and write figures and report to `results`.

        Raises:
            ValueError: nothing is trained, or it was trained on images that are held out now.
        """
        from .evaluation.evaluate import evaluate
        from .evaluation.report import write_report
        from .evaluation.test_sets import TestSets

        saved = self._trained()
        compare_settings(saved, self.config, self.pairs.trained_on)
        test_sets = TestSets(self.config, self.faces, self.pairs, device=self.environment.device,
                             folder=self.data_folder / "held_out")
        evaluation = evaluate(self.model, test_sets, self.metrics, folder=self.folder / "measured",
                              step=saved.step, history=saved.history)
        summary = evaluation.write(self.results)
        write_report(self.results, evaluation)
        if (self.results / "enhancer").is_dir():
            add_metrics(self.results / "enhancer", summary["sets"])
        self._copy_to_drive(self.results, "results")
        return evaluation

    def export(self) -> Path:
        """Export the newest checkpoint to `results`/enhancer.

        Raises:
            ValueError: nothing is trained; or an enhancer that was tuned on own pairs is no better
                on the held-out photographs than before tuning, or than the renders as they are.
        """
        saved = self._trained()
        if self.config.init_from and self.config.weight_own:
            print(self._check_tuned())
        self.results.mkdir(parents=True, exist_ok=True)
        folder = export(self.model, saved.config, self.results / "enhancer", step=saved.step,
                        trained=saved.trained)
        self._copy_to_drive(self.results, "results")
        return folder

    def restore(self, inputs: str | Path | Sequence[str | Path], *,
                output_dir: Path | str | None = None, **settings: Any) -> list[Outcome]:
        """Restore files, folders and patterns by the newest checkpoint, or by the shipped enhancer.

        `settings` are fields of `RestoreConfig`; without `output_dir` results lie beside inputs.
        """
        from .enhance.restore import RestoreConfig, find, restore_all

        model = self.model if self.latest() else load(
            device=self.environment.device, dtype=self.environment.dtype)
        output = user_path(output_dir) if output_dir else None
        return list(restore_all(model, find(inputs, output), RestoreConfig(**settings),
                                output=output, progress=progress))

    def held_out(self, count: int) -> tuple[Tensor, Tensor]:
        """Fixed images that are never trained on: novel views if the run learns from any, or faces
        degraded by the pipeline.

        Returns:
            clean and degraded (count or fewer, 3, H, W) in [0, 1], on the run's device.
        """
        if self.config.pair_weights["novel_view"]:
            views = load_novel_views("test", self.config.resolution)
            rows = range(0, len(views), max(1, len(views) // count))[:count]  # evenly among them
            degraded, clean = views.load(rows)
        else:
            count = min(count, len(self.faces.test))
            clean, regions = self.faces.load("test", range(count))
            degraded = degrade(clean, regions, self.degradation, torch.arange(count))
        return clean.to(self.environment.device), degraded.to(self.environment.device)

    def _validate(self) -> dict[str, float]:
        """The distance of held-out images, of the input and the best unsharp mask as well."""
        clean, degraded, distances = self._validation
        restored = torch.cat([self.model.enhance(image) for image in degraded.split(1)])
        return distances | {"restored": self._distance(restored, clean)}

    @cached_property
    def _validation(self) -> tuple[Tensor, Tensor, dict[str, float]]:
        from .evaluation.test_sets import CANDIDATES

        clean, degraded = self.held_out(HELD_OUT)
        return clean, degraded, {
            "degraded": self._distance(degraded, clean),
            "filtered": min(self._distance(mask(degraded), clean) for mask in CANDIDATES)}

    def _distance(self, images: Tensor, clean: Tensor) -> float:
        """The mean `stlpips_alex` of images (B, 3, H, W)."""
        return float(distance_map(self._network, images, clean).mean())

    @cached_property
    def _network(self) -> nn.Module:
        return load_stlpips("alex").to(self.environment.device)

    def _check_tuned(self) -> str:
        """Say how far tuning helped on held-out own photographs, or that it did not: an error."""
        device, rows, table = self.environment.device, self.pairs.own.held_out, []
        untuned = load(self.config.init_from, device=device, dtype=self.environment.dtype)
        for row in rows:
            degraded, clean = (side.to(device) for side in self.pairs.own.load([row]))
            table.append([self._distance(images, clean) for images in (
                degraded, untuned.enhance(degraded), self.model.enhance(degraded))])
        renders, before, after = (sum(column) / len(rows) for column in zip(*table, strict=True))
        text = (f"on {len(rows)} held-out renders, stlpips_alex is {renders:.4f} as they are, "
                f"{before:.4f} by the enhancer before tuning and {after:.4f} after it")
        if after > 0.99 * min(renders, before):  # less is chance
            raise ValueError(f"Not exported, for tuning did not help: {text}; add pairs, or change "
                             "max_train_steps or learning_rate")
        return f"Tuning helped: {text}."

    def _trained(self) -> Checkpoint:
        saved = self.latest()
        if saved is None:
            raise ValueError(f"run {self.config.run_name!r}: expected a checkpoint in "
                             f"{self.folder}, got none; train it first")
        return saved

    def _tuned_degradation(self) -> DegradationConfig | None:
        """What was kept for this run, unless its settings were changed since."""
        for folder in self._folders:
            try:
                kept = json.loads(with_timeout(30, (folder / "config.json").read_bytes))
                if DegradationConfig(**kept["tuned_from"]) == self._untuned:
                    return DegradationConfig(**kept["degradation"])
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"Passed over {folder / 'config.json'}: {error}")
        return None

    def _copy_to_drive(self, path: Path, name: str) -> None:
        """Copy a file or folder to this run's folder on Drive; that it fails stops nothing."""
        def copy() -> None:
            for folder in (self.drive.parent, self.drive):  # none above: Drive may be gone
                folder.mkdir(exist_ok=True)
            if path.is_dir():
                copytree(path, self.drive / name, dirs_exist_ok=True)
            else:
                copyfile(path, self.drive / name)
        try:
            if self.drive:
                with_timeout(120, copy)
        except OSError as error:
            print(f"No copy of {name} in {self.drive} ({error}); it is in {path.parent}.")


def working_dtype(mixed_precision: str, environment: Environment) -> torch.dtype:
    """The dtype of the working copies."""
    dtypes = {"auto": environment.dtype, "no": torch.float32, "fp16": torch.float16,
              "bf16": torch.bfloat16}
    if mixed_precision == "fp16" and environment.device.type == "cpu":
        raise ValueError("mixed_precision: expected 'no' or 'bf16' on a CPU, got 'fp16'")
    return dtypes[mixed_precision]
