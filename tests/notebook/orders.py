"""The notebook's cells in random orders, with the form changed between them, in one process.

    python -m tests.notebook.orders 200

Each order is a person: a fresh kernel over a folder that earlier ones left, cells run as they like,
fields changed, a run's folder deleted, damage tuned, the kernel restarted. Each cell ends right or
with one line that says what to do. After each, every checkpoint is trained anew from the settings
it records, by a fresh model, and must be equal bit for bit; figures and exports must be of weights
that a checkpoint had, with the settings of that checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import torch
from matplotlib.figure import Figure

from helpers import checkpoints, evaluation
from helpers.__main__ import NOTEBOOK, ROOT
from helpers.checkpoints import trained_digest
from helpers.config import Config
from helpers.degradation import damage, keep_damage
from helpers.distances import EnhancerLoss
from helpers.faces import prepare
from helpers.machine import explain, runtime
from helpers.model import SplatEnhancer, enhancer
from helpers.model.exports import _describe, read
from helpers.training import train
from tests.runs import PROMPT, TINY

BEGIN = ("Look at this machine", "Import")
CELLS = ("Choose the settings", "Choose the folders", "Prepare the faces", "Look at the faces",
         "Take over the tuned damage", "Mix the pairs", "Build the enhancer", "Load the loss",
         "Train", "Export the enhancer", "Measure on held-out faces", "Compare random",
         "Write the report", "Choose your renders", "Restore your renders",
         "Compare before and after", "Download the results")
HABIT = (*CELLS[:3], *CELLS[4:9])  # what people run from top to bottom
FIELDS = {"RUN_NAME": ['"a"', '"b"'], "SEED": ["0", "1"], "TRAIN_IMAGES": ["2", "3"],
          "STEPS": ["1", "2"], "LEARNING_RATE": ["0.001", "0.01"], "HOW_MUCH": ["0.0", "1.0"],
          "OVERLAY": ["False", "True"],
          "STRENGTH": ["0.0", "1.0"], "DRAWN": ["0.0", "1.0"],
          "CHANGES": [{}, {"model.timestep": 7}, {"loss.l1": 1.0}, {"data.size_px": 128},
                      {"model.unet_rank": 2}]}
SMALL = TINY | {"data.test_images": 2, "data.fitted_images": 1, "data.train_images": 2,
                "optim.steps": 1, "run.name": "a"}
REMEDIES = ("run the cell *", "run that cell first", "choose another run.name")


class Person:
    """One kernel over a folder, and what the disk may hold."""

    def __init__(self, home: Path, dice: random.Random, oracle: Oracle) -> None:
        self.home, self.dice, self.oracle = home, dice, oracle
        notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
        self.cells = {cell.source.split("\n")[0].removeprefix("#@title "): cell.source
                      for cell in notebook.cells if cell.cell_type == "code"}
        self.form = {"PRESET": '"demo"', "RUN_NAME": '"a"', "USE_DRIVE": "False",
                     "CHANGES": repr(SMALL)}
        self.restart()

    def restart(self) -> None:
        """A new kernel, in which the first cells were run."""
        self.names: dict[str, Any] = {}
        for title in BEGIN:
            self.run(title)

    def run(self, title: str) -> str | None:
        """Run a cell as the form stands; returns the line it ended with, None if it ended right."""
        title = next(t for t in self.cells if t.startswith(title))
        source = self.cells[title]
        for name, value in self.form.items():
            source = re.sub(rf"^{name} = .*?(?=  #@param)", lambda _, n=name, v=value: f"{n} = {v}",
                            source, flags=re.M)
        try:
            exec(compile(source, title, "exec"), self.names)
        except (ValueError, NameError) as error:
            line = explain(error) if isinstance(error, NameError) else str(error)
            assert line and "\n" not in line and any(r in line for r in REMEDIES), repr(error)
            return line
        return None

    def act(self) -> str:
        """Do one thing that people do; returns what it was and how it ended."""
        kind = self.dice.choices(("cell", "field", "habit", "delete", "tune", "restart"),
                                 (10, 4, 2, 0.5, 0.5, 0.5))[0]
        if kind == "field":
            name = self.dice.choice([*FIELDS])
            value = self.dice.choice(FIELDS[name])
            self.form[name] = repr(SMALL | value) if name == "CHANGES" else value
            return f"{name} = {value}"
        if kind == "restart":
            self.restart()
        elif kind == "delete":
            shutil.rmtree(self.home / "runs" / self.dice.choice("ab"), ignore_errors=True)
        elif kind == "tune":
            folder = self.home / "runs" / self.dice.choice("ab")
            folder.mkdir(parents=True, exist_ok=True)
            keep_damage(self.dice.choice([None, damage("light")]), [folder], print)
        elif kind == "habit":
            ends = [self.run(title) for title in HABIT]
            return f"habit: {Counter('right' if end is None else 'line' for end in ends)}"
        else:
            title = self.dice.choice(CELLS)
            return f"{title}: {self.run(title) or 'right'}"
        return kind


class Oracle:
    """Knows which weights a config makes, by training them anew; and which were ever on the disk.

    Args:
        home: the folder of all.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.made, self.known = home, {}, {}
        self.checked: Counter[str] = Counter()
        self._seen: dict[Path, bytes] = {}

    def look(self) -> None:
        """Check every file that has changed; AssertionError where one says what is not so."""
        for path in sorted((self.home / "runs").glob("*/latest.safetensors")):
            if self._is_new(path):
                saved = checkpoints.load(path)
                assert saved.config.run.name == path.parent.name
                if not saved.notes:
                    self._refuse_others(saved)
                self.known[saved.digest] = saved.config, saved.step
        for path in sorted((self.home / "results").glob("*/metrics.json")):
            if self._is_new(path):
                found = evaluation.read_metrics(path)
                known = self.known[found["weights"]["sha256"]]
                assert known == (Config.from_json(json.dumps(found["config"])), found["step"])
                assert found["weights"]["run"] == path.parent.name
                self.checked["figures"] += 1
        for path in sorted((self.home / "results").glob("*/enhancer/card.json")):
            if self._is_new(path):
                card, tensors = read(path.parent)
                tensors.pop("prompt_embedding")
                config, step = self.known[trained_digest(tensors)]
                self.checked["measured exports"] += bool(card["metrics"])
                told = json.loads(json.dumps(_describe(config, step, None)))
                assert card["model"] == told["model"] and card["training"] == told["training"]
                assert config.run.name == path.parents[1].name
                self.checked["exports"] += 1

    def _is_new(self, path: Path) -> bool:
        content = path.read_bytes()
        new, self._seen[path] = self._seen.get(path) != content, content
        return new

    def _refuse_others(self, saved: checkpoints.Checkpoint) -> None:
        cause = saved.config.with_({"run.name": "a"}).to_json(), saved.step
        if cause not in self.made:
            self.made[cause] = self._train(saved.config, saved.step)
        ours = self.made[cause]
        assert all(torch.equal(ours[name], t) for name, t in saved.trained.items()), \
            f"step {saved.step} of {saved.config.run.name}: other weights than its settings make"
        self.checked["checkpoints"] += 1

    def _train(self, config: Config, steps: int) -> dict[str, torch.Tensor]:
        model = SplatEnhancer.from_pretrained(config.model, device="cpu", seed=config.run.seed)
        faces = prepare(config.data, self.home / "oracle", seed=config.run.seed, progress=None)
        with tempfile.TemporaryDirectory() as folder:
            loop = train(config, model, faces, EnhancerLoss(config.loss, device="cpu"),
                         folder=Path(folder))
            for _ in range(steps):
                next(loop)
            loop.close()
        return model.trained_state()


def try_orders(count: int, seed: int = 0, *, length: int = 12, say: bool = False) -> Counter[str]:
    """Let so many people do `length` things each; returns what was checked.

    Raises:
        AssertionError: a cell ended without a line of ours, or a file says what is not so; the
            message tells the order.
    """
    with tempfile.TemporaryDirectory() as place, _quick(home := Path(place)):
        oracle = Oracle(home)
        for number in range(count):
            dice, did = random.Random(f"{seed} {number}"), []
            if number % 10 == 0:
                for folder in ("runs", "results"):
                    shutil.rmtree(home / folder, ignore_errors=True)
                oracle._seen.clear()
            with contextlib.redirect_stdout(io.StringIO()):
                person = Person(home, dice, oracle)
            for _ in range(length):
                try:
                    with contextlib.redirect_stdout(io.StringIO()), \
                            contextlib.redirect_stderr(io.StringIO()):
                        did.append(person.act())
                        oracle.look()
                except Exception as error:
                    raise AssertionError(f"order {number}: {'; '.join(did)}") from error
            for one in did:
                ended = one.rsplit(": ", 1)[-1]
                oracle.checked["cells that ended right" if ended == "right" else "other"] += 1
            if say:
                print(number, dict(oracle.checked), flush=True)
        return oracle.checked


@contextlib.contextmanager
def _quick(home: Path):
    """What costs time and has no state: pictures as files, most test heads, networks read anew."""
    metrics, heads = evaluation.sets.load_fits, {}
    fits = heads.setdefault("test", metrics("test")[:1])
    with mock.patch.dict(runtime.HOMES, local=home), \
            mock.patch.object(enhancer, "embed_prompt", lambda *_: PROMPT), \
            mock.patch.object(Figure, "savefig", lambda _, file, **options: file.write(b"x")), \
            mock.patch.object(evaluation.run, "measure_strengths", lambda *_, **__: {}), \
            mock.patch.object(evaluation.sets, "load_fits", lambda _: fits):
        yield


if __name__ == "__main__":
    wanted, begun = int(sys.argv[1]), time.process_time()
    print(dict(try_orders(wanted, say=True)), f"in {wanted} orders, "
          f"{time.process_time() - begun:.0f} s of CPU")
