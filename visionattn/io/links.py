"""Addresses of weights: what is known of their hosts, and whether they answer."""

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass

from visionattn._version import __version__
from visionattn.io.fetch import is_page, reason_of

__all__ = ["Answer", "check_link", "link_note", "needs_browser", "reported_dead"]

_BROWSER = "needs a browser"
_DEAD = "address reported dead in 2026"
_HOSTS = {
    "connecthkuhk-my.sharepoint.com": _BROWSER,
    "drive.google.com": _BROWSER,
    "pan.baidu.com": _BROWSER,
    "api.onedrive.com": _DEAD,
}


def link_note(url: str) -> str:
    """Return what is known of the host of an address, or an empty text."""
    return next((note for host, note in _HOSTS.items() if url.startswith(f"https://{host}/")), "")


def needs_browser(url: str) -> bool:
    """Return True if an address leads to a page from which a person downloads the file."""
    return link_note(url) == _BROWSER


def reported_dead(url: str) -> bool:
    """Return True if the address is known not to work."""
    return link_note(url) == _DEAD


@dataclass(frozen=True)
class Answer:
    """Result of `check_link`.

    Attributes:
        ok: the server has the file or, where a browser is needed, the page.
        text: the size in bytes, or the reason why it failed, in one line.
    """

    ok: bool
    text: str


def check_link(url: str, timeout: float = 30.0) -> Answer:
    """Ask the server for the first bytes of a file, without downloading it.

    A request for a range is used in place of HEAD, which some servers do not answer and which does not show whether a
    web page is returned.
    """
    headers = {"User-Agent": f"visionattn/{__version__}", "Range": "bytes=0-1023", "Accept-Encoding": "identity"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            start = response.read(1024)
            if not needs_browser(url) and is_page(start, response.headers.get_content_type()):
                return Answer(False, "the server returned a web page, not a file")
            size = response.headers.get("Content-Range", "").rpartition("/")[2]
            size = size if response.status == 206 else response.headers.get("Content-Length", "")
            return Answer(True, f"{int(size):,} bytes" if size.isdecimal() and len(size) < 20 else "answers")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Answer(False, reason_of(error))
