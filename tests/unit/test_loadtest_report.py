"""What is made of a report: JSON that comes back, tables, CSV, Markdown, and a page that stands alone."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from loadtest_reports import cell, outcome
from loadtest_reports import report as report_of

from tristage.errors import InputError, TristageError
from tristage.loadtest import Cell, Found, Report, read_report, write_report
from tristage.loadtest._files import csv_of, markdown_of
from tristage.loadtest._html import page
from tristage.loadtest._loop import Samples
from tristage.loadtest._plan import Point
from tristage.loadtest._tables import tables
from tristage.loadtest._words import figure


@pytest.fixture
def report() -> Report:
    return report_of(ended="interrupted", message="interrupted in cell 2 of 2", notes=("a <note> | on\nrows",))


def open_report() -> Report:
    times = np.random.default_rng(0).lognormal(15, 0.3, 2000).astype(np.int64)
    samples = Samples(times, np.arange(2000) * 10**6, times // 100)
    cells = [
        cell(outcome(samples=samples, elapsed_s=2.0), point=Point(4, 64, rate), due_ns=times)
        for rate in (1000.0, 500.0)
    ]
    found = (Found(4, 20.0, 500.0, 1, 1000.0), Found(8, 1.0, None, None, 12.5))
    return report_of(*cells, mode="open", arrivals="poisson", duration_s=None, band=0.05, longest_s=20.0, found=found)


def test_json_comes_back_the_same(report: Report):
    for one in (report, open_report()):
        text = one.to_json()
        assert Report.from_json(text) == one
        assert json.loads(text)["schema"] == "tristage.loadtest/2"
        assert isinstance(Report.from_json(text).cells[0], Cell)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: "{", "no load test report"),
        (lambda raw: "[1]", "no load test report"),
        (lambda raw: json.dumps({**raw, "schema": "tristage.loadtest/999"}), "tristage.loadtest/999"),
        (lambda raw: json.dumps({name: raw[name] for name in raw if name != "cells"}), "cells"),
        (lambda raw: json.dumps({name: raw[name] for name in raw if name != "url"}), "url"),
    ],
)
def test_what_is_no_report_is_refused(report: Report, tmp_path, change, says: str):
    text = change(json.loads(report.to_json()))
    with pytest.raises(InputError, match=says):
        Report.from_json(text)
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match=r"bad\.json"):
        read_report(tmp_path / "bad.json")
    with pytest.raises(InputError, match=r"nowhere\.json"):
        read_report(tmp_path / "nowhere.json")


def test_a_report_is_written_whole_or_not_at_all(report: Report, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_report(report, path)
    assert read_report(path) == report
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(TristageError, match="No space left"):
        write_report(dataclasses.replace(report, url="http://other"), path)
    assert read_report(path) == report
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("name", ["report.txt", "nowhere/report.json"])
def test_a_file_that_cannot_be_meant_is_refused(report: Report, tmp_path, name: str):
    with pytest.raises(InputError, match=r"FILE\.html"):
        write_report(report, tmp_path / name)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), (0, "0"), (12.345, "12.3"), (0.0123456, "0.0123"), (0.000001234, "0.000001"), (123456.7, "123,457")],
)
def test_figures_have_three_digits(value: float | None, words: str):
    assert figure(value) == words


def printed(report: Report) -> str:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    for part in tables(report):
        console.print(part)
    return console.export_text()


def test_tables_fit_eighty_columns(report: Report):
    text = printed(report)
    lines = [line.split() for line in text.splitlines()]
    assert lines[2] == ["batch", "conc.", "ms/example", "p50", "p90", "p95", "p99", "p99.9", "max", "examples/s"]
    assert ["4", "1", "12.5", *["25.0"] * 6, "80"] in lines
    assert ["4", "1", "10", "0", "20.0", "5.00", "1.00", "10.0", "0.800", "300"] in lines
    assert "30.0%" in text
    assert "70.0%" in text
    assert "64*" in text
    assert "the [red] <b>model</b> said no" in text
    assert "20.0 in the server" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_tables_of_a_search_show_what_it_found():
    text = " ".join(printed(open_report()).split())
    assert "open loop, Poisson arrivals" in text
    assert "batch 4, p99 of at most 20.0 ms: 500 requests/s hold it" in text
    assert "batch 8, p99 of at most 1.00 ms: no rate that was tried holds it" in text
    assert "batch 4, 500 requests/s: " in text
    assert "batch 4, 1,000 requests/s: 20.0 in the server" not in text


def test_csv_has_a_line_a_cell(report: Report):
    lines = list(csv.DictReader(io.StringIO(csv_of(report))))
    assert [line["batch"] for line in lines] == ["4", "64"]
    assert float(lines[0]["ms_per_example"]) == 12.5
    assert float(lines[0]["p999_ms"]) == 25
    assert float(lines[0]["step second compute_ms"]) == 12
    assert float(lines[0]["server_peak_mb"]) == 300
    assert (lines[1]["ms_per_example"], lines[1]["errors"], lines[1]["step second compute_ms"]) == ("", "5", "")


def test_markdown_has_whole_tables(report: Report):
    for one in (report, open_report()):
        rows = [line for line in markdown_of(one).splitlines() if line.startswith("|")]
        widths = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
        heads = [number for number, row in enumerate(rows) if set(row) == {"|", "-"}]
        for head in heads:
            assert widths[head] - 1 == widths[head - 1] - 2 or widths[head] == widths[head - 1]
    assert "**12.5**" in markdown_of(report)
    assert "500 requests/s hold it" in markdown_of(open_report())


class Page(HTMLParser):
    """Checks that tags nest, and keeps what a page asks for from elsewhere, its texts and its charts."""

    VOID = {"meta"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asks: list[str] = []
        self.texts: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.asks += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "onload")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_stands_alone_and_escapes_what_it_shows(report: Report):
    text = page(report)
    parsed = Page(text)
    assert parsed.asks == []
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "<b>model</b>" not in text
    words = " ".join(parsed.texts)
    assert "the [red] <b>model</b> said no" in words
    assert "a <note> | on" in words
    assert "interrupted in cell 2 of 2" in words
    assert "prefers-color-scheme: dark" in text


def test_the_page_has_every_chart_and_every_figure():
    report = open_report()
    parsed = Page(page(report))
    assert parsed.count["svg"] == 1 + 2  # latency against throughput, and a histogram a cell
    assert parsed.count["circle"] == 4  # p50 and p99 of two cells
    words = " ".join(parsed.texts)
    assert "500 requests/s hold it" in words
    for one in report.cells:
        assert one.histogram is not None
        assert one.latency is not None
        assert figure(one.latency.p999_ms) in words
        assert figure(one.steps[1].total_ms) in words
    bars = sum(sum(count > 0 for count in one.histogram.counts) for one in report.cells if one.histogram)
    assert parsed.count["rect"] == bars


def test_a_page_without_answers_is_still_a_page():
    nothing = report_of(cell(outcome(0), before={}, after={}))
    assert Page(page(nothing)).count["table"] == 1
    assert Page(page(report_of().__class__(**{**vars(nothing), "cells": ()}))).count["table"] == 1
