"""Inputs of large runs: listed while the run proceeds, divided into shards, and read from tar archives."""

import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from visionattn.errors import ConfigError
from visionattn.inference.file_run import Entry
from visionattn.io.inputs import IMAGE_SUFFIXES, Source

__all__ = ["TAR_SUFFIXES", "Shard", "bulk_entries"]

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_MEMBER = 1 << 30
"""Largest file in an archive that is unpacked, in bytes."""


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of the inputs; ``number`` starts at 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard for a text such as ``2/8``.

        Raises:
            ConfigError: the text has another form, or the number is not between 1 and the count.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(f"`shard` must be I/N with I from 1 to N, such as 2/8, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_process(cls) -> "Shard":
        """Return the shard of this process under torchrun, which sets ``RANK`` and ``WORLD_SIZE``; else all inputs."""
        return cls(int(os.environ.get("RANK", "0")) + 1, int(os.environ.get("WORLD_SIZE", "1")))

    def __contains__(self, index: int) -> bool:
        return index % self.count == self.number - 1

    @property
    def part_name(self) -> str:
        """Start of the names of the parts."""
        return "part" if self.count == 1 else f"part-{self.number}-of-{self.count}"


def bulk_entries(
    sources: Iterable[Source],
    inputs: Sequence[str | Path],
    shard: Shard,
    skip: Callable[[str], bool],
    on_error: Callable[[str], None],
) -> Iterator[Entry]:
    """Yield the inputs of a shard that are not done yet; images in tar archives one by one.

    The name of the results of ``FOLDER/a/x.jpg`` is ``a/x.jpg``, and of ``x.jpg`` in ``FOLDER/b.tar`` ``b.tar/x.jpg``,
    where ``FOLDER`` is the folder that all inputs have in common. An image of an archive is a temporary file that
    exists until the next entry is requested.

    Args:
        sources: the files; whole archives belong to one shard.
        inputs: the arguments from which the files were found.
        shard: the shard.
        skip: returns True for the label of an entry to leave out.
        on_error: called with one line for an archive that cannot be read, of which the images up to there are yielded.
    """
    root, index = _common_folder(inputs), -1
    for number, source in enumerate(sources):
        if number not in shard:
            continue
        name = _relative(source.path, root)
        if not source.path.name.lower().endswith(TAR_SUFFIXES):
            index += 1
            if not skip(str(source.path)):
                yield Entry(index, source.path, name, str(source.path), source.is_video)
            continue
        try:
            for path, member in _unpacked(source.path, lambda member, path=source.path: skip(f"{path}/{member}")):
                index += 1
                yield Entry(index, path, f"{name}/{member}", f"{source.path}/{member}")
        except (OSError, EOFError, tarfile.TarError) as error:
            on_error(f"{source.path}: is damaged or not a tar archive ({error})")


def _unpacked(archive: Path, skip: Callable[[str], bool]) -> Iterator[tuple[Path, str]]:
    """Yield the images of an archive as (temporary file, path in the archive)."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive, "r|*") as tar:
        for member in tar:
            tar.members.clear()  # which would grow with the archive
            name = _safe(member.name)
            path = Path(folder, name.rpartition("/")[2])
            if not member.isreg() or path.suffix.lower() not in IMAGE_SUFFIXES or skip(name):
                continue
            if member.size > MAX_MEMBER:
                raise OSError(f"{member.name} has {member.size} bytes, more than {MAX_MEMBER}")
            path.write_bytes(tar.extractfile(member).read())
            yield path, name
            path.unlink()
    if archive.suffix.lower() == ".tar" and not _ends(archive):  # `tarfile` does not report it
        raise tarfile.ReadError("it has no end marker")


def _ends(archive: Path) -> bool:
    """Return True if an uncompressed archive ends with two blocks of zeros, as the format requires."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 1024))
        return file.read() == bytes(1024)


def _safe(name: str) -> str:
    """Return the path of a member without parts that lead out of a folder."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    return "/".join(part.replace(":", "_") for part in parts)


def _common_folder(inputs: Sequence[str | Path]) -> str:
    """Return the folder that contains all inputs; of a glob pattern, the part before the first special character."""
    folders = []
    for item in inputs:
        path = Path(re.split(r"[*?\[]", str(item))[0] if not Path(item).exists() else item)
        folders.append(os.path.abspath(path if path.is_dir() else path.parent))
    return os.path.commonpath(folders)


def _relative(path: Path, root: str) -> str:
    """Return the path within the folder."""
    relative = os.path.relpath(os.path.abspath(path), root)
    return Path(relative).as_posix() if not relative.startswith("..") else _safe(Path(os.path.abspath(path)).as_posix())
