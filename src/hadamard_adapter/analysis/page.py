"""The report as one HTML page that needs nothing else: tables that sort, pictures within the text."""

from collections.abc import Sequence
from html import escape

from hadamard_adapter.analysis.overview import Overview, overviews
from hadamard_adapter.analysis.pictures import offsets_picture, scores_picture, seeds_picture
from hadamard_adapter.analysis.table import Group, Row
from hadamard_adapter.analysis.texts import (
    COLUMNS,
    PROTOCOL,
    cells,
    heads,
    notes,
    overview_cells,
    overview_columns,
    processors,
)

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light; --line: #d8dee4; --soft: #f6f8fa; --ink: #1f2328; --quiet: #59636e; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1340px; padding: 16px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 8px 0; }
h2 { font-size: 18px; margin: 32px 0 4px; }
p, li { max-width: 75ch; }
.quiet { color: var(--quiet); margin: 0 0 8px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff;
  min-width: 100px; max-width: 40vw; white-space: normal; }
thead th, thead th:first-child { background: var(--soft); }
thead th { white-space: normal; vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 0; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0969da; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
tr.ours td:first-child { font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 12px;
  margin-top: 12px; align-items: start; }
figure { margin: 0; padding: 8px; border: 1px solid var(--line); border-radius: 6px; }
figure svg { width: 100%; height: auto; max-height: 420px; }
figcaption { color: var(--quiet); font-size: 13px; }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const index = [...head.parentElement.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[index].dataset.value ?? "";
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what was not run stays last
      const by = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -by : by;
    };
    body.append(...[...body.rows].sort(order));
  });
}
"""


def page(groups: Sequence[Group], problems: Sequence[str], failed: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        groups: of `read_groups`.
        problems: a line for every file that does not count.
        failed: a line for every run that failed.
    """
    parts = [*(_overview(found) for found in overviews(groups)), *(_section(group) for group in groups)]
    told = "".join(f"<li>{escape(note)}</li>" for note in notes(groups))
    lists = {"Runs that failed": failed, "Files that do not count": problems}
    ended = "".join(
        f"<h2>{head}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        for head, lines in lists.items()
        if lines
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Results</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Results</h1>{''.join(parts)}"
        f"<h2>How to read it</h2><ul>{told}</ul>{ended}<script>{_SCRIPT}</script></body></html>\n"
    )


def _overview(overview: Overview) -> str:
    body = "".join(
        f"<tr{_of_class(row.first.method)}>"
        + "".join(_cell(text, _number_of(text)) for text in overview_cells(row))
        + "</tr>"
        for row in overview.rows
    )
    title = f"{overview.model}: {overview.title}"
    return _titled_table(title, overview.select, overview_columns(overview), body)


def _number_of(text: str) -> str:
    """What a cell of an overview is sorted by: "0.5000 (1 of 3)" by 0.5000, what has no score last."""
    return "" if text in ("not run", "search failed") else text.replace(",", "").split(" (")[0]


def _section(group: Group) -> str:
    title = f"{group.title}: {group.score}"
    rows = "".join(_row(group, row) for row in group.rows)
    table = _titled_table(title, group.select, heads(group), rows)
    where = f'<p class="quiet">{escape(named)}</p>' if (named := processors(group)) else ""
    return f'{table}{where}<div class="pictures">{"".join(_pictures(group))}</div>'


def _titled_table(title: str, select: str, columns: Sequence[str], body: str) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in columns)
    return (
        f'<h2>{escape(title)}</h2><p class="quiet">{escape(PROTOCOL[select])}</p>'
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _cell(text: str, value: str) -> str:
    return f'<td data-value="{escape(value)}">{escape(text)}</td>'


def _row(group: Group, row: Row) -> str:
    texts, found = cells(group, row), _sort_keys(group, row)
    values = [text if key is None else key for key, text in zip(found, texts, strict=True)]
    inner = "".join(_cell(text, value) for value, text in zip(values, texts, strict=True))
    return f"<tr{_of_class(row.method)}>{inner}</tr>"


def _of_class(method: str) -> str:
    """Our own rows are bold."""
    return f' class="{"ours" if method.startswith("hadamard") else "other"}"'


def _sort_keys(group: Group, row: Row) -> list[str | None]:
    """What the cells of a row are sorted by: a number, "" for none; None: the cell's text."""
    summary, references = row.summary, group.columns_against
    comparison = row.against.get(references[0])
    intervals = [one and one.interval for one in map(row.against.get, references)]
    numbers: dict[str, float | None] = {
        "published %": row.published,
        "trained": row.n_trained,
        "share %": row.share_percent,
        "head": row.n_head,
        "score": None if summary is None else summary.mean,
        "median": None if summary is None else summary.median,
        "seeds": None if summary is None else summary.mean,
        "lr": row.lr[0] if row.lr else None,
        "epochs": row.epochs[0] if row.epochs else None,
        "p by seed (Holm)": None if comparison is None else comparison.permutation_p,
        "seconds": row.seconds,
        "MB": row.memory_mb,
    }
    found: list[str | None] = []
    for name in COLUMNS:
        if name == "against":
            found += [_key_of(interval and interval.difference) for interval in intervals]
        else:
            found.append(_key_of(numbers[name]) if name in numbers else None)
    return found


def _key_of(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"


def _pictures(group: Group) -> list[str]:
    if not any(row.scores for row in group.rows):
        return []
    found = [
        _figure(scores_picture(group), "Score against trained parameters: the mean large, each seed small."),
        _figure(seeds_picture(group), "Every seed; the bar is the mean."),
    ]
    found += [
        _figure(offsets_picture(row), f"{row.title}: how far each layer's offsets went, mean over seeds.")
        for row in group.rows
        if row.layers
    ]
    return found


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
