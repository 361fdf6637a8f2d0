"""The page: its files ask for nothing from elsewhere, and a browser shows and changes predictions."""

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from fixtures.paths import REPO
from fixtures.rectangles import RectangleModel, paint

from visionattn.inference.draw import class_color

PAGE = REPO / "visionattn/serve/page"
SCRIPTS = sorted(PAGE.glob("*.js"))
# scores of the model: 0.99, 0.98, 0.8
IMAGE = paint(64, 96, ("red", 5, 6, 15, 16), ("blue", 20, 8, 40, 20), ("blue", 42, 2, 92, 52))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_nothing_is_loaded_from_elsewhere():
    for path in PAGE.iterdir():
        text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|//[a-z]+\.|@import|@font-face|url\(", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", html), "the content policy forbids these"


def test_scripts_and_page_fit_together():
    html = (PAGE / "index.html").read_text()
    ids = set(re.findall(r'\bid="(\w+)"', html))
    text = "".join(path.read_text() for path in SCRIPTS)
    used = set(re.findall(r'(?:\bat|getElementById)\("(\w+)"\)', text))
    assert used <= ids
    for name in re.findall(r'"(?:page|\.)/([\w.]+)"', html + text):
        assert name == "colors.png" or (PAGE / name).is_file()
    for field in re.findall(r"<(?:input|select)[^>]*>", html):
        known = re.search(r'id="(\w+)"', field)[1]
        labelled = "aria-label" in field or re.search(rf'<label[^>]*>(?:(?!</label>).)*id="{known}"', html, re.S)
        assert labelled, f"{known} has no label"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def address(serve_http, attention_model) -> str:
    """The address of a running server with a model of boxes that has attention, twice, and a semantic one."""
    models = {"boxes": attention_model, "map": RectangleModel(job="semantic"), "more": attention_model}
    return f"http://127.0.0.1:{serve_http(models)}/"


@pytest.fixture
def page(browser, address):
    """The open page; the test fails if it reports an error or asks another server."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.problems, page.requests = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address)
    page.locator("#model option").first.wait_for(state="attached")
    yield page
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith((address, "data:", "blob:"))] == []
    context.close()


def upload(page, content: bytes, name: str = "cells.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def sent(page) -> int:
    return sum(url.endswith(("/predict", "/attention")) for url in page.requests)


def set_slider(page, name: str, value: float) -> None:
    page.locator(f"#{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def status_is(page, text: str) -> None:
    page.locator("#status", has_text=text).wait_for(timeout=20000)


def point(page, x: float, y: float) -> tuple[float, float]:
    """Return the position on the screen of a pixel of the picture, after it was fitted into the view."""
    frame = page.locator(".view canvas").first.bounding_box()
    k = min((frame["width"] - 24) / 96, (frame["height"] - 84) / 64, 16)
    left = frame["x"] + (frame["width"] - k * 96) / 2
    top = frame["y"] + 12 + (frame["height"] - 84 - k * 64) / 2
    return left + k * x, top + k * y


def shade(page, x: float, y: float) -> list[int]:
    """Return the color that is shown at a pixel of the picture."""
    left, top = point(page, x, y)
    frame = page.locator(".view canvas").first.bounding_box()
    script = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)]"
    return page.locator(".view canvas").first.evaluate(script, [left - frame["x"], top - frame["y"]])


def test_threshold_and_classes_need_no_request(page, as_png, tmp_path):
    upload(page, as_png(IMAGE))
    status_is(page, "3 objects with a score of at least 0.30")
    assert page.locator(".found li").count() == 3
    assert page.locator(".legend .count").all_inner_texts() == ["2", "1"]
    assert sent(page) == 1
    assert shade(page, 42.06, 30) != shade(page, 60, 30), "the border of the box is drawn"
    blue, green, red = class_color(1)
    assert shade(page, 60, 30) == pytest.approx([red / 2, green / 2, (blue + 255) / 2], abs=2), "half of each color"
    set_slider(page, "opacity", 0)
    page.wait_for_timeout(100)
    assert shade(page, 60, 30) == [0, 0, 255]
    set_slider(page, "opacity", 1)
    page.wait_for_timeout(100)
    assert shade(page, 60, 30) == [red, green, blue]
    set_slider(page, "threshold", 0.9)
    status_is(page, "2 objects with a score of at least 0.90")
    page.wait_for_timeout(100)
    assert shade(page, 42.06, 30) == shade(page, 60, 30) == [0, 0, 255]
    page.get_by_role("checkbox", name="red").uncheck()
    status_is(page, "1 of 2 objects")
    assert page.locator(".found li").all_inner_texts()[0].startswith("blue 0.98")
    assert sent(page) == 1
    with page.expect_download() as started:
        page.get_by_role("button", name="JSON", exact=True).click()
    started.value.save_as(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    (record,) = content["images"]
    assert content["settings"]["score_thr"] == 0.9
    assert [entry["bbox"] for entry in record["detections"]] == [[20, 8, 20, 12]]
    with page.expect_download() as started:
        page.get_by_role("button", name="PNG", exact=True).click()
    started.value.save_as(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[16:24] == (96).to_bytes(4, "big") + (64).to_bytes(4, "big")
    code = page.locator("#code").inner_text()
    assert 'Predictor.from_pretrained("boxes", score_thr=0.9)' in code
    assert 'hidden = ["red"]' in code
    compile(code, "code", "exec")
    page.get_by_role("tab", name="curl").click()
    assert "-F 'files=@cells.png'" in page.locator("#code").inner_text()


def test_a_click_shows_attention(page, as_png):
    upload(page, as_png(IMAGE))
    status_is(page, "3 objects")
    page.get_by_role("button", name="Attention").click()
    page.mouse.click(*point(page, 50, 20))
    status_is(page, "Attention from 50, 20 is shown")
    assert page.locator("#attention .heads button").count() == 4, "the mean and three heads"
    page.locator("#attention .heads button").nth(2).click()
    assert page.locator("#attention .heads button").nth(2).get_attribute("aria-pressed") == "true"
    assert sent(page) == 2
    page.locator(".view canvas").focus()
    page.keyboard.press("ArrowRight")
    status_is(page, "Press Enter for its attention")
    page.keyboard.press("Enter")
    status_is(page, "Attention from 53, 20 is shown")
    page.keyboard.press("Escape")
    status_is(page, "3 objects")
    assert page.locator("#attention section").count() == 0


def test_a_change_of_the_model_asks_for_a_point_again(page, as_png):
    upload(page, as_png(paint(64, 96)))
    page.locator("#results", has_text="nothing found").wait_for()
    assert page.locator("#model option").all_inner_texts() == [
        "boxes (detection)", "map (semantic segmentation)", "more (detection)"
    ]  # fmt: skip
    page.get_by_role("button", name="Attention").click()
    page.mouse.click(*point(page, 50, 20))
    status_is(page, "Attention from 50, 20 is shown")
    assert page.locator("#attention .heads button").nth(1).inner_text().startswith("head 0, maximum 0.")
    page.select_option("#model", "more")
    status_is(page, "Click a point of the picture")
    assert page.locator("#attention section").count() == 0
    page.select_option("#model", "map")
    page.locator("#attend").wait_for(state="hidden")


def test_keys_and_wheel_zoom_and_pan(page, as_png):
    upload(page, as_png(IMAGE))
    status_is(page, "3 objects")
    fitted = page.locator("#zoom").inner_text()
    page.locator(".view canvas").focus()
    page.keyboard.press("+")
    zoomed = int(page.locator("#zoom").inner_text()[:-1])
    assert zoomed == pytest.approx(1.25 * int(fitted[:-1]), rel=0.01)
    page.keyboard.press("0")
    assert page.locator("#zoom").inner_text() == fitted
    page.mouse.move(*point(page, 60, 30))
    assert page.locator("#tip").inner_text() == "blue 0.80"
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert int(page.locator("#zoom").inner_text()[:-1]) > int(fitted[:-1])
    page.get_by_role("button", name="Fit").click()
    before = shade(page, 1, 1)
    page.locator(".view canvas").focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(100)
    assert shade(page, 1, 1) != before, "the picture has moved away"


def test_comparison_maps_and_pictures_that_fail(page, as_png):
    upload(page, as_png(IMAGE), "<img src=x onerror=alert(1)>.png")
    status_is(page, "3 objects")
    page.select_option("#other", "map")
    page.locator(".block h3", has_text="map").wait_for()
    assert page.locator(".view").count() == 2
    texts = page.get_by_label("Classes of map").locator(".count").all_inner_texts()
    assert texts == ["44.6%", "1.6%"]  # 2740 and 100 of 6144 pixels
    upload(page, b"no picture", "broken.png")
    page.locator("#message", has_text="broken.png: not an image").wait_for()
    assert page.locator("#pictures li").count() == 2
    page.get_by_role("button", name="Remove broken.png").click()
    page.locator("#message").wait_for(state="hidden")
    page.problems[:] = [text for text in page.problems if "415" not in text]


def test_dropped_and_pasted_files(page, as_png):
    script = """([bytes, kind]) => {
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(bytes)], kind + ".png", { type: "image/png" }));
        document.body.dispatchEvent(kind === "drop"
            ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
    }"""
    for number, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(script, [list(as_png(IMAGE)), kind])
        page.get_by_role("button", name=f"{kind}.png", exact=True).wait_for()
        status_is(page, "3 objects")
        assert page.locator("#pictures li").count() == number


def test_narrow_screens_and_files_that_browsers_cannot_show(page, as_png):
    page.set_viewport_size({"width": 360, "height": 740})
    upload(page, as_png(IMAGE, "TIFF"), "scan.tif")
    status_is(page, "3 objects")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#zoom").wait_for()
    assert sum(map(abs, shade(page, 60, 30))) > 0, "the server returned a preview"
