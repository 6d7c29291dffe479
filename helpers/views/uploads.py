"""A button that takes files from a person's own computer, where Colab's dialogue is not there."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import ipywidgets as widgets
from IPython.display import FileLink, display

from ..machine import Runtime, receive, send
from ..storage import safe_name, write_whole


class UploadButton(widgets.VBox):
    """A button that writes what is chosen into a folder; one of the same content is taken once.

    The server limits what one message may hold (Jupyter's own default is 10 MB): larger files go
    through the notebook's file browser.

    Args:
        folder: made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, []
        self.button = widgets.FileUpload(multiple=True, description="Upload")
        self.status = widgets.HTML()
        self.button.observe(self._take, "value")
        super().__init__([self.button, self.status])
        self._tell()

    def _take(self, change: dict) -> None:
        try:
            self.files += [_keep(self.folder, name, content)
                           for name, content in _contents(change["new"])]
            self._tell()
        except OSError as error:
            self._tell(f"not saved: {error}")

    def _tell(self, problem: str = "") -> None:
        names = ", ".join(dict.fromkeys(path.name for path in self.files))
        said = f"uploaded: {names}; now run the cell below" if names else ""
        self.status.value = html.escape("; ".join(filter(None, (said, problem))))


def take_uploads(runtime: Runtime, folder: Path) -> None:
    """Ask for files in Colab's dialogue and wait, or show a button that takes them."""
    if not receive(runtime, folder):
        display(UploadButton(folder))


def offer(runtime: Runtime, file: Path) -> None:
    """Let the browser save a file, on Colab at once, elsewhere by a link."""
    if not send(runtime, file):
        beside = file.absolute().is_relative_to(Path.cwd())  # the server shows no other files
        path = file.absolute().relative_to(Path.cwd()) if beside else file
        display(FileLink(path) if beside else path)


def _contents(value: object) -> Iterator[tuple[str, bytes]]:
    """Names and bytes, as ipywidgets 7 and 8 hand them out."""
    if isinstance(value, dict):
        yield from ((name, bytes(of["content"])) for name, of in value.items())
    else:
        yield from ((of["name"], bytes(of["content"])) for of in value)


def _keep(folder: Path, name: str, content: bytes) -> Path:
    """Write a file under its name, or the first that is free or of the same content."""
    plain, number = Path(safe_name(Path(name).name, 1_000)), 1
    stem, suffix = safe_name(plain.stem, 90), plain.suffix[:10]
    path = folder / f"{stem}{suffix}"
    while path.exists() and path.read_bytes() != content:
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    return write_whole(path, content)
