"""What other systems do not bear: mapped files, text of a nameless encoding."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
import torch

from helpers.__main__ import NOTEBOOK, ROOT
from helpers.config import TINY_BASE, DataConfig
from helpers.faces import data
from helpers.faces.store import PartialStore
from helpers.model.base import embed_prompt

# Of bytes; and the shell, which speaks the encoding of its place
NO_TEXT_OPENERS = ("Image.open", "tarfile.open", "os.open", "urlopen", "os.popen", "av.open")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
def test_no_file_stays_mapped_that_may_vanish_or_must_be_deleted(monkeypatch, tmp_path):
    """A mapped page of a Drive that died kills the process; Windows deletes no mapped file."""
    def mapped():
        return [line for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
                if str(tmp_path) in line]
    kept = [embed_prompt(TINY_BASE, "a face", [tmp_path]) for _ in range(2)]
    assert torch.equal(*kept) and not mapped()
    groups, discard = [], PartialStore.discard
    monkeypatch.setattr(PartialStore, "discard", lambda store: (groups.append(mapped()),
                                                                discard(store)))
    small = DataConfig(size_px=64, train_images=5, test_images=1)
    faces = data.prepare(small, tmp_path, progress=None)
    assert groups == [[]] and len(faces.train) == 5 and mapped()


def lines_of_nameless_text(source: str) -> list[int]:
    """The lines of calls that read or write text without naming its encoding."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
            and not any(keyword.arg == "encoding" for keyword in node.keywords) and is_text(node)]


def is_text(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name.endswith("open"):
        return name not in NO_TEXT_OPENERS and not re.search("'(.b|rb\\+)'", ast.unparse(call))
    return name.endswith((".read_text", ".write_text")) \
        or any(keyword.arg == "text" for keyword in call.keywords)


def test_text_files_name_their_encoding():
    """Windows would take its own."""
    assert lines_of_nameless_text("p.write_text('é')\nopen(p)\nrun(c, text=True)") == [1, 2, 3]
    assert not lines_of_nameless_text("p.open('rb+')\np.open(encoding='utf-8')")
    sources = {str(path): path.read_text(encoding="utf-8")
               for path in (ROOT / "helpers").rglob("*.py")}
    sources |= {cell.id: cell.source for cell in nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
                if cell.cell_type == "code"}
    found = {name: lines_of_nameless_text(source) for name, source in sources.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
