"""Copy what a run measured to the folder that is committed.

    python -m tools.publish_results work/results/demo results/demo
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

PUBLISHED = ("metrics.json", "metrics.csv", "report.html", "splat_enhancer.ipynb")


def publish(source: Path, target: Path) -> list[Path]:
    """Copy the figures, the report and the executed notebook; returns what was written.

    Raises:
        FileNotFoundError: the run was not measured to its end.
    """
    if missing := [name for name in PUBLISHED if not (source / name).is_file()]:
        raise FileNotFoundError(f"{source}: expected {', '.join(missing)}; run `make demo` first")
    target.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy2(source / name, target / name)) for name in PUBLISHED]


def main() -> None:
    """Copy, and name what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    for path in publish(args.source, args.target):
        print(f"{path} ({path.stat().st_size / 1e3:,.0f} kB)")


if __name__ == "__main__":
    main()
