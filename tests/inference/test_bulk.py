import argparse
import io
import json
import tarfile
from pathlib import Path

import pytest

from visionattn.errors import ConfigError, DataError
from visionattn.inference import Predictor
from visionattn.inference.bulk import BulkOptions, predict_bulk, read_parts
from visionattn.inference.bulk.arguments import add_arguments, bulk_options
from visionattn.inference.bulk.inputs import Shard
from visionattn.inference.files import plan_files, predict_files
from visionattn.io.inputs import find_inputs, iterate_inputs

ABOUT = {"model": "rectangles"}


@pytest.fixture
def pictures(painted, save_picture, tmp_path) -> Path:
    """Eleven images in three folders; two have the same name, one has no object."""
    folder = tmp_path / "in"
    for index in range(9):
        save_picture(folder / f"{index}.png", painted(40, 60, ("red", index, 6, 25, 30)))
    save_picture(folder / "a" / "0.png", painted(40, 60, ("red", 1, 1, 9, 9), ("blue", 30, 10, 50, 39)))
    save_picture(folder / "b" / "c" / "0.png", painted(50, 40))
    return folder


def bulk(model, inputs, out: Path, progress=lambda count: None, **options):
    errors: list[str] = []
    predictor = Predictor.from_model(model, batch_size=2)
    inputs = [str(item) for item in inputs]
    sources = iterate_inputs(inputs, exclude=out)
    return predict_bulk(predictor, sources, inputs, out, BulkOptions(**options), ABOUT, progress, errors.append), errors


def files_of(out: Path) -> list[str]:
    return sorted(record["file"] for record in read_parts(out))


def paths(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.png"))


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_records_are_those_of_one_file(make_model, pictures, tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    model = make_model(with_masks=True)
    summary, _ = bulk(model, [pictures], tmp_path / "out", format=format, part_size=4)
    assert (summary.inputs, dict(summary.found)) == (11, {"red": 10, "blue": 1})
    parts = sorted((tmp_path / "out" / "predictions").iterdir())
    assert [path.name for path in parts] == [f"part-{number:05d}.{format}" for number in range(3)]
    assert not list((tmp_path / "out").rglob("*.png"))

    predictor = Predictor.from_model(model)
    plan = plan_files(find_inputs([pictures]), tmp_path / "single")
    predict_files(predictor, plan, ABOUT, overlays=False)
    expected = json.loads((tmp_path / "single" / "predictions.json").read_text())["images"]
    for record in expected:
        del record["image_id"], record["seconds"]
        for detection in record["detections"]:
            del detection["image_id"]
    given = [{key: value for key, value in r.items() if key != "seconds"} for r in read_parts(tmp_path / "out")]
    assert given == expected
    assert not (tmp_path / "single" / "report.html").exists()


def test_parquet_has_the_same_columns_in_every_part(make_model, painted, save_picture, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    save_picture(tmp_path / "in" / "a.png", painted(40, 60))  # no detections: their type could not be guessed
    save_picture(tmp_path / "in" / "b.png", painted(40, 60, ("red", 1, 1, 9, 9)))
    bulk(make_model(with_masks=True), [tmp_path / "in"], tmp_path / "out", format="parquet", part_size=1)
    table = parquet.read_table(tmp_path / "out" / "predictions")
    assert [len(row) for row in table["detections"].to_pylist()] == [0, 1]
    assert table["detections"].to_pylist()[1][0]["bbox"] == [1, 1, 8, 8]


def test_shards_divide_the_inputs(make_model, pictures, tmp_path):
    out = tmp_path / "out"
    sizes = []
    for number in (1, 2, 3):
        summary, _ = bulk(make_model(), [pictures], out, shard=Shard(number, 3), overlays=True)
        sizes.append(summary.inputs)
    assert sizes == [4, 4, 3]
    assert files_of(out) == paths(pictures)
    overlays = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert overlays == {f"{Path(path).relative_to(pictures).as_posix()}.png" for path in paths(pictures)}


def test_an_interrupted_run_continues(make_model, pictures, tmp_path):
    out, seen = tmp_path / "out", []
    (pictures / "4.png").rename(tmp_path / "good.png")
    (pictures / "4.png").write_bytes(b"no image")

    def stop(count: int) -> None:
        seen.append(count)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk(make_model(), [pictures], out, progress=stop, part_size=3)
    before = files_of(out)
    assert 5 <= len(before) <= 7
    assert "4.png" in (out / "failed.jsonl").read_text()

    (out / "predictions" / ".part-00009.1.tmp.jsonl").write_text("of a killed process")
    (tmp_path / "good.png").replace(pictures / "4.png")
    summary, _ = bulk(make_model(), [pictures], out, part_size=3, skip_done=True)
    assert summary.inputs == 11 - len(before)
    assert files_of(out) == paths(pictures)  # each once, also the one that had failed
    assert not (out / "failed.jsonl").exists()
    again, _ = bulk(make_model(), [pictures], out, skip_done=True)
    assert (again.inputs, again.skipped) == (0, 11)


def test_results_are_not_mixed(make_model, pictures, tmp_path):
    bulk(make_model(), [pictures / "a"], tmp_path / "out")
    with pytest.raises(DataError, match="skip_done"):
        bulk(make_model(), [pictures], tmp_path / "out")
    predictor = Predictor.from_model(make_model(), score_thr=0.7)
    with pytest.raises(ConfigError, match=r"other settings \(settings.score_thr\)"):
        predict_bulk(predictor, iter(()), [pictures], tmp_path / "out", BulkOptions(skip_done=True), ABOUT)


def test_files_are_listed_as_they_are_needed(make_model, pictures):
    done, listed = [], []

    def sources():
        for source in iterate_inputs([pictures]):
            listed.append(source)
            assert len(listed) - len(done) <= 3  # one batch of two and the next file
            yield source

    predictor = Predictor.from_model(make_model(), batch_size=2)
    predict_bulk(predictor, sources(), [pictures], pictures.parent / "out", BulkOptions(), ABOUT, done.append)
    assert len(listed) == 11


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_tar_archives(make_model, pictures, tmp_path):
    image = (pictures / "0.png").read_bytes()
    archive = tmp_path / "shots" / "000.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        for name in ("0001.png", "../../up.png", "/root.png", "x/0001.png"):
            add(tar, name, image)
        add(tar, "0001.json", b"{}")
        add(tar, "bad.png", b"no image")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    block = 512 + (len(image) + 511) // 512 * 512
    for name, end in (("data", 512 + len(image) // 2), ("header", block + 100), ("block", block)):
        (archive.parent / f"cut_{name}.tar").write_bytes(archive.read_bytes()[:end])
    out = tmp_path / "out"
    summary, errors = bulk(make_model(), [archive.parent], out, overlays=True)
    found = [f"{archive}/{name}" for name in ("0001.png", "up.png", "root.png", "x/0001.png")]
    found += [f"{archive.parent}/cut_{name}.tar/0001.png" for name in ("header", "block")]
    assert files_of(out) == sorted(found)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} >= {"000.tar/up.png.png"}
    assert any(line.startswith(f"{archive}/bad.png: not an image") for line in errors)
    for name in ("data", "header", "block"):
        assert any(line.startswith(f"{archive.parent}/cut_{name}.tar: is damaged") for line in errors), name
    assert summary.found["red"] == summary.inputs
    assert bulk(make_model(), [archive], out, skip_done=True)[0].inputs == 0


def test_damaged_part_is_named(make_model, pictures, tmp_path):
    bulk(make_model(), [pictures], tmp_path / "out")
    part = tmp_path / "out" / "predictions" / "part-00000.jsonl"
    part.write_text(part.read_text()[:-40])
    with pytest.raises(DataError, match=r"part-00000\.jsonl: damaged"):
        bulk(make_model(), [pictures], tmp_path / "out", skip_done=True)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_wrong_shards(text):
    with pytest.raises(ConfigError, match="`shard` must be I/N"):
        Shard.parse(text)


def test_shard_of_a_process_of_torchrun(monkeypatch):
    assert Shard.of_process() == Shard(1, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.of_process() == Shard(3, 4)
    assert parse("--records", "jsonl").shard == Shard(3, 4)


def parse(*words: str, inputs=("x.jpg",)):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    add_arguments(parser)
    return bulk_options(parser.parse_args(words), inputs)


def test_arguments():
    assert parse() is parse("--records", "json") is None
    assert parse("--shard", "2/4") == BulkOptions("jsonl", Shard(2, 4))
    assert parse("--records", "parquet", "--overlays", "--part-size", "5").overlays
    for words, line in (
        (("--records", "json", "--shard", "1/2"), "`shard` requires"),
        (("--skip-done",), "`skip_done` requires `out`"),
        (("--records", "jsonl", "--part-size", "0"), "`part_size` must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=line):
            parse(*words)
    with pytest.raises(ConfigError, match="required for tar archives"):
        parse(inputs=("x.TAR",))
