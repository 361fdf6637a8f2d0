"""Finding input files."""

from pathlib import Path

import pytest

from visionattn.errors import DataError
from visionattn.io.inputs import find_files, find_inputs, walk_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a/x.PNG", "a/deep/y.tif", "clip.mp4", "notes.txt", ".hidden.jpg", ".git/z.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"-")
    return tmp_path


def names(root: Path, inputs, **options) -> list[str]:
    return [str(source.path.relative_to(root)) for source in find_inputs(inputs, **options)]


def test_folder_is_searched_in_order_without_hidden_files(tree):
    assert names(tree, [tree]) == ["b.jpg", "clip.mp4", "a/x.PNG", "a/deep/y.tif"]
    assert [source.is_video for source in find_inputs([tree])] == [False, True, False, False]


def test_results_folder_does_not_count(tree):
    assert names(tree, [tree], exclude=tree / "a") == ["b.jpg", "clip.mp4"]


def test_glob(tree):
    assert names(tree, [str(tree / "**" / "*.[Pt][Ni][Gf]")]) == ["a/deep/y.tif", "a/x.PNG"]
    assert names(tree, [str(tree / "*")]) == ["a/x.PNG", "a/deep/y.tif", "b.jpg", "clip.mp4"]


def test_each_file_once_and_named_files_whatever_their_suffix(tree):
    (tree / "link.jpg").symlink_to(tree / "b.jpg")
    assert names(tree, [tree / "notes.txt", tree / "b.jpg", tree / "link.jpg", tree / "b.jpg"]) == [
        "notes.txt",
        "b.jpg",
    ]


def test_name_with_brackets_is_a_file_first(tmp_path):
    (tmp_path / "shot[1].png").write_bytes(b"-")
    assert names(tmp_path, [str(tmp_path / "shot[1].png")]) == ["shot[1].png"]


def test_links_in_a_circle_end(tree):
    (tree / "a" / "up").symlink_to(tree)
    (tree / "a" / "same").symlink_to(tree / "a")
    assert names(tree, [tree]) == ["b.jpg", "clip.mp4", "a/x.PNG", "a/deep/y.tif"]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("gone.jpg", "no such file or folder"),
        ("*.gif", "the glob pattern has no matches"),
        ("*.txt", "the glob pattern matches no image or video"),
        ("empty", "the folder contains no image or video"),
    ],
)
def test_nothing_found_is_one_clear_line(tree, item, words):
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=words) as caught:
        find_inputs([str(tree / item)])
    assert item in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["", "**/*"])
def test_unsupported_formats_are_counted(tree, pattern, monkeypatch):
    monkeypatch.setattr("visionattn.io.inputs.known_formats", lambda: ("JPEG", "PNG"))
    for name in ("a/IMG_1.HEIC", "a/x.avif", "y.psd"):
        (tree / name).write_bytes(b"-")
    with pytest.warns(UserWarning, match=r"skipping 3 files .*\(\.avif \.heic \.psd\).*install pillow-heif") as seen:
        find_inputs([str(tree / pattern)])
    assert len(seen) == 1
    assert names(tree, [tree / "a" / "IMG_1.HEIC"]) == ["a/IMG_1.HEIC"]  # reading it gives the reason


def test_no_input():
    with pytest.raises(DataError, match="`inputs` is empty"):
        find_inputs([])


def test_linked_folder_is_searched_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "p.bin").write_bytes(b"-")
    (tmp_path / "set").mkdir()
    for name in ("one", "two"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere")
    assert list(walk_files(tmp_path / "set", (".bin",))) == [tmp_path / "set" / "one" / "p.bin"]
    found = find_files([tmp_path / "set", tmp_path / "elsewhere"], (".bin",))
    assert found == [tmp_path / "set" / "one" / "p.bin"]


def test_excluded_folder_behind_a_link(tmp_path):
    (tmp_path / "results").mkdir()
    for name in ("a.bin", "results/b.bin"):
        (tmp_path / name).write_bytes(b"-")
    (tmp_path / "link").symlink_to(tmp_path / "results")
    assert list(walk_files(tmp_path, (".bin",), exclude=tmp_path / "results")) == [tmp_path / "a.bin"]
    with pytest.raises(DataError, match=r"results: the folder contains no point cloud \(looked for \.bin\)"):
        find_files([tmp_path / "results"], (".bin",), exclude=tmp_path / "link", what="point cloud")
