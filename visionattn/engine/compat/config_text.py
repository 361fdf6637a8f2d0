"""A cache for ``mmengine.Config.pretty_text``, which takes seconds for a large config and is used several times."""

from mmengine.config import Config

__all__ = ["install"]


def install() -> None:
    """Cache the formatted text of the last config. Calling it again has no further effect."""
    stock = Config.pretty_text.fget
    if getattr(stock, "_is_cached", False):
        return
    last: list[tuple[str, str]] = []

    def pretty_text(self: Config) -> str:
        key = repr(self._cfg_dict)
        if not last or last[0][0] != key:
            last[:] = [(key, stock(self))]
        return last[0][1]

    pretty_text._is_cached = True  # type: ignore[attr-defined]
    Config.pretty_text = property(pretty_text)
