"""The `t4` preset's own way to its data and weights, through a hub on this machine.

What talks to the hub runs in processes of their own: its address is read on import. Torchvision's
backbones come from another host, which stays out of reach here: `loss.pretrained` is False.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import nbformat
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from helpers import downloads, sources
from helpers.__main__ import NOTEBOOK, ROOT, execute_notebook
from helpers.base import load_network
from helpers.config import SD_TURBO, preset
from helpers.evaluate import read_metrics
from helpers.losses import CLIP_NAME
from helpers.regions import FACE_PARSER, FaceParser
from helpers.snapshots import fetch
from helpers.sources import CELEBA_HQ

from .hub import Fault, Hub, Repository
from .hub_repositories import GROUP_ROWS, IMAGE_BYTES, face_parser, repositories
from .test_regions import OTHER_ORDER

CHANGES = {"data.size_px": 64, "data.train_images": 6, "data.test_images": 6,
           "data.fitted_images": 1, "optim.steps": 2, "loss.pretrained": False,
           "loss.vgg_view_px": 32}
# What is read beyond a part: 5 MiB by the hub's file system, 32 by older `datasets`
READ_AHEAD_BYTES = (5 if hasattr(datasets.IterableDataset, "reshard") else 37) * 2**20
FOOTERS = 10 * 2**16  # of the shards, which are asked again and again
BASE_FILES = {
    "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors", "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors"}
OTHER_PARSER = "someone/face-parsing"


def outcome(action: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What an action returns, or its error in words; and what it printed."""
    with redirect_stdout(StringIO()) as printed:
        try:
            value = action(*arguments)
        except Exception as error:
            value = f"{type(error).__name__}: {error}"
    return value, printed.getvalue()


def load_text_encoder(name: str) -> int:
    return sum(value.numel() for value in load_network(CLIPTextModel, name, "text_encoder")
               .parameters())


def load_vae(name: str) -> int:
    return sum(value.numel() for value in load_network(AutoencoderKL, name, "vae").parameters())


def fetch_big(name: str) -> int:
    return (fetch(name, ["big.json"], ["*.safetensors"]) / "big.safetensors").stat().st_size


def parse(name: str) -> list[list[int]]:
    return FaceParser(name)(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
                            ).flatten(1).tolist()


def read_rows(count: int) -> tuple[int, str]:
    place = sources.Place()
    rows = list(islice(sources._persistent(None, place), count))
    return len(rows), sorted(rows[0])


def plan(folder: str) -> dict[str, int | str]:
    config = preset("t4").with_({"loss.pretrained": False})
    return downloads.plan(config, faces=Path(folder), caches=[Path(folder)]).sizes


@pytest.fixture(scope="module")
def hub():
    served = repositories()
    base = served[f"models/{SD_TURBO}"]
    big = Repository({"big.safetensors": bytes(25_000_000), "big.json": b"{}"})
    served |= {f"models/{name}/base": base for name in ("busy", "down", "reset", "slow", "deaf")}
    served["models/cut/big"] = big
    encoder = {path.replace(".fp16", ""): content for path, content in base.files.items()
               if path in BASE_FILES and path.startswith("text_encoder")}
    served["models/plain/base"] = Repository(encoder)
    served["models/gated/base"] = Repository(base.files, gated=True)
    served[f"models/{OTHER_PARSER}"] = face_parser(tuple(OTHER_ORDER.values()))
    with Hub(served) as hub:
        yield hub


def environment(hub, home, **more):
    return os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "TORCH_HOME": str(home),
                         "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"} | more


@contextmanager
def client(hub, home, **more):
    """A function that runs an action in a process whose hub this one is."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(hub, home, **more).items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield lambda *call: pool.submit(outcome, *call).result()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub, home):
    with client(hub, home, HF_HUB_DOWNLOAD_TIMEOUT="2") as run:
        yield run


@pytest.fixture
def ask(hub, online):
    """Runs an action while the hub has some faults; the requests kept are those of this action."""
    def run(action, *arguments, faults=()):
        hub.requests.clear()
        hub.faults[:] = faults
        return online(action, *arguments)
    return run


@pytest.fixture(scope="module")
def sessions(hub, tmp_path_factory):
    """The notebook as `t4`; then on a machine with empty caches, in the same folders, as far as
    something could be downloaded."""
    place = tmp_path_factory.mktemp("t4")
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    (place / "helpers").symlink_to(ROOT / "helpers")
    for cell in notebook.cells:
        cell.source = (cell.source.replace("CHANGES = {}", f"CHANGES = {CHANGES}")
                       .replace("workspace(machine)", "workspace(machine, Path.cwd())"))
    last = next(i for i, cell in enumerate(notebook.cells) if "Load the loss" in cell.source)
    slow = ("Degrade step by step", "Look at each effect", "Plan the memory")
    kept = []
    for cells in (notebook.cells, [cell for cell in notebook.cells[:last + 1]
                                   if not any(title in cell.source for title in slow)]):
        nbformat.write(nbformat.from_dict(notebook | {"cells": cells}), place / NOTEBOOK)
        hub.requests.clear()
        done = subprocess.run(
            [sys.executable, "-m", "tests.test_hub", str(place), str(place / "out")], cwd=ROOT,
            env=environment(hub, place / f"home{len(cells)}"), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        kept.append((hub.sent(), hub.lines()))
    return place, kept


def test_t4_runs_from_the_first_cell_to_the_last_through_the_hub(sessions):
    place, _ = sessions
    results = read_metrics(place / "results" / "t4" / "metrics.json")
    assert results["base"] == SD_TURBO
    assert {name: of["n"] for name, of in results["sets"].items()} == {"held_out": 6, "fitted": 1}
    assert (place / "results" / "t4" / "restored.png").is_file()


def test_only_what_is_needed_is_fetched_and_nothing_twice(sessions, hub):
    _, ((sent, lines), _) = sessions
    models = {file: count for file, count in sent.items() if file.startswith("models/")}
    needed = {SD_TURBO: BASE_FILES, CLIP_NAME: {"config.json", "pytorch_model.bin"},
              FACE_PARSER: {"config.json", "preprocessor_config.json", "model.safetensors"}}
    assert models == {f"models/{name}/{file}": len(hub.repositories[f"models/{name}"].files[file])
                      for name, files in needed.items() for file in files}
    # transformers looks there for a second, converted copy of a pickle, and fetches that too
    assert not [line for line in lines if "commits" in line or "discussions" in line]


def test_of_the_photographs_only_the_first_part_is_streamed(sessions):
    _, ((sent, _), _) = sessions
    shards = {file: count for file, count in sent.items() if file.endswith(".parquet")}
    first, *others = (shards[file] for file in sorted(shards))
    assert GROUP_ROWS * IMAGE_BYTES < first < GROUP_ROWS * IMAGE_BYTES + READ_AHEAD_BYTES + FOOTERS
    assert sum(others) < FOOTERS and not any("validation" in file for file in shards)


def test_a_second_session_needs_no_text_encoder_no_parser_and_no_photographs(sessions):
    _, (_, (sent, lines)) = sessions
    assert f"models/{SD_TURBO}/unet/diffusion_pytorch_model.fp16.safetensors" in sent
    assert not [line for line in lines for part in ("text_encoder", "tokenizer", FACE_PARSER,
                                                    CELEBA_HQ) if part in line]


def test_a_part_in_the_cache_is_not_fetched_again_and_the_plan_knows_it(ask, hub, tmp_path):
    before, _ = ask(plan, str(tmp_path))
    assert not hub.sent()
    assert set(before) == {SD_TURBO, FACE_PARSER, CLIP_NAME, f"{CELEBA_HQ} (about)"}
    assert before[SD_TURBO] == sum(len(hub.repositories[f"models/{SD_TURBO}"].files[file])
                                   for file in BASE_FILES)
    assert ask(load_text_encoder, SD_TURBO) == ask(load_text_encoder, SD_TURBO)
    assert not hub.sent()
    after, _ = ask(plan, str(tmp_path))
    encoder = hub.repositories[f"models/{SD_TURBO}"].files
    assert before[SD_TURBO] - after[SD_TURBO] == sum(
        len(content) for file, content in encoder.items()
        if file in BASE_FILES and file.startswith("text_encoder"))


def test_a_base_without_half_precision_files_gives_what_it_has(ask, hub):
    assert ask(load_text_encoder, "plain/base") == ask(load_text_encoder, SD_TURBO)
    assert not [line for line in hub.lines("GET") if "plain" in line and "fp16" in line]


def test_both_published_label_orders_find_the_same_regions(ask):
    (known, _), (other, _) = ask(parse, FACE_PARSER), ask(parse, OTHER_PARSER)
    assert known == other and len({region for image in known for region in image}) >= 3


@pytest.mark.parametrize(("name", "fault", "said"), [
    ("busy", Fault("/api/models/busy/", 1, 429, {"Retry-After": "1"}), "trying again in 1 s"),
    ("down", Fault("GET /content/models/down/", 1, 503), "503"),
    ("reset", Fault("GET /content/models/reset/", 1, cut_at=50_000, reset=True), "reset by peer"),
    ("slow", Fault("GET /content/models/slow/", 1, stall_s=0.05), ""),
])
def test_a_busy_unsteady_or_slow_hub_is_waited_for(ask, name, fault, said):
    size, printed = ask(load_text_encoder, f"{name}/base", faults=[fault])
    assert isinstance(size, int) and fault.times == 0 and said in printed


def test_a_download_cut_in_mid_file_goes_on_where_it_was(ask, hub):
    fault = Fault("GET /content/models/cut/", 1, cut_at=15_000_000)
    assert ask(fetch_big, "cut/big", faults=[fault])[0] == 25_000_000
    assert hub.lines(" 10485760-24999999")  # the client keeps whole pieces of 10 MiB


@pytest.mark.parametrize(("name", "faults", "words"), [
    ("nobody/base", [], ["Repository not found", "check its name", "'demo' preset"]),
    ("gated/base", [], ["GatedRepoError", "accept its terms", "'demo' preset"]),
    ("no/such/folder", [], ["Repo id must be", "check its name", "'demo' preset"]),
    ("deaf/base", [Fault("deaf", 99, hang_up=True)], ["disconnected", "check the connection"]),
])
def test_what_the_hub_does_not_give_is_an_error_with_advice(ask, hub, name, faults, words):
    error, printed = ask(load_text_encoder, name, faults=faults)
    assert error.startswith(f"RuntimeError: hub: expected to load {name}, got ")
    assert all(word in error for word in words)
    assert printed.count("trying again") == (3 if faults else 0)


@pytest.mark.parametrize("fault", [
    Fault("GET /content/datasets", 1, 503),
    Fault("GET /datasets", 1, 429, {"Retry-After": "0"}),
    Fault("GET /content/datasets", 1, cut_at=1000),
    Fault("GET /content/datasets", 1, cut_at=1000, reset=True),
], ids=["503", "429", "cut", "reset"])
def test_the_stream_of_photographs_goes_on_after(ask, fault):
    assert ask(read_rows, 10, faults=[fault])[0] == (10, ["image", "label"])
    assert fault.times == 0


def test_offline_the_cache_is_enough_and_what_it_lacks_is_named(hub, home, ask, tmp_path):
    warm, _ = ask(load_text_encoder, SD_TURBO)
    parsed, _ = ask(parse, FACE_PARSER)
    with client(hub, home, HF_HUB_OFFLINE="1") as offline:
        hub.requests.clear()
        assert offline(load_text_encoder, SD_TURBO)[0] == warm
        assert offline(parse, FACE_PARSER)[0] == parsed
        for action in (load_vae, load_text_encoder):
            error, _ = offline(action, SD_TURBO if action is load_vae else "cold/base")
            assert error.startswith("RuntimeError: hub: expected to load")
            assert "HF_HUB_OFFLINE" in error and "'demo' preset" in error
        assert "HF_HUB_OFFLINE" in offline(plan, str(tmp_path))[0][CLIP_NAME]
        assert not hub.requests


if __name__ == "__main__":
    execute_notebook("t4", Path(sys.argv[1]) / NOTEBOOK, Path(sys.argv[2]))
