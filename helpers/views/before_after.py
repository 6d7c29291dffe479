"""A user's own renders before and after: what became of each, and a slider for the strength."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets
import torch
from IPython.display import HTML, display

from ..model import SplatEnhancer
from ..pictures import read_picture, repaired
from ..restoring import Outcome, RestoreConfig, restore_all
from .display import compare
from .pictures import divided

LISTED = 12  # files that are told of by name; all that failed are
PLAYED_BYTES = 8_000_000  # a larger video would swell the notebook
PLAYED = {".mp4": "mp4", ".webm": "webm"}  # by browsers


def show_restored(outcomes: Sequence[Outcome]) -> None:
    """Say what became of each file, and show the first of each kind before and after.

    Args:
        outcomes: from `restore_all`.
    """
    for one in outcomes[:LISTED]:
        if not one.error:
            print(_line(one))
    done = [one for one in outcomes if one.files]
    if len(outcomes) > LISTED:
        print(f"… {len(outcomes)} files, {len(done)} of them restored")
    for one in outcomes:
        if one.error:
            print(f"NOT RESTORED: {one.error}")
    for one in {one.input.kind: one for one in reversed(done)}.values():
        _show(one)


class BeforeAfter(widgets.VBox):
    """One picture before and after, how much of the restoration it takes, and where it repaired.

    The network is asked once per picture: less of it is a blend of what is there.

    Args:
        model: the enhancer.
        outcomes: of files; those of pictures are offered.
        settings: the results' own; the button saves with the slider's strength in place of theirs.
        output: the folder of the results, where they do not lie beside the inputs.
    """

    def __init__(self, model: SplatEnhancer, outcomes: Sequence[Outcome],
                 settings: RestoreConfig, *, output: Path | None = None) -> None:
        self.model, self.settings, self.output = model, settings, output
        self.inputs = [one.input for one in outcomes if one.files and one.input.kind == "picture"]
        names = [(str(one.relative), place) for place, one in enumerate(self.inputs)]
        self.menu = widgets.Dropdown(options=names, description="picture")
        self.strength = widgets.FloatSlider(settings.strength, min=0, max=1, step=0.05,
                                            description="strength", continuous_update=False)
        self.where = widgets.Checkbox(False, description="where it repaired", indent=False)
        self.save = widgets.Button(description="save with this strength")
        self.image, self.status = widgets.HTML(), widgets.HTML()
        super().__init__([widgets.HBox([self.menu, self.strength, self.where, self.save],
                                       layout={"flex_flow": "row wrap"}), self.image, self.status])
        if not self.inputs:
            self.children = [widgets.HTML("No pictures among the results.")]
            return
        self.menu.observe(self._pick, "value")
        self.strength.observe(self._draw, "value")
        self.where.observe(self._draw, "value")
        self.save.on_click(self._save)
        self._pick()

    def __repr__(self) -> str:
        return f"BeforeAfter({len(self.inputs)} pictures)"

    def _pick(self, _: object = None) -> None:
        self.status.value = ""
        try:
            self.before = read_picture(self.inputs[self.menu.value].path).rgb[None]
        except (OSError, ValueError) as error:  # gone since, or another file in its place
            self.image.value, self.status.value = "", html.escape(str(error))
            return
        self.after, self.mask = self.model.enhance_and_show(self.before)
        self._draw()

    def _draw(self, _: object = None) -> None:
        blended = torch.lerp(self.before, self.after, self.strength.value)
        shown = repaired(blended, self.mask) if self.where.value else blended
        self.image.value = divided(self.before[0], shown[0])

    def _save(self, _: object = None) -> None:
        settings = replace(self.settings, strength=round(self.strength.value, 6))
        found = self.inputs[self.menu.value]
        try:
            outcome, = restore_all(self.model, [found], settings, output=self.output, progress=None)
        except OSError as error:
            self.status.value = html.escape(f"not saved: {error}")
            return
        self.status.value = html.escape(outcome.error or _line(outcome))


def _line(one: Outcome) -> str:
    """A file, its results and what was taken for granted."""
    files = ", ".join(path.name for path in one.files[:3]) + (", …" if len(one.files) > 3 else "")
    how = "there already" if one.skipped else f"{one.seconds:.1f} s"
    return "; ".join((f"{one.path.name} → {files or 'nothing'} ({how})", *one.notes))


def _show(one: Outcome) -> None:
    if one.input.kind == "picture":
        pictures = [read_picture(path).rgb[None] for path in (one.path, *one.files[:2])]
        compare(*pictures)
        return
    played = [path for path in (one.path, *one.files)
              if path.suffix.lower() in PLAYED and path.stat().st_size < PLAYED_BYTES]
    display(HTML(" ".join(_player(path) for path in played[:2])))


def _player(path: Path) -> str:
    kind, content = PLAYED[path.suffix.lower()], base64.b64encode(path.read_bytes()).decode()
    return (f'<video controls loop muted autoplay aria-label="{html.escape(path.name)}" '
            f'style="max-width: 420px" src="data:video/{kind};base64,{content}"></video>')
