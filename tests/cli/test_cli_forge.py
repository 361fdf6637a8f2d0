"""The command that makes forgeries."""

import cv2
import numpy as np

from visionattn.cli import main


def test_forge_writes_a_dataset(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.jpg"), rng.integers(0, 255, (70, 90, 3), dtype=np.uint8))
    arguments = ["--count", "4", "--operations", "blur", "copy_move", "--quality", "85"]
    status = main(["forge", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), *arguments])
    out = capsys.readouterr()
    assert status == 0, out.err
    assert "2 forged and 2 authentic images from 2 photographs" in out.out
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2
    arguments += ["--max-seam", "1e-6"]
    assert main(["forge", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), *arguments]) == 0
    assert "0 forged and 4 authentic images" in capsys.readouterr().out  # all have a visible border


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["forge", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    (tmp_path / "p").mkdir()
    assert main(["forge", str(tmp_path / "p"), "--out", str(tmp_path / "o"), "--quality", "1", "2", "3"]) == 1
    assert "--quality must be one or two numbers" in capsys.readouterr().err
    assert main(["forge", str(tmp_path / "p"), "--out", str(tmp_path / "o")]) == 1
    assert f"error: {tmp_path / 'p'}: holds no images" in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / "p/0.png"), np.zeros((40, 50, 3), np.uint8))
    assert main(["forge", str(tmp_path / "p"), "--out", str(tmp_path / "o"), "--max-seam", "0"]) == 1
    assert "error: --max-seam must be positive, got 0.0" in capsys.readouterr().err
