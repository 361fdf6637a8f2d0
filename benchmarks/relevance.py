"""Relevance propagation: conservation of the logit, and deletion and insertion curves against LayerCAM and random.

    nice -n 10 python benchmarks/relevance.py FOLDER [--models resnet18] [--epochs 10] [--images 50]

FOLDER holds photographs with boxes in the format of COCO: ``boxes_train2017.json`` and ``boxes_val2017.json``, with the
images in ``images/train2017`` and ``images/val2017``. The networks are trained here on crops of the ten most frequent
classes, since pretrained weights may not be available; some of the photographs are held out for the curves.

Deletion and insertion follow Petsiuk et al. (arXiv 1806.07421): the pixels with the highest values are set to the mean
color, or inserted into a blurred photograph, and the area is that under the probability of the predicted class. A good
map has a small area of deletion and a large one of insertion.
"""

import argparse
import csv
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from common import RESULTS, machine, write_csv
from torch import Tensor, nn

import visionattn  # noqa: F401  (registers the models)
from visionattn.inference.explain.layercam import class_relevance
from visionattn.inference.explain.relevance import PUBLISHED, RULES, propagate_relevance, relevance_heatmap
from visionattn.inference.explain.salient import salient_relevance

SIZE = 80
CLASSES = 10
STEPS = 10
MODELS = {"resnet18": {}, "vit_small_patch16_224": {"img_size": SIZE}, "dinat_mini": {"drop_path_rate": 0.0}}
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def load(path: Path) -> np.ndarray:
    return cv2.imread(str(path))


def tensor(image: np.ndarray) -> Tensor:
    resized = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)[:, :, ::-1]
    return (torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 255 - MEAN) / STD


def read(folder: Path, held_out: int) -> tuple[Tensor, Tensor, list[Path]]:
    """Return crops ``[N, 3, SIZE, SIZE]``, their classes, and the photographs that no crop was taken from."""
    boxes, names = [], {}
    for part in ("train2017", "val2017"):
        data = json.loads((folder / f"boxes_{part}.json").read_text())
        files = {image["id"]: folder / "images" / part / image["file_name"] for image in data["images"]}
        names.update({category["id"]: category["name"] for category in data["categories"]})
        boxes += [(files[a["image_id"]], a["category_id"], a["bbox"]) for a in data["annotations"]]
    photographs = sorted({file for file, _, _ in boxes})
    test = [photographs[i] for i in np.random.default_rng(0).permutation(len(photographs))[:held_out]]
    boxes = [box for box in boxes if box[0] not in set(test) and min(box[2][2:]) >= 16]
    kept = [number for number, _ in Counter(box[1] for box in boxes).most_common(CLASSES)]
    print("classes:", ", ".join(names[number] for number in kept))
    crops, labels = [], []
    for file, number, (x, y, width, height) in boxes:
        if number in kept:
            image, margin = load(file), 0.1 * max(width, height)
            left, top = int(max(0, x - margin)), int(max(0, y - margin))
            crops.append(tensor(image[top : int(y + height + margin), left : int(x + width + margin)]))
            labels.append(kept.index(number))
    return torch.stack(crops), torch.tensor(labels), sorted(test)


def train(model: nn.Module, crops: Tensor, labels: Tensor, epochs: int) -> float:
    """Train on crops with equal shares of the classes, and return their accuracy."""
    torch.manual_seed(0)
    weights = 1 / labels.bincount().float()[labels]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    steps = epochs * len(crops) // 32
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = torch.multinomial(weights, 32)
        images = torch.nn.functional.pad(crops[chosen], (8, 8, 8, 8), mode="reflect")
        top, left = torch.randint(17, (2,)).tolist()
        images = images[:, :, top : top + SIZE, left : left + SIZE]
        flipped = torch.rand(32) < 0.5
        images[flipped] = images[flipped].flip(3)
        loss = nn.functional.cross_entropy(model(images), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        return float((torch.cat([model(part) for part in crops.split(32)]).argmax(1) == labels).float().mean())


@torch.no_grad()
def curves(model: nn.Module, image: Tensor, heat: Tensor, label: int) -> tuple[float, float]:
    """Return the areas under the curves of deletion and insertion."""
    order = heat.flatten().argsort(descending=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    share = torch.linspace(0, 1, STEPS + 1).view(-1, 1, 1, 1)
    chosen = rank.view(1, 1, SIZE, SIZE) < share * len(order)
    blurred = torch.from_numpy(cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (0, 0), SIZE / 20)).permute(2, 0, 1)
    areas = []
    for images in (torch.where(chosen, 0.0, image), torch.where(chosen, image, blurred)):
        probability = model(images).softmax(1)[:, label]
        areas.append(float(torch.trapezoid(probability, dx=1 / STEPS)))
    return areas[0], areas[1]


def methods() -> dict[str, Callable[[nn.Module, Tensor, int], tuple[Tensor, float, float]]]:
    """Functions that return a map, and the errors of conservation with and without what biases absorb."""

    def lrp(rule: str | dict[str, str], salient: bool = False) -> Callable:
        def run(model: nn.Module, image: Tensor, label: int) -> tuple[Tensor, float, float]:
            found = propagate_relevance(model, image[None], torch.tensor([label]), rule)
            pixels = found.map.sum() / found.logits[0, label]
            heat = found.map[0].sum(0)
            if salient:
                heat = salient_relevance(relevance_heatmap(found.map)[0].mean(0))
            return heat, abs(1 - float(found.conservation)), abs(1 - float(pixels))

        return run

    nan = float("nan")
    return {
        **{f"LRP {rule}": lrp(rule) for rule in RULES},
        "LRP published": lrp(PUBLISHED),
        "salient relevance": lrp(PUBLISHED, salient=True),
        "LayerCAM": lambda model, image, label: (class_relevance(model, image[None], label), nan, nan),
        "random": lambda model, image, label: (torch.rand(SIZE, SIZE), nan, nan),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="other rows are kept")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=50, help="photographs that are held out")
    parser.add_argument("--work", type=Path, default=Path("relevance_work"), help="folder for the trained weights")
    parser.add_argument("--out", type=Path, default=RESULTS / "relevance.csv")
    args = parser.parse_args()
    crops, labels, photographs = read(args.folder, args.images)
    print(f"{len(crops)} crops, {len(photographs)} photographs held out; {machine()}")
    images = [tensor(load(file)) for file in photographs]
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    if args.out.exists():
        rows = [row for row in csv.DictReader(args.out.open()) if row["model"] not in args.models]
    for name in args.models:
        options = MODELS[name]
        torch.manual_seed(0)
        model, file = timm.create_model(name, num_classes=CLASSES, **options), args.work / f"{name}.pt"
        if file.exists():
            saved = torch.load(file, weights_only=True)
            accuracy = saved["accuracy"]
            model.load_state_dict(saved["weights"])
        else:
            start = time.perf_counter()
            accuracy = train(model, crops, labels, args.epochs)
            torch.save({"weights": model.state_dict(), "accuracy": accuracy}, file)
            print(f"{name}: trained in {time.perf_counter() - start:.0f} s, accuracy on the crops {accuracy:.2f}")
        model.eval()
        with torch.no_grad():
            chosen = [int(model(image[None]).argmax()) for image in images]
        for method, function in methods().items():
            torch.manual_seed(0)
            found = []
            for image, label in zip(images, chosen, strict=True):
                heat, *errors = function(model, image, label)
                found.append((*errors, *curves(model, image, heat, label)))
            values = torch.tensor(found)
            middle = values[:, :2].median(0).values.tolist()
            means = values[:, 2:].mean(0).tolist()
            names = ("conservation_error", "conservation_error_pixels", "deletion", "insertion")
            numbers = {key: "" if v != v else f"{v:.4g}" for key, v in zip(names, middle + means, strict=True)}
            rows.append(
                {"model": name, "accuracy": f"{accuracy:.3f}", "method": method, "images": len(images), **numbers}
            )
            print(rows[-1], flush=True)
        write_csv(args.out, rows)


if __name__ == "__main__":
    main()
