"""Run the tests of the Triton kernels in a process of their own, with Triton's interpreter on."""

import re
from pathlib import Path

import pytest
from fixtures.interpreter import run_in_interpreter, starts_interpreter

pytest.importorskip("triton")


@starts_interpreter()
@pytest.mark.timeout(3600)
def test_kernels_in_the_interpreter():
    output = run_in_interpreter(Path(__file__).with_name("test_triton_kernels.py"))
    assert int(re.search(r"(\d+) passed", output)[1]) >= 15
    assert "skipped" not in output
