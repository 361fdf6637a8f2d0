"""NAT and DiNAT of transformers on the drop-in for NATTEN, compared with ours in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("transformers_models.py")


@pytest.fixture(scope="module")
def results() -> dict:
    pytest.importorskip("transformers", reason="transformers is not installed")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name", ["DinatForImageClassification", "layer scale", "DinatBackbone", "NatForImageClassification"]
)
def test_equal_to_ours(name, results):
    if name not in results:
        pytest.skip(f"transformers {results['version']} has no {name}")
    found = results[name]
    assert found["loaded"] > 80
    assert found["float32"] < 1e-5
    assert max(found["exact"].values()) < 1e-10, found["exact"]


def test_dropout_and_attentions(results):
    assert results["dropout"] is True
    assert [shape[-1] for shape in results["attentions"]] == [49] * 4
    assert [shape[:2] for shape in results["attentions"]] == [[2, heads] for heads in (1, 2, 4, 8)]
