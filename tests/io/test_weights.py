"""Files that are no checkpoints: the message says what they are, whichever function reads them."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from visionattn.errors import CheckpointError
from visionattn.io.convert import convert_file, read_any
from visionattn.io.weights import check_format, read


@pytest.mark.parametrize("function", [read, read_any, check_format])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page, not a file of weights"),
        (None, "is a folder, not a file of weights"),
    ],
)
def test_other_things_than_files_of_weights(function, suffix, content, message, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\{suffix}: {message}"):
        function(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_with_the_suffix_of_pytorch(protocol, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"model": {"w": np.ones(3, np.float32)}}, protocol))
    with pytest.raises(CheckpointError, match=r"a\.pth: .*: visionattn convert-checkpoint .*a\.pth"):
        read(path)
    assert read(convert_file(path).out)["state_dict"]["w"].tolist() == [1, 1, 1]
    path.write_bytes(pickle.dumps({"model": {"w": [1.0]}}, protocol))
    with pytest.raises(CheckpointError, match=r"a\.pth: is a pickle, .*: visionattn convert-checkpoint .*a\.pth"):
        read(path)


@pytest.mark.parametrize("new", [True, False])
def test_truncated_files_are_not_taken_for_pickles(new, tmp_path):
    whole, path = tmp_path / "whole.pth", tmp_path / "a.pth"
    torch.save({"state_dict": {"w": torch.rand(5000)}}, whole, _use_new_zipfile_serialization=new)
    shutil.copy(whole, path)
    with path.open("r+b") as stream:
        stream.truncate(whole.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"a\.pth: truncated .*; copy or download it again$"):
        read(path)
    with pytest.raises(CheckpointError, match=r"a\.pth: .*truncated") as caught:
        read_any(path)
    assert "codec" not in str(caught.value)
