"""The results page: one HTML file that opens from disk and asks the network for nothing.

`build` fills `page.html`: an overview of all claims, a section for each experiment with its figure embedded, and at the
top the turning grid, coloured by the gradients of the rotation experiment's run.
"""

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.fit import counted

TEMPLATE = Path(__file__).with_name("page.html")
NOT_RUN = "not run yet"
SIGNS = {"reproduced": "✓", "contradicted": "✗", "inconclusive": "≈", "out of reach here": "↥", NOT_RUN: "○"}


def build(results: Sequence[Mapping[str, Any]], path: Path, *, pending: Sequence[Mapping[str, Any]] = ()) -> None:
    """Writes the page of `results` (the experiments' JSON) to `path`; `pending` are the claims nobody has run yet.

    The turning grid shows the first result that has a `grid`, and is left out where none has. Raises ValueError for a
    grid whose stops disagree in shape, and FileNotFoundError for a figure that is named but not there.
    """
    with_grid = next((result for result in results if result.get("grid")), None)
    parts = {
        "grid": _grid(with_grid) if with_grid else "",
        "overview": _overview(results, pending),
        "results": "".join(map(_experiment, results)),
        "pending": _pending(pending),
    }
    page = re.sub(r"<!--(\w+)-->", lambda marker: parts[marker[1]], TEMPLATE.read_text("utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, "utf-8")


def _overview(results: Sequence[Mapping[str, Any]], pending: Sequence[Mapping[str, Any]]) -> str:
    rows = [(_anchor(result, claim), claim) for result in results for claim in result["claims"]]
    rows += [(_anchor(None, claim), claim) for claim in pending]
    counts = Counter(claim.get("verdict", NOT_RUN) for _, claim in rows)
    order = [verdict for verdict in SIGNS if counts[verdict]] + sorted(counts.keys() - SIGNS.keys())
    summary = "".join(f"<li>{counts[verdict]} {_badge(verdict)}</li>" for verdict in order)
    body = "".join(
        f'<tr><th scope="row"><a href="#{anchor}">{_text(claim["id"])}</a></th><td>{_text(claim["statement"])}</td>'
        f'<td class="wide">{_text(claim["paper"])}</td><td class="wide">{_text(claim.get("ours"))}</td>'
        f"<td>{_badge(claim.get('verdict', NOT_RUN))}</td></tr>"
        for anchor, claim in rows
    )
    return (
        f'<ul class="counts">{summary}</ul><table class="overview"><caption>All claims and their verdicts</caption>'
        '<thead><tr><th scope="col">Claim</th><th scope="col">What it says</th><th scope="col" class="wide">The paper'
        '</th><th scope="col" class="wide">Ours</th><th scope="col">Verdict</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _experiment(result: Mapping[str, Any]) -> str:
    name = _slug(result["experiment"])
    origin = _text(result["origin"])
    return (
        f'<section class="experiment" id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{_text(result["title"])}</h2>'
        f'<p class="origin"><strong>{origin}</strong> · preset {_text(result["preset"])}'
        f" · {counted(result['seeds'], 'seed')}</p>"
        + "".join(_claim(_anchor(result, claim), claim) for claim in result["claims"])
        + _figure(result)
        + _table(result)
        + _run(result, f"{name}-command")
        + "</section>"
    )


def _claim(anchor: str, claim: Mapping[str, Any]) -> str:
    told = [("The paper", claim["paper"]), ("Ours", claim.get("ours")), ("Rule of the verdict", claim.get("rule"))]
    return (
        f'<article class="claim" id="{anchor}" aria-labelledby="{anchor}-id">'
        f'<h3 id="{anchor}-id">{_text(claim["id"])} {_badge(claim.get("verdict", NOT_RUN))}</h3>'
        f'<p>{_text(claim["statement"])} <span class="source">{_text(claim["source"])}</span></p>'
        f"{_list((term, _text(value)) for term, value in told if value is not None)}</article>"
    )


def _pending(pending: Sequence[Mapping[str, Any]]) -> str:
    if not pending:
        return ""
    claims = "".join(_claim(_anchor(None, claim), claim) for claim in pending)
    title = '<h2 id="pending-title">Not run yet</h2>'
    return f'<section class="experiment" aria-labelledby="pending-title">{title}{claims}</section>'


def _figure(result: Mapping[str, Any]) -> str:
    if not result.get("figure"):
        return ""
    image = base64.b64encode(Path(result["figure"]).read_bytes()).decode("ascii")
    caption = result.get("figure_caption", "")
    return (
        f'<figure><img src="data:image/png;base64,{image}" alt="Figure: {_text(result["title"])}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _table(result: Mapping[str, Any]) -> str:
    if not result.get("table"):
        return ""
    columns, rows = result["table"]["columns"], result["table"]["rows"]
    classes = [' class="number"' if all(map(_is_number, column)) else "" for column in zip(*rows, strict=True)]
    classes = classes or [""] * len(columns)  # a table may be empty
    head = "".join(f'<th scope="col"{kind}>{_text(column)}</th>' for column, kind in zip(columns, classes, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_text(value)}</td>" for value, kind in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    )
    title = result["table"].get("title") or f"{result['title']}: the figures"
    caption = f"<caption>{_text(title)}</caption>"
    # Focusable, because a wide table scrolls inside its own box and the keyboard must reach that box.
    label = f"Table of {_text(result['title'])}"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="figures">{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _run(result: Mapping[str, Any], command: str) -> str:
    copy = f'<button type="button" class="copy" data-copies="{command}">copy</button>'
    facts = [
        ("Command", f'<code id="{command}">{_text(result["command"])}</code> {copy}'),
        ("Time", _text(_duration(result["seconds"]))),
        ("Hardware", _text(result["hardware"])),
    ]
    if result.get("load"):
        load = " ".join(f"{part:.2f}" for part in result["load"])
        facts.append(("Load", f"{load} (over 1, 5 and 15 minutes)"))
    if data := result.get("data"):
        digest = str(data.get("sha256") or "")
        said = [_text(data["name"]), _text(data.get("note") or "")]
        if digest:
            said.insert(1, f'<code title="sha256 {_text(digest)}">sha256 {_text(digest[:12])}…</code>')
        facts.append(("Data", " · ".join(filter(None, said))))
    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    facts += [("Versions", _text(versions)), ("Date", f"<time>{_text(result['date'])}</time>")]
    if result.get("config"):
        config = json.dumps(result["config"], indent=2, ensure_ascii=False, default=str)
        facts.append(("Config", f"<details><summary>all settings</summary><pre>{_text(config)}</pre></details>"))
    return f'<div class="run">{_list(facts)}</div>'


def _grid(result: Mapping[str, Any]) -> str:
    stops = sorted(result["grid"]["stops"], key=lambda stop: stop["angle"])
    shapes = {tuple(len(row) for row in stop["values"]) for stop in stops}
    if len(shapes) != 1 or len(set(*shapes)) != 1:
        raise ValueError(f"the stops of a grid must be rectangles of one shape, got rows of lengths {sorted(shapes)}")
    told = "".join(
        f"<li><strong>{_text(stop['angle'])}°, {_text(stop['name'])}.</strong> <code>{_text(stop['code'])}</code> "
        f"{_text(stop['caption'])}</li>"
        for stop in stops
    )
    stops = [{**stop, "values": [list(map(_positive, row)) for row in stop["values"]]} for stop in stops]
    return (
        f'<section aria-label="The turning grid"><div id="turning"></div><noscript><ul>{told}</ul></noscript>'
        f'<script type="application/json" id="grid-data">{_json({"stops": stops})}</script>'
        f'<p class="small">The colours are {_text(result["origin"])} of <a href="#{_slug(result["experiment"])}">'
        f"{_text(result['title'])}</a>. Between the marks, colours are blended: nothing was run there. "
        "<code>turn</code> exchanges the two flows of a cell; drawn on paper that is this rotation, after which the "
        "first line stands on the right.</p></section>"
    )


def _positive(value: Any) -> float | None:
    """The value where it has a logarithm, else nothing: JSON knows neither infinities nor NaN."""
    return float(value) if value is not None and math.isfinite(value) and value > 0 else None


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in: no '<' is left, so neither '</' nor '<!--'."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<div><dt>{term}</dt><dd>{html}</dd></div>" for term, html in pairs) + "</dl>"


def _badge(verdict: str) -> str:
    sign, kind = SIGNS.get(verdict, "?"), _slug(verdict) if verdict in SIGNS else "unknown"
    return f'<span class="badge {kind}"><span aria-hidden="true">{sign}&nbsp;</span>{_text(verdict)}</span>'


def _anchor(result: Mapping[str, Any] | None, claim: Mapping[str, Any]) -> str:
    return _slug(f"{result['experiment'] if result else 'pending'}-{claim['id']}")


def _slug(text: str) -> str:
    return "on-" + re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _text(value: Any) -> str:
    """The value as escaped text: a dash for None, four significant digits for a float."""
    if value is None:
        return "–"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
