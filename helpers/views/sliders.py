"""Sliders over every amount of damage, with the pictures they make; only this knows ipywidgets."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ipywidgets as widgets
import torch
from torch import Tensor

from ..config import DegradeConfig
from ..degradation import (
    AMOUNTS,
    DAMAGE,
    GROUPS,
    IMITATES,
    STAGES,
    Preview,
    damage,
    gaussian_count,
    keep_damage,
    kept_damage,
    variation_mask,
)
from ..pictures import mask_overlay, tint
from . import pictures

NARROW = {"layout": {"width": "160px"}, "style": {"description_width": "55px"}}
TILE = 224, 224  # four stand in a row above the sliders, on one screen
BUTTON = {"layout": {"width": "auto"}}
OWN = "your own"  # what the menu shows when the sliders stand at none of its entries
TOOLTIP = "tooltip" if hasattr(widgets.FloatSlider, "tooltip") else "description_tooltip"  # 8, 7
PAGES = GROUPS | {
    "whole image": tuple(stage.amounts[0] for stage in STAGES if len(stage.amounts) == 1),
    "training": tuple(n for n in IMITATES if n not in {"strength", "variation", *AMOUNTS})}
LEGENDS = {"none": "", "regions": pictures.region_legend(),
           "variation": "The bluer, the more of the blur of the regions arrives there."}


class Tile(widgets.VBox):
    """A captioned picture that is encoded only when it has changed.

    Args:
        caption: stands above it.
    """

    def __init__(self, caption: str) -> None:
        self.caption, self.image = caption, widgets.HTML()  # an Image takes no text
        self._shown: tuple[Tensor | None, Tensor | None] = None, None
        super().__init__([widgets.HTML(caption), self.image], layout={"margin": "4px"})

    def show(self, picture: Tensor, overlay: Tensor | None) -> None:
        """Show (1, 3, H, W) under an overlay (1, 4, H, W)."""
        if picture is not self._shown[0] or overlay is not self._shown[1]:
            shown = picture if overlay is None else tint(picture, overlay)
            jpeg = pictures.to_bytes(shown[0], "JPEG")
            self.image.value = pictures.to_tag(jpeg, self.caption, size=TILE)
            self._shown = picture, overlay


class DegradationSliders(widgets.VBox):
    """Sliders, the pictures they make, and a button that hands the settings to training.

    Args:
        clean: (B, 3, H, W) in [0, 1], the images to pick from.
        regions: (B, H, W) uint8.
        config: the settings that training uses without kept damage, "config" in the menu.
        folders: see `keep_damage`; only the button writes there, what it kept is the start.
        seed: of the first picture.

    Raises:
        ValueError: no images, or not one region map for each.
    """

    def __init__(self, clean: Tensor, regions: Tensor, config: DegradeConfig, *,
                 folders: Sequence[Path | None] = (), seed: int = 0) -> None:
        count = pictures.common_length({"clean": clean, "regions": regions})
        self.clean, self.regions = clean, regions
        self.folders = [folder for folder in folders if folder]
        self.presets = {"config": _rounded(config)} | {name: damage(name) for name in DAMAGE}
        self._held, self._overlay_of, self._overlay = True, None, None
        super().__init__()
        self._make_controls(count, seed)
        self._make_pictures()
        self.children = [*self._rows(), self.status]
        self._read_kept([])
        self._pick()
        self.set(self.kept or self.presets["config"])

    def __repr__(self) -> str:
        return f"DegradationSliders({len(self.clean)} images, {len(self.sliders)} sliders)"

    @property
    def settings(self) -> DegradeConfig:
        """What the sliders stand at."""
        return _rounded(DegradeConfig(**{n: slider.value for n, slider in self.sliders.items()}))

    def set(self, settings: DegradeConfig) -> None:
        """Move all sliders, with one new picture."""
        self._assign({of: getattr(settings, name) for name, of in self.sliders.items()})
        self._draw()

    def use_for_training(self, _: object = None) -> None:
        """Keep the settings in the folders, or remove what is kept there if the config has them."""
        problems: list[str] = []
        now = None if self.settings == self.presets["config"] else self.settings
        try:
            keep_damage(now, self.folders, problems.append)
        except OSError as error:
            problems.append(str(error))
        self._read_kept(problems)
        self._tell()

    def _make_controls(self, count: int, seed: int) -> None:
        self.sliders = {name: _slider(name) for name in IMITATES}
        self.menu = widgets.Dropdown(options=[*self.presets, OWN], description="damage", **NARROW)
        self.picker = widgets.Dropdown(options=[(str(i + 1), i) for i in range(count)],
                                       description="image", **NARROW)
        self.seed = widgets.BoundedIntText(seed, 0, 2**31 - 1, description="seed", **NARROW)
        self.new_seed = widgets.Button(description="new seed", tooltip="other random numbers",
                                       **BUTTON)
        self.reset = widgets.Button(description="reset", tooltip="back to the form's settings",
                                    **BUTTON)
        self.use = widgets.Button(description="use these for training", button_style="primary",
                                  disabled=not self.folders, **BUTTON)
        self.overlay = widgets.ToggleButtons(options=list(LEGENDS), description="overlay",
                                             style={"button_width": "85px",
                                                    "description_width": "55px"})
        self.all_steps = widgets.Checkbox(description="all steps", indent=False,
                                          layout={"width": "90px"})
        for control in (*self.sliders.values(), self.seed, self.overlay, self.all_steps):
            control.observe(self._draw, "value")
        self.picker.observe(self._pick, "value")
        self.menu.observe(self._choose, "value")
        self.new_seed.on_click(lambda _: setattr(self.seed, "value", (self.seed.value + 1) % 2**31))
        self.reset.on_click(lambda _: self.set(self.presets["config"]))
        self.use.on_click(self.use_for_training)

    def _make_pictures(self) -> None:
        self.tiles = {"clean": Tile("clean")}
        self.tiles |= {stage.name: Tile(f"after {_words(stage.name)}") for stage in STAGES}
        self.tiles["degraded"] = Tile("degraded")
        self.row, self.note, self.status = _wrapping(), widgets.HTML(), widgets.HTML()

    def _rows(self) -> list[widgets.Widget]:
        tabs = widgets.Tab([self._page(group, names) for group, names in PAGES.items()])
        for index, group in enumerate(PAGES):
            tabs.set_title(index, group)
        return [_wrapping(self.menu, self.picker, self.seed, self.new_seed, self.reset, self.use),
                self.row, _wrapping(self.sliders["strength"], self.overlay, self.all_steps),
                self.note, tabs]

    def _page(self, group: str, names: Sequence[str]) -> widgets.Widget:
        page = _wrapping(*(self.sliders[name] for name in names))
        note = "These do not change the picture: they spread the damage over training samples."
        return widgets.VBox([widgets.HTML(note), page]) if group == "training" else page

    def _pick(self, _: object = None) -> None:
        own = slice(self.picker.value, self.picker.value + 1)
        self._own_regions = self.regions[own]
        self._preview = Preview(self.clean[own], self._own_regions)
        self._draw()

    def _choose(self, _: object) -> None:
        if not self._held:
            self.set(self.presets.get(self.menu.value, self.settings))

    def _draw(self, _: object = None) -> None:
        if self._held:
            return
        now = self.settings
        steps, overlay = self._preview(now, self.seed.value), self._find_overlay(now)
        names = _worth_showing(steps, self.all_steps.value)
        for name in names:
            self.tiles[name].show(steps[name], overlay)
        self.row.children = [self.tiles[name] for name in names]
        self.note.value = "<br>".join(filter(None, (_describe(now), LEGENDS[self.overlay.value])))
        if self.presets.get(self.menu.value) != now:
            name = next((name for name, of in self.presets.items() if of == now), OWN)
            self._assign({self.menu: name})
        self._tell()

    def _find_overlay(self, now: DegradeConfig) -> Tensor | None:
        kind, seed = self.overlay.value, self.seed.value
        cause = kind, self.picker.value, seed, now.variation
        if cause != self._overlay_of:
            self._overlay_of, self._overlay = cause, None
            if kind == "regions":
                self._overlay = pictures.region_overlay(self._own_regions)
            elif kind == "variation":
                mask = variation_mask(self._own_regions, now, torch.tensor([seed]))
                self._overlay = mask_overlay(mask)
        return self._overlay

    def _read_kept(self, problems: list[str]) -> None:
        self.kept, self._broken = None, False
        try:
            kept = kept_damage(self.folders, problems.append)
            self.kept = kept and _rounded(kept)
        except ValueError as error:
            self._broken = True
            problems.append(str(error))
        self._problems = problems

    def _tell(self) -> None:
        lines = [*self._problems, *(() if self._broken else self._what_training_uses())]
        self.status.value = " ".join(html.escape(line) for line in lines)

    def _what_training_uses(self) -> Iterator[str]:
        if self.kept:
            yield ("Training will use your own damage, saved with this run; run the cells below "
                   "(again). A run under way goes on with it; a finished one is only measured "
                   "anew. For a fresh start choose another RUN_NAME first, then tune.")
        else:
            yield "Training will use the settings of the form."
        if self.settings != (self.kept or self.presets["config"]):
            yield ("What you see is not used for training yet: press “use these for training”."
                   if self.folders else "These sliders are for looking only.")

    def _assign(self, values: Mapping[widgets.Widget, object]) -> None:
        # Several at once, without a new picture for each.
        self._held = True
        try:
            for control, value in values.items():
                control.value = value
        finally:
            self._held = False


def _slider(name: str) -> widgets.FloatSlider:
    return widgets.FloatSlider(
        min=0, max=1, step=0.05, continuous_update=False, description=_words(name),
        style={"description_width": "95px"}, layout={"width": "300px"},
        **{TOOLTIP: IMITATES[name]})


def _wrapping(*children: widgets.Widget) -> widgets.Box:
    return widgets.Box(children, layout={"flex_flow": "row wrap", "align_items": "flex-end"})


def _worth_showing(steps: dict[str, Tensor], all_steps: bool) -> list[str]:
    # Clean, after each group, degraded; or every stage that did something.
    before = [steps["clean"], *steps.values()]
    return [name for old, (name, new) in zip(before, steps.items(), strict=False)
            if name in ("clean", "degraded", *(() if all_steps else GROUPS))
            or (all_steps and new is not old)]


def _describe(settings: DegradeConfig) -> str:
    count = gaussian_count(torch.tensor(settings.sparsity * settings.strength))
    used = settings.strength * sum(getattr(settings, name) for name in GROUPS.get("splat", ()))
    return f"Re-rendered with {int(count):,} Gaussians." if used else ""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _rounded(settings: DegradeConfig) -> DegradeConfig:  # browsers send 0.15000000000000002
    return DegradeConfig(**{n: round(v, 6) for n, v in dataclasses.asdict(settings).items()})
