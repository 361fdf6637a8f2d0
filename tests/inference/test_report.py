import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from visionattn.inference.report import Report


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


NASTY = '<script>alert("1")</script>&amp;\' "x.png'


def test_page_holds_its_pictures_and_escapes_names(tmp_path):
    cv2 = pytest.importorskip("cv2")
    with Report(tmp_path / "report.html", "A <b>run</b>", {"config": NASTY}) as report:
        report.add({"file": NASTY, "overlay": "a b#?.png"}, np.full((400, 800, 3), (0, 0, 200), np.uint8), ["red 2"])
        report.add({"file": "cut.jpg", "error": "damaged <i>"}, None, [])
        report.summary, report.legend = "2 images & <i>", [("<b>red", (0, 10, 250), "2")]
        assert not (tmp_path / "report.html").exists()
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "b", "i", "link"}
    (image,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert image["alt"] == NASTY
    data = base64.b64decode(image["src"].removeprefix("data:image/webp;base64,"))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (160, 320, 3)
    np.testing.assert_allclose(picture.mean((0, 1)), (0, 0, 200), atol=3)
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"] == ["a%20b%23%3F.png"]
    assert {"red 2", "damaged <i>", NASTY, "2 images & <i>", "<b>red 2"} <= set(page.text)
    assert [attrs["style"] for tag, attrs in page.tags if tag == "span"] == ["background: rgb(250, 10, 0)"]
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "figure"] == [None, "failed"]
    assert not re.search(r"https?://", text)


def test_an_error_leaves_an_earlier_page_as_it_was(tmp_path):
    (tmp_path / "report.html").write_text("before")
    with pytest.raises(KeyError), Report(tmp_path / "report.html", "x", {}):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "before"
