"""An exported enhancer on the Hugging Face hub, where `export.load` finds it by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi

from ..config import PACKAGE, TINY_BASE
from ..errors import refused
from ..storage import HUB_ERRORS, HUB_NAME
from .exports import CARD, WEIGHTS, read


def push(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload an export and a README to the Hugging Face hub, in one commit.

    Args:
        folder: that `export` returned; it is checked first, and left as it is.
        repo_id: "owner/name"; created if need be.
        private: False shows it to everybody.

    Returns:
        The address of the repository.

    Raises:
        ValueError: a damaged export, a base that others cannot load, a repository that exists and
            is public but should be private, or a hub that is out of reach or refuses.
    """
    card, _ = read(folder := Path(folder))
    base, api = card["model"]["base"], HfApi()
    if not HUB_NAME.fullmatch(repo_id):
        raise refused("repo_id", "owner/name", repo_id, "name your account and the model")
    if base != TINY_BASE and not HUB_NAME.fullmatch(base):
        raise refused("base", f"a hub name or {TINY_BASE}", base,
                      "nobody else has that folder; set model.base to a hub name and export again")
    try:
        readme = _readme(card, repo_id)
    except (KeyError, TypeError) as error:
        raise refused(str(folder / CARD), "training and licence", f"none ({error})",
                      "export the model again") from error
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        hidden = bool(api.repo_info(repo_id).private)  # one that existed keeps its visibility
        if hidden or not private:
            _upload(api, repo_id, folder, readme)
    except HUB_ERRORS as error:
        raise refused("repo_id", "a hub repository you may write to", f"{repo_id} ({error})",
                      "check the network, and log in with a write token (`hf auth login`, in a "
                      "notebook huggingface_hub.login())") from error
    if private and not hidden:
        raise refused("private", "a private repository", f"{repo_id}, which is public",
                      "pass private=False, or choose another name")
    return str(url)


def _upload(api: HfApi, repo_id: str, folder: Path, readme: str) -> None:
    with TemporaryDirectory() as staged:  # a README of the user's own is neither read nor lost
        for name in (WEIGHTS, CARD):
            shutil.copyfile(folder / name, Path(staged) / name)
        (Path(staged) / "README.md").write_text(readme, encoding="utf-8")
        api.upload_folder(repo_id=repo_id, folder_path=staged, commit_message="Export")


def _readme(card: dict[str, Any], repo_id: str) -> str:
    base, training = card["model"]["base"], card["training"]
    base_model = f"base_model: {base}\n" if base != TINY_BASE else ""  # the hub looks it up
    return f"""---
license: other
{base_model}pipeline_tag: image-to-image
tags: [image-restoration, gaussian-splatting, lora, splat-enhancer]
---
# Splat Enhancer
Restores a Gaussian-splat render of a person in a single forward pass. Trained for
{training["steps"]} steps at {training["size_px"]} px on the base `{base}`, which is not included.
```python
from {PACKAGE}.model import load
restored = load("{repo_id}").enhance(images)  # (B, 3, H, W) in [0, 1]
```
A restored face is partly an invented one: do not use it to recognise or judge anybody.
Licence: {"; ".join(card["licence"])}. All settings: `{CARD}`.
"""
