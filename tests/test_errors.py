"""`require`: what is missing is named with the command that brings it; other failures stay what they are."""

import pickle

import pytest

from visionattn.errors import ConfigProblemsError, MissingDependencyError, VisionattnError, require, summary


def test_present_module():
    assert require("json").loads("1") == 1


def test_missing_module_names_the_command():
    with pytest.raises(MissingDependencyError, match=r"no_such_module .* pip install 'visionattn\[dev\]'") as caught:
        require("no_such_module", "dev")
    assert isinstance(caught.value, VisionattnError)
    assert isinstance(caught.value, ImportError)


def write(folder, monkeypatch, text):
    (folder / "half_there.py").write_text(text)
    monkeypatch.syspath_prepend(folder)


def test_failure_inside_a_present_module_is_not_hidden(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, "import something_else_entirely")
    with pytest.raises(ModuleNotFoundError, match="something_else_entirely") as caught:
        require("half_there")
    assert not isinstance(caught.value, MissingDependencyError)


def test_missing_system_library_names_the_package(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, "raise ImportError('libGL.so.1: cannot open shared object file')")
    with pytest.raises(MissingDependencyError, match="apt-get install libgl1"):
        require("half_there")


def test_several_problems_travel_between_processes():
    error = ConfigProblemsError("a.py", ["model: x", "train_cfg: y"])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.problems) == (str(error), error.problems)
    assert str(error).splitlines()[1:] == ["  model: x", "  train_cfg: y"]


def test_summary_of_a_compiler_error_is_what_a_person_can_read():
    text = "backend='inductor' raised:\nCppCompileError: C++ compile error\n\nCommand:\ng++ " + "-I/a/path " * 7000
    text += "\n\nOutput:\n/tmp/main.cpp:2:10: fatal error: omp.h: No such file or directory\n" + "note: x\n" * 900
    short = summary(RuntimeError(text))
    assert short.startswith("backend='inductor' raised: CppCompileError: C++ compile error")
    assert "fatal error: omp.h: No such file or directory" in short
    assert "-I/a/path" not in short
    assert len(summary(RuntimeError("x" * 74_000))) < 500
    assert summary(ValueError("two\n  lines")) == "two lines"
    assert summary(ValueError()) == "ValueError"
