"""The `t4` preset's own way to its data and weights, through a hub on this machine.

What talks to the hub runs in processes of their own: its address is read on import. Torchvision's
backbones come from another host, which stays out of reach here: `loss.vgg` is "stlpips".
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
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

from helpers.__main__ import NOTEBOOK, ROOT, execute_notebook
from helpers.config import SD_TURBO, TINY_BASE, preset
from helpers.distances.losses import CLIP_NAME
from helpers.evaluation import read_metrics
from helpers.faces import stream
from helpers.faces.regions import FACE_PARSER, FaceParser
from helpers.faces.stream import CELEBA_HQ
from helpers.model.base import load_network, part_files
from helpers.model.enhancer import SplatEnhancer
from helpers.model.exports import CARD, WEIGHTS, export, load
from helpers.plans import downloads
from helpers.storage import snapshots
from helpers.storage.snapshots import fetch, is_cached
from tests.hub import Fault, Hub, Repository
from tests.hub_repositories import GROUP_ROWS, IMAGE_BYTES, repositories

CHANGES = {"data.size_px": 64, "data.train_images": 6, "data.test_images": 6,
           "data.fitted_images": 1, "data.strength_images": 1, "optim.steps": 2,
           "loss.vgg": "stlpips", "loss.vgg_view_px": 32}
# What is read beyond a part: 5 MiB by the hub's file system, 32 by older `datasets`
READ_AHEAD_BYTES = (5 if hasattr(datasets.IterableDataset, "reshard") else 37) * 2**20
FOOTERS = 10 * 2**16  # of the shards, which are asked again and again
BASE_FILES = {
    "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors", "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors"}
DEAF = [Fault("/", 10**6, hang_up=True)]  # it accepts a connection and hangs up
NOWHERE = "http://127.0.0.1:9"  # nobody answers
OF_DEMO = {"model.base": TINY_BASE, "data.source": "avatars", "loss.clip": 0.0}


def outcome(action: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, str]:
    """What an action returns, or its error in words; and what it printed."""
    with redirect_stdout(StringIO()) as printed:
        try:
            value = action(*arguments, **options)
        except Exception as error:
            value = f"{type(error).__name__}: {error}"
    return value, printed.getvalue()


def impatiently(action: Callable[..., Any], *arguments: Any) -> Any:
    """What an action returns that never waits before it tries again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "WAITS_S", (0, 0, 0))
        return action(*arguments)


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
    place = stream.Place()
    rows = list(islice(stream.rows_from(None, place), count))
    return len(rows), sorted(rows[0])


def read_labels(count: int) -> tuple[int, dict[str, int]]:
    labels = [row["label"] for row in islice(stream.rows_from(None, stream.Place()), count)]
    return len(labels), dict(sorted(Counter(labels).items()))


def plan(place: str, **changes: Any) -> downloads.Downloads:
    """That of the notebook run in this place; with no changes a run of the preset as it is."""
    config = preset("t4").with_({"loss.vgg": "stlpips"} | changes)
    return downloads.plan_downloads(config, faces=Path(place, "data"),
                                    caches=[Path(place, "runs", "t4")])


def photographs(place: Path) -> dict[str, str]:
    """Settings of a run on a folder of photographs, of which the plan reads the names alone."""
    (place / "photos").mkdir()
    (place / "photos" / "face.jpg").touch()
    return OF_DEMO | {"data.source": str(place / "photos")}


def load_enhancer(name: str) -> list[str]:
    return list(load(name).trained_state())


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    served = repositories()
    base = served[f"models/{SD_TURBO}"]
    big = Repository({"big.safetensors": bytes(25_000_000), "big.json": b"{}"})
    demo = preset("demo")
    enhancer = export(SplatEnhancer.from_pretrained(demo.model, device="cpu"), demo,
                      tmp_path_factory.mktemp("export"))
    served["models/someone/enhancer"] = Repository(
        {path.name: path.read_bytes() for path in enhancer.iterdir()} | {"README.md": b"Mine"})
    served |= {f"models/{name}/base": base for name in ("busy", "down", "reset", "slow", "deaf")}
    served["models/cut/big"] = big
    encoder = {path.replace(".fp16", ""): content for path, content in base.files.items()
               if path in BASE_FILES and path.startswith("text_encoder")}
    served["models/plain/base"] = Repository(encoder)
    served["models/gated/base"] = Repository(base.files, gated=True)
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
            yield lambda *call, **options: pool.submit(outcome, *call, **options).result()


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
    def run(action, *arguments, faults=(), **options):
        hub.requests.clear()
        hub.faults[:] = faults
        return online(action, *arguments, **options)
    return run


@pytest.fixture(scope="module")
def sessions(hub, tmp_path_factory):
    """The notebook as `t4`; then on a machine with empty caches, in the same folders, as far as
    something could be downloaded; then a new run on the first machine, which is cut off."""
    place = tmp_path_factory.mktemp("t4")
    (place / "helpers").symlink_to(ROOT / "helpers")
    kept = []
    cut_off = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOWHERE}
    for home, run_name, last, more in (("first", "", "Restore your renders", {}),
                                       ("second", "", "Load the loss", {}),
                                       ("first", "offline", "Restore your renders", cut_off)):
        write_notebook(place / NOTEBOOK, run_name, last)
        hub.requests.clear()
        done = subprocess.run(
            [sys.executable, "-m", "tests.storage.test_hub", place, place / f"out{len(kept)}"],
            cwd=ROOT, env=environment(hub, place / home, **more), capture_output=True,
            encoding="utf-8")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        kept.append((hub.sent(), hub.lines()))
    return place, kept


def write_notebook(path, run_name, last):
    """The notebook at small settings, up to its last cell."""
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    end = next(i for i, cell in enumerate(notebook.cells) if last in cell.source)
    del notebook.cells[end + 1:]
    for cell in notebook.cells:
        cell.source = (cell.source.replace("CHANGES = {}", f"CHANGES = {CHANGES}")
                       .replace('RUN_NAME = ""', f'RUN_NAME = "{run_name}"')
                       .replace("workspace(machine)", "workspace(machine).cwd()"))
    nbformat.write(notebook, path)


def test_t4_runs_from_the_first_cell_to_the_last_through_the_hub(sessions):
    place, _ = sessions
    results = read_metrics(place / "results" / "t4" / "metrics.json")
    assert results["base"] == SD_TURBO
    counts = {name: of["n"] for name, of in results["sets"].items()}
    heads = counts["rendered_inside"]
    assert counts == {"drawn": 6, "drawn_heavy": 1, "clean": 6, "fitted": 1,
                      "rendered_inside": heads, "rendered_outside": heads} and heads > 0
    assert {"identity", "identity_to_input"} <= set(  # CLIP is at hand: the loss's
        results["sets"]["drawn"]["restored"]) and results["absent"] == {}
    assert (place / "results" / "t4" / "held_out_restored.png").is_file()


def test_a_new_run_of_t4_needs_no_hub_where_all_is_cached(sessions):
    place, (*_, (_, lines)) = sessions
    executed = (place / "out2" / NOTEBOOK).read_text(encoding="utf-8")
    assert "to download: nothing (the hub does not answer, and is not needed)" in executed
    results = place / "results" / "offline"
    assert (results / "held_out_restored.png").is_file() and not lines


def test_only_what_is_needed_is_fetched_and_nothing_twice(sessions, hub):
    _, ((sent, lines), *_) = sessions
    models = {file: count for file, count in sent.items() if file.startswith("models/")}
    needed = {SD_TURBO: BASE_FILES, CLIP_NAME: {"config.json", "pytorch_model.bin"},
              FACE_PARSER: {"config.json", "preprocessor_config.json", "model.safetensors"}}
    assert models == {f"models/{name}/{file}": len(hub.repositories[f"models/{name}"].files[file])
                      for name, files in needed.items() for file in files}
    # transformers looks there for a second, converted copy of a pickle, and fetches that too
    assert not [line for line in lines if "commits" in line or "discussions" in line]


def test_of_the_photographs_only_the_first_part_of_each_file_is_streamed(sessions):
    _, ((sent, _), *_) = sessions
    shards = {file: count for file, count in sent.items() if file.endswith(".parquet")}
    part = GROUP_ROWS * IMAGE_BYTES
    assert len(shards) == 2 and not any("validation" in file for file in shards)
    assert all(part < count < part + READ_AHEAD_BYTES + FOOTERS for count in shards.values())


def test_photographs_sorted_by_label_are_taken_of_all_labels_and_counted(sessions, ask):
    executed = (sessions[0] / "out0" / NOTEBOOK).read_text(encoding="utf-8")
    assert "6 faces to train on, 6 held out, " in executed
    counts = {label: int(count) for count, label in re.findall(r"(\d+) ((?:fe)?male)", executed)}
    assert sum(counts.values()) == 12 and min(counts.values()) >= 3
    (count, labels), _ = ask(read_labels, 100)
    assert count == 100 and labels == {"female": 50, "male": 50}


def test_a_second_session_needs_no_text_encoder_no_parser_and_no_photographs(sessions):
    _, (_, (sent, lines), _) = sessions
    assert f"models/{SD_TURBO}/unet/diffusion_pytorch_model.fp16.safetensors" in sent
    assert not [line for line in lines for part in ("text_encoder", "tokenizer", FACE_PARSER,
                                                    CELEBA_HQ) if part in line]


def test_a_part_in_the_cache_is_not_fetched_again_and_the_plan_knows_it(
        ask, hub, tmp_path, monkeypatch):
    before = ask(plan, str(tmp_path))[0].sizes
    assert not hub.sent()
    assert set(before) == {SD_TURBO, FACE_PARSER, CLIP_NAME, f"{CELEBA_HQ} (about)"}
    assert before[SD_TURBO] == sum(len(hub.repositories[f"models/{SD_TURBO}"].files[file])
                                   for file in BASE_FILES)
    assert ask(load_text_encoder, SD_TURBO) == ask(load_text_encoder, SD_TURBO)
    assert not hub.sent()
    after = ask(plan, str(tmp_path))[0].sizes
    encoder = hub.repositories[f"models/{SD_TURBO}"].files
    assert before[SD_TURBO] - after[SD_TURBO] == sum(
        len(content) for file, content in encoder.items()
        if file in BASE_FILES and file.startswith("text_encoder"))
    monkeypatch.setitem(encoder, "README.md", b"edited")  # a new commit; the encoder is the same
    assert ask(plan, str(tmp_path))[0].sizes == after


def test_the_plan_has_the_parser_of_photographs_without_masks(ask, tmp_path):
    changes = photographs(tmp_path)
    assert set(ask(plan, str(tmp_path), **changes)[0].sizes) == {FACE_PARSER}
    (tmp_path / "masks").mkdir()
    assert not ask(plan, str(tmp_path), **changes)[0].sizes


def test_a_base_without_half_precision_files_gives_what_it_has(ask, hub):
    assert ask(load_text_encoder, "plain/base") == ask(load_text_encoder, SD_TURBO)
    assert not [line for line in hub.lines("GET") if "plain" in line and "fp16" in line]


@pytest.mark.parametrize(("name", "fault", "said"), [
    ("busy", Fault("/api/models/busy/", 1, 429, {"Retry-After": "1"}), "trying again in 1 s"),
    ("down", Fault("GET /content/models/down/", 1, 503), ""),  # some clients try again themselves
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
    ("deaf/base", DEAF, ["connect", "check the connection", "'demo' preset"]),
])
def test_what_the_hub_does_not_give_is_an_error_with_advice(ask, hub, name, faults, words):
    error, printed = ask(impatiently, load_text_encoder, name, faults=faults)
    assert error.startswith(f"RuntimeError: hub: expected to load {name}, got ")
    assert all(word in error for word in words) and "Cannot find an appropriate" not in error
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


def test_offline_the_cache_is_enough_and_what_it_lacks_is_named(
        hub, home, ask, sessions, tmp_path):
    warm, _ = ask(load_text_encoder, SD_TURBO)
    parsed, _ = ask(parse, FACE_PARSER)
    assert len({region for image in parsed for region in image}) >= 3
    with client(hub, home, HF_HUB_OFFLINE="1") as offline:
        hub.requests.clear()
        assert offline(load_text_encoder, SD_TURBO)[0] == warm
        assert offline(parse, FACE_PARSER)[0] == parsed
        for action, name in ((load_vae, SD_TURBO), (load_text_encoder, "cold/base"),
                             (parse, "no/parser")):
            error, _ = offline(action, name)
            assert error.startswith(f"RuntimeError: hub: expected to load {name}, got ")
            assert "unset HF_HUB_OFFLINE" in error and "'demo' preset" in error
        # Faces and prompt are there, as they would be on Drive
        error, _ = offline(plan, str(sessions[0]), **CHANGES | {"loss.vgg": "lpips"})
        assert error.startswith(f"RuntimeError: hub: expected to load {SD_TURBO}, {CLIP_NAME} "
                                "for preset 't4', got ")
        assert "unset HF_HUB_OFFLINE" in error and "'demo' preset" in error
        # Torchvision's weights come from elsewhere: what this hub does not say is no reason to stop
        planned, _ = offline(plan, str(tmp_path), **photographs(tmp_path)
                             | {"loss.vgg": "lpips"})
        assert planned.offline
        assert set(planned.sizes) == {"torchvision vgg16", "torchvision alexnet"}
        assert not hub.requests


@pytest.mark.parametrize("faults", [DEAF, [Fault("/api/models/", 99, 401)],
                                    [Fault("/api/models/", 99, 429)]], ids=["deaf", "401", "429"])
def test_what_the_cache_has_is_used_and_said_if_the_hub_does_not_answer(ask, faults):
    warm, printed = ask(load_text_encoder, SD_TURBO)
    assert "cache" not in printed
    size, printed = ask(load_text_encoder, SD_TURBO, faults=faults)
    assert size == warm and printed.startswith(f"hub: {SD_TURBO}: ")
    assert printed.endswith("; what lies in the cache is used\n") and printed.count("\n") == 1


def test_a_torn_tokenizer_in_the_cache_is_not_all_of_it(ask, home):
    cache = home / "hub" / "models--torn--base"
    (folder := cache / "snapshots" / ("0" * 40) / "tokenizer").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    (folder / "vocab.json").touch()
    assert ask(is_cached, "torn/base", part_files("tokenizer"))[0] is False
    (folder / "merges.txt").touch()
    assert ask(is_cached, "torn/base", part_files("tokenizer"))[0] is True


def test_a_hub_that_hangs_up_is_needed_for_what_the_cache_lacks_alone(ask, tmp_path):
    error, _ = ask(plan, str(tmp_path), faults=DEAF)
    assert all(word in error for word in (SD_TURBO, CELEBA_HQ, "check the connection"))
    assert not ask(plan, str(tmp_path), **OF_DEMO, faults=DEAF)[0].sizes


def test_a_busy_hub_is_named_in_the_plan_and_stops_nothing(ask, tmp_path):
    sizes = ask(plan, str(tmp_path), faults=[Fault("/api/models/", 99, 503)])[0].sizes
    assert "503" in sizes[SD_TURBO] and "busy" in sizes[SD_TURBO]


def test_an_enhancer_by_its_name_on_the_hub_is_two_files(ask, hub):
    trained, _ = ask(load_enhancer, "someone/enhancer")
    assert sorted(hub.sent()) == [f"models/someone/enhancer/{file}" for file in (CARD, WEIGHTS)]
    assert "unet.conv_in.weight" in trained
    error, _ = ask(load_enhancer, "someone/else")
    assert error.startswith("RuntimeError: hub: expected to load someone/else, got ")
    assert error.endswith("log in with huggingface_hub.login() if it is private; no folder "
                          "someone/else is here")


if __name__ == "__main__":
    execute_notebook("t4", Path(sys.argv[1]) / NOTEBOOK, Path(sys.argv[2]))
