"""docs/results.md is made from the CSV files."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    specification = importlib.util.spec_from_file_location("generate_results", ROOT / "docs/generate_results.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))


def test_the_page_is_up_to_date(results):
    assert results.TARGET.read_text() == results.page(), "python docs/generate_results.py"


def test_the_fastest_peer_of_each_case_counts_and_slower_cases_are_listed(results, tmp_path, monkeypatch):
    rows = ["shape,kernel,dilation,heads,direction,contestant,times_ours,machine"]
    for shape, name, times in (("7x7", "visionattn", 1), ("7x7", "a", 0.5), ("7x7", "b", 3), ("9x9", "a", 4)):
        rows.append(f"{shape},3,1,2,forward,{name},{times},CPU")
    (tmp_path / "na_cpu.csv").write_text("\n".join(rows))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    text = results.kernels()
    assert "| neighborhood attention | forward | 2 | 0.50 | 2.25 | 4.00 | CPU |" in text
    assert text.endswith("- neighborhood attention, forward, shape 7x7, kernel 3, dilation 1, heads 2: 0.50")


def test_seeds_of_a_command_are_one_row(results, tmp_path, monkeypatch):
    rows = ["data,config,seed,iterations,metric,value,minutes,command,note,machine,date"]
    for seed, value in ((0, 0.5), (1, 0.6)):
        for metric, number in (("AP", value), ("AP50", value + 0.3)):
            rows.append(f"bccd,c,{seed},100,{metric},{number},10,visionattn train c --seed {seed},small,CPU,2026-11-30")
    (tmp_path / "trained.csv").write_text("\n".join(rows))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    (line,) = results.trained().splitlines()[2:]
    result = "AP 0.550 (0.500 to 0.600), AP50 0.850 (0.800 to 0.900)"
    assert line.startswith(f"| bccd | {result} | small | 0, 1 | 100, 10 min | CPU |")
    assert "`visionattn train c --seed N`" in line


def test_table_of_backbones_with_runs_that_are_missing(results):
    def row(model, rule, value="", seed="0", iterations="100"):
        return {
            "task": "camvid", "model": model, "rule": rule, "value": value, "seed": seed, "iterations": iterations,
            "rate": "1.0", "cpu_seconds_per_iteration": "6.0", "backbone_parameters": "2000000",
        }  # fmt: skip

    assert results.table("bccd", [row("resnet18", "cost")]) == "bccd: no runs yet"
    rows = [row(model, "cost") for model in ("resnet18", "dinat_nano", "fastvit_t8")]
    rows += [row("resnet18", "grid", "40", iterations="25"), row("resnet18", "grid", "45", iterations="25")]
    rows += [
        row("dinat_nano", "time", "50"),
        row("fastvit_t8", "time", "52"),
        row("fastvit_t8", "time", "56", seed="1"),
    ]
    head, _, *lines = results.table("camvid", rows).splitlines()
    assert "| 10 minutes | seeds | 2.5 minutes |" in head
    assert [line.split(" | ")[:4] for line in lines] == [
        ["| fastvit_t8", "54.0 (52.0 to 56.0)", "2", ""],
        ["| dinat_nano", "50.0", "1", ""],
        ["| resnet18", "", "", "45.0"],
    ]
