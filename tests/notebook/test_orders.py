"""Cells in any order, after any change of the form: right, or one line that says what to do."""

from __future__ import annotations

import ast

import nbformat
import pytest

from helpers.__main__ import NOTEBOOK, ROOT
from helpers.machine import cells, explain
from helpers.training import CELLS
from tests.notebook.orders import try_orders


@pytest.fixture(scope="module")
def sources():
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    return {cell.source.split("\n")[0].removeprefix("#@title ").split(" {")[0]: cell.source
            for cell in notebook.cells if cell.cell_type == "code"}


def test_cells_in_random_orders_end_right_or_with_a_line_and_files_tell_the_truth():
    checked = try_orders(8, seed=1)  # python -m tests.notebook.orders 200
    assert checked["checkpoints"] > 2 and checked["cells that ended right"] > 10


def test_missing_names_are_told_by_the_cell_that_makes_them(sources):
    made: dict[str, set[str]] = {}
    for title, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [a.asname or a.name for a in node.names] if isinstance(
                node, ast.Import | ast.ImportFrom) else [node.id] if isinstance(
                node, ast.Name) and isinstance(node.ctx, ast.Store) else []
            for name in names:
                made.setdefault(name, set()).add(title)
    for title, names in cells.MADE_BY.items():
        assert title in sources
        for name in names:
            assert title in made[name], name
    listed = {name for names in cells.MADE_BY.values() for name in names}
    for title, source in sources.items():
        used = {node.id for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        elsewhere = {name for name in used & made.keys() if title not in made[name]}
        assert elsewhere <= listed, title
    with pytest.raises(NameError) as caught:
        exec("faces.train", {})
    assert "*Prepare the faces*" in explain(caught.value)


def test_the_cells_that_errors_name_are_there(sources):
    assert set(CELLS.values()) <= sources.keys()
