"""The results page, driven in a headless Chromium as a reader would drive it: from disk, by mouse, key and finger."""

import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments.page import build

AWKWARD = """<script>alert("x")</script> & 'quotes' <!--results--> \\1 naïve – 中文"""
LONG = "unbroken" * 20
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGS += ["--disable-component-update", "--disable-sync"]
DEPTH, TIME = 3, 4
RNG = np.random.default_rng(0)
CODES = ["lstm = scan(residual(b), TIME)", "grid = wavefront(residual(b))", "net = scan(turn(residual(b)), DEPTH)"]
NAMES = ["LSTM", "wavefront", "ResNet"]
VALUES = [10.0 ** RNG.uniform(-6, 0, (DEPTH, TIME)) for _ in NAMES]


# fmt: off
def stop(n: int) -> dict:
    return {"angle": 45 * n, "name": NAMES[n], "code": CODES[n], "caption": f"caption {n} {AWKWARD}",
            "values": VALUES[n].tolist(), "unit": "norm"}


def claim(name: str, verdict: str, statement: str = AWKWARD) -> dict:
    return {"id": name, "statement": statement, "source": "the source", "paper": "6.43 %", "ours": "6.5 ± 0.1 %",
            "verdict": verdict, "rule": "the rule"}


def result(figure: Path, name: str = "rotation", **also) -> dict:
    return {
        "experiment": name, "title": f"Title & <b>{name}</b>", "command": f"python -m x.{name} --x '<{LONG}>'",
        "claims": [claim("A-1", "reproduced"), claim("B-2", "contradicted", LONG)], "preset": "quick", "seeds": 5,
        "origin": "this run", "config": {"a": "</script>"}, "figure": str(figure), "figure_caption": AWKWARD,
        "table": {"columns": ["model", *"abcdefgh"], "rows": [[LONG, *[1.23456789] * 8]]}, "load": [0.5, 0.6, 0.7],
        "data": {"name": "digits", "sha256": "0123456789abcdef" * 4, "note": AWKWARD}, "hardware": "a CPU, 2 cores",
        "seconds": 83.2, "date": "2026-01-31", "versions": {"jax": "0.10.2"},
    } | also
# fmt: on


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    matplotlib.image.imsave(folder / "figure.png", RNG.uniform(size=(40, 900)))
    claims = [claim("C-3", "inconclusive"), claim("D-4", "out of reach here")]
    grid = {"depth": DEPTH, "time": TIME, "stops": [stop(2), stop(0), stop(1)]}
    first = result(folder / "figure.png", grid=grid)
    second = result(folder / "figure.png", "second", origin="the published result", claims=claims)
    pending = [{"id": "E-5", "statement": AWKWARD, "source": "later", "paper": "no number"}]
    build([first, second], folder / "new" / "page.html", pending=pending)
    return folder / "new" / "page.html"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the path")
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=executable, headless=True, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, written):
    """Opens the page; after the test, checks that it complained of nothing and asked the network for nothing."""
    contexts, complaints = [], []

    def visit(**options):
        context = browser.new_context(**({"reduced_motion": "reduce"} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: re.match("file:|data:", request.url) or complaints.append(request.url))
        page.goto(written.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def box(page, layer: int, k: int) -> tuple[float, float]:
    """The middle of a cell on the screen."""
    found = page.locator(f'[data-l="{layer}"][data-k="{k}"]').bounding_box()
    return found["x"] + found["width"] / 2, found["y"] + found["height"] / 2


def shows(page, n: int) -> bool:
    """Whether everything that names the stop shows the n-th one."""
    pressed = [button.get_attribute("aria-pressed") for button in page.locator(".stops button").all()]
    return (
        page.locator(".angle").inner_text() == f"{45 * n}°"
        and page.locator(".name").inner_text() == NAMES[n]
        and page.locator(".code").inner_text() == CODES[n]
        and page.locator(".code mark").inner_text() == ["residual", "wavefront", "turn(residual"][n]
        and page.locator(".caption").inner_text() == stop(n)["caption"]
        and page.locator("#turn").get_attribute("aria-valuetext") == f"{45 * n} degrees: {NAMES[n]}"
        and pressed == [str(m == n).lower() for m in range(3)]
    )


def test_the_slider_turns_by_keyboard(visit):
    page = visit()
    assert shows(page, 0)
    page.locator("#turn").focus()
    page.keyboard.press("End")
    assert shows(page, 2)
    page.keyboard.press("ArrowLeft")
    assert page.locator("#turn").get_attribute("aria-valuetext") == "89 degrees, nearest is ResNet"
    for _ in range(44):
        page.keyboard.press("ArrowLeft")
    assert shows(page, 1)
    page.keyboard.press("Home")
    assert shows(page, 0)


def test_the_slider_turns_by_mouse(visit):
    page = visit()
    place = page.locator("#turn").bounding_box()
    for n, at in [(2, place["width"] - 2), (1, place["width"] / 2), (0, 2)]:
        page.mouse.click(place["x"] + at, place["y"] + place["height"] / 2)
        assert shows(page, n)


def test_buttons_glide_to_their_stop(visit):
    page = visit(reduced_motion="no-preference")
    for n in (2, 0, 1):
        page.locator(".stops button").nth(n).click()
        page.locator(f'.turned[transform="rotate({-45 * n})"]').wait_for(state="attached")
        assert shows(page, n)
    page.locator(".go").click()
    page.locator(".later").first.wait_for(state="attached")  # the front runs,
    page.locator(".later, .now").first.wait_for(state="detached")  # and leaves nothing dimmed


def test_the_cells_have_the_colours_of_their_values(visit):
    page = visit()
    fills = []
    for n in range(3):
        page.locator(".stops button").nth(n).click()
        fill = page.eval_on_selector_all(".cell", "cells => cells.map(cell => getComputedStyle(cell).fill)")
        rgb = np.array([list(map(int, re.findall(r"\d+", colour))) for colour in fill])
        brightness = rgb @ [0.2126, 0.7152, 0.0722]
        assert np.array_equal(np.argsort(brightness), np.argsort(VALUES[n].ravel()))
        fills.append(rgb)
    assert (fills[0] != fills[1]).any(axis=1).all() and (fills[1] != fills[2]).any(axis=1).all()
    assert [68, 1, 84] in np.concatenate(fills).tolist() and [253, 231, 37] in np.concatenate(fills).tolist()


def test_the_grid_really_turns(visit):
    page = visit()
    (x, y), (along_x, along_y), (over_x, over_y) = box(page, 0, 0), box(page, 0, 1), box(page, 1, 0)
    size = along_x - x
    assert size > 10 and along_y == pytest.approx(y)  # the stream runs to the right
    assert over_x == pytest.approx(x) and over_y == pytest.approx(y - size)  # and line 1 lies above line 0
    page.locator(".stops button").nth(2).click()
    (x, y), (along_x, along_y) = box(page, 0, 0), box(page, 0, 1)
    assert along_x == pytest.approx(x, abs=0.1) and along_y == pytest.approx(y - size, abs=0.1)  # upwards
    page.locator(".stops button").nth(1).click()
    rows = [[box(page, n, s - n)[1] for n in range(DEPTH) if 0 <= s - n < TIME] for s in range(DEPTH + TIME - 1)]
    for row in rows:
        assert row == pytest.approx([row[0]] * len(row), abs=0.1)
    assert np.diff([row[0] for row in rows]) == pytest.approx(-size / 2**0.5, abs=0.1)  # each tick above the last
    assert page.locator(".now").count() == DEPTH  # with reduced motion the front stands still at the middle tick
    page.locator(".go").click()
    assert "Tick 4 of 6" in page.locator(".ticks").inner_text()
    assert {page.locator(".now").nth(n).get_attribute("data-k") for n in range(3)} == {"1", "2", "3"}


def test_a_finger_turns_the_grid_and_reads_a_cell(visit):
    page = visit(has_touch=True, viewport={"width": 360, "height": 800})
    page.touchscreen.tap(*box(page, 2, 3))
    assert page.locator(".reading").inner_text().startswith("Layer 3, step 4: ")
    finger = page.context.new_cdp_session(page)
    svg = page.locator("svg").bounding_box()
    middle = np.array([svg["x"] + svg["width"] / 2, svg["y"] + svg["height"] / 2])
    for n, angle in enumerate(range(0, 89, 4)):  # to 88 degrees, from where it snaps to 90
        x, y = middle + 0.3 * svg["width"] * np.array([np.cos(np.radians(angle)), -np.sin(np.radians(angle))])
        kind, points = "touchMove" if n else "touchStart", [{"x": x, "y": y}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        if angle == 60:
            page.locator(".angle:text-is('60°')").wait_for()
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.locator(".angle:text-is('90°')").wait_for()
    assert shows(page, 2) and page.evaluate("scrollY") == 0


def test_cells_are_read_by_pointer_and_keyboard(visit):
    page = visit()
    reading = page.locator(".reading")
    page.mouse.move(*box(page, 1, 2))
    shown = reading.inner_text().removeprefix("Layer 2, step 3: ").removesuffix(" (norm)")
    shown = float(shown.replace(" × 10", "e").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    assert shown == pytest.approx(VALUES[0][1, 2], rel=0.06)  # two digits
    page.locator('.cell[tabindex="0"]').focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft"):  # the last leads out of the grid: it stays
        page.keyboard.press(key)
    assert reading.inner_text().startswith("Layer 2, step 1: ")
    page.evaluate(
        "() => { const s = document.querySelector('#turn'); s.value = 20; s.dispatchEvent(new Event('input')); }"
    )
    assert "blended, between" in reading.inner_text()


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_claims_are_readable_with_and_without_script_and_never_scroll_sideways(visit, script, scheme):
    page = visit(java_script_enabled=script, color_scheme=scheme, viewport={"width": 360, "height": 800})
    text = page.locator("main").inner_text()
    for verdict in ("reproduced", "contradicted", "inconclusive", "out of reach here", "not run yet"):
        assert page.locator(f".claim .badge:has-text('{verdict}')").count() == 1
        assert page.locator(f".overview .badge:has-text('{verdict}')").count() == 1
    assert text.count(AWKWARD) >= 8 and "this run" in text and "published result" in text  # literally, not as markup
    assert "1 min 23 s" in text and "0123456789ab…" in text and f"--x '<{LONG}>'" in text and "1.235" in text
    for link in page.locator(".overview a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    assert page.locator("img").count() == 2 and all(image.get_attribute("alt") for image in page.locator("img").all())
    assert page.locator("noscript li").count() == 0 if script else all(code in text for code in CODES)
    if script:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("[...document.images].every(image => image.naturalWidth == 900)")


def test_the_command_is_copied(visit):
    page = visit()
    page.locator(".copy").first.click()
    page.locator(".copy:text-matches('copied|selected')").wait_for()


def test_without_a_grid_there_is_no_widget_and_a_ragged_one_is_refused(tmp_path):
    build([], tmp_path / "empty.html")
    assert "grid-data" not in re.sub("(?s)<script>.*?</script>", "", (tmp_path / "empty.html").read_text("utf-8"))
    ragged = {"stops": [stop(0), stop(1) | {"values": [[1.0]]}]}
    with pytest.raises(ValueError, match="rectangles of one shape"):
        build([{"grid": ragged, "experiment": "x", "title": "x"}], tmp_path / "ragged.html")
