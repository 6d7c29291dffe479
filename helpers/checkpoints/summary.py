"""`run.json`: what a person wants to know of a run's folder, here or on Drive."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config import Config
from ..storage import SEAL_BYTES, damage_named, read_metadata, write_whole

LATELY = 50  # steps over which the loss is averaged, and notes that are shown


def summarise(history: list[dict[str, Any]], notes: list[dict[str, Any]],
              now: datetime) -> dict[str, Any]:
    """What only the whole state knows; it is kept in the header of a checkpoint.

    Args:
        history: records of steps; those without a finite total loss do not count.
        notes: of the run.
        now: with its zone.
    """
    totals = [record.get("losses", {}).get("total", math.nan) for record in history[-LATELY:]]
    finite = [total for total in totals if math.isfinite(total)]
    return {"loss_lately": round(sum(finite) / len(finite), 5) if finite else None,
            "saved": now.isoformat(" ", "seconds"), "notes": notes[-LATELY:]}


def write_summary(latest: Path, names: tuple[str, ...]) -> Path:
    """Write `run.json` beside a run's checkpoints.

    Args:
        latest: the checkpoint that it describes.
        names: of the checkpoints that it lists.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: `latest` is not a checkpoint.
    """
    text = json.dumps(describe(latest, names), indent=2, ensure_ascii=False)
    return write_whole(latest.with_name("run.json"), (text + "\n").encode())


def describe(latest: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The content of `run.json`, from the headers of the checkpoints."""
    texts = read_metadata(latest)
    with damage_named(latest):
        config, summary = Config.from_json(texts["config"]), json.loads(texts["summary"])
    listed = {name: _listed(latest.with_name(name)) for name in names}
    return {
        "run": config.run.name, "step": int(texts["step"]), "of_steps": config.optim.steps,
        "to_resume": f"Run all of the notebook again with run.name {config.run.name!r}",
        "files": {name: facts for name, facts in listed.items() if facts},
        "sha256": f"of a file but for its last {SEAL_BYTES} bytes, which hold it; "
                  f"to compare: head -c -{SEAL_BYTES} {latest.name} | sha256sum",
    } | summary


def _listed(path: Path) -> dict[str, Any] | None:
    """Step, size and digest of a file; None where there is none, or a damaged one."""
    with suppress(FileNotFoundError, ValueError), path.open("rb") as file:
        step = int(read_metadata(path)["step"])
        size = file.seek(-SEAL_BYTES, os.SEEK_END) + SEAL_BYTES
        return {"step": step, "bytes": size, "sha256": file.read().hex()}
    return None
