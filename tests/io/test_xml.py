"""XML files are read without entities, with the lines of elements."""

import tracemalloc
from pathlib import Path

import pytest

from visionattn.errors import DataError
from visionattn.io.xml import read_xml

LAUGHS = (
    '<?xml version="1.0"?>\n<!DOCTYPE a [\n<!ENTITY a0 "ha">\n'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">\n' for i in range(1, 10))
    + "]>\n<a>&a9;</a>"
)
QUADRATIC = f'<!DOCTYPE a [<!ENTITY b "{"x" * 50_000}">]><a>{"&b;" * 50_000}</a>'


def test_elements_have_their_lines(tmp_path: Path):
    file = tmp_path / "a.xml"
    file.write_text('<?xml version="1.0"?>\n<a>\n  <b x="1">text</b><c/>\n  <b>größe &amp; &#228;</b>\n</a>\n')
    root = read_xml(file)
    assert [(e.tag, e.line) for e in root.iter()] == [("a", 2), ("b", 3), ("c", 3), ("b", 4)]
    assert [e.text for e in root.findall("b")] == ["text", "größe & ä"]
    assert root.find("b").get("x") == "1"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str):
    file = tmp_path / "a.xml"
    declared = {"utf-8-sig": "utf-8", "cp1252": "windows-1252"}.get(encoding, encoding)
    file.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>\n<a>größe</a>'.encode(encoding))
    assert read_xml(file).text == "größe"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"a\.xml:3: declares XML entities, which are refused"),
        (LAUGHS.encode("utf-16"), r"a\.xml:3: declares XML entities"),
        (QUADRATIC, r"a\.xml:1: declares XML entities"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>\n<a>&b;</a>', "declares XML entities"),
        ('<!DOCTYPE a [<!ENTITY % b SYSTEM "http://localhost/x.dtd"> %b;]>\n<a/>', "declares XML entities"),
        ("<a>\n" * 100_000, r"a\.xml:65: elements are nested deeper than 64 levels"),
        ("<a>\n<b>\n</a>", r"a\.xml:3: is not valid XML"),
        ("", "is not valid XML"),
        (b"\x00\xff" * 100, "is not valid XML"),
        (b"<?xml version='1.0' encoding='klingon'?><a/>", "is not valid XML"),
        (b"<?xml version='1.0' encoding='gbk'?><a>\xc4\xe3</a>", "is not valid XML"),
        (b"<a>\xff</a>", "is not valid XML"),
    ],
)
def test_refused(tmp_path: Path, text: str | bytes, message: str):
    file = tmp_path / "a.xml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            read_xml(file)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_limit_on_the_size(tmp_path: Path):
    file = tmp_path / "a.xml"
    file.write_text(f"<a>{' ' * (2 << 20)}</a>")
    assert read_xml(file).tag == "a"
    with pytest.raises(DataError, match="is larger than 1 MB"):
        read_xml(file, 1 << 20)
    with pytest.raises(DataError, match="cannot be read"):
        read_xml(tmp_path / "none.xml")
