from pathlib import Path

import pytest

from visionattn.errors import DataError
from visionattn.heads.action.lists import LabelledVideo, read_action_list


def test_lines(tmp_path):
    (tmp_path / "a.csv").write_text("mp4/a.mp4, pose/a.json ,3\n\nmp4/b.mp4,,0\nmp4/c.mp4,1\n")
    assert read_action_list(tmp_path / "a.csv", "v", "p", classes=4) == [
        LabelledVideo(Path("v/mp4/a.mp4"), Path("p/pose/a.json"), 3),
        LabelledVideo(Path("v/mp4/b.mp4"), None, 0),
        LabelledVideo(Path("v/mp4/c.mp4"), None, 1),
    ]


def test_other_separator(tmp_path):
    (tmp_path / "a.csv").write_text("a.mp4 a.json 3\n")
    assert read_action_list(tmp_path / "a.csv", separator=" ")[0].label == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no videos"),
        ("a.mp4\n", "a.csv:1: must be video,skeleton,label, got 'a.mp4'"),
        ("a,b,1\na,b,c,1\n", "a.csv:2"),
        ("a,b,x\n", r"label must be in 0\.\.999999, got 'x'"),
        ("a,b,-1\n", r"label must be in 0\.\.999999, got '-1'"),
        ("a,b,4\n", "label must be below the number of classes 4, got 4"),
        (",b,1\n", "must be video,skeleton,label, got ',b,1'"),
    ],
)
def test_damaged(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_action_list(tmp_path / "a.csv", classes=4)


def test_not_there_or_no_text(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_action_list(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="must be text in UTF-8"):
        read_action_list(tmp_path / "c.csv")
