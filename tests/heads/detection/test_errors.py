"""Error types and their costs against a second, plain implementation of the definition of TIDE."""

import json
from collections import Counter

import numpy as np
import pytest
from fixtures.detections import CLASSES, write_case

pytest.importorskip("pycocotools")

from pycocotools import mask as coco_mask

from visionattn.heads.detection.analysis import load_objects
from visionattn.heads.detection.errors import TYPES, error_costs, find_errors
from visionattn.heads.detection.matching import match


def analyze(truth, found, classes, kind="bbox"):
    """Counts and costs of the package."""
    objects, detections, ids = load_objects(truth, found, classes, kind)
    matches = match(detections, objects, len(ids))
    errors = find_errors(detections, objects, matches)
    return errors.counts(), error_costs(detections, objects, matches, errors, len(classes))


def plain_ap(entries, objects):
    """AP of (score, correct) with 101 recall values, by its definition: the best precision at each recall or above."""
    entries = sorted(entries, key=lambda e: -e[0])
    points, right = [], 0
    for number, (_, correct) in enumerate(entries, 1):
        right += correct
        points.append((right / objects, right / number))
    recalls = np.linspace(0, 1, 101)
    return sum(max((p for r, p in points if r >= recall), default=0.0) for recall in recalls) / 101


def plain_tide(truth, found, kind):
    """Counts and costs with loops over single detections, from the description in the paper (section 2)."""
    truth, found = json.loads(truth.read_text()), json.loads(found.read_text())
    key = "bbox" if kind == "bbox" else "segmentation"
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    crowds = [a for a in truth["annotations"] if a["iscrowd"]]

    def iou(d, a):
        if d["image_id"] != a["image_id"]:
            return 0.0
        if kind == "segm":
            return float(coco_mask.iou([d[key]], [a[key]], [a["iscrowd"]])[0, 0])
        (x, y, w, h), (u, v, p, q) = d["bbox"], a["bbox"]
        common = max(0, min(x + w, u + p) - max(x, u)) * max(0, min(y + h, v + q) - max(y, v))
        return common / (w * h if a["iscrowd"] else w * h + p * q - common)

    found = sorted(found, key=lambda d: (d["image_id"], -d["score"]))  # stable
    owner, ignored = {}, set()
    for index, d in enumerate(found):
        free = [
            a for a in objects if a["id"] not in owner and a["category_id"] == d["category_id"] and iou(d, a) >= 0.5
        ]
        if free:
            best = max(iou(d, a) for a in free)
            owner[[a for a in free if iou(d, a) == best][-1]["id"]] = index
        elif any(a["category_id"] == d["category_id"] and iou(d, a) >= 0.5 for a in crowds):
            ignored.add(index)
    correct = set(owner.values())
    kinds, targets = {}, {}
    for index, d in enumerate(found):
        if index in correct or index in ignored:
            continue
        own = [a for a in objects if a["category_id"] == d["category_id"]]
        other = [a for a in objects if a["category_id"] != d["category_id"]]
        best_own, best_other = (max(group, key=lambda a: iou(d, a), default=None) for group in (own, other))
        value_own, value_other = (0.0 if a is None else iou(d, a) for a in (best_own, best_other))
        if 0.1 <= value_own <= 0.5:
            kinds[index], targets[index] = "localization", best_own["id"]
        elif value_other >= 0.5:
            kinds[index], targets[index] = "classification", best_other["id"]
        elif any(iou(d, a) >= 0.5 and a["id"] in owner for a in own):
            kinds[index] = "duplicate"
        elif max(value_own, value_other) <= 0.1:
            kinds[index] = "background"
        else:
            kinds[index] = "both"
    repaired = {}  # object: its error with the highest score
    for index, target in targets.items():
        if target not in owner and (target not in repaired or found[repaired[target]]["score"] < found[index]["score"]):
            repaired[target] = index
    by_id = {a["id"]: a for a in objects}
    missed = [a for a in objects if a["id"] not in owner and a["id"] not in repaired]
    evaluated = {a["category_id"] for a in objects}

    def score(corrected=None, only=None, without=()):
        total = Counter(a["category_id"] for a in objects) - Counter(a["category_id"] for a in without)
        entries = {c: [] for c in evaluated}
        for index, d in enumerate(found):
            category = d["category_id"]
            right = index in correct
            if index in ignored or (only == "correct" and not right):
                continue
            if kinds.get(index) == corrected and corrected is not None:
                if index not in repaired.values():
                    continue
                category, right = by_id[targets[index]]["category_id"], True
            if category in entries:
                entries[category].append((d["score"], right))
        values = [plain_ap(entries[c], total[c]) if total[c] else 0.0 for c in evaluated if total[c] or entries[c]]
        return sum(values) / len(values)

    base = score()
    costs = {name: max(score(corrected=name) - base, 0) for name in TYPES[:-1]}
    costs["missed"] = max(score(without=missed) - base, 0)
    costs["false positives"] = score(only="correct") - base
    costs["false negatives"] = score(without=[a for a in objects if a["id"] not in owner]) - base
    counts = Counter(kinds.values())
    counts["missed"] = len(missed)
    return {name: counts[name] for name in TYPES}, costs | {"AP50": base}


@pytest.mark.parametrize(("kind", "seed"), [("bbox", 0), ("bbox", 1), ("bbox", 2), ("segm", 3)])
def test_random_errors(tmp_path, kind, seed):
    files = write_case(tmp_path, seed, masks=kind == "segm")
    counts, costs = analyze(*files, CLASSES, kind)
    expected_counts, expected = plain_tide(*files, kind)
    assert counts == expected_counts
    assert all(counts[name] for name in TYPES)
    assert costs == pytest.approx(expected, abs=1e-9)


def as_rle(content):
    """Replace polygons and uncompressed masks."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for a in content["annotations"]:
        if isinstance(a["segmentation"], list) or isinstance(a["segmentation"]["counts"], list):
            code = coco_mask.frPyObjects(a["segmentation"], *sizes[a["image_id"]])
            code = coco_mask.merge(code) if isinstance(code, list) else code
            a["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}


@pytest.mark.parametrize(
    ("model", "data", "images", "kind"), [("blood-cells", "bccd", 8, "bbox"), ("nuclei", "nuclei", 3, "segm")]
)
def test_models_of_the_package(shared_dir, tmp_path, model, data, images, kind):
    """The costs in the report on public data; figures of tidecv for all images are in docs/analysis.md."""
    pytest.importorskip("mmdet")
    from visionattn.cli import main

    content = json.loads((shared_dir / f"data/{data}/instances_val.json").read_text())
    content["images"] = content["images"][:images]
    chosen = {image["id"] for image in content["images"]}
    content["annotations"] = [{**a, "iscrowd": 0} for a in content["annotations"] if a["image_id"] in chosen]
    if kind == "segm":
        as_rle(content)
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(content))
    options = [f"custom_data.root={shared_dir}/data/{data}", f"custom_data.val_ann={truth}",
               f"custom_data.val_img={shared_dir}/data/{data}/images/val"]  # fmt: skip
    assert main(["test", "--model", model, "--report", "--out", str(tmp_path / "out"), "--cfg-options", *options]) == 0
    counts, costs = plain_tide(truth, tmp_path / f"out/predictions.{kind}.json", kind)
    found = json.loads((tmp_path / "out/analysis.json").read_text())["errors"]
    assert {name: found[name]["number"] for name in TYPES} == counts
    for name, entry in found.items():
        assert entry["cost"] == pytest.approx(100 * costs[name], abs=2e-3)
    assert sum(counts.values()) > 100


def test_nothing_detected(tmp_path):
    truth, found = write_case(tmp_path, 0, detections=0)
    assert json.loads(found.read_text()) == []
    counts, costs = analyze(truth, found, CLASSES)
    assert counts["missed"] == sum(not a["iscrowd"] for a in json.loads(truth.read_text())["annotations"])
    assert costs["AP50"] == 0
    assert costs["localization"] == costs["false positives"] == 0


def test_no_ground_truth(tmp_path):
    truth, found = write_case(tmp_path, 0, objects=0)
    counts, costs = analyze(truth, found, CLASSES)
    assert counts["background"] == len(json.loads(found.read_text())) > 0
    assert set(costs.values()) == {0.0}
