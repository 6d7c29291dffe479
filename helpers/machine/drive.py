"""Google Drive on Colab: mounted where it can be, and what it means where it cannot."""

from __future__ import annotations

from pathlib import Path

from .runtime import HOMES, Runtime

DRIVE = Path("/content/drive")  # where Colab's own button mounts it too


def mount_drive(runtime: Runtime, want: bool, *, attempts: int = 2,
                point: Path = DRIVE) -> Path | None:
    """Mount Google Drive on Colab and return this project's folder there.

    On Kaggle, which has no Drive, say what keeps a run instead.
    Whether Drive is mounted already is Colab's to say: a folder at its place may be a local one.

    Args:
        want: False leaves Drive alone.
        attempts: how often to try; a refusal in the dialogue is final.
        point: where Drive appears.

    Returns:
        `MyDrive/splat_enhancer`, or None without Drive; a failure prints what that means.
    """
    if runtime.place == "kaggle" and want:
        print(f"No Google Drive on Kaggle: {HOMES['kaggle']} lasts from session to session with "
              "Settings > Persistence > Files only.")
    if runtime.place != "colab" or not want:
        return None
    problem: Exception | None = None
    for attempt in range(attempts):
        try:
            return _drive_folder(point, again=attempt > 0)
        except Exception as error:  # Colab raises its own kinds, and Drive must not stop a run
            problem = error
            if type(error).__name__ == "MessageError":  # the dialogue was closed or refused
                break
    print(f"No Google Drive ({problem}). Checkpoints stay on this machine's disk and are lost when "
          "the session ends, and a run kept on Drive is not found: training goes on from what this "
          f"disk has, or starts anew. {_drive_remedy(point, problem)}")
    return None


def _drive_folder(point: Path, *, again: bool) -> Path:
    """The project's folder in Drive, mounted if it is not yet."""
    from google.colab import drive
    drive.mount(str(point), force_remount=again)
    if not (point / "MyDrive").is_dir():
        raise TimeoutError(f"mount() returned, but {point / 'MyDrive'} is not there")
    folder = point / "MyDrive" / "splat_enhancer"
    folder.mkdir(exist_ok=True)
    return folder


def _drive_remedy(point: Path, problem: Exception | None) -> str:
    """What the user can do about Drive; files in its place are theirs to move."""
    if "already contain files" not in str(problem):
        return "To try again, run this cell again."
    found = ", ".join(sorted(path.name for path in point.iterdir()))
    return (f"Something wrote {found} to {point} before Drive was there: move that elsewhere, "
            "then run this cell again.")
