"""A local Ray with two workers, one of which is killed while it predicts."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray")

SCRIPT = """
import json, os, pathlib
import ray, ray.data
from visionattn.inference import ray as ours


class Dying(ours.RayPredictor):
    def __call__(self, batch):
        killed = pathlib.Path(os.environ["FOLDER"], "killed")
        if not killed.exists():  # the first batch of the first worker
            killed.write_text(str(os.getpid()))
            os.kill(os.getpid(), 9)
        return super().__call__(batch)


if __name__ == "__main__":
    folder = pathlib.Path(os.environ["FOLDER"])
    ours.RayPredictor = Dying
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    images = ray.data.from_items(
        [{"file": str(path), "number": n} for n, path in enumerate(sorted(folder.glob("in/*")))], override_num_blocks=6
    )
    rows = ours.predict(images, "blood-cells", workers=2, batch_size=2, device="cpu", score_thr=0.0).take_all()
    print("ROWS", json.dumps([[r["file"], r["number"], r["error"], len(r["detections"] or ())] for r in rows]))
"""


def test_every_image_is_in_the_result_once(painted, save_picture, tmp_path):
    for index in range(11):
        save_picture(tmp_path / "in" / f"{index:02}.png", painted(64, 64, ("red", index, 6, 40, 40)))
    (tmp_path / "in" / "11.png").write_bytes(b"no image")
    (tmp_path / "script.py").write_text(SCRIPT)
    command, environment = [sys.executable, tmp_path / "script.py"], os.environ | {"FOLDER": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ROWS")] or pytest.fail(done.stderr[-2000:])
    rows = sorted(json.loads(line[5:]), key=lambda row: row[1])
    assert (tmp_path / "killed").exists()
    assert [row[:2] for row in rows] == [[str(tmp_path / "in" / f"{n:02}.png"), n] for n in range(12)]
    assert all(row[2] is None and row[3] > 0 for row in rows[:11])
    assert "not an image" in rows[11][2]
