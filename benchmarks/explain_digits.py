"""Pictures for docs/attention_maps.md: a ResNet and a ViT, trained here on digits drawn onto photographs.

    python benchmarks/explain_digits.py [--steps 220] [--out outputs/explain_digits]

Writes the pages of both models, docs/attention_relevance.jpg and docs/attention_heads.png. The digits and photographs
are those of scikit-learn, as in `visionattn data samples`.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from sklearn import datasets
from torch import Tensor, nn

from visionattn.data.digits import background, draw_digit, load_photos
from visionattn.inference.explain.loading import prepare
from visionattn.inference.explain.overview import write_overview
from visionattn.inference.explain.page import write_image_page
from visionattn.inference.explain.survey import survey_heads

DOCS = Path(__file__).parents[1] / "docs"
SIZE = 64
BATCH = 32
CLASSES = 4  # digits 0 to 3, which are learned in minutes


class Digits:
    """Photographs with one digit each; the digits and photographs of the two halves differ."""

    def __init__(self, half: str, seed: int):
        self.rng = np.random.default_rng(seed)
        data = datasets.load_digits()
        chosen = np.flatnonzero(data.target < CLASSES)
        chosen = chosen[:550] if half == "left" else chosen[550:]
        self.half, self.glyphs, self.labels = half, data.images[chosen].astype(np.float32) / 16, data.target[chosen]
        self.photos = list(load_photos(Path(datasets.__file__).parent / "images")[1].values())

    def draw(self, size: int = SIZE) -> tuple[np.ndarray, int]:
        index, photo = self.rng.integers(len(self.glyphs)), self.photos[self.rng.integers(len(self.photos))]
        image = (0.4 * background(self.rng, photo, self.half, size)).astype(np.uint8)  # most digits are then brighter
        draw_digit(self.rng, image, self.glyphs[index], float(self.rng.uniform(0.6, 0.8)) * size, [])
        return image, int(self.labels[index])


def batch(model: nn.Module, digits: Digits, count: int) -> tuple[Tensor, Tensor]:
    images, labels = zip(*(digits.draw() for _ in range(count)), strict=True)
    return torch.cat([prepare(image, model, SIZE) for image in images]), torch.tensor(labels)


def train(model: nn.Module, steps: int, rate: float) -> None:
    digits, optimizer = Digits("left", 0), torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for step in range(steps):
        images, labels = batch(model, digits, BATCH)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}, loss {float(loss.detach()):.3f}", flush=True)
    model.eval()
    with torch.no_grad():
        images, labels = batch(model, Digits("right", 1), 200)
        print(
            f"accuracy on other digits and photographs: {float((model(images).argmax(1) == labels).float().mean()):.2f}"
        )


def relevance(model: nn.Module, out: Path, rows: int = 2) -> None:
    """Write the page of some photographs, and their pictures beside each other."""
    digits, found = Digits("right", 3), []
    while len(found) < rows:
        image, label = digits.draw(256)
        folder = out / str(len(found))
        tensor = prepare(image, model, SIZE)
        if int(model(tensor).argmax()) != label:
            continue
        write_image_page(folder, "resnet10t", model, image, tensor, [], rule="epsilon")
        parts = [cv2.imread(str(folder / f"{name}.png")) for name in ("relevance", "salient", "layercam")]
        found.append(
            np.concatenate([np.pad(p, ((3, 3), (3, 3), (0, 0)), constant_values=255) for p in (image, *parts)], 1)
        )
    cv2.imwrite(str(DOCS / "attention_relevance.jpg"), np.concatenate(found), [cv2.IMWRITE_JPEG_QUALITY, 85])


def heads(model: nn.Module, out: Path, images: int = 50) -> None:
    """Write the page of the heads, and put two of its pictures below each other."""
    digits = Digits("right", 2)
    drawn = [digits.draw() for _ in range(images)]
    survey = survey_heads(model, ((prepare(image, model, SIZE), label) for image, label in drawn))
    facts = {"model": "ViT with 4 layers", "images": f"{images} digits on photographs"}
    write_overview(out, "Heads of a small ViT", facts, survey, [str(digit) for digit in range(CLASSES)], 4, 0)
    parts = [cv2.imread(str(out / f"{name}.png")) for name in ("importance", "rings", "clusters")]
    width = max(part.shape[1] for part in parts)
    parts = [np.pad(p, ((0, 8), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in parts]
    sheet = np.concatenate(parts)
    cv2.imwrite(
        str(DOCS / "attention_heads.png"), cv2.resize(sheet, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--out", type=Path, default=Path("outputs/explain_digits"))
    args = parser.parse_args()
    options = {
        "resnet10t": {},
        "vit_tiny_patch16_224": {"img_size": SIZE, "patch_size": 8, "depth": 4, "embed_dim": 96},
    }
    for name, rate in (("resnet10t", 2e-3), ("vit_tiny_patch16_224", 1e-3)):
        torch.manual_seed(0)
        model, file = timm.create_model(name, num_classes=CLASSES, **options[name]), args.out / f"{name}.pt"
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, SIZE, SIZE)}
        if file.exists():
            model.load_state_dict(torch.load(file, weights_only=True))
        else:
            train(model, args.steps, rate)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), file)
        model.eval()
        if name == "resnet10t":
            relevance(model, args.out / "relevance")
        else:
            heads(model, args.out / "heads")


if __name__ == "__main__":
    main()
