"""Losses that are not finite, images that cannot be read, two runs of one seed, and files made to do harm."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from visionattn.engine.config.load import load_config
from visionattn.engine.train.replay import replay
from visionattn.engine.train.train import train
from visionattn.errors import TrainingError

from .setting import Row, make_config, same_weights

__all__ = ["attacks", "bad_images", "not_finite", "twice_the_same"]

ROOT = Path(__file__).parents[2]


def not_finite(folder: Path) -> Row:
    """NaN in the weights of a head, as after a bad step: the run stops before its step, and the dump says where."""
    from mmseg.models import FCNHead

    original, tries, right = FCNHead.loss_by_feat, 6, 0
    for index in range(tries):
        calls, seen = iter(range(1000)), {}

        def poisoned(self, *args, index=index, calls=calls, seen=seen, **kwargs):
            losses = original(self, *args, **kwargs)
            if next(calls) == index + 1:
                seen["before"] = {k: v.clone() for k, v in self.state_dict().items()}
                seen["head"] = self
                losses["loss_ce"] = losses["loss_ce"] * float("nan" if index % 2 else "inf")
            return losses

        FCNHead.loss_by_feat = poisoned
        work = folder / f"nan_{index}"
        try:
            train(load_config(folder / "data" / "tiny.py"), work_dir=work)
        except TrainingError as error:
            untouched = all(torch.equal(v, seen["before"][k]) for k, v in seen["head"].state_dict().items())
            dump = work / f"nonfinite_iter_{index + 2}_rank_0.pth"
            calls = iter([index + 1])
            FCNHead.loss_by_feat = lambda self, *a, **k: {"loss_ce": original(self, *a, **k)["loss_ce"] * float("nan")}
            again = replay(dump, load_config(work / "tiny.py", resolve_data=False))
            right += untouched and again.reproduced and "no step was taken" in str(error)
        finally:
            FCNHead.loss_by_feat = original
    return Row(
        "a loss of NaN or infinity",
        tries,
        f"{right} of {tries} stopped before the optimizer step, images reported, dump reproduces the iteration",
        "nothing" if right == tries else "weights",
    )


def bad_images(folder: Path) -> Row:
    """Three of twelve images spoilt; with --max-bad-samples 3 they are left out and listed."""
    data = folder / "spoilt"
    config = make_config(data, iterations=20, every=20)
    batches = {"train_dataloader.batch_size": 4}  # no batch of bad ones alone
    names = sorted((data / "images").iterdir())[:3]
    names[0].write_bytes(b"")
    names[1].write_bytes(b"not an image")
    names[2].write_bytes(names[2].read_bytes()[:200])
    options = {"val_dataloader": None, "val_cfg": None, "val_evaluator": None, **batches}
    train(load_config(config, options), work_dir=folder / "spoilt_run", max_bad_samples=3)
    listed = json.loads((folder / "spoilt_run" / "bad_samples.json").read_text())
    right = {Path(name).name for name in listed} == {name.name for name in names}
    return Row(
        "training images that are empty, truncated or not images, with --max-bad-samples",
        len(names),
        f"{len(listed)} of {len(names)} skipped and listed with the reason; training continued",
        "nothing" if right else "an image without a word",
    )


def twice_the_same(folder: Path) -> Row:
    """The same seed twice, with 0 and with 2 data workers."""
    last, tries, same = "iter_40.pth", 3, 0
    for index in range(tries):
        work = folder / f"again_{index}"
        options = {"train_dataloader.num_workers": 2 * (index % 2)}
        train(load_config(folder / "data" / "tiny.py", options), work_dir=work)
        same += same_weights(work / last, folder / "unbroken" / last)
        shutil.rmtree(work)
    return Row(
        "repeated run with the same seed, with 0 and 2 data workers",
        tries,
        f"{same} of {tries} runs were bit-identical",
        "nothing" if same == tries else "determinism",
    )


def attacks() -> Row:
    """The files of tests/attacks."""
    folder = ROOT / "tests" / "attacks"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|errors?)", said)}
    passed, tries = counts.get("passed", 0), sum(counts.values())
    return Row(
        "files made to execute code, exhaust memory, or access other folders (tests/attacks)",
        tries,
        f"{passed} of {tries} rejected with a clear error; no code was executed",
        "nothing" if passed == tries and tries else "trust",
    )
