"""The report as one HTML file that needs nothing beside it: no script, no font, no network; light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from tristage.loadtest._report import Cell, Report
from tristage.loadtest._style import STYLE
from tristage.loadtest._svg import SERIES, Curve, histogram, latency_against_throughput
from tristage.loadtest._words import describe, figure, finding, loop, side_by_side, where

__all__ = ["page"]

_SHOWN = 12  # histograms and step charts that are open from the start


def page(report: Report) -> str:
    """The whole file."""
    title = f"{escape(report.stack)}: load test"
    body = "\n".join(part for section in _SECTIONS for part in section(report))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{title}</h1><p>{escape(describe(report))}</p></header>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _tiles(report: Report) -> Iterator[str]:
    yield '<section class="tiles" aria-label="The main figures">'
    for found in report.found:
        yield f'<div class="tile wide"><b>{figure(found.rate)}</b><span>{escape(finding(found))}</span></div>'
    if not report.found:
        best: dict[int, Cell] = {}
        for cell in report.cells:
            if cell.ms_per_example is not None:
                kept = best.get(cell.batch)
                if kept is None or cell.ms_per_example < (kept.ms_per_example or 0):
                    best[cell.batch] = cell
        for cell in best.values():
            beside = f"{where(cell)}; p99 {figure(cell.latency.p99_ms if cell.latency else None)} ms a request"
            yield f'<div class="tile"><b>{figure(cell.ms_per_example)}</b> ms/example<span>{beside}</span></div>'
    yield "</section>"
    if report.ended != "completed":
        yield f'<p class="alarm">{escape(report.message)}</p>'


def _notes(report: Report) -> Iterator[str]:
    notes = [escape(note) for note in report.notes]
    for cell in report.cells:
        notes += [f"<b>{where(cell)}:</b> {escape(note)}" for note in cell.notes]
        notes += [f"<b>{where(cell)}:</b> {e.count:,} x {escape(e.kind)}: {escape(e.message)}" for e in cell.errors]
    if notes:
        yield "<section><h2>Before you trust these figures</h2><ul>"
        yield from (f"<li>{note}</li>" for note in notes)
        yield "</ul></section>"


def _scatter(report: Report) -> Iterator[str]:
    curves: dict[int, list[tuple[float, float, float, str]]] = {}
    for cell in sorted(report.cells, key=lambda cell: (cell.rate or 0.0, cell.concurrency)):
        if cell.latency is not None and (cell.rate is not None or report.mode == "closed"):
            at = f"concurrency {cell.concurrency}" if cell.rate is None else f"{figure(cell.rate)} requests/s"
            point = (cell.examples_per_s, cell.latency.p50_ms, cell.latency.p99_ms, at)
            curves.setdefault(cell.batch, []).append(point)
    if not curves:
        return
    yield "<section><h2>Latency against throughput</h2><figure>"
    yield latency_against_throughput([Curve(f"batch {batch}", points) for batch, points in curves.items()])
    yield '<figcaption class="legend">'
    for number, batch in enumerate(curves):
        yield f'<span><i class="key s{number % SERIES}"></i>batch {batch}</span>'
    yield '<span><i class="key dot"></i>p50</span><span><i class="key hollow"></i>p99</span></figcaption></figure>'
    words = loop(report)
    yield f"<p>{words[:1].upper()}{words[1:]}. Each point is one measurement; both axes are logarithmic.</p></section>"


def _histograms(report: Report) -> Iterator[str]:
    cells = [(cell, cell.histogram, cell.latency) for cell in report.cells if cell.histogram and cell.latency]
    if not cells:
        return
    edges = [edge for _, counts, _ in cells if counts for edge in (counts.edges()[0], counts.edges()[-1])]
    ends = (min(edges) / 1.05, max(edges) * 1.05)
    yield "<section><h2>How long requests took</h2>"
    drawn = [
        f"<figure><figcaption>{where(cell)}</figcaption>{histogram(counts, latency, where(cell), ends)}</figure>"
        for cell, counts, latency in cells
        if counts is not None and latency is not None
    ]
    yield from _folded(drawn, "grid")
    yield "<p>Requests by their time, in buckets 5% wide; the axis is logarithmic and the same in all.</p></section>"


def _steps(report: Report) -> Iterator[str]:
    cells = [cell for cell in report.cells if cell.steps]
    if not cells:
        return
    yield "<section><h2>Where the time goes</h2>"
    yield (
        '<p class="legend"><span><i class="key compute"></i>computing</span><span><i class="key queue"></i>waiting '
        'in Triton</span><span><i class="key outside"></i>outside the server</span></p>'
    )
    yield from _folded(["\n".join(_bars(cell)) for cell in cells], "charts")
    groups = side_by_side(report)
    if groups:
        words = "; ".join(", ".join(group) for group in groups)
        yield f"<p>May run side by side, as nothing of one feeds another: {escape(words)}.</p>"
    yield "<p>By Triton's statistics, ms a request. *: on the chain of steps that takes longest.</p></section>"


def _bars(cell: Cell) -> Iterator[str]:
    widest = max([step.total_ms for step in cell.steps] + [cell.outside_ms or 0.0]) or 1.0
    words = f"{figure(cell.server_ms)} ms in the server"
    if cell.overlap_ms and cell.server_ms and cell.overlap_ms >= 0.01 * cell.server_ms:
        words += f", at least {figure(cell.overlap_ms)} of them in two steps at once"
    yield f'<table class="bars"><caption>{where(cell)}: {words}</caption>'
    yield '<thead><tr><th scope="col">step</th><th scope="col">ms</th><th scope="col">'
    yield '<span class="hidden">computing and waiting</span></th></tr></thead><tbody>'
    for step in cell.steps:
        parts = (("compute", step.compute_ms), ("queue", step.queue_ms))
        words = f"computing {figure(step.compute_ms)} ms, waiting {figure(step.queue_ms)} ms"
        name = escape(step.model) + ("*" if step.critical and len(cell.steps) > 1 else "")
        yield _bar(name, step.total_ms, parts, widest, words)
    outside = cell.outside_ms or 0.0
    yield _bar("outside", outside, (("outside", outside),), widest, "network, Triton's front end, client")
    yield "</tbody></table>"


def _bar(name: str, total: float, parts: tuple[tuple[str, float], ...], widest: float, words: str) -> str:
    drawn = "".join(f'<i class="{kind}" style="width:{value / widest:.2%}"></i>' for kind, value in parts)
    return (
        f'<tr title="{escape(words)}"><th scope="row">{name}</th><td>{figure(total)}</td>'
        f'<td class="drawn"><div>{drawn}</div></td></tr>'
    )


def _table(report: Report) -> Iterator[str]:
    due = ["due/s"] if report.mode == "open" else []
    head = ["batch", "connections", *due, "ms/example", "p50", "p90", "p95", "p99", "p99.9", "max", "examples/s"]
    head += ["requests", "errors", "in server", "outside", "client CPU", "server CPU ms/example", "cores", "peak MB"]
    yield '<section><h2>All figures</h2><div class="scroll"><table class="figures"><thead><tr>'
    yield "".join(f'<th scope="col">{name}</th>' for name in head)
    yield "</tr></thead><tbody>"
    for cell in report.cells:
        latency, server = cell.latency, cell.server
        names = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
        values = [
            *(f"{cell.batch}{'' if cell.complete else '*'}", str(cell.concurrency)),
            *([figure(cell.rate)] if due else []),
            f"<b>{figure(cell.ms_per_example)}</b>",
            *(figure(None if latency is None else getattr(latency, name)) for name in names),
            *(f"{cell.examples_per_s:,.0f}", f"{cell.requests:,}", f"{cell.failed:,}"),
            *map(figure, (cell.server_ms, cell.outside_ms, cell.client_cpu_ms)),
            *(figure(None if server is None else getattr(server, name)) for name in ("cpu_ms_per_example", "cores")),
            f"{server.peak_mb:,.0f}" if server is not None else "-",
        ]
        yield "<tr>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>"
    cut = "" if all(cell.complete for cell in report.cells) else " *: cut short."
    yield (
        f"</tbody></table></div><p>p50 to max, in server, outside, client CPU: ms a request.{cut} "
        "A percentile is a time that some request took. Outside: network, Triton's front end, the client.</p></section>"
    )


def _folded(drawn: list[str], kind: str) -> Iterator[str]:
    """The first few charts, and the rest behind a click."""
    yield f'<div class="{kind}">{"".join(drawn[:_SHOWN])}</div>'
    if len(drawn) > _SHOWN:
        yield f"<details><summary>{len(drawn) - _SHOWN} more</summary>"
        yield f'<div class="{kind}">{"".join(drawn[_SHOWN:])}</div></details>'


_SECTIONS = (_tiles, _scatter, _histograms, _steps, _table, _notes)
