"""What can be tried without a GPU of the scripts that measure on one."""

import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("triton")


@pytest.fixture
def script(monkeypatch):
    """Import a script of the folder benchmarks."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and "benchmarks" in str(sys.modules[name].__file__):
            del sys.modules[name]


def run_main(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


def test_every_part_names_files_that_exist(script, monkeypatch, capsys):
    gpu = script("gpu")
    assert set(gpu.PARTS) == {"tests", "goals", "counters", "tune", "routing", "scattered", "models"}
    for part in gpu.PARTS.values():
        files = [argument for argument in part.arguments if argument.endswith(".py")]
        assert files
        assert all((REPO / file).is_file() for file in files)
    run_main(gpu, monkeypatch, "--dry-run", "--part", "goals", "models")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("benchmarks/na_gpu.py --goals --out benchmarks/results/gpu/na_goals.csv --resume")
    assert lines[3].endswith("benchmarks/models.py --out benchmarks/results/gpu/models.csv")
    run_main(gpu, monkeypatch, "--dry-run", "--again")
    assert "--resume" not in capsys.readouterr().out


def test_parts_are_bounded_and_independent(script, monkeypatch, capsys, tmp_path):
    gpu = script("gpu")
    code = (
        "import pathlib, subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid)); child.wait()"
    )
    parts = {
        "slow": gpu.Part("takes too long", ("-c", code)),
        "wrong": gpu.Part("fails", ("-c", "raise SystemExit(3)")),
        "right": gpu.Part("has the package", ("-c", "import visionattn, os; os.environ['VISIONATTN_TRITON_CASES']")),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "ROOT", REPO)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.run("slow", False, 0.1) == "stopped after 0.1 minutes"
    assert gpu.run("wrong", False, 5) == "failed with status 3"
    assert gpu.run("right", False, 5) == "ok"
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    while child.exists() and child.read_text().split()[2] != "Z":  # the processes of a part end with it
        time.sleep(0.05)
    monkeypatch.setattr(sys, "argv", ["gpu", "--part", "wrong", "right"])
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    assert gpu.main() == 1
    assert " ".join(capsys.readouterr().out.split("\n\n")[-1].split()) == "wrong failed with status 3 right ok"


def test_make_installs_nothing_if_told():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for target, part in (("gpu", ""), ("gpu-tune", " --part tune")):
        command = ["make", "-n", target, "PYTHON=python3", "INSTALL=0"]
        # The tests themselves may run under make, which then prints the directories that it enters.
        env = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True, env=env)
        assert done.stdout == f"PYTHONPATH=. python3 benchmarks/gpu.py{part}\n"


HEADER = (
    '"ID","Process ID","Kernel Name","gpu__time_duration.sum","smsp__issue_active.avg.pct_of_peak_sustained_active",\
"lts__t_bytes.sum","launch__registers_per_thread","smsp__inst_executed.sum"'
)


def test_counters_are_read(script, monkeypatch, tmp_path, capsys):
    counters = script("counters")
    text = f"""==PROF== Connected to process 12
==PROF== Profiling "forward_kernel": 0%....100%
{HEADER}
"","","","ns","%","byte","register/thread","inst"
"0","12","forward_kernel","123,456","81.25","98,000,000","168","1,234,567"
"1","12","key_kernel","250000","70","1000000","255","99"
"""
    (tmp_path / "ncu.txt").write_text(text)
    run_main(counters, monkeypatch, "--parse", str(tmp_path / "ncu.txt"), "--out", str(tmp_path / "rows.csv"))
    first, second = counters.parse(text)
    assert first["kernel"] == "forward_kernel"
    assert (first["time_us"], first["issue_percent"], first["l2_mb"]) == (123.456, 81.25, 98.0)
    assert (first["registers"], first["instructions"], first["memory_mb"]) == (168, 1234567, "")
    assert (second["time_us"], second["registers"]) == (250.0, 255)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3
    units = text.replace('"ns"', '"usecond"').replace('"byte"', '"Mbyte"')
    assert counters.parse(units)[1]["time_us"] == 250000
    assert counters.parse(units)[1]["l2_mb"] == 1000000
    with pytest.raises(ValueError, match="no table"):
        counters.parse("==ERROR== ERR_NVGPUCTRPERM")


def test_counters_without_the_profiler(script, monkeypatch, capsys):
    counters = script("counters")
    monkeypatch.setattr(counters.shutil, "which", lambda name: None)
    run_main(counters, monkeypatch)
    assert "not installed" in capsys.readouterr().out
    assert all(metric in counters.command()[12] for metric, _ in counters.METRICS.values())


@pytest.fixture
def timed(script, monkeypatch):
    """The script `tune`, with times that make the last tile the best."""
    tune = script("tune")
    monkeypatch.setattr(tune, "time_tiles", lambda tiles, *_: {tile: 100.0 - i for i, tile in enumerate(tiles)})
    return tune


def test_tiles_of_every_kernel_are_listed(script, monkeypatch, capsys):
    tune = script("tune")
    jobs = tune.jobs_of("bf16", set(), (9, 0))
    assert {kernel for _, _, kernel, _ in jobs} >= {"forward", "query", "key"}
    assert {case.rpb for case, *_ in jobs} == {False, True}
    assert len(jobs) == len(set(jobs)) > 300
    known = {tune.key(case, kernel, torch.bfloat16, (9, 0)) for case, _, kernel, _ in jobs if kernel == "forward"}
    assert {kernel for _, _, kernel, _ in tune.jobs_of("bf16", known, (9, 0))} == {
        kernel for _, _, kernel, _ in jobs if kernel != "forward"
    }
    run_main(tune, monkeypatch, "--dry-run")
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(jobs)} kernels"


def test_the_table_is_written_and_used(timed, monkeypatch, tmp_path, capsys):
    from visionattn.kernels.tuned import tuned_tile

    table = tmp_path / "tuned.csv"
    monkeypatch.setenv("VISIONATTN_TUNED", str(table))
    monkeypatch.setattr(timed.triton_launch.Launch, "run", lambda self: None)
    run_main(timed, monkeypatch, "--tiny", "--out", str(table))
    (case,) = timed.cases(True)
    kernels = timed.kernels_of(timed.problem_of(case, torch.bfloat16, "cpu"))
    assert len(kernels) >= 3
    for kernel, tiles, _ in kernels:
        assert len(tiles) > 1
        assert tuned_tile(tiles, timed.key(case, kernel, torch.bfloat16, (0, 0))) is tiles[-1]
    before = table.read_text()
    assert len(before.splitlines()) == len(kernels) + 1
    monkeypatch.setattr(timed, "time_tiles", lambda *_: pytest.fail("these are known"))
    run_main(timed, monkeypatch, "--tiny", "--out", str(table))
    assert table.read_text() == before


def test_a_tile_that_fails_is_left_out(script, capsys):
    tune = script("tune")
    (case,) = tune.cases(True)
    _, tiles, _ = tune.kernels_of(tune.problem_of(case, torch.bfloat16, "meta"))[0]
    ran = []

    class Fake:
        def __init__(self, tile):
            self.tile = tile

        def run(self):
            if self.tile is tiles[1]:
                raise RuntimeError("out of resources")
            ran.append(self.tile)

    times = tune.time_tiles(tiles[:3], Fake, tune.Clock("cpu"), 2)
    assert set(times) == {tiles[0], tiles[2]}
    assert set(ran) == set(times)
    assert "cannot run: out of resources" in capsys.readouterr().out


def test_models_are_measured_one_by_one_and_resumed(script, monkeypatch, tmp_path, capsys):
    models, out = script("models"), tmp_path / "models.csv"
    arguments = ("--tiny", "--only", "test_resnet", "--out", str(out))
    run_main(models, monkeypatch, *arguments)
    rows = models.read_rows(out)
    assert [(row["pass"], row["mode"]) for row in rows] == [
        ("inference", "eager"), ("inference", "graph"), ("train", "eager"), ("train", "graph")
    ]  # fmt: skip
    assert all(float(row["images_per_s"]) > 0 and not row["error"] for row in rows[::2])
    assert all("CUDA" in row["error"] and not row["images_per_s"] for row in rows[1::2])
    seen = []
    monkeypatch.setattr(models, "measure", lambda setups, rounds: seen.extend(s.mode for s in setups) or [])
    run_main(models, monkeypatch, *arguments)
    assert seen == ["graph", "graph"]  # those that failed are tried again


def test_cases_with_a_goal_are_resumed(script, monkeypatch, tmp_path):
    na_gpu, out = script("na_gpu"), tmp_path / "goals.csv"
    assert len({tuple(na_gpu._key(case, "bf16").values()) for case in na_gpu.GOALS}) == 7
    measured = []

    def rows_of(case, dtype, *rest):
        measured.append((case, rest[-1]))
        return [na_gpu._key(case, dtype) | {"median_ms": 1.0}]

    monkeypatch.setattr(na_gpu, "rows_of", rows_of)
    monkeypatch.setattr(na_gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(na_gpu, "Clock", lambda device: type("Clock", (), {"bandwidth": lambda self: 1e9})())
    monkeypatch.setattr(na_gpu, "machine", lambda: "none")
    run_main(na_gpu, monkeypatch, "--goals", "--only", "56x56", "--out", str(out))
    assert [compiled for _, compiled in measured] == [True, False, False]
    run_main(na_gpu, monkeypatch, "--goals", "--resume", "--out", str(out))
    assert [case for case, _ in measured] == na_gpu.GOALS
    assert len(na_gpu.read_rows(out)) == 7
