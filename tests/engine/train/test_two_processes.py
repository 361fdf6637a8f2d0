"""Two processes do what one does with batches twice as large, where the loss allows it, and count nothing twice."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.load import load_config
from visionattn.engine.train.curve import read_records
from visionattn.engine.train.launch import launch
from visionattn.engine.train.train import train

SLOW = pytest.mark.skipif(not os.environ.get("VISIONATTN_SLOW_TESTS"), reason="slow: set VISIONATTN_SLOW_TESTS=1")

# No statistics of batches, no randomness that differs by place in the batch, and rounding that is not amplified.
SAME = {
    "model.backbone.norm_eval": True,
    "optim_wrapper.optimizer": dict(type="SGD", lr=0.02),
    "train_dataloader.num_workers": 0,
    "default_hooks.logger.interval": 1,
}
DETECTION = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs"),
]


def run_both(folder, config, options: dict, batch: int, iterations: int) -> None:
    """``one`` and ``two``: the same samples in each iteration, from one process and from two."""
    common = {**SAME, **options, "train_cfg.max_iters": iterations, "train_cfg.val_interval": iterations}
    train(load_config(config, {**common, "train_dataloader.batch_size": 2 * batch}), work_dir=folder / "one")
    halves = {**common, "train_dataloader.batch_size": batch}
    result = launch({"config": str(config), "cfg_options": halves, "work_dir": str(folder / "two")}, devices=2)
    assert result.iterations == iterations


def assert_same(folder, last: str) -> None:
    one, two = (read_records(folder / name) for name in ("one", "two"))
    losses = [[r["loss"] for r in records if "loss" in r] for records in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert len(set(losses[0])) == len(losses[0])
    first, second = (checkpoints.state_dict_of(checkpoints.read(folder / name / last)) for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-6, msg=name)
    (expected,), (measured,) = ([r["val"] for r in records if "val" in r] for records in (one, two))
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, abs=0.0005), name


@pytest.mark.usefixtures("quick_start")
def test_detection(tmp_path, coco_dir, make_config):
    """ATSS divides its losses by means over the processes; 7 images do not divide by 2 processes of 2."""
    options = {
        "model.backbone.drop_path_rate": 0.0,
        "model.bbox_head.loss_bbox.loss_weight": 2.0,
        "train_dataloader.dataset.pipeline": DETECTION,
        "val_dataloader.dataset.indices": 7,
        "param_scheduler": [],
    }
    run_both(tmp_path, make_config(tmp_path / "tiny.py", coco_dir), options, batch=2, iterations=4)
    assert_same(tmp_path, "iter_4.pth")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=SLOW)], ids=lambda n: n.name)
def test_no_process_is_left_behind(tmp_path, coco_dir, make_config, number):
    """SIGTERM to the starting process: all save and end. If it is killed, which it cannot pass on, they end too."""
    config = make_config(tmp_path / "tiny.py", coco_dir)
    options = ["train_cfg.max_iters=100000", "train_cfg.val_interval=100000", "train_dataloader.num_workers=0"]
    command = [sys.executable, "-m", "visionattn", "train", str(config), "--devices", "2"]
    command += ["--work-dir", str(tmp_path / "run"), "--cfg-options", *options]
    with open(tmp_path / "out.txt", "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: "iter" in (tmp_path / "out.txt").read_text(), 180)
            workers = children(process.pid)
            assert len(workers) >= 2
            process.send_signal(number)
            code = process.wait(60)
        finally:
            process.kill()
    wait_for(lambda: not any(running(pid) for pid in workers), 60)
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL), (tmp_path / "out.txt").read_text()
    path, _ = checkpoints.newest(tmp_path / "run")
    assert path is not None


@SLOW
def test_an_agent_of_torchrun_is_killed_and_started_again(tmp_path, coco_dir, make_config):
    """Two agents as on two machines: the run continues from the newest checkpoint, as if nothing had happened."""
    config = make_config(tmp_path / "tiny.py", coco_dir)
    for name in ("unbroken", "broken"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = probe.getsockname()
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{address[1]}", "--rdzv-id", name]
        command += ["--max-restarts", "3", "-m", "visionattn", "train", str(config), "--work-dir"]
        command += [str(tmp_path / name), "--resume", "--cfg-options", "train_cfg.max_iters=30"]
        start = partial(subprocess.Popen, command, env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
        agents = [start()]
        try:
            wait_for(partial(answers, address), 120)  # the first agent coordinates the other
            agents.append(start())
            if name == "broken":
                wait_for((tmp_path / "broken" / "iter_4.pth").exists, 240)
                workers = children(agents[1].pid)
                assert workers
                for pid in (agents[1].pid, *workers):
                    os.kill(pid, signal.SIGKILL)
                agents[1].wait()
                agents[1] = start()
            assert [agent.wait(300) for agent in agents] == [0, 0]
        finally:
            for agent in agents:
                agent.terminate()
    unbroken, broken = (
        [(r["iter"], r.get("loss"), r.get("val")) for r in read_records(tmp_path / name)]
        for name in ("unbroken", "broken")
    )
    assert len(unbroken) > 30
    assert broken == unbroken
    first, second = (
        checkpoints.state_dict_of(checkpoints.read(tmp_path / name / "iter_30.pth")) for name in ("unbroken", "broken")
    )
    assert all(torch.equal(second[name], weight) for name, weight in first.items())


def answers(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    """Processes started by a process; Linux only."""
    listed = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [child for child in listed if running(child) and parent(child) == pid]


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.usefixtures("quick_start")
def test_segmentation(tmp_path, make_segmentation):
    """Cross-entropy that averages over all pixels; 3 images do not divide by 2 processes."""
    pytest.importorskip("mmseg")
    options = {
        "model.decode_head.dropout_ratio": 0.0,
        "train_dataloader.dataset.pipeline.2.prob": 0.0,
        "val_dataloader.dataset.indices": 3,
    }
    run_both(tmp_path, make_segmentation(tmp_path), options, batch=1, iterations=3)
    assert_same(tmp_path, "iter_3.pth")
