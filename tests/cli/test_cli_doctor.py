"""``visionattn doctor``: what it says must be what would happen."""

import json
import subprocess
import sys

import pytest
import torch

from visionattn.cli import main
from visionattn.cli.doctor import examine
from visionattn.errors import BackendError
from visionattn.kernels import backends, na1d


def report(capsys) -> dict:
    assert main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_says_what_select_picks(capsys):
    rows = report(capsys)["operators"]
    assert {row["operator"] for row in rows} == set(backends.OPERATORS)
    assert len(rows) == len(backends.OPERATORS) * len(backends.DTYPES) * (2 if torch.cuda.is_available() else 1)
    for row in rows:
        dtype = getattr(torch, row["dtype"])
        assert row["uses"] == backends.select(row["operator"], torch.device(row["device"]), dtype)
        assert set(row["others"]) | {row["uses"]} == set(backends.OPERATORS[row["operator"]])
        assert all(row["others"].values())


def test_reasons_are_those_of_the_kernels(capsys):
    if torch.cuda.is_available():
        pytest.skip("about a machine without a GPU")
    row = next(r for r in report(capsys)["operators"] if r["operator"] == "na1d" and r["dtype"] == "float32")
    x = torch.zeros(1, 9, 1, 4)
    with pytest.raises(BackendError) as error:
        na1d(x, x, x, 3, backend="triton")
    assert row["others"]["triton"] in str(error.value)


def test_backend_of_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("VISIONATTN_BACKEND", "reference")
    rows = report(capsys)["operators"]
    assert {row["uses"] for row in rows} == {"reference"}
    assert "VISIONATTN_BACKEND=reference is set" in rows[0]["others"]["torch"]
    monkeypatch.setenv("VISIONATTN_BACKEND", "cutlass")
    rows = report(capsys)["operators"]
    assert {row["uses"] for row in rows} == {None}
    assert "got 'cutlass'" in rows[0]["problem"]
    assert main(["doctor"]) == 0
    assert "got 'cutlass'" in capsys.readouterr().out


def test_versions_and_problems(monkeypatch):
    import importlib.metadata as metadata

    real, lines = metadata.version, ["timm>=99", "mmdet==3.3.0; extra == 'openmmlab'", "rich<1; extra == 'other'"]

    def version(name: str) -> str:
        if name == "mmdet":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    rows = {row["name"]: row for row in examine()["packages"]}
    assert rows["torch"] == {"name": "torch", "version": real("torch"), "needed": None, "problem": None}
    assert rows["timm"]["problem"] == "untested version; run: pip install 'timm>=99'"
    assert rows["mmdet"]["version"] is None
    assert rows["mmdet"]["problem"] == "not installed; run: pip install 'visionattn[openmmlab]'"
    assert rows["rich"]["needed"] is None


def test_tables(capsys, monkeypatch):
    pytest.importorskip("mmcv")
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in (torch.__version__.split("+")[0], "bilevel_routing_attention", "cpu:", "mmcv operators: "):
        assert word in text, word
    assert max(len(line) for line in text.splitlines() if line[:1] in "│┃") <= 100
    assert "…" not in text


def test_works_without_openmmlab():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['mmengine', 'mmcv']))\n"
        "from visionattn.cli import main; sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["mmcv_operators"]
    assert found["provider"] is None
    assert "pip install 'visionattn[openmmlab]'" in found["detail"]
