"""What took long to make, kept as one closed file on Drive for the machine of the next session.

The copy is a tar that ends in the SHA-256 of all that stands before it: it is unpacked only when
every byte is as it was written. Nothing here stops a run: a problem is told, and the thing made
anew. Drive can hang, so each of its answers has a limit.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from .files import write_whole
from .locks import alone
from .patience import within
from .sealed import DamagedFile, read_seal

ANSWER_S = 300.0  # for one copy; at 10 MB/s that is 3 GB
SOON_S = 30.0  # for little: somebody waits


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
                _seal(made, sealed)
                within(timeout_s, _copy_to_drive, sealed, drive)
                print(f"{made.name} is kept in {drive}: the next session takes it from there.")
    except OSError as error:
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
            if not within(timeout_s, _copy_from_drive, drive / sealed.name, sealed):
                return False
            with tarfile.open(sealed) as tar:
                tar.extractall(folder, filter="data")
            (folder / made.name).replace(made)
    except (OSError, tarfile.TarError) as error:
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
        made: whole; its files are read into memory, its folders left out.
        drive: the folder's own place there, in one that exists; None puts nothing.
    """
    def copy() -> None:
        drive.mkdir(exist_ok=True)
        for path in sorted(path for path in made.iterdir() if path.is_file()):
            write_whole(drive / path.name, path.read_bytes())
    if drive is None:
        return
    try:
        within(SOON_S, copy)
        print(f"{made.name} is in {drive} too.")
    except OSError as error:
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


def _seal(made: Path, sealed: Path) -> None:
    with tarfile.open(sealed, "w") as tar:
        tar.add(made, made.name)
    with sealed.open("rb+") as file:
        file.write(hashlib.file_digest(file, "sha256").digest())  # at the end, where it stands now


def _is_whole(sealed: Path) -> bool:
    with suppress(DamagedFile):
        return bool(read_seal(sealed))
    return False


def _copy_to_drive(sealed: Path, drive: Path) -> None:
    """Copy, read back and rename."""
    drive.mkdir(exist_ok=True)  # not its parents: where Drive is gone they would be local
    partial = _partial(drive / sealed.name)
    shutil.copyfile(sealed, partial)
    if not _is_whole(partial):
        raise OSError("what was read back differs from what was written")
    partial.replace(drive / sealed.name)


def _copy_from_drive(copy: Path, sealed: Path) -> bool:
    """Copy and compare; a damaged copy gives its name up, and the next one is written over it."""
    if not copy.is_file():
        return False
    shutil.copyfile(copy, sealed)
    if not _is_whole(sealed):
        copy.replace(_partial(copy))
        raise OSError("its copy there is damaged")
    return True


def _partial(copy: Path) -> Path:
    return copy.with_name(copy.name + ".part")
