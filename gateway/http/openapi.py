"""The OpenAPI document."""

from typing import Any, Final

DOCUMENT: Final[dict[str, Any]] = {}
