"""Types of `deflate.pyx`."""

from typing import Final

LIBRARIES: Final[str]
COMPILER: Final[str]
SWITCHES: Final[str]

class Window:
    def message(self, payload: bytes, level: int, *, keyframe: bool = False) -> bytes: ...

def compress(payload: bytes, level: int = 6) -> bytes: ...
def inflate(data: bytes, limit: int) -> bytes: ...
