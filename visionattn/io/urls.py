"""Inputs that are given by their address."""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from visionattn.errors import DataError
from visionattn.io.fetch import download
from visionattn.io.names import safe_name

__all__ = ["fetch_inputs", "is_url"]

MAX_BYTES = 2 << 30
REMEDY = "check the address and the connection, or download the file by other means"


def is_url(item: str | Path) -> bool:
    """Return True for an http or https address."""
    return str(item).lower().startswith(("http://", "https://"))


def fetch_inputs(
    inputs: Sequence[str | Path], folder: Path, on_error: Callable[[str], None], timeout: float = 30.0
) -> tuple[list[str | Path], dict[str, str]]:
    """Download the addresses among the inputs, and return the inputs with files in their place.

    The files are named after the last part of the address; a number is added to names that are taken. Addresses that
    occur twice are downloaded once.

    Args:
        inputs: paths, patterns and addresses.
        folder: folder for the files, which is created if there is an address.
        on_error: called with one line for each address that cannot be downloaded, which is left out.
        timeout: seconds without data after which an attempt fails.

    Returns:
        The inputs, and the address of each file that was downloaded, by path.

    Raises:
        DataError: the folder cannot be created.
    """
    found: list[str | Path] = []
    addresses: dict[str, str] = {}
    for item in inputs:
        if not is_url(item):
            found.append(item)
            continue
        if str(item) in addresses.values():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be created ({error.strerror})") from error
        try:
            target = _target(str(item), folder, {Path(path).name.lower() for path in addresses})
            download(str(item), target, max_bytes=MAX_BYTES, timeout=timeout, attempts=2, remedy=REMEDY)
        except DataError as error:
            on_error(str(error))
            continue
        addresses[str(target)] = str(item)
        found.append(target)
    return found, addresses


def _target(url: str, folder: Path, taken: set[str]) -> Path:
    """Return the file for an address."""
    try:
        last = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    except ValueError as error:
        raise DataError(f"{url}: is not an address ({error})") from error
    name = safe_name(last, "image")
    stem, suffix, number = Path(name).stem, Path(name).suffix, 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}_{number}{suffix}"
    return folder / name
