"""The parts of an HTML page that needs no network and no script.

What goes in is text, and is escaped, unless it is `Html`; what comes out is `Html`.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from fastcifar.errors import one_line


class Html(str):
    """Text that is HTML already."""


def escaped(text: str) -> Html:
    """Text as HTML; HTML stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(one_line(text)))


def joined(*parts: str) -> Html:
    """Parts one after the other."""
    return Html("".join(map(escaped, parts)))


def paragraph(*parts: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{joined(*parts)}</p>\n")


def code(text: str) -> Html:
    """Something to type, or the name of something."""
    return Html(f"<code>{escaped(text)}</code>")


def annotated(text: str, remark: str) -> Html:
    """A text with a remark in small print beneath."""
    return Html(f"{escaped(text)} <small>{escaped(remark)}</small>")


def link(anchor: str, text: str) -> Html:
    """A link to a section of the page."""
    return Html(f'<a href="#{escaped(anchor)}">{escaped(text)}</a>')


def section(heading: str, *parts: str, anchor: str, level: int = 2) -> Html:
    """A section with a heading of that level."""
    head = f"<h{level}>{escaped(heading)}</h{level}>"
    return Html(f'<section id="{escaped(anchor)}">\n{head}\n{joined(*parts)}</section>\n')


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, num_text_columns: int = 1) -> Html:
    """A table that scrolls within itself where it is too wide; a row's first cell is its heading.

    Args:
        columns: their headings.
        rows: of as many cells.
        label: what it shows, for those who cannot see it.
        num_text_columns: the first columns are text, the others figures.
    """
    kinds = ["" if position < num_text_columns else ' class="figure"' for position in range(len(columns))]
    head = "".join(f'<th scope="col"{kind}>{escaped(column)}</th>' for kind, column in zip(kinds, columns, strict=True))
    body = "".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f"<td{kind}>{escaped(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True))
        + "</tr>\n"
        for row in rows
    )
    return Html(
        f'<div class="wide" role="region" aria-label="{escaped(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def cards(facts: Iterable[tuple[str, str, str]]) -> Html:
    """Facts to be seen first: name, value, and a few words about it."""
    return Html(
        '<dl class="cards">\n'
        + "".join(
            f"<div><dt>{escaped(name)}</dt><dd><strong>{escaped(value)}</strong>{escaped(words)}</dd></div>\n"
            for name, value, words in facts
        )
        + "</dl>\n"
    )


def picture(svg: bytes, description: str) -> Html:
    """A chart, as sharp as the screen."""
    data = base64.b64encode(svg).decode()
    return Html(
        f'<div class="chart wide" tabindex="0"><img src="data:image/svg+xml;base64,{data}" '
        f'alt="{escaped(description)}"></div>\n'
    )


def folded(summary: str, *parts: str) -> Html:
    """Parts that show on demand."""
    return Html(f"<details><summary>{escaped(summary)}</summary>\n{joined(*parts)}</details>\n")


def document(title: str, *parts: str, footer: str) -> Html:
    """A whole page with that title and heading."""
    return Html(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escaped(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Whatever a run's files may hold, the page loads and runs nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<style>\n{_CSS}</style>\n</head>\n<body>\n<main>\n<h1>{escaped(title)}</h1>\n"
        f"{joined(*parts)}</main>\n<footer>{escaped(footer)}</footer>\n</body>\n</html>\n"
    )


def nested_rows(content: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of names and values of nested mappings, the names joined by spaces."""
    rows: list[tuple[str, str]] = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            rows += nested_rows(value, f"{prefix}{name} ")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


_CSS = """\
:root {
  --paper: #ffffff; --raised: #f6f8fa; --ink: #24292f; --muted: #57606a; --line: #d0d7de; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d1117; --raised: #161b22; --ink: #e6edf3; --muted: #9198a1; --line: #30363d; --accent: #6cb6e8;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main, footer { max-width: 60rem; margin: 0 auto; padding: 0 1.25rem; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; text-wrap: balance; }
h1 { font-size: 1.75rem; margin: 2rem 0 0.5rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 0.75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 0.5rem; }
p { margin: 0.5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
code {
  font: 0.875em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--raised); border-radius: 4px; padding: 0.1em 0.35em; overflow-wrap: anywhere;
}
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0.75rem; margin: 1.25rem 0; }
.cards div { background: var(--raised); border: 1px solid var(--line); border-radius: 8px; padding: 0.75rem 1rem; }
dt, dd { margin: 0; color: var(--muted); font-size: 0.875rem; line-height: 1.45; }
dd strong { display: block; color: var(--ink); font-size: 1.75rem; font-weight: 600; line-height: 1.3; }
.wide { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; min-width: 50%; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 1.25rem 0.35rem 0; }
tr { border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; white-space: nowrap; vertical-align: bottom; }
tbody th { font-weight: 500; }
small { display: block; color: var(--muted); font-size: 0.75rem; }
.figure { text-align: right; white-space: nowrap; }
.chart { background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: 0.5rem; }
.chart img { display: block; width: 100%; min-width: 40rem; height: auto; }
summary { cursor: pointer; color: var(--muted); font-size: 0.875rem; margin: 0.75rem 0; }
footer { color: var(--muted); font-size: 0.8125rem; padding-top: 1.5rem; padding-bottom: 2.5rem; }
@page { margin: 15mm; }
@media print {
  body { font-size: 10pt; }
  main, footer { max-width: none; padding: 0; }
  .wide { overflow: visible; }
  .chart { border: none; padding: 0; }
  .chart img { min-width: 0; }
  .chart, .cards div, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
