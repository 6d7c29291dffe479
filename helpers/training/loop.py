"""Training: one visible loop, a generator that yields a record per step.

Everything random in step n follows from (seed, n), so a checkpoint needs no generator state and a
resumed run takes the very steps an uninterrupted one would have taken.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoints
from ..checkpoints import Checkpoint, Publisher, claim
from ..config import Config, OptimConfig
from ..distances import EnhancerLoss
from ..faces import Faces, load_batches
from ..machine import ALONE, Processes, Stopped, StopRequests, processes
from ..model import SplatEnhancer
from ..pairs import Sources, draw_pairs, known_as
from ..storage import within
from .autosave import Autosave
from .fit import refuse_lacking, refuse_unfit
from .memory import within_memory
from .trainer import Trainer

Drawn = tuple[Tensor, Tensor, Tensor]  # clean, regions and sample seeds
ANSWER_S = 120.0  # of a folder: Drive can hang


@dataclass(frozen=True)
class Record:
    """What one step did."""

    step: int  # 1 after the first step
    losses: dict[str, float]  # unweighted terms and "total"
    learning_rate: float
    gradient_norm: float
    skipped: bool  # a loss or gradient was not finite: nothing was learned from this step
    seconds: float
    images_per_s: float
    peak_gib: float  # of GPU memory, 0 on a CPU


def learning_rate_at(step: int, optim: OptimConfig) -> float:
    """Learning rate of step 1, 2, …: linear warm-up, then cosine decay to a tenth."""
    warm = min(1.0, step / max(1, optim.warmup_steps))
    done = min(1.0, step / optim.steps)
    return optim.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * done))


def training_batch(config: Config, drawn: Drawn,
                   device: torch.device | str, sources: Sources | None = None,
                   rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and degraded images (R, 3, H, W) in [0, 1] and the skip mask (R,) of a batch.

    Args:
        drawn: clean, regions and sample seeds, from `draw_batch`, perhaps of some rows only.
        device: where the images are damaged and wanted.
        sources: of pairs that are not drawn, from `prepare_pairs`.
        rows: those of the batch that were drawn; all of it decides which skips are dropped.
    """
    *faces, seeds = drawn
    clean, degraded, _ = draw_pairs(config, sources or {}, (*faces, seeds[rows]), device)
    dice = torch.Generator().manual_seed(int(seeds[0]))
    keep = torch.rand(len(seeds), generator=dice) >= config.model.skip_dropout
    return clean, degraded, keep[rows].float().to(device)


def train(config: Config, model: SplatEnhancer, faces: Faces, loss: EnhancerLoss, *, folder: Path,
          drive: Path | None = None, sources: Sources | None = None) -> Iterator[Record]:
    """Train from where the run stands to `config.optim.steps`, saving on the way.

    A stop (the Stop button, Ctrl-C, SIGTERM) finishes the step, saves, and then raises
    `Stopped`, a KeyboardInterrupt. Calling again goes on from the last save.

    Of several processes (`accelerate launch`) each takes its rows of the same batch of
    `optim.batch` pictures, and all end every step with the same weights; only the first reads,
    saves and prints. What one is asked or lacks room for all do alike.

    Args:
        config: of the run.
        model: on its device; changed in place.
        faces: prepared data.
        loss: on the model's device.
        folder: where this run saves.
        drive: a folder that gets a copy of every save, or None.
        sources: of pairs that are not drawn, from `prepare_pairs`.

    Yields:
        One Record per step.

    Raises:
        ValueError: the folder holds a run with settings or faces that cannot be mixed with these.
        RuntimeError: another process trains in this folder, or another machine took over on Drive.
        FloatingPointError: losses or gradients are not finite any more.
        torch.OutOfMemoryError: a step does not fit in the GPU's memory, recomputed or not.
        OSError: the last state could not be saved.
    """
    device, optim, team = next(model.parameters()).device, config.optim, processes()
    with _session(config, model, faces, loss, folder, drive, sources or {}, team) as (
            trainer, batches, autosave, stop):
        while trainer.step < optim.steps and not team.any(stop.asked or team.orphaned):
            autosave.before_step()
            started = time.perf_counter()
            rate = learning_rate_at(trainer.step + 1, optim)
            for group in trainer.optimiser.param_groups:
                group["lr"] = rate * group["factor"]

            drawn = [next(batches) for _ in range(optim.accumulate)]
            means = within_memory(partial(add_gradients, trainer, loss, drawn, sources, team),
                                  trainer, team)
            means = trainer.add_up(team, means)
            norm, skipped = trainer.update()

            seconds = time.perf_counter() - started
            images = optim.batch * optim.accumulate
            record = Record(trainer.step, means, rate, norm, skipped, seconds, images / seconds,
                            _peak_gib(device))
            trainer.history.append(asdict(record))
            autosave.after_step()
            yield record


def add_gradients(trainer: Trainer, loss: EnhancerLoss, drawn: Sequence[Drawn],
                  sources: Sources | None = None, team: Processes = ALONE) -> dict[str, float]:
    """Pass a step's batches forward and back; its gradients are then in the trainer.

    Args:
        trainer: of the run, with the model.
        loss: on the model's device.
        drawn: the step's batches, from `draw_batch`.
        sources: of pairs that are not drawn, from `prepare_pairs`.
        team: whose batches these are; this process has its rows of each.

    Returns:
        The losses by term, the mean of all batches; of several processes, this one's part of it.
    """
    config, model = trainer.config, trainer.model
    device, terms = next(model.parameters()).device, Counter()
    for number, batch in enumerate(drawn, start=trainer.step * len(drawn)):
        rows = team.rows(whole := len(batch[2]))
        part = (rows.stop - rows.start) / whole
        clean, degraded, skip_mask = training_batch(config, batch, device, sources, rows)
        repair = model(degraded, skip_mask, parts=True)
        losses = loss(repair.decoded, clean, choice=repair.choice(degraded),
                      view_seed=config.run.seed + number)
        trainer.backward(losses["total"], part)
        terms.update({name: part * value.detach() for name, value in losses.items()})
    sums = torch.stack([*terms.values()]).tolist()  # the GPU is waited for once
    return {name: total / len(drawn) for name, total in zip(terms, sums, strict=True)}


@contextmanager
def _session(config: Config, model: SplatEnhancer, faces: Faces, loss: EnhancerLoss, folder: Path,
             drive: Path | None, sources: Sources, team: Processes,
             ) -> Iterator[tuple[Trainer, Iterator, Autosave, StopRequests]]:
    """All that surrounds the loop: opened in order, and closed however the loop ends."""
    optim, workers = config.optim, config.run.loader_workers
    rows = team.rows(optim.batch)
    with (claim(folder) if team.first else nullcontext() as claimed,
          closing(Publisher(drive if team.first else None)) as publisher, StopRequests() as stop):
        trainer = resume(config, model, folder=folder, drive=drive,
                         faces=known_as(faces, sources, config.pairs), team=team)
        refuse_unfit(config, model=model, faces=faces, loss=loss, sources=sources, folder=folder,
                     seeded=not trainer.history)
        _refuse_unequal(trainer, team)
        if team.any(model.lean_memory):
            model.use_lean_memory()  # all or none: they run out of memory together
        autosave = Autosave(trainer, folder, publisher, claimed)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # what came before is not training's
        numbers = range(trainer.step * optim.accumulate, optim.steps * optim.accumulate)
        model.train()
        with closing(load_batches(faces, numbers, seed=config.run.seed, batch=optim.batch,
                                  workers=workers, rows=rows)) as batches:
            try:
                yield trainer, batches, autosave, stop
            finally:
                autosave.finish()
        if team.any(stop.asked or team.orphaned):
            raise Stopped(f"Stopped after step {trainer.step} and saved in {folder}. "
                          "Run the same again to go on.")


def resume(config: Config, model: SplatEnhancer, *, folder: Path, drive: Path | None = None,
           faces: str | Sequence[str] = "", team: Processes = ALONE) -> Trainer:
    """Load the newest good checkpoint of a run into the model, if there is one, and say so.

    Without one the model goes back to what it held before it was trained, by whatever run. Only
    the first process of a team looks into the folders; the others may have none.
    """
    folders = [folder] + ([drive] if drive else [])
    judge = partial(refuse_lacking, config=config, model=model)
    saved = team.from_first(lambda: _newest(folders, judge))
    if saved is None and (before := model.forget()):
        print(f"Run {config.run.name!r} starts anew: what the model held of run "
              f"{before.config.run.name!r}, step {before.step}, is left out.")
    model.keep_start()
    trainer = Trainer(config, model, faces)
    if saved:
        trainer.restore(saved)
        rest = config.optim.steps - saved.step
        print(f"Run {config.run.name!r} goes on after step {saved.step}: {rest} to go." if rest > 0
              else f"Run {config.run.name!r} is finished ({saved.step} steps); "
                   "raise optim.steps to go on.")
        _note_changes(trainer, saved.config)
    return trainer


def _newest(folders: Sequence[Path], judge: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """The state to go on from, if there is one; what bars its way is set aside."""
    saved, passed_over = checkpoints.newest(folders, fits=judge)
    for line in passed_over:
        print("Passed over", line)
    for place in folders if passed_over else ():
        with suppress(OSError):
            within(ANSWER_S, checkpoints.set_aside_unusable, place, saved.step if saved else -1,
                   judge)
    return saved


def _refuse_unequal(trainer: Trainer, team: Processes) -> None:
    """Raise ValueError where processes would train different things; alone nobody differs."""
    if team.ranks > 1:
        own = {"settings": trainer.config.to_json(), "faces": trainer.faces,
               "weights": checkpoints.trained_digest(trainer.model.trained_state())}
        first, *others = team.gather(own)
        for number, other in enumerate(others, start=1):
            if unequal := [name for name in own if first[name] != other[name]]:
                raise ValueError(f"processes: expected the same {' and '.join(unequal)} in all, "
                                 f"got others in process {number}; start all with the same command "
                                 "and the same data")


def _note_changes(trainer: Trainer, before: Config) -> None:
    """Say and keep which settings are others than before; none of them changes what was learned."""
    if changed := checkpoints.harmless_changes(before, trainer.config):
        trainer.notes.append({"after_step": trainer.step, "changed": changed})
        listed = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changed.items())
        print(f"Changed since: {listed}.")


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
