"""Copies on Drive, of which one counts only once it was read back and compared.

What took long to make is kept there as one sealed tar, for the machine of the next session.
Nothing of that stops a run: a problem is told, and the thing made anew. Drive can hang, so each
of its answers has a limit.
"""

from __future__ import annotations

import errno
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from .locks import alone
from .patience import within
from .whole import DamagedFile, digest, pour, read_seal, seal

ANSWER_S = 300.0  # for one copy; at 10 MB/s that is 3 GB
SOON_S = 30.0  # for little: somebody waits


def copy_to_drive(source: Path | bytes, target: Path, *, before: Path | None = None) -> None:
    """Copy a whole file to Drive; nothing bad replaces anything good.

    It is written to `.part`, read back, compared by its SHA-256, and renamed. No file is deleted
    or replaced, for Drive would keep it in its trash, which counts against the quota for 30 days:
    what falls out becomes the next `.part`, and is written over.

    Args:
        source: the file, or its content.
        target: its place in a folder that is there.
        before: the name that what lies at the target moves on to; None lets it fall out.

    Raises:
        OSError: the copy did not get through.
    """
    partial, aside = _named(target, "part"), _named(target, "aside")
    if pour(source, partial) != digest(partial):
        raise OSError(errno.EIO, "what was read back differs from what was written", str(partial))
    chain = [aside, *([before] if before else []), target, partial, aside]
    for name, file in pairwise(chain):
        with suppress(FileNotFoundError):
            file.replace(name)


def keep(made: Path, drive: Path | None, *, timeout_s: float = ANSWER_S) -> None:
    """Copy a finished file or folder to Drive, unless its copy is there.

    Args:
        made: whole, and never changed again.
        drive: the folder there, in one that exists; None keeps nothing.
    """
    if drive is None:
        return
    try:
        with alone(made, wait=False), _beside(made) as folder:
            sealed = folder / f"{made.name}.tar"
            if not within(timeout_s, (drive / sealed.name).is_file):
                with tarfile.open(sealed, "w") as tar:
                    tar.add(made, made.name)
                seal(sealed)
                within(timeout_s, _copy_into, drive, [sealed])
                print(f"{made.name} is kept in {drive}: the next session takes it from there.")
    except Exception as error:  # nothing that happens here stops a run
        print(f"{made.name}: no copy in {drive} ({error}); a session on another machine makes it "
              "anew.")


def take_back(made: Path, drive: Path | None, *, timeout_s: float = ANSWER_S) -> bool:
    """Bring to this disk what an earlier session kept.

    Args:
        made: its place here, where nothing is yet; the caller is `alone` there.
        drive: the folder there; None has nothing.

    Returns:
        Whether `made` is there now; False where Drive has no whole copy.
    """
    if drive is None:
        return False
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with _beside(made) as folder:
            sealed = folder / f"{made.name}.tar"
            if not within(timeout_s, _take, drive / sealed.name, sealed):
                return False
            with tarfile.open(sealed) as tar:
                tar.extractall(folder, filter="data")
            (folder / made.name).replace(made)
    except Exception as error:
        print(f"{made.name}: not taken from {drive} ({error}); it is made anew.")
        return False
    print(f"{made.name} is taken from {drive}.")
    return True


def make_once(made: Path, drive: Path | None, make: Callable[[], None]) -> None:
    """Make a folder unless it is here or can be taken back; of several processes, one does it.

    Args:
        made: its place here; it must appear only once it is whole.
        drive: see `take_back`.
        make: makes it.
    """
    if not made.is_dir():
        with alone(made):
            if not (made.is_dir()  # it may have been made while this process waited
                    or take_back(made, drive)):
                make()


def put(made: Path, drive: Path | None) -> None:
    """Copy the files of a small folder to Drive, in place of those of the same names there.

    Args:
        made: whole; the folders in it are left out.
        drive: the folder's own place there, in one that exists; None puts nothing.
    """
    if drive is None:
        return
    try:
        within(SOON_S, _copy_into, drive, [p for p in sorted(made.iterdir()) if p.is_file()])
        print(f"{made.name} is in {drive} too.")
    except Exception as error:
        print(f"{made.name}: no copy in {drive} ({error}); it is whole in {made}.")


def is_kept(made: Path, drive: Path | None) -> bool:
    """Whether Drive has a copy; whether it is whole shows when it is taken back."""
    try:
        return drive is not None and within(SOON_S, (drive / f"{made.name}.tar").is_file)
    except OSError:
        return False


@contextmanager
def _beside(made: Path) -> Iterator[Path]:
    """A folder for what is under way; one that a kill left there goes."""
    prefix = f".{made.name}.copy-"
    for left in made.parent.glob(f"{escape(prefix)}*"):
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=made.parent, prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _copy_into(drive: Path, files: list[Path]) -> None:
    drive.mkdir(exist_ok=True)  # not its parents: where Drive is gone they would be local
    for path in files:
        copy_to_drive(path, drive / path.name)


def _take(copy: Path, sealed: Path) -> bool:
    """Copy and compare; a damaged copy gives its name up, and the next one is written over it."""
    if not copy.is_file():
        return False
    pour(copy, sealed)
    try:
        read_seal(sealed)
    except DamagedFile as error:
        copy.replace(_named(copy, "part"))
        raise OSError("its copy there is damaged") from error
    return True


def _named(target: Path, kind: str) -> Path:
    return target.with_name(f"{target.name}.{kind}")
