"""Ten times as many photographs: ten times the work, and hardly more memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

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
        own = [row["peak_mib"] - row["imported_mib"] for row in (few, many)]
        assert own[1] < own[0] + 8, name
    few, many = rows["find files"]
    assert (few["found"], many["found"]) == (1_000, 10_000)


def test_no_work_grows_faster_than_the_number_of_files(rows):
    for name, (few, many) in rows.items():
        assert many["core_s"] < 12 * few["core_s"] + 0.3, name


def test_the_first_file_of_many_is_found_as_soon_as_that_of_few(rows):
    few, many = rows["find files"]
    assert many["first_s"] < few["first_s"] + 0.2 and many["first_s"] < many["all_s"] / 2
