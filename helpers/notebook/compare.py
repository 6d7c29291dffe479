"""A user's files in the notebook: uploaded, restored, compared before and after, downloaded."""

from __future__ import annotations

import base64
import contextlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from IPython.display import HTML, FileLink, display
from torch import Tensor

from ..enhance.restore import Outcome
from ..environment import Environment, browser_files
from ..evaluation.report import BLUE, image_tag
from ..files import atomic_write
from ..images import read_image, read_png_text, write_png

if TYPE_CHECKING:
    from ..model.enhancer import SplatEnhancer

COMPARED_PX = 768  # compared images are sent no larger: a notebook keeps them
SIDE_PX = 420  # longer side on the page: two stand beside each other
LISTED = 12  # files that are named; all that failed are
VIDEO_BYTES = 8_000_000  # a larger video would swell the notebook
VIDEOS = {".mp4": "mp4", ".webm": "webm"}  # what browsers play
DIVIDER = """<style>
.divided { display: inline-grid; position: relative; max-width: 100%; --at: 50% }
.divided > * { grid-area: 1 / 1 }
.divided > img + img { clip-path: inset(0 0 0 var(--at)) }
.divided > i { width: 2px; margin-left: calc(var(--at) - 1px); background: white;
               box-shadow: 0 0 2px black; z-index: 1 }
.divided > input { z-index: 2; margin: 0 -8px; width: calc(100% + 16px); cursor: ew-resize;
                   background: none; appearance: none; -webkit-appearance: none }
</style>"""


def divided(before: Tensor, after: Tensor) -> str:
    """Two images (3, H, W) in [0, 1] with a divider to drag, by pointer or arrow keys, as HTML."""
    first, second = compared(before, "input"), compared(after, "restored")
    # JupyterLab would take the arrow keys for itself; it may have those with Ctrl
    return (f'{DIVIDER}<div class="divided">{first} {second}<i></i>'
            '<input type="range" step="any" aria-label="from input to restored" '
            """oninput="this.parentNode.style.setProperty('--at', this.value + '%')" """
            'onkeydown="event.ctrlKey || event.metaKey || event.stopPropagation()"></div>'
            "<div>left input, right restored: drag over the picture, or use the arrow keys</div>")


def compared(image: Tensor, alt: str) -> str:
    """An image (3, H, W) in [0, 1] as HTML, in the size of compared ones."""
    height, width = (round(side * SIDE_PX / max(image.shape)) for side in image.shape[1:])
    return image_tag(image, alt, COMPARED_PX, f'width="{width}" height="{height}" '
                     'style="max-width: 100%; height: auto"')


def show_restored(outcomes: Sequence[Outcome]) -> None:
    """Say what became of each file, and show the first picture and the first video."""
    for outcome in [outcome for outcome in outcomes if not outcome.error][:LISTED]:
        print(describe(outcome))
    if len(outcomes) > LISTED:
        restored = sum(bool(outcome.files) for outcome in outcomes)
        print(f"… {len(outcomes)} files, {restored} of them restored")
    for outcome in outcomes:
        if outcome.error:
            print(f"NOT RESTORED: {outcome.error}")
    done = [outcome for outcome in outcomes if outcome.files]
    for outcome in {outcome.input.kind: outcome for outcome in reversed(done)}.values():
        videos = [path for path in (outcome.input.path, *outcome.files)
                  if path.suffix.lower() in VIDEOS and path.stat().st_size < VIDEO_BYTES]
        if outcome.input.kind == "picture":
            before, *after = (read_image(path)[0] for path in (outcome.input.path, *outcome.files))
            overlay = [compared(image, "where it repaired") for image in after[1:]]
            display(HTML('<div style="display: flex; flex-wrap: wrap; gap: 8px"><div>'
                         f'{divided(before, after[0])}</div><div>{"".join(overlay)}</div></div>'))
        elif videos:
            display(HTML(" ".join(map(_player, videos[:2]))))


def describe(outcome: Outcome) -> str:
    """A file, its results, how much was repaired, and what was assumed, in one line."""
    names = ", ".join(path.name for path in outcome.files[:3])
    names += ", …" if len(outcome.files) > 3 else ""
    details = ["there already" if outcome.skipped else f"{outcome.seconds:.1f} s"]
    if outcome.repaired is not None:
        details.append(f"repaired {100 * outcome.repaired:.0f} % of the picture")
    return "; ".join((f"{outcome.input.path.name} → {names or 'nothing'} ({', '.join(details)})",
                      *outcome.notes))


class BeforeAfter(widgets.VBox):
    """One picture before and after, with a slider for the strength and a button that saves it.

    The network is asked once per picture: less strength is a blend with the input. A strength that
    was saved is noted in the result as `chosen_strength`, and the next run keeps that result.

    Args:
        model: the enhancer.
        outcomes: of files; those of pictures are offered.
    """

    def __init__(self, model: SplatEnhancer, outcomes: Sequence[Outcome]) -> None:
        self.model = model
        self.outcomes = [one for one in outcomes if one.files and one.input.kind == "picture"]
        names = [(one.input.path.name, place) for place, one in enumerate(self.outcomes)]
        self.menu = widgets.Dropdown(options=names, description="picture")
        self.strength = widgets.FloatSlider(1.0, min=0, max=1, step=0.05, description="strength",
                                            continuous_update=False)
        self.where = widgets.Checkbox(False, description="where it changed", indent=False,
                                      layout={"width": "auto"})
        self.save = widgets.Button(description="save with this strength",
                                   layout={"width": "auto"})
        self.picture, self.status = widgets.HTML(), widgets.HTML()
        controls = widgets.HBox([self.menu, self.strength, self.where, self.save],
                                layout={"flex_flow": "row wrap"})
        super().__init__([controls, self.picture, self.status] if names else
                         [widgets.HTML("No pictures among the results.")])
        if names:
            self.menu.observe(self._pick, "value")
            self.strength.observe(self._draw, "value")
            self.where.observe(self._draw, "value")
            self.save.on_click(self._save)
            self._pick()

    def __repr__(self) -> str:
        return f"BeforeAfter({len(self.outcomes)} pictures)"

    def _pick(self, _: object = None) -> None:
        outcome, self.before = self.outcomes[self.menu.value], None
        self.picture.value = self.status.value = ""
        try:
            self.before, self.alpha = read_image(outcome.input.path)
        except (OSError, ValueError) as error:  # removed since, or replaced by another file
            self.status.value = html.escape(str(error))
            return
        restored, changed = self.model.enhance_with_mask(self.before[None])
        self.after, self.changed = restored[0].cpu(), changed[0].cpu()
        self.strength.value = float(read_png_text(outcome.files[0]).get(
            "chosen_strength", self.strength.value))
        self._draw()

    def _draw(self, _: object = None) -> None:
        if self.before is None:
            return
        shown = torch.lerp(self.before, self.after, self.strength.value)
        if self.where.value:
            shown = torch.lerp(shown, BLUE, 0.7 * self.strength.value * self.changed)
        self.picture.value = divided(self.before, shown)

    def _save(self, _: object = None) -> None:
        if self.before is None:
            return
        path, strength = self.outcomes[self.menu.value].files[0], round(self.strength.value, 6)
        text = read_png_text(path) | {"chosen_strength": f"{strength:g}"}
        try:
            write_png(path, torch.lerp(self.before, self.after, strength), self.alpha, text)
            self.status.value = html.escape(f"{path.name} saved with strength {strength:g}")
        except OSError as error:
            self.status.value = html.escape(f"not saved: {error}")


def ask_for_files(environment: Environment, folder: Path) -> None:
    """Upload files into a folder: by Colab's dialogue, elsewhere by a button.

    A server limits what one message may hold (Jupyter's own default is 10 MB): larger files go
    through the notebook's file browser.
    """
    button, status = widgets.FileUpload(multiple=True, description="Upload"), widgets.HTML()

    def take(change: dict[str, Any]) -> None:
        new = change["new"]  # ipywidgets 7: name → file, 8: files
        files = new.items() if isinstance(new, dict) else ((file["name"], file) for file in new)
        paths = keep_files(folder, ((name, bytes(file["content"])) for name, file in files))
        names = ", ".join(path.name for path in paths)
        status.value = html.escape(f"uploaded: {names}; now run the cell below")

    if dialogue := browser_files(environment):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(folder):  # it writes to the working directory, and overwrites nothing
            dialogue.upload()
    else:
        button.observe(take, "value")
        display(widgets.VBox([button, status]))


def keep_files(folder: Path, files: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write files into a folder, numbered where another of the name is there already."""
    paths = []
    for name, content in files:
        path, number = folder / Path(name).name, 1
        while path.exists() and path.read_bytes() != content:
            number += 1
            path = folder / f"{Path(name).stem}_{number}{Path(name).suffix}"
        paths.append(atomic_write(path, content))
    return paths


def offer_file(environment: Environment, file: Path) -> None:
    """Let the browser save a file: on Colab at once, elsewhere by a link."""
    if dialogue := browser_files(environment):
        dialogue.download(str(file))
    else:  # a server shows only files below its own folder
        here = file.absolute().is_relative_to(Path.cwd())
        display(FileLink(file.absolute().relative_to(Path.cwd())) if here else file)


def _player(path: Path) -> str:
    kind, content = VIDEOS[path.suffix.lower()], base64.b64encode(path.read_bytes()).decode()
    return (f'<video controls loop muted autoplay aria-label="{html.escape(path.name)}" '
            f'style="max-width: 420px" src="data:video/{kind};base64,{content}"></video>')
