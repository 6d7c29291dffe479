"""Parts of a self-contained HTML page: it asks for no other file, and reads on phone and paper."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

STYLE = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 68rem; background: #fff;
       color: #1c1c1e; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid #d9d9de }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem }
p, ul { max-width: 44rem; margin: .5rem 0 }
.quiet, figcaption { color: #5b5b62; font-size: .86rem }
.wide { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #ececf0; white-space: nowrap }
th { font-weight: 600; border-bottom-color: #b9b9c0 }
td:last-child, th:last-child { padding-right: 0 }
td.text { white-space: normal; min-width: 12rem; overflow-wrap: anywhere }
.better { color: #005a8d; font-weight: 600 }
.worse { color: #a83800; font-weight: 600 }
figure { margin: .8rem 0 }
figure img { display: block; max-width: 100%; height: auto }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr));
         gap: 1rem 1.2rem }
.sheet figure { margin: 0; break-inside: avoid }
.sheet img { width: 100% }
.heads { display: grid; grid-template-columns: repeat(4, 1fr); font-size: .78rem; color: #5b5b62 }
.columns { columns: 22rem; column-gap: 2rem }
.columns table { width: 100%; break-inside: avoid; margin-bottom: 1rem }
nav a { margin-right: 1rem; color: #005a8d }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt }
  nav, input { display: none }
  h2, h3 { break-after: avoid }
  figure, tr { break-inside: avoid }
  .wide { overflow: visible }
  th, td { white-space: normal; padding-right: .4rem }
  .sheet { grid-template-columns: 1fr 1fr }
}
@page { margin: 14mm }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: pieces of HTML.
    """
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
            + "\n".join(body) + "\n</body></html>\n")


def table(rows: Sequence[Sequence[str]], *, text_columns: Sequence[int] = ()) -> str:
    """A table of plain texts, the first row heading it; wider than the screen, it scrolls.

    Args:
        rows: cells; one that begins with "better" or "worse" is coloured.
        text_columns: those whose cells may break into lines.
    """
    lines = ["<tr>" + "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
             + "</tr>"]
    for row in rows[1:]:
        cells = "".join(f"<td{_class(cell, i in text_columns)}>{html.escape(cell)}</td>"
                        for i, cell in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def figure(picture: str, text: str) -> str:
    """A picture, as HTML, with a plain text below it."""
    return f"<figure>{picture}<figcaption>{html.escape(text)}</figcaption></figure>"


def listing(lines: Sequence[str]) -> str:
    """Plain texts as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def settings(sections: Mapping[str, Mapping[str, object]]) -> str:
    """Fields and values by section, in columns."""
    tables = [f"<h3>{html.escape(name)}</h3>"
              + table([("field", "value"), *((field, str(value)) for field, value in of.items())],
                      text_columns=(1,)) for name, of in sections.items()]
    return f'<div class="columns">{"".join(tables)}</div>'


def _class(cell: str, text: bool) -> str:
    names = [word for word in ("better", "worse") if cell.startswith(word)] + ["text"] * text
    return f' class="{" ".join(names)}"' if names else ""
