"""The page for people: of one pipeline, or of several below each other."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

import msgspec
from starlette.responses import HTMLResponse

__all__ = ["Page"]

_NO_STAGES = '<script id="stages" type="application/json">[]</script>'
# Everything comes from here, and nothing may be put into frames of others.
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "frame-ancestors 'self'; base-uri 'none'"
)


class Page:
    """The page, ready to be sent.

    Parameters
    ----------
    stages
        Where each of several pipelines is, by name; none where the page is about one.
    """

    def __init__(self, stages: Mapping[str, str] | None = None) -> None:
        text = files("firstlight.live").joinpath("page.html").read_text(encoding="utf-8")
        named = msgspec.json.encode([{"name": name, "place": place} for name, place in (stages or {}).items()]).decode()
        # In a script element only "<" could be taken for something else.
        self._text = text.replace(_NO_STAGES, _NO_STAGES.replace("[]", named.replace("<", "\\u003c")))

    def response(self) -> HTMLResponse:
        """With what browsers shall not allow it."""
        return HTMLResponse(self._text, headers={"content-security-policy": _POLICY})
