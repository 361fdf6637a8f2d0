"""Records of a run and the picture made of them."""

import json

import cv2
import pytest

pytest.importorskip("mmengine")

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.train.curve import METRICS_FILE, cut_records, draw_curve, read_records, short_names
from visionattn.engine.train.progress import format_metrics


def write(folder, lines) -> None:
    (folder / METRICS_FILE).write_text("\n".join(json.dumps(line) for line in lines))


def test_curve_is_a_picture_with_something_on_it(tmp_path):
    assert draw_curve(tmp_path) is None
    write(tmp_path, [{"iter": i, "loss": 3 / i} for i in range(1, 9)] + [{"iter": 8, "val": {"AP": 0.4, "AP50": 0.7}}])
    path = draw_curve(tmp_path, "digits")
    image = cv2.imread(str(path))
    assert path == tmp_path / "curve.png"
    assert min(image.shape[:2]) > 400
    assert image.std() > 5


def test_many_metrics_are_named_inside_of_the_picture(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    saved = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: (saved(self, *a, **k), drawn.append(self)))
    levels = [f"AP_bev_{n}_{level}" for level in ("moderate", "easy") for n in "abcd"]
    write(tmp_path, [{"iter": i, "loss": 3 / i, "val": dict.fromkeys(levels, 50.0)} for i in range(1, 9)])
    draw_curve(tmp_path)
    (legend,) = drawn[0].legends
    assert [t.get_text() for t in legend.get_texts()] == ["training loss", *(f"AP_bev_{n}_moderate" for n in "abcd")]
    box, page = legend.get_window_extent(), drawn[0].bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1


def test_last_line_cut_by_a_kill(tmp_path):
    write(tmp_path, [{"iter": 1, "loss": 1.0}, {"iter": 2, "loss": 1.0}])
    with open(tmp_path / METRICS_FILE, "a") as stream:
        stream.write('\n{"iter": 3, "lo')
    assert [r["iter"] for r in read_records(tmp_path)] == [1, 2]
    cut_records(tmp_path, 1)
    assert (tmp_path / METRICS_FILE).read_text() == '{"iter": 1, "loss": 1.0}\n'


def test_short_names():
    metrics = {"coco/bbox_mAP_50": 0.7, "coco/bbox_mAP": 0.4, "coco/segm_mAP": 0.3, "mIoU": 45.2, "time": 0.1}
    assert list(short_names(metrics).items()) == [("AP", 0.4), ("AP50", 0.7), ("mask AP", 0.3), ("mIoU", 45.2)]


def test_format_metrics():
    assert format_metrics({"AP": 0.4312, "APl": -1.0, "mIoU": 45.21}) == "AP 0.431  mIoU 45.2"
