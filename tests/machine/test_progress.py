"""The progress bar: one slot that moves in a notebook, a line of text in a terminal."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest

from helpers.machine import progress
from helpers.machine.progress import Bar


@pytest.fixture
def slots(monkeypatch):
    """What a notebook shows: one list of pages for each display slot."""
    found = []

    def display(page, display_id):
        found.append([page.data])
        return SimpleNamespace(update=lambda page, own=found[-1]: own.append(page.data))
    monkeypatch.setattr(progress, "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr(progress, "display", display)
    return found


def test_a_notebook_shows_one_slot_that_ends_where_the_loop_ended(slots):
    assert list(Bar(range(3), desc="<faces>", unit="face", mininterval=0)) == [0, 1, 2]
    (pages,) = slots
    assert pages[0].startswith('<progress value="0" max="3" aria-label=')
    assert pages[-1].startswith('<progress value="3" max="3" aria-label=')
    assert "&lt;faces&gt;: 3/3 [00:00&lt;00:00" in pages[-1] and "face/s" in pages[-1]


def test_a_loop_of_unknown_length_is_counted_without_an_end(slots):
    assert sum(Bar(iter([1, 2]), desc="read")) == 3
    assert slots[0][-1].startswith("<progress aria-label=") and "read: 2/?" in slots[0][-1]


def test_a_bar_that_is_not_to_stay_leaves_nothing(slots):
    list(Bar(range(2), desc="one of many", leave=False))
    assert "one of many: 0/2" in slots[0][0] and slots[0][-1] == ""


def test_a_loop_that_becomes_slow_still_moves(slots):
    def steps():
        yield from range(2_000)  # so fast that tqdm would look at every hundredth only
        for step in range(3):
            time.sleep(0.05)
            yield step
    list(Bar(steps(), total=2_003, mininterval=0.02))
    assert {"2001/2003", "2002/2003"} <= set(re.findall(r"\d+/2003", "".join(slots[0])))


def test_a_short_loop_shows_nothing_where_a_delay_is_asked_for(slots):
    list(Bar(range(3), delay=60))
    assert slots == []


def test_a_terminal_gets_text(capsys):
    list(Bar(range(3), desc="faces"))
    out, err = capsys.readouterr()
    assert out == "" and "faces: 100%" in err and "3/3" in err
