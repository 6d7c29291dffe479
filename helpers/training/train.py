"""Training: the step to be learned, the loop around it, and when the run is saved.

Everything random in step n follows from (seed, n), so a resumed run takes the very steps that an
uninterrupted one would have taken.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..data.faces import Faces, load_batches
from ..data.pairs import Pairs
from ..distributed import Processes, processes
from ..environment import Stopped, StopRequests
from ..losses.loss import EnhancerLoss
from ..model.enhancer import SplatEnhancer
from .checkpoint import compare_settings, digest, lock, newest, save
from .drive import DriveCopy
from .trainer import Trainer

SKIPS_IN_A_ROW = 20  # mean that the run has collapsed: a loss scale of 2^16 is below 1 by then
Drawn = tuple[Tensor, Tensor, Tensor]  # clean, regions and sample seeds
TrainingStep = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


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
    held_out: dict[str, float] | None = None  # distances, every `validation_steps`


def default_training_step(model: SplatEnhancer, loss: EnhancerLoss) -> TrainingStep:
    """The training step that the notebook shows."""
    def training_step(clean: Tensor, degraded: Tensor, skips: Tensor) -> dict[str, Tensor]:
        repair = model(degraded, skips, parts=True)
        return loss(repair.decoded, clean, choice=repair.choice(degraded))
    return training_step


def train(config: Config, model: SplatEnhancer, loss: EnhancerLoss, faces: Faces, pairs: Pairs,
          training_step: TrainingStep | None = None, *, folder: Path, drive: Path | None = None,
          trained_on: str = "", validate: Callable[[], dict[str, float]] | None = None,
          ) -> Iterator[Record]:
    """Train from where the run stands to `max_train_steps`, saving on the way.

    A stop (the Stop button, Ctrl-C, SIGTERM) finishes the step, saves, and then raises `Stopped`,
    a KeyboardInterrupt. Calling again goes on. Of several processes each takes its rows of the
    same batch, and all end every step with the same weights; the first alone saves and prints.

    Args:
        config, model, loss, faces, pairs: of the run; the model is changed in place.
        training_step: clean and degraded images (B, 3, H, W) in [0, 1] and skips (B,), 1 to use
            a sample's skip connections → scalar losses with "total"; None: the default one.
        folder, drive: where this run saves, and a folder on Drive that gets copies.
        trained_on: names the training images.
        validate: measures the model on held-out images.

    Yields:
        One record per step.
    """
    group, device = processes(), next(model.parameters()).device
    training_step = training_step or default_training_step(model, loss)
    with (lock(folder) if group.first else nullcontext(), StopRequests() as stop,
          closing(DriveCopy(drive if group.first else None)) as copy):
        trainer = resume(config, model, folder, drive, trained_on=trained_on, group=group)
        if trainer.step >= config.max_train_steps:
            print(f"Run {config.run_name!r} is finished ({trainer.step} steps); raise "
                  "max_train_steps to go on.")
            return
        model.train()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # what came before is not training's
        accumulate = config.gradient_accumulation_steps
        numbers = range(trainer.step * accumulate, config.max_train_steps * accumulate)
        batches = load_batches(faces, numbers, seed=config.seed, batch=config.train_batch_size,
                               workers=config.dataloader_num_workers,
                               rows=group.rows(config.train_batch_size))
        with closing(batches), _saving(trainer, folder, copy, group) as save_if_due:
            while trainer.step < config.max_train_steps and not group.any(stop.asked):
                started = time.perf_counter()
                rate = learning_rate_at(trainer.step + 1, config)
                trainer.set_learning_rate(rate)
                drawn = [next(batches) for _ in range(accumulate)]
                losses = trainer.within_memory(group, lambda drawn=drawn: add_gradients(
                    trainer, training_step, loss, pairs, drawn, group))
                losses = trainer.sum_over(group, losses)
                norm, skipped = trainer.update()

                seconds, step = time.perf_counter() - started, trainer.step
                due = step % config.validation_steps == 0 or step == config.max_train_steps
                record = Record(
                    step, losses, rate, norm, skipped, seconds,
                    config.train_batch_size * accumulate / seconds,
                    torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
                    validate() if validate and due and group.first else None)
                trainer.history.append(asdict(record))
                save_if_due()
                yield record
        if group.any(stop.asked):
            raise Stopped(f"Stopped after step {trainer.step} and saved in {folder}. Run the same "
                          "again to go on.")


def learning_rate_at(step: int, config: Config) -> float:
    """Learning rate of step 1, 2, …: linear warm-up, then cosine decay to a tenth."""
    warm = min(1.0, step / max(1, config.lr_warmup_steps))
    done = min(1.0, step / config.max_train_steps)
    return config.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * done))


def training_batch(config: Config, pairs: Pairs, drawn: Drawn, device: torch.device | str,
                   rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and degraded images (R, 3, H, W) in [0, 1] and skips (R,) of some rows of a batch.

    Args:
        drawn: clean and regions of these rows, and the sample seeds of all, from `draw_batch`.
    """
    clean, regions, seeds = drawn
    clean, degraded, _ = pairs.draw(clean, regions, seeds[rows], device)
    rng = torch.Generator().manual_seed(int(seeds[0]))
    skips = torch.rand(len(seeds), generator=rng) >= config.skip_dropout
    return clean, degraded, skips[rows].float().to(device)


def add_gradients(trainer: Trainer, training_step: TrainingStep, loss: EnhancerLoss, pairs: Pairs,
                  drawn: Sequence[Drawn], group: Processes) -> dict[str, float]:
    """Pass a step's batches forward and back; its gradients are then in the trainer.

    Returns:
        The losses by term, the mean of all batches; of several processes, this one's part of it.
    """
    config, device = trainer.config, trainer.loss.device
    sums: Counter[str] = Counter()
    for number, batch in enumerate(drawn, start=trainer.step * len(drawn)):
        rows = group.rows(config.train_batch_size)
        share = (rows.stop - rows.start) / config.train_batch_size
        loss.crop_seed = config.seed + number
        losses = training_step(*training_batch(config, pairs, batch, device, rows))
        trainer.backward(losses["total"], len(drawn) / share)
        sums.update({name: share * value.detach() for name, value in losses.items()})
    values = torch.stack([*sums.values()]).tolist()  # the GPU is waited for once
    return {name: value / len(drawn) for name, value in zip(sums, values, strict=True)}


def resume(config: Config, model: SplatEnhancer, folder: Path, drive: Path | None = None, *,
           trained_on: str = "", group: Processes) -> Trainer:
    """Load the newest good checkpoint of a run into the model, if there is one, and say so."""
    saved = group.broadcast(newest(filter(None, [folder, drive])) if group.first else None)
    started = max(time.time(), saved.started + 1e-3 if saved else 0.0)  # later than that session
    trainer = Trainer(config, model, trained_on=trained_on, session=uuid.uuid4().hex,
                      started=started)
    own = config.to_json(), trained_on, digest(model.trained_state()) if group.count > 1 else ""
    if group.any(group.broadcast(own) != own):
        raise ValueError("processes: expected the same settings, images and weights in all, got "
                         "different ones; start all with the same command and the same data")
    if saved is None:
        return trainer
    changed = compare_settings(saved, config, trained_on)
    trainer.restore(saved)
    if config.max_train_steps > saved.step:
        print(f"Run {config.run_name!r} goes on after step {saved.step}: "
              f"{config.max_train_steps - saved.step} to go.")
    if changed:
        trainer.notes.append({"after_step": saved.step, "changed": changed})
        listed = (f"{name} {old!r} → {new!r}" for name, (old, new) in changed.items())
        print(f"Changed since: {', '.join(listed)}.")
    return trainer


@contextmanager
def _saving(trainer: Trainer, folder: Path, copy: DriveCopy, group: Processes,
            ) -> Iterator[Callable[[], None]]:
    """Save now (what cannot be saved fails before hours of training), when due, and at the end.

    A full disk does not stop a run: the next save tries again. Other processes save nothing.
    """
    every, history = trainer.config.checkpointing_steps, trainer.history
    saved_step, tried_step, tried_at = -1, trainer.step, time.monotonic()

    def save_now() -> None:
        nonlocal saved_step, tried_step, tried_at
        tried_step, tried_at = trainer.step, time.monotonic()
        if group.first:
            checkpoint = trainer.checkpoint()
            content = checkpoint.to_bytes()
            save(checkpoint, folder, content=content)
            copy.submit(checkpoint, content)
        saved_step = trainer.step

    def has_collapsed() -> bool:
        recent = [record["skipped"] for record in history[-SKIPS_IN_A_ROW:]]
        return len(recent) == SKIPS_IN_A_ROW and all(recent)

    def save_if_due() -> None:
        late = time.monotonic() - tried_at >= trainer.config.checkpointing_s
        if copy.taken_over:
            raise RuntimeError(f"{copy.taken_over}. This one is saved in {folder} and stops")
        if has_collapsed():
            raise FloatingPointError(
                f"losses and gradients: expected finite ones, got {SKIPS_IN_A_ROW} steps in a row "
                f"without; step {saved_step} is saved in {folder}: lower learning_rate or look for "
                "broken images, then run this again")
        skips = sum(record["skipped"] for record in history)
        if history[-1]["skipped"]:
            if skips & (skips - 1) == 0:  # the 1st, 2nd, 4th, 8th
                print(f"Step {trainer.step} is skipped: a loss or gradient is not finite ({skips} "
                      "so far; a few are usual in half precision).")
        elif late or trainer.step // every > tried_step // every:
            try:
                save_now()
            except OSError as error:
                print(f"Step {trainer.step} is not saved ({error}); step {saved_step} is. "
                      "Training goes on, the next save tries again.")

    save_now()
    try:
        yield save_if_due
    finally:
        complete = len(history) == trainer.step  # a step that broke off in its update has no record
        if trainer.step > saved_step and complete and not has_collapsed():
            save_now()
