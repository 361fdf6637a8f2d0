"""The check of a release: the tag, the version, the changelog and the citation agree."""

import importlib.util
import shutil

import pytest
from fixtures.paths import REPO

from visionattn import __version__

FILES = ("CHANGELOG.md", "CITATION.cff", "visionattn/_version.py")
SPEC = importlib.util.spec_from_file_location("release_notes", REPO / "tools/release_notes.py")
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "visionattn").mkdir()
    for file in FILES:
        shutil.copy(REPO / file, tmp_path / file)
    return tmp_path


def test_this_version_can_be_released():
    text = MODULE.release_notes(f"v{__version__}")
    assert text.startswith("### ")
    assert "\n## " not in text


@pytest.mark.parametrize("tag", [__version__, "v0.0.1", f"v{__version__}.post1"])
def test_other_tags(tag):
    with pytest.raises(ValueError, match=f"the tag is {tag}, the package has version {__version__}"):
        MODULE.release_notes(tag)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("CHANGELOG.md", f"## [{__version__}]", "## [Unreleased]", "has no section"),
        ("CITATION.cff", f"version: {__version__}", "version: 0.0.1", "CITATION.cff 0.0.1"),
        ("CITATION.cff", 'date-released: "2', 'date-released: "1', "the date of"),
        ("visionattn/_version.py", "__version__", "VERSION", "_version.py has no line"),
    ],
)
def test_files_that_disagree(root, file, old, new, message):
    assert MODULE.release_notes(f"v{__version__}", root)
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        MODULE.release_notes(f"v{__version__}", root)
