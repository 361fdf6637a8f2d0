"""Run the tests of the Triton kernels in a process of their own, with Triton's interpreter on."""

import re
from pathlib import Path

import pytest
from fixtures.interpreter import run_in_interpreter, starts_interpreter

pytest.importorskip("triton")


@starts_interpreter()
@pytest.mark.timeout(3600)
def test_kernels_in_the_interpreter():
    path = Path(__file__).with_name("test_triton_kernels.py")
    output = run_in_interpreter(path, path.parents[1] / "test_transforms.py")  # the second one is for all kernels
    assert int(re.search(r"(\d+) passed", output)[1]) >= 20
    assert " passed, 1 skipped" in output  # the longest window takes too long there
