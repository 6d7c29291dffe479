"""Preparing faces survives kills, a full disk, bad files and a second process."""

import json
import multiprocessing
import os
import random
import signal
import time
from functools import cache, partial
from io import BytesIO, StringIO
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from PIL import Image
from tqdm import tqdm

from helpers.config import DataConfig
from helpers.faces import avatars, data, store
from helpers.faces import stream as hub_stream

SOURCES = ("avatars", "celeba-hq", "photos")
SPAWN = multiprocessing.get_context("spawn")
render_avatar, fsync = avatars.render_avatar, os.fsync


@cache
def png(number):
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue() if number % 7 else b"no image"


def make_parquet(folder, count=60):
    """A hub's repository in small: two files, in parts of four rows."""
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    for half in (0, 1):
        cells = [{"image": {"bytes": png(n), "path": None}} for n in range(half, count, 2)]
        table = pa.Table.from_pylist(cells, schema=features.arrow_schema)
        pq.write_table(table, folder / f"train-0000{half}-of-00002.parquet", row_group_size=4)


def make_photos(folder):
    (folder / "images").mkdir()
    for n in range(22):
        (folder / "images" / f"{n}.png").write_bytes(png(n))


def only_store(folder):
    return next((path for path in folder.iterdir()
                 if path.is_dir() and path.suffix != ".partial"), None)


def contents(folder):
    """The bytes of a store's files but for `state.json`, in which `datasets` draws a number."""
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if path.name not in ("state.json", store.CONTENTS)}


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def settings(source="avatars", train=13, test=3):
    return DataConfig(source=str(source), size_px=64, train_images=train, test_images=test)


def slow_fsync(file):
    """As a disk that is busy: there is time to die in the middle of a write."""
    fsync(file)
    time.sleep(0.03)


class Slowly:
    """Renders or parses as it should, slowly, and writes a byte for each image into a file."""

    def __init__(self, log):
        self.log = log

    def note(self, count):
        with self.log.open("ab") as file:
            file.write(b"." * count)
        time.sleep(0.005)

    def render(self, seed, size_px):
        self.note(1)
        return render_avatar(seed, size_px)

    def parse(self, images):
        self.note(len(images))
        return images.mul(5).byte()[:, 0]

    def prepare(self, folder, source):
        torch.set_num_threads(1)
        avatars.render_avatar = self.render  # in a process of its own
        os.fsync = slow_fsync
        if source == "celeba-hq":
            hub_stream.CELEBA_HQ = str(folder.parents[1] / "hub")
        if source == "photos":
            source = folder.parents[1]
        return data.prepare(settings(source), folder, progress=None, parse=self.parse)


def kill_often(log, killed, prepare):
    """Fork `prepare` and kill it, at faces and while it seals, until it once ends by itself."""
    dice, when = random.Random(0), []
    while len(when) < 40:
        start = log.stat().st_size if log.exists() else 0
        more = dice.randrange(3, 8)
        if not (child := os.fork()):
            prepare()
            os._exit(0)
        while not (status := os.waitpid(child, os.WNOHANG))[0]:
            sealing = any(killed.glob("*.partial/faces"))
            made = log.stat().st_size - start if log.exists() else 0
            if (sealing and when.count("seal") < 2) or (not sealing and made >= more):
                time.sleep(dice.random() * 0.02)
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)
                break
            time.sleep(0.001)
        if os.WIFEXITED(status[1]):
            return when, os.waitstatus_to_exitcode(status[1])
        when.append("seal" if sealing else "faces")
    return when, None


def prepare_under_fire(folder):
    """For each source: killed often, in peace, and by two processes at once."""
    datasets.load_dataset_builder(str(folder / "hub"))  # its imports, once for all forks
    for source in SOURCES:
        place, log = folder / source, Slowly(folder / source / "log")
        place.mkdir()
        when, code = kill_often(log.log, place / "killed",
                                lambda: log.prepare(place / "killed", source))  # noqa: B023
        calm = Slowly(place / "calm log")
        calm.prepare(place / "calm", source)
        both = Slowly(place / "both log")
        children = []
        for _ in range(2):
            if not (child := os.fork()):
                both.prepare(place / "both", source)
                os._exit(0)
            children.append(child)
        codes = [code, *(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children)]
        made = [each.log.stat().st_size for each in (log, calm, both)]
        (place / "report").write_text(json.dumps([codes, when, made]))


@pytest.fixture(scope="module")
def battlefield(tmp_path_factory):
    """A folder in which every source was prepared three times, by a process of its own."""
    if not hasattr(os, "fork"):
        pytest.skip("kills forked processes, which Windows lacks")
    folder = tmp_path_factory.mktemp("battlefield")
    make_parquet(folder / "hub")
    make_photos(folder)
    process = SPAWN.Process(target=prepare_under_fire, args=(folder,))
    process.start()
    process.join()
    return folder


@pytest.mark.parametrize("source", SOURCES)
def test_faces_prepared_under_kill_9_equal_those_prepared_in_peace_and_few_are_made_twice(
        battlefield, source):
    place = battlefield / source
    codes, when, (made, calmly, _) = json.loads((place / "report").read_text())
    assert codes[0] == 0 and {"seal", "faces"} <= set(when), when
    assert calmly == 16 and made <= calmly + store.GROUP * when.count("faces")
    killed, calm = only_store(place / "killed"), only_store(place / "calm")
    assert killed.name == calm.name and contents(killed) == contents(calm)
    assert len(data.Faces(killed).skipped) == (0 if source == "avatars" else 3)


@pytest.mark.parametrize("source", SOURCES)
def test_of_two_processes_that_prepare_the_same_faces_one_waits(battlefield, source):
    codes, _, (_, calmly, together) = json.loads((battlefield / source / "report").read_text())
    assert codes[1:] == [0, 0] and together == calmly
    assert contents(only_store(battlefield / source / "both")) \
        == contents(only_store(battlefield / source / "calm"))


def stream(count=60):
    return [{"image": {"bytes": png(n)}} for n in range(count)]


class Parser:
    """Regions of a kind; after so many faces the Stop button is pressed, or something happens."""

    def __init__(self, stop=None, happens=None):
        self.stop, self.parsed, self.happens = stop, 0, happens

    def __call__(self, images):
        if self.parsed == self.stop:
            if not self.happens:
                raise KeyboardInterrupt
            self.happens()
        self.parsed += len(images)
        return images.mul(5).byte()[:, 0]


def prepare(folder, *, rows=None, **options):
    return data.prepare(settings("celeba-hq"), folder, rows=rows or stream(),
                        **({"progress": None} | options))


def interrupted(folder, **options):
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, parse=Parser(stop=8), **options)
    return sorted(folder.glob("*.partial/*"))


DAMAGE = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped": lambda path: flip(path, 5000),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "foreign": lambda path: path.rename(path.with_name("000000.arrow")).write_bytes(b"foreign"),
}


@pytest.mark.parametrize(("group", "damage"), [
    (0, "torn"), (1, "flipped"), (1, "empty"), (0, "missing"), (1, "foreign")])
def test_groups_from_a_damaged_one_on_are_made_again_and_no_others(tmp_path, group, damage):
    groups = interrupted(tmp_path / "broken")
    assert len(groups) == 2 and not only_store(tmp_path / "broken")
    DAMAGE[damage](groups[group])
    again = Parser()
    prepare(tmp_path / "broken", parse=again)
    assert again.parsed == 16 - store.GROUP * group
    prepare(tmp_path / "calm", parse=Parser())
    assert contents(only_store(tmp_path / "broken")) == contents(only_store(tmp_path / "calm"))


def test_progress_and_the_names_of_what_was_left_out_go_on_after_an_interruption(tmp_path, capsys):
    interrupted(tmp_path)
    shown = StringIO()
    faces = prepare(tmp_path, parse=Parser(), progress=partial(tqdm, file=shown, mininterval=0))
    assert " 8/16 " in shown.getvalue() and " 16/16 " in shown.getvalue()
    assert " 7/16 " not in shown.getvalue() and "celeba-hq-mixed-00000" in faces.skipped
    assert "data: 3 left out: celeba-hq-mixed-00000: not an image; " in capsys.readouterr().out
    assert data.Faces(faces.store).skipped == faces.skipped


def test_a_face_that_goes_bad_while_the_store_is_open_is_named(tmp_path):
    faces = prepare(tmp_path, parse=Parser())
    path = faces.store / "data-00000-of-00001.arrow"
    flip(path, path.read_bytes().index(faces.test["image"][1]) + 3000)
    faces.load("test", [0, 2])
    with pytest.raises(ValueError, match=r", test \[0, 1\]: .*; delete this folder"):
        faces.load("test", [0, 1])
    with pytest.raises(ValueError, match="delete this folder and run again"):
        prepare(tmp_path, parse=Parser())


@pytest.mark.parametrize("room", ["not for a group", "not for the store"])
def test_a_full_disk_says_so_keeps_what_is_done_and_looks_nowhere_complete(tmp_path, room):
    resource = pytest.importorskip("resource")  # the kernel's own limit on the size of a file
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    groups = interrupted(tmp_path / "full")
    limit = groups[0].stat().st_size * 3 // 2 if room == "not for the store" else 20_000
    parser = Parser()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(OSError, match=r"make room and run again: (8|16) faces are kept"):
            prepare(tmp_path / "full", parse=parser)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not only_store(tmp_path / "full") and set(groups) <= set(groups[0].parent.iterdir())
    rest = Parser()
    prepare(tmp_path / "full", parse=rest)
    assert rest.parsed == (0 if room == "not for the store" else 8)
    prepare(tmp_path / "calm", parse=Parser())
    assert contents(only_store(tmp_path / "full")) == contents(only_store(tmp_path / "calm"))


class SlowFile(AbstractBufferedFile):
    """A file behind a link that breaks off at some of its requests."""

    def _fetch_range(self, start, end):
        SlowLink.requests += 1
        if SlowLink.requests in SlowLink.breaks_at:
            raise ConnectionError("reset by peer")
        SlowLink.fetched += (end - start) * (end < self.size)  # but for the indices, at the ends
        return Path(self.path).read_bytes()[start:end]


class SlowLink(AbstractFileSystem):
    """A file system as `datasets` streams from, which counts."""

    protocol, cachable = "slow", False
    fetched, requests, breaks_at = 0, 0, frozenset()

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("slow://").lstrip("/")

    def info(self, path, **_):
        return {"name": path, "size": Path(self._strip_protocol(path)).stat().st_size,
                "type": "file"}

    def _open(self, path, mode="rb", **_):
        return SlowFile(self, path, mode, block_size=4096)


@pytest.fixture
def link(tmp_path, monkeypatch):
    """CelebA-HQ's place is taken by 60 faces behind the link, 13 kB each."""
    make_parquet(tmp_path / "hub")
    files = [f"slow://{path}" for path in sorted((tmp_path / "hub").iterdir())]
    fsspec.register_implementation("slow", SlowLink, clobber=True)
    load_dataset = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda _, **options: load_dataset(
        "parquet", data_files=files, cache_dir=tmp_path / "cache", **options))
    monkeypatch.setattr(SlowLink, "fetched", 0)
    monkeypatch.setattr(SlowLink, "requests", 0)
    return SlowLink


def from_link(folder, parse):
    return data.prepare(settings("celeba-hq", train=29), folder, parse=parse, progress=None)


@pytest.mark.skipif(not hasattr(datasets.IterableDataset, "reshard"), reason="datasets before 4.6")
def test_rows_that_were_taken_from_the_hub_are_not_loaded_again(tmp_path, link):
    calm = from_link(tmp_path / "calm", Parser())
    whole, link.fetched = link.fetched, 0
    with pytest.raises(KeyboardInterrupt):
        from_link(tmp_path / "broken", Parser(stop=24))
    first, link.fetched = link.fetched, 0
    from_link(tmp_path / "broken", Parser())
    assert contents(only_store(tmp_path / "broken")) == contents(calm.store)
    part = 4 * 13_000  # of each file `datasets` keeps the bookmark of the part before
    assert whole > 6 * part and first + link.fetched <= whole + 2 * 3 * part


def test_a_link_that_breaks_is_taken_up_again_after_announced_waits(tmp_path, link, monkeypatch,
                                                                   capsys):
    waits = []
    monkeypatch.setattr(hub_stream.time, "sleep", waits.append)
    calm = from_link(tmp_path / "calm", Parser())
    requests, link.requests = link.requests, 0
    capsys.readouterr()
    monkeypatch.setattr(link, "breaks_at", {requests // 2, requests // 2 + 20})
    from_link(tmp_path / "broken", Parser())
    assert contents(only_store(tmp_path / "broken")) == contents(calm.store)
    assert waits and f"trying again in {waits[0]} s" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"row \d+ of .*reset by peer; check .*'demo' preset"):
        from_link(tmp_path / "lost", Parser(stop=16, happens=partial(
            monkeypatch.setattr, link, "breaks_at", range(10**6))))
    assert waits[-4:] == [2, 4, 8, 16]  # and no more than five tries
    assert list((tmp_path / "lost").glob("*.partial/*")) and not only_store(tmp_path / "lost")


def test_a_spawned_worker_draws_the_same_batches(tmp_path):
    faces = prepare(tmp_path, parse=Parser())
    for step, batch in enumerate(data.load_batches(faces, range(3), seed=1, batch=2, workers=1)):
        here = data.draw_batch(faces, seed=1, step=step, batch=2)
        assert all(torch.equal(one, other) for one, other in zip(batch, here, strict=True))
    assert step == 2
