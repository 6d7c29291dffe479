"""What is set in the notebook: its form, and the degradation by sliders over every amount."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from torch import Tensor

from ..config import Config, DegradationConfig, preset
from ..degradation.pipeline import (
    DEGRADATION_PRESETS,
    STAGES,
    Preview,
    degradation_preset,
    variation_mask,
)
from ..evaluation.report import BLUE, image_tag
from .plots import color_regions, region_legend

if TYPE_CHECKING:
    from ..run import Run

FIELDS = {field.name: field.metadata for field in dataclasses.fields(DegradationConfig)}
TABS = ("regions", "splats", "image", "training")  # groups; what is "overall" stands above them
CUSTOM = "custom"  # what the menu shows when the sliders are at none of its entries
PICTURE_PX = 200  # four stand in a row above the sliders, on one screen
NARROW = {"layout": {"width": "170px"}, "style": {"description_width": "55px"}}
TOOLTIP = "tooltip" if hasattr(widgets.FloatSlider, "tooltip") else "description_tooltip"  # 8, 7
OVERLAYS = {"none": "", "regions": region_legend(),
            "variation": "The bluer, the more of the blur of the regions arrives there."}


def config_from_form(preset_name: str, form: Mapping[str, Any]) -> Config:
    """The config of a form: a preset, and what was filled in.

    Args:
        preset_name: the preset, not "auto".
        form: variables of the notebook. Those in capitals that are called like a field of `Config`
            are taken, unless they are None or empty; `DEGRADATION` names a preset of the
            degradation, `DEGRADATION_STRENGTH` scales it, and `CHANGES` holds any other fields.
    """
    names = {field.name for field in dataclasses.fields(Config)} - {"preset", "degradation"}
    filled = {name: form[name.upper()] for name in names
              if form.get(name.upper()) is not None and form[name.upper()] != ""}
    if form.get("DEGRADATION"):
        filled["degradation"] = degradation_preset(form["DEGRADATION"])
    if form.get("DEGRADATION_STRENGTH") is not None:
        filled["degradation.strength"] = float(form["DEGRADATION_STRENGTH"])
    return preset(preset_name).replace(**filled | form.get("CHANGES", {}))


class DegradationSliders(widgets.VBox):
    """Sliders, the pictures they make, and a button that keeps the settings with the run.

    Args:
        run: its training faces are shown; it starts from `run.degradation`.
        count: how many faces there are to choose from.
    """

    def __init__(self, run: Run, count: int = 4) -> None:
        self.run, self._held = run, True
        self.clean, self.regions = run.faces.load("train", range(min(count, len(run.faces.train))))
        self.presets = {"start": run.degradation} | {
            name: degradation_preset(name) for name in DEGRADATION_PRESETS}
        self._make_controls()
        tabs = widgets.Tab([self._page(group) for group in TABS])
        for index, group in enumerate(TABS):
            tabs.set_title(index, group)
        overall = [self.sliders[name] for name in FIELDS if FIELDS[name]["group"] == "overall"]
        super().__init__([
            _row(self.menu, self.picker, self.seed, self.reset, self.keep), self.pictures,
            _row(*overall, self.overlay, self.all_stages), self.legend, tabs, self.status])
        self._pick()
        self.set(run.degradation)

    def __repr__(self) -> str:
        return f"DegradationSliders({len(self.clean)} faces, {len(self.sliders)} sliders)"

    @property
    def settings(self) -> DegradationConfig:
        """What the sliders show."""
        return DegradationConfig(**{  # browsers send 0.15000000000000002
            name: round(slider.value, 6) for name, slider in self.sliders.items()})

    def set(self, settings: DegradationConfig) -> None:
        """Move all sliders, with one new picture."""
        self._assign({slider: getattr(settings, name) for name, slider in self.sliders.items()})
        self._draw()

    def _make_controls(self) -> None:
        self.sliders = {name: widgets.FloatSlider(
            min=0, max=1, step=0.05, continuous_update=False, description=name.replace("_", " "),
            style={"description_width": "95px"}, layout={"width": "300px"},
            **{TOOLTIP: metadata["help"]}) for name, metadata in FIELDS.items()}
        self.menu = widgets.Dropdown(options=[*self.presets, CUSTOM], description="preset",
                                     **NARROW)
        self.picker = widgets.Dropdown(options=[(str(i + 1), i) for i in range(len(self.clean))],
                                       description="face", **NARROW)
        self.seed = widgets.BoundedIntText(self.run.config.seed, 0, 2**31 - 1, description="seed",
                                           **NARROW)
        self.reset = widgets.Button(description="reset", layout={"width": "auto"})
        self.keep = widgets.Button(description="keep these settings", button_style="primary",
                                   layout={"width": "auto"})
        self.overlay = widgets.ToggleButtons(options=list(OVERLAYS), description="overlay",
                                             style={"button_width": "80px"})
        self.all_stages = widgets.Checkbox(description="all stages", indent=False,
                                           layout={"width": "100px"})
        self.pictures, self.legend, self.status = (widgets.HTML() for _ in range(3))
        for control in (*self.sliders.values(), self.seed, self.overlay, self.all_stages):
            control.observe(self._draw, "value")
        self.picker.observe(self._pick, "value")
        self.menu.observe(self._choose, "value")
        self.reset.on_click(lambda _: self.set(self.presets["start"]))
        self.keep.on_click(self._keep)

    def _page(self, group: str) -> widgets.Widget:
        sliders = _row(*(self.sliders[name] for name in FIELDS if FIELDS[name]["group"] == group))
        note = "These do not change the picture: they spread the amounts over training samples."
        return widgets.VBox([widgets.HTML(note), sliders]) if group == "training" else sliders

    def _pick(self, _: object = None) -> None:
        rows = slice(self.picker.value, self.picker.value + 1)
        self._preview = Preview(self.clean[rows], self.regions[rows])
        self._draw()

    def _choose(self, _: object) -> None:
        if not self._held:
            self.set(self.presets.get(self.menu.value, self.settings))

    def _keep(self, _: object) -> None:
        try:
            self.run.degradation = self.settings
            self._report()
        except OSError as error:
            self.status.value = html.escape(f"not saved: {error}")

    def _draw(self, _: object = None) -> None:
        if self._held:
            return
        settings = self.settings
        images = self._preview(settings, self.seed.value)
        overlay = self._overlay_image(settings)
        cells = []
        for name in _shown_stages(images, self.all_stages.value):
            image = images[name][0] if overlay is None else images[name][0].lerp(*overlay)
            title = name if name in ("clean", "degraded") else f"after {name.replace('_', ' ')}"
            cells.append(f'<div style="margin: 4px">{title}<br>' + image_tag(
                image, title, 512, f'width="{PICTURE_PX}" height="{PICTURE_PX}"') + "</div>")
        self.pictures.value = f'<div style="display: flex; flex-wrap: wrap">{"".join(cells)}</div>'
        self.legend.value = OVERLAYS[self.overlay.value]
        name = next((name for name, of in self.presets.items() if of == settings), CUSTOM)
        if self.presets.get(self.menu.value) != settings:
            self._assign({self.menu: name})
        self._report()

    def _overlay_image(self, settings: DegradationConfig) -> tuple[Tensor, Any] | None:
        """A colour and how much of it, for `lerp`."""
        regions = self.regions[self.picker.value:self.picker.value + 1]
        if self.overlay.value == "regions":
            return color_regions(regions)[0], 0.45
        if self.overlay.value == "variation":
            mask = variation_mask(regions, settings, torch.tensor([self.seed.value]))
            return BLUE.expand(3, *mask.shape[1:]), 0.7 * mask.cpu()
        return None

    def _report(self) -> None:
        self.status.value = (
            "The run uses these settings." if self.settings == self.run.degradation else
            "The run does not use these settings yet: press “keep these settings”, or run the "
            "next cell.")

    def _assign(self, values: Mapping[widgets.Widget, object]) -> None:
        """Set several controls without a new picture for each."""
        self._held = True
        try:
            for control, value in values.items():
                control.value = value
        finally:
            self._held = False


def _row(*children: widgets.Widget) -> widgets.Box:
    return widgets.Box(children, layout={"flex_flow": "row wrap", "align_items": "flex-end"})


def _shown_stages(images: Mapping[str, Tensor], all_stages: bool) -> list[str]:
    """Clean, after each stage with several amounts, degraded; or every stage with an effect."""
    groups = {stage.name for stage in STAGES if len(stage.amounts) > 1}
    before = [images["clean"], *images.values()]
    return [name for old, (name, new) in zip(before, images.items(), strict=False)
            if name in ("clean", "degraded") or (new is not old if all_stages else name in groups)]
