"""Named amounts of damage, and the file that keeps the amounts a user has tuned."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import DegradeConfig
from ..errors import refused
from ..storage import write_whole

FILE = "damage.json"  # lies beside the checkpoints of a run

DAMAGE: dict[str, dict[str, float]] = {  # changes from DegradeConfig()
    "light": {
        "sparsity": 0.1, "oversize": 0.05, "needles": 0.1, "holes": 0.15, "floaters": 0.1,
        "translucency": 0.2, "doubling": 0.15, "color_error": 0.1,
        "skin": 0.25, "eyes": 0.4, "nose": 0.3, "mouth": 0.45, "hair": 0.3, "background": 0.15,
        "warp": 0.1, "surface_blur": 0.1, "brightness": 0.15, "color_jitter": 0.15,
        "desaturation": 0.05, "blur": 0.0, "downscale": 0.0, "blocks": 0.0, "ghosting": 0.15,
        "noise": 0.0},
    "medium": {},
    "heavy": {
        "sparsity": 0.7, "oversize": 0.3, "needles": 0.6, "holes": 0.6, "floaters": 0.6,
        "translucency": 0.8, "doubling": 0.7, "color_error": 0.5,
        "skin": 0.7, "eyes": 1.0, "nose": 0.8, "mouth": 1.0, "hair": 0.8, "background": 0.5,
        "warp": 0.4, "surface_blur": 0.2, "brightness": 0.5, "color_jitter": 0.5,
        "desaturation": 0.2, "blur": 0.1, "downscale": 0.1, "blocks": 0.1, "ghosting": 0.5,
        "noise": 0.1},
    "splat": {
        "sparsity": 0.5, "oversize": 0.2, "needles": 0.5, "holes": 0.5, "floaters": 0.5,
        "translucency": 0.7, "doubling": 0.6, "color_error": 0.4,
        **dict.fromkeys((
            "skin", "eyes", "nose", "mouth", "hair", "background", "warp", "surface_blur",
            "brightness", "color_jitter", "desaturation", "blur", "downscale", "blocks", "ghosting",
            "noise"), 0.0)},
}

IMITATES = {  # what each field stands for in a real render, for people who move its slider
    "strength": "How far the fit failed as a whole: multiplies every amount",
    "strength_min": "Weakest training sample, as a share of strength: avatars differ in quality",
    "amount_min": "Least share of each amount in a training sample: no two renders fail alike",
    "clean_share": "Share of training samples left untouched: a good render must stay one",
    "skin": "Pores and wrinkles lost: skin like wax",
    "eyes": "Lids and iris run together, as where people blinked between views",
    "nose": "Nostrils and ridge washed out",
    "mouth": "Lips and teeth run together, as where people moved between views",
    "hair": "Strands merge into smeared locks",
    "background": "What lies behind the head is out of focus",
    "variation": "How patchy the blur of the regions is: 0 even, 1 from none to full",
    "sparsity": "Too few Gaussians: detail is lost everywhere",
    "oversize": "Gaussians too large: strands and features merge",
    "needles": "Gaussians stretched to needles: thin streaks across skin and hair",
    "holes": "Gaussians missing in patches: a matte background shows",
    "floaters": "Gaussians misplaced in the air before the face",
    "translucency": "Thin silhouettes: the background bleeds in",
    "doubling": "Misaligned views: the silhouette a second time, beside the face",
    "color_error": "Wrong low-order colour: blotches, and a cast over the head",
    "warp": "Geometry slightly off: features lean and bulge",
    "surface_blur": "Texture flattened between edges that stay sharp",
    "brightness": "Exposure differs between views: too light or too dark, unevenly",
    "color_jitter": "White balance differs between views: an uneven cast",
    "desaturation": "Averaged views: colours fade towards grey",
    "blur": "Overall softness of the render",
    "downscale": "Rendered small and enlarged",
    "blocks": "Footprints of single Gaussians: blotches of constant colour",
    "ghosting": "Misaligned views: a translucent second contour along edges",
    "noise": "Grain of Gaussians fitted to single pixels",
}

_REMEDY = "press 'use these for training' again, or delete it"


def damage(name: str) -> DegradeConfig:
    """Build the settings of a named damage.

    Args:
        name: a key of `DAMAGE`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in list(DAMAGE):
        raise refused("damage", f"one of {list(DAMAGE)}", name, "pick one of them")
    return DegradeConfig(**DAMAGE[name])


def as_changes(settings: DegradeConfig) -> dict[str, float]:
    """The settings as `Config.with_` takes them: `{"degrade.strength": …, …}`."""
    return {f"degrade.{name}": value for name, value in dataclasses.asdict(settings).items()}


def in_words(kept: DegradeConfig | None, otherwise: DegradeConfig) -> str:
    """Which damage applies: `otherwise`, the form's, or what was kept and where the two differ."""
    if kept is None:
        return "the form's damage"
    form, kept = dataclasses.asdict(otherwise), dataclasses.asdict(kept)
    changed = [f"{name}={value:g}" for name, value in kept.items() if value != form[name]]
    return f"your own damage; other than in the form: {', '.join(changed) or 'nothing'}"


def keep_damage(settings: DegradeConfig | None, folders: Sequence[Path | None],
                say: Callable[[str], None] = print) -> None:
    """Write settings to `damage.json` in every folder, whole or not at all.

    Args:
        settings: what training shall use; None removes the file.
        folders: this disk first, then copies such as Drive's; None is passed over.
        say: told in one line of each copy that failed.

    Raises:
        OSError: the first folder failed; the others have been tried nevertheless.
    """
    paths = [folder / FILE for folder in folders if folder]
    failed: dict[Path, OSError] = {}
    for path in paths:
        try:
            if settings is None:
                path.unlink(missing_ok=True)
            else:
                write_whole(path, _to_bytes(settings))
        except OSError as error:
            failed[path] = error
    deed = "removed" if settings is None else "written"
    for path in [path for path in paths[1:] if path in failed]:
        say(f"{path} could not be {deed} ({failed[path]}): a later session may not know.")
    if paths and paths[0] in failed:
        raise OSError(f"{paths[0]}: expected a file that can be {deed}, got {failed[paths[0]]}; "
                      "see to the folder, then try again") from failed[paths[0]]


def kept_damage(folders: Sequence[Path | None],
                say: Callable[[str], None] = print) -> DegradeConfig | None:
    """Read what `keep_damage` wrote, fields added since at their defaults; None if there is none.

    Args:
        folders, say: as for `keep_damage`; the first folder that has the file wins.

    Raises:
        ValueError: the file is broken or foreign, the message names it; or the first folder cannot
            be looked into.
    """
    for place, folder in enumerate(folder for folder in folders if folder):
        try:
            return DegradeConfig(**json.loads((folder / FILE).read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if not place:
                raise refused(str(folder), "a folder to look into", str(error),
                              "mend it") from error
            say(f"{folder} was passed over ({error}).")
        except (ValueError, TypeError, RecursionError) as error:
            raise refused(str(folder / FILE), "settings that the sliders wrote", str(error),
                          _REMEDY) from error
    return None


def _to_bytes(settings: DegradeConfig) -> bytes:
    return (json.dumps(dataclasses.asdict(settings), indent=2) + "\n").encode()
