"""Print the section of CHANGELOG.md for a tag, after checking that all files have the version of the tag.

python tools/release_notes.py v0.2.0
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def release_notes(tag: str, root: Path = ROOT) -> str:
    """Return the section of the changelog.

    Raises:
        ValueError: the tag is not the version of the package and of CITATION.cff, the changelog has no section for it,
            or dates differ.
    """
    version = tag.removeprefix("v")
    package = _find(root / "visionattn/_version.py", r'__version__ = "(.+)"')
    cited = _find(root / "CITATION.cff", r"version: (\S+)")
    if not tag.startswith("v") or package != version or cited != version:
        raise ValueError(f"the tag is {tag}, the package has version {package}, and CITATION.cff {cited}")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\] - (\S+)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    found = {name: (date, text.strip()) for name, date, text in sections}
    if version not in found or not found[version][1]:
        raise ValueError(f"CHANGELOG.md has no section '## [{version}] - DATE' with text")
    date, text = found[version]
    released = _find(root / "CITATION.cff", r'date-released: "(.+)"')
    if date != released:
        raise ValueError(f"the date of {version} is {date} in CHANGELOG.md and {released} in CITATION.cff")
    return text


def _find(file: Path, pattern: str) -> str:
    found = re.search(f"^{pattern}$", file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{file.name} has no line of the form {pattern}")
    return found[1]


if __name__ == "__main__":
    try:
        print(release_notes(*sys.argv[1:]))
    except (TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
