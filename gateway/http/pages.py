"""The pages: files of the `web` package, read once at start."""

from __future__ import annotations

from importlib import resources
from typing import Final

from gateway.http.wire import Problem, Response

CONTENT_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


class Pages:
    """Serves `/`, `/stream/{id}` for browsers, and `/assets/{name}`."""

    def __init__(self, origins: list[str]) -> None:
        self._files = {
            file.name: file.read_bytes()
            for file in resources.files("web").iterdir()
            if file.name.rpartition(".")[2] in CONTENT_TYPES
        }
        ancestors = " ".join(origins) if origins else "'self'"
        self._policy = (
            "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' https: data:; "
            f"base-uri 'none'; form-action 'self'; frame-ancestors {ancestors}"
        )

    def get(self, name: str) -> Response:
        """Return a file; raises Problem."""
        body = self._files.get(name)
        if body is None:
            raise Problem(404, "not_found", "there is no such page")
        return Response(
            200,
            body,
            CONTENT_TYPES[name.rpartition(".")[2]],
            [
                ("Content-Security-Policy", self._policy),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-cache"),
            ],
        )
