"""Parts of hub repositories: fetched once into the hub's own cache, and what to do if not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import tqdm

from ..errors import refused
from .paths import own_path
from .silence import DEMO, HUB_ERRORS, asked_wait_s, out_of_reach, passes, reason

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the better one first
WAITS_S = (2, 4, 8)  # before the tries after the first
ANSWER_S = 10  # for a question without content
Wanted = tuple[Sequence[str], Sequence[str]]  # `files` and `weights` of a `fetch`


def fetch(name: str | Path, files: Sequence[str], weights: Sequence[str] = (), *,
          instead: str = DEMO) -> Path:
    """Fetch some files of a hub repository; what lies in the cache is not fetched again.

    The hub's client resumes broken downloads. A hub that is busy, or a connection that is reset,
    it gives up on at once: then what the cache has is used if all of it lies there, and says so;
    else all is tried again, up to three times.

    Args:
        name: a hub name, or a folder, which is returned as it is.
        files: patterns of the files; each matches one or more.
        weights: patterns, the preferred first; the first that matches anything is fetched too.
        instead: what an error names as another way out.

    Returns:
        The folder that has them.

    Raises:
        ValueError: neither a folder nor a name that a hub could have.
        RuntimeError: the hub did not give them; it says what came and what to do.
    """
    name = own_path(name) if Path(own_path(name)).is_dir() else name
    if Path(name).is_dir():
        return Path(name)
    if not (isinstance(name, str) and HUB_NAME.fullmatch(name)):
        looks_like_path = isinstance(name, Path) or name[:1] in "/~.\\" or name.count("/") > 1
        where = f" (there is no folder {Path(name).absolute()})" if looks_like_path else ""
        raise refused("hub", "a folder, or the name of a repository as owner/name",
                      str(name), f"check the path{where}{instead}")
    cached = partial(_cached, name, files, weights)
    try:
        folder = _first_whole(partial(_download, name, cached), files, weights)
    except HUB_ERRORS as error:
        if (folder := cached()) is None:
            raise out_of_reach(name, error, instead) from error
        print(f"hub: {name}: {reason(error)}; what lies in the cache is used")
    if folder is None:
        raise RuntimeError(f"hub: expected {name} to have {', '.join(files)}"
                           f"{' and one of ' if weights else ''}{', '.join(weights)}, got none; "
                           f"check the name{instead}")
    return folder


def is_cached(name: str, *wanted: Wanted) -> bool:
    """Whether the hub's cache has all that is wanted, as for `missing_bytes`; no hub is asked."""
    return all(_cached(name, *each) for each in wanted)


def missing_bytes(name: str, *wanted: Wanted) -> int:
    """Ask the hub for the size of what is not in the cache yet, in bytes.

    Args:
        name: a hub name; a folder misses nothing.
        wanted: `files` and `weights` of each `fetch`.

    Raises:
        RuntimeError: the hub cannot be asked.
    """
    if Path(name).is_dir():
        return 0
    try:
        info = _ask(name)
    except HUB_ERRORS as error:
        raise out_of_reach(f"the sizes of {name}", error) from error
    there = {file.rfilename: file for file in info.siblings or ()}
    patterns = {pattern for files, weights in wanted for pattern in (
        *files, *[p for p in weights if any(fnmatch(path, p) for path in there)][:1])}
    return sum(file.size or 0 for path, file in there.items()
               if any(fnmatch(path, pattern) for pattern in patterns)
               and not _has(name, file, info.sha))


@contextmanager
def loading_quietly() -> Iterator[None]:
    """Without the bars of transformers and the hub's client: a saved notebook would keep them.

    Nor their reports of what a checkpoint has too much; what it lacks is for the caller to see.
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def load_whole(kind: type, folder: Path, what: str, **options: Any) -> Any:
    """Load a network of diffusers or transformers, and refuse one that lacks a weight.

    Args:
        kind: its class.
        folder: its files.
        what: its name, for the error.
        options: for `from_pretrained`.

    Raises:
        ValueError: weights are missing; they would be random.
    """
    with loading_quietly():
        network, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise refused(what, "all its weights", f"none for {missing[:3]}",
                      "use another one or newer packages")
    return network


class _Bar(tqdm):
    """Of the three bars that the client shows for one download, that of the bytes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        hidden = str(options.get("desc")).startswith(("Fetching", "Reconstructing"))
        super().__init__(*arguments, **options | ({"disable": True} if hidden else {}))


def _first_whole(look: Callable[..., str], files: Sequence[str],
                 weights: Sequence[str]) -> Path | None:
    """The folder that `look` finds for the files and the first weights that there are."""
    for choice in [[pattern] for pattern in weights] or [[]]:
        folder = Path(look(allow_patterns=(patterns := [*files, *choice])))
        if all(any(folder.glob(pattern)) for pattern in patterns):
            return folder
    return None


def _cached(name: str, files: Sequence[str], weights: Sequence[str]) -> Path | None:
    try:
        look = partial(snapshot_download, name, local_files_only=True)
        return _first_whole(look, files, weights)
    except HUB_ERRORS:  # nothing there, or not all
        return None


def _has(name: str, file: RepoSibling, revision: str | None) -> bool:
    """Whether the cache has a file, if only of another revision that did not change it."""
    blob = file.lfs.sha256 if file.lfs else file.blob_id
    blobs = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "blobs")
    return (blobs / (blob or "")).is_file() or isinstance(
        try_to_load_from_cache(name, file.rfilename, revision=revision), str)


def _ask(name: str) -> ModelInfo:
    return HfApi().model_info(name, files_metadata=True, timeout=ANSWER_S)


def _download(name: str, cached: Callable[[], Path | None], allow_patterns: list[str]) -> str:
    """Try as often as it makes sense; what the cache has is not waited for."""
    def load() -> str:
        _ask(name)  # out of reach, the client would return what the cache has, without a word
        return snapshot_download(name, allow_patterns=allow_patterns, tqdm_class=_Bar)

    for wait_s in WAITS_S:
        try:
            return load()
        except HUB_ERRORS as error:
            if not passes(error) or cached():
                raise
            wait_s = asked_wait_s(error) or wait_s
            print(f"hub: {name}: {reason(error)}; trying again in {wait_s} s")
        time.sleep(wait_s)
    return load()


