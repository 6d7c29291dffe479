"""No picture, bar or report stops a run."""

import dataclasses

import pytest
import torch
from IPython.display import display

from helpers import views
from helpers.machine import Bar, progress
from helpers.training import Record
from helpers.views import charts as show
from helpers.views import live as live_view

RECORD = Record(1, {"l1": 0.5, "total": 1.0}, 1e-4, 1.0, False, 1.0, 2.0, 0.0)


@pytest.mark.parametrize("draw", [
    lambda: views.side_by_side({}), lambda: views.show(None, "nothing"),
    lambda: views.show_restored([None]),
    lambda: views.training_curve([{"step": 1}]), lambda: views.save_figure(None, None)])
def test_what_cannot_be_drawn_is_told_and_stops_nothing(draw, capsys):
    draw()
    draw()
    assert capsys.readouterr().out.count("the run goes on") <= 1


def test_a_live_display_that_breaks_stops_no_step(config, build, monkeypatch, capsys):
    images = torch.rand(1, 3, 64, 64)
    live = views.LiveTraining(config, build()[0], images, images)

    def broken(*_, **__):
        raise OSError("no display")
    monkeypatch.setattr(live_view, "draw_curve", broken)
    for step in range(1, 60):
        live.update(dataclasses.replace(RECORD, step=step))
    live.close()
    assert capsys.readouterr().out.count("no display") == 1


def test_a_term_that_some_steps_lack_is_drawn_where_it_is():
    history = [{"step": 1, "losses": {"l1": 1.0, "gram": 2.0, "total": 3.0}},
               {"step": 2, "losses": {"l1": 1.0, "total": 1.0}},
               {"step": 3, "losses": {"l1": 1.0, "clip": 0.5, "total": 1.5}}]
    for part in (history, history[::-1], history[1:], []):
        show.training_curve(part).canvas.draw()
    names = {line.get_label() for line in show.training_curve(history).axes[0].lines}
    assert {"gram", "clip", "l1", "total"} <= {name.removesuffix(" (below)") for name in names}


def test_a_bar_that_cannot_be_shown_stops_no_loop(monkeypatch):
    class Closed:
        def write(self, _):
            raise BrokenPipeError
        flush = fileno = write
    assert list(Bar(range(5), file=Closed(), mininterval=0)) == [*range(5)]
    monkeypatch.setattr(progress, "display", lambda *_, **__: 1 / 0)
    bar = Bar(total=3)
    bar.inline = True
    bar.update(2)
    bar.close()
    assert display
