"""Rules about the layout that the import contracts in pyproject.toml cannot express."""

import re

from fixtures.paths import REPO

PACKAGE = REPO / "visionattn"
MAX_FILES = 20


def test_folders_are_short():
    folders = {path.parent for root in (PACKAGE, REPO / "tests") for path in root.rglob("*.py")}
    sizes = {folder.relative_to(REPO).as_posix(): len(list(folder.glob("*.py"))) for folder in folders}
    assert len(sizes) > 40
    assert {name: size for name, size in sizes.items() if size > MAX_FILES} == {}


def test_no_code_outside_of_the_jobs_knows_a_job_by_name():
    names = "detection|instance|semantic|panoptic|localization|forgery|action|points"
    pattern = re.compile(rf"""(task|job|job\.name) (==|!=|in) [(\["']*({names})\b""")
    folders = ("inference", "engine", "cli", "serve", "openmmlab", "data", "io")
    files = [path for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    assert len(files) > 80
    assert [path for path in files if pattern.search(path.read_text())] == []


def test_every_package_has_a_docstring():
    packages = [path for path in PACKAGE.rglob("__init__.py") if not path.read_text().startswith('"""')]
    assert [path.relative_to(REPO).as_posix() for path in packages] == []
