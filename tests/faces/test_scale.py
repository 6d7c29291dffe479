"""Ten times as many photographs: ten times the work, and hardly more memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from helpers.faces.store import PartialStore
from helpers.machine import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="measured in forks; no fork here")


@pytest.fixture(scope="module")
def rows():
    """Each made and opened, for few and for ten times as many."""
    done = subprocess.run([sys.executable, "-m", "tests.measure_scale", "100", "1000", "--json"],
                          cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_number_of_files(rows):
    for name, (few, many) in rows.items():
        assert many["own_mib"] < few["own_mib"] + 6, name
    few, many = rows["find files"]
    assert (few["found"], many["found"]) == (1_000, 10_000)


def test_no_work_grows_faster_than_the_number_of_files(rows):
    for name, (few, many) in rows.items():
        assert many["core_s"] < 12 * few["core_s"] + 0.3, name


def test_keeping_a_group_costs_the_same_however_many_were_kept_before(tmp_path):
    partial = PartialStore(tmp_path / "store")
    partial.place.done = {f"{number}.png": "train" for number in range(100_000)}
    partial.place.skipped = {f"{number}.gif": "not read" for number in range(100_000)}
    rows = [{"key": "own", "image": b"", "regions": b"", "split": "train"}]
    partial.add(rows)
    started = time.process_time()
    partial.place.skipped["last.gif"] = "not read"
    for _ in range(5):
        partial.add(rows)
    assert time.process_time() - started < 0.2
    assert max(path.stat().st_size for path in partial.groups[1:]) < 2_000
    kept = [json.loads(pa.ipc.open_stream(path.read_bytes()).schema.metadata[b"place"])["skipped"]
            for path in partial.groups]
    assert len(kept[0]) == 100_000 and kept[1:] == [{"last.gif": "not read"}, {}, {}, {}, {}]


def test_the_first_file_of_many_is_found_as_soon_as_that_of_few(rows):
    few, many = rows["find files"]
    assert many["first_s"] < few["first_s"] + 0.2 and many["first_s"] < many["all_s"] / 2
