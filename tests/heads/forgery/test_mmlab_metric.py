"""The evaluator's forgery measures, on one process and on several with filled-up batches.

The file runs itself as the worker: ``python test_forgery_metric.py RANK FOLDER``.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("mmengine")

from visionattn.errors import ConfigError
from visionattn.heads.forgery.metrics import PooledPixels, pixel_scores, summarize
from visionattn.heads.forgery.mmlab_metric import ForgeryMetric

COUNT = 7


def samples() -> list[dict]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(COUNT):
        truth = np.zeros((1, 12, 10), np.int64)
        if index % 3:
            truth[:, 2 : 4 + index, 1:6] = 1
        truth[:, -1] = 255
        probability = np.clip(0.5 * (truth == 1) + rng.random(truth.shape) * 0.6, 0, 1).astype(np.float32)
        found.append({
            "gt_sem_seg": {"data": torch.from_numpy(truth)}, "forgery_prob": {"data": torch.from_numpy(probability)},
            "forgery_score": torch.tensor(probability.mean()), "sample_idx": index, "img_path": f"{index}.png",
        })  # fmt: skip
    return found


def by_hand() -> dict[str, float]:
    records, pool = [], PooledPixels(bins=512)
    for sample in samples():
        truth, probability = sample["gt_sem_seg"]["data"].numpy(), sample["forgery_prob"]["data"].numpy()
        pixel = pixel_scores(probability, truth == 1, truth != 255)
        label = int((truth == 1).any())
        if label:
            pool.add(probability, truth == 1, truth != 255)
        records.append({"label": label, "score": float(sample["forgery_score"]), "pixel": pixel})
    return summarize(records) | {f"pooled_{k}": v for k, v in pool.scores().items()}


def test_one_process():
    metric = ForgeryMetric(pooled=True)
    metric.process({}, samples()[:4])
    metric.process({}, samples()[4:])
    assert metric.evaluate(COUNT) == pytest.approx(by_hand())


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric = ForgeryMetric(pooled=True)
    mine = [samples()[i % COUNT] for i in range(rank, COUNT + 1, 2)]  # the sampler repeats the first to fill up
    metric.process({}, mine)
    torch.save(metric.evaluate(COUNT), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_count_a_repeated_image_once(tmp_path):
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [worker.wait(300) for worker in workers] == [0, 0]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(by_hand())


def test_modes_conventions_and_size():
    metric = ForgeryMetric("benco", modes=("origin", "double"), size=(24, 20))
    metric.process({}, samples())
    figures = metric.evaluate(COUNT)
    assert figures["pixel_f1_double"] >= figures["pixel_f1"]
    plain = ForgeryMetric(size=(24, 20))
    plain.process({}, samples())
    assert plain.evaluate(COUNT)["pixel_f1"] > figures["pixel_f1"]


def test_wrong_arguments():
    with pytest.raises(ConfigError, match=r"`convention` must be .* got 'x'"):
        ForgeryMetric("x")
    with pytest.raises(ConfigError, match="modes"):
        ForgeryMetric(modes=("x",))
    sample = samples()[0]
    sample["forgery_prob"] = sample["forgery_prob"]["data"][..., :5]
    with pytest.raises(ConfigError, match="load annotations after resizing"):
        ForgeryMetric().process({}, [sample])


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
