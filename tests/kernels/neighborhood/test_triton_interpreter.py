"""Runs `test_triton_kernels` in a process with Triton's interpreter on; it must be on before Triton is imported."""

import re
from pathlib import Path

import pytest
from fixtures.interpreter import run_in_interpreter, starts_interpreter

pytest.importorskip("triton")


@starts_interpreter()
@pytest.mark.timeout(3600)
def test_kernels_in_the_interpreter():
    output = run_in_interpreter(Path(__file__).with_name("test_triton_kernels.py"))
    assert int(re.search(r"(\d+) passed", output)[1]) >= 20
    assert "skipped" not in output
