"""Run the tests of the Triton kernels in a process of their own, with Triton's interpreter on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="the tests run here already"
)
def test_kernels_in_the_interpreter():
    path = Path(__file__).with_name("test_triton_kernels.py")
    files = [str(path), str(path.parents[1] / "test_transforms.py")]  # the second one is of every kernel
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=path.parents[3])
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert " passed" in result.stdout
    assert " passed, 1 skipped" in result.stdout  # the longest window takes too long there
