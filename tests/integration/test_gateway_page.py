"""The gateway's page in headless Chromium: wide and narrow, light and dark, by keyboard, and when Triton goes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from gateway_stack import answer, run_gateway, some_rows, write_repository
from playwright.sync_api import Page, expect, sync_playwright

from tristage.client import Client
from tristage.serving import serve

JSON = {"Content-Type": "application/json"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("page") / "repository")


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url, "--repository", repository) as gateway,
    ):
        with Client(server.grpc_url) as client:
            for _ in range(20):
                client.predict(some_rows(3))
        yield gateway


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens pages; in the end none may have complained, or asked another server."""
    contexts, faults = [], []

    def open_at(url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page: Page = context.new_page()
        page.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(url) else faults.append(asked.url))
        page.goto(url)
        return page

    open_at.faults = faults  # type: ignore[attr-defined]
    yield open_at
    for context in contexts:
        context.close()
    assert faults == []


def _predict(page: Page) -> None:
    page.get_by_role("button", name="Predict").click()
    expect(page.locator(".scores")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1600, 1000), (360, 740)])
def test_it_looks_right(open_page: Any, url: str, tmp_path: Path, width: int, height: int, scheme: str) -> None:
    page = open_page(url, width, height, scheme)
    expect(page.get_by_role("status")).to_have_text("Triton answers")
    expect(page.get_by_role("heading", level=1)).to_have_text("shop")
    expect(page.locator(".node")).to_have_count(6)
    expect(page.locator("#graph path")).to_have_count(8)
    expect(page.locator(".node", has_text="features").first).to_contain_text("%")
    _predict(page)
    shot = page.screenshot(full_page=True, path=tmp_path / "page.png")
    if folder := os.environ.get("TRISTAGE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"gateway-{width}-{scheme}.png").write_bytes(shot)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 384) == (scheme == "light")
    cut = "[...document.querySelectorAll('.node, .tiles dd')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_row_by_keyboard(open_page: Any, url: str) -> None:
    page = open_page(url)
    row = page.get_by_label("One row, as JSON")
    expect(row).to_have_value(re.compile("user.age"))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the form")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(row).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    example = some_rows(8)[7]
    expect(page.locator(".scores")).to_be_visible()
    names, values = (page.locator(f".scores {tag}").all_inner_texts() for tag in ("dt", "dd"))
    scores = dict(zip(names, values, strict=True))
    assert {name: float(value) for name, value in scores.items()} == answer(example)
    steps = page.locator("#answer tbody th").all_inner_texts()
    assert sorted(steps) == ["features", "net", "score", "trees"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("{")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("JSON")


def test_nothing_in_a_row_is_read_as_html(open_page: Any, url: str) -> None:
    page = open_page(url)
    expect(page.get_by_role("status")).to_have_text("Triton answers")
    page.get_by_label("One row, as JSON").fill('{"<img src=x onerror=alert(1)>": 1}')
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("alert")).to_contain_text("missing")
    assert page.locator("img").count() == 0
    open_page.faults[:] = [fault for fault in open_page.faults if "400 (Bad Request)" not in fault]


def test_it_shows_traffic_and_shares(open_page: Any, url: str) -> None:
    page = open_page(url)
    expect(page.get_by_role("status")).to_have_text("Triton answers")
    expect(page.locator(".node .facts span:first-child").first).to_contain_text("%")
    shares = page.evaluate("[...document.querySelectorAll('.bar i')].map(e => Number(e.style.transform.slice(7, -1)))")
    assert len(shares) == 4
    assert abs(sum(shares) - 1) < 0.01
    for _ in range(5):
        _predict(page)
    body = json.dumps({"rows": some_rows(2)})
    asked = page.request.post(f"{url}/v1/predict", data=body, headers=JSON)
    assert asked.status == 200
    expect(page.locator("#window")).to_contain_text("the last")
    expect(page.locator(".tiles > div", has_text="Requests").locator("dd")).not_to_have_text("0 /s")


def test_it_shows_what_has_drifted(open_page: Any, url: str) -> None:
    page = open_page(url)
    shifted = [{**row, "amount": row["amount"] + 1000} for row in some_rows(20)[7:]]
    for _ in range(40):
        asked = page.request.post(f"{url}/v1/predict", data=json.dumps({"rows": shifted}), headers=JSON)
        assert asked.status == 200
    expect(page.locator("#drift tr.bad").first).to_contain_text("another population")
    expect(page.locator("#drift tr", has_text="amount")).to_have_class("bad")
    assert Axe().run(page).violations_count == 0


def test_when_triton_goes_the_page_says_so(open_page: Any, repository: Path) -> None:
    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url) as url,
    ):
        page = open_page(url)
        expect(page.get_by_role("status")).to_have_text("Triton answers")
        os.kill(server.pid, signal.SIGKILL)
        expect(page.get_by_role("status")).to_contain_text("no server answers", timeout=10_000)
        assert Axe().run(page).violations_count == 0
        page.close()


def test_with_keys_the_page_asks_for_one(open_page: Any, url: str, repository: Path) -> None:
    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url, TRISTAGE_API_KEYS="me:0123456789abcdef") as guarded,
    ):
        page = open_page(guarded)
        key = page.get_by_label("This gateway asks for an API key")
        key.fill("0123456789abcdef")
        key.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Triton answers")
        expect(key).to_be_hidden()
        page.close()
        open_page.faults[:] = [fault for fault in open_page.faults if "401 (Unauthorized)" not in fault]


def test_the_docs_need_no_network(open_page: Any, url: str) -> None:
    page = open_page(url)
    page.goto(f"{url}/docs")
    expect(page.get_by_text("/v1/predict")).to_be_visible()
    page.get_by_text("/v1/predict").click()
    expect(page.get_by_text("user.age").first).to_be_visible()
