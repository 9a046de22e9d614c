from collections.abc import Callable, Iterable

class Swarm:
    def __init__(
        self, look: Callable[[bytes, bool], Iterable[tuple[int, int, int, int]] | None]
    ) -> None: ...
    def add(
        self,
        address: int,
        port: int,
        count: int,
        heads: list[bytes],
        accept: bytes,
        *,
        raw: bool = False,
        binary: bool = False,
        decode_every: int = 0,
        read_bytes_s: int = 0,
        never_reads: bool = False,
        receive_buffer: int = 0,
        at_once: int = 64,
        rate: float = 0.0,
        churn: int = 0,
        stream: int = 0,
    ) -> int: ...
    def send(
        self,
        group: int,
        opcode: int,
        payload: bytes,
        rate: float,
        *,
        total: int = 0,
        stamp_at: int = -1,
        nonce_at: int = -1,
    ) -> int: ...
    def stop(self, group: int, job: int) -> int: ...
    def run(self, milliseconds: int) -> int: ...
    def close_members(self, group: int, keep: int = 0, mode: int = 0) -> None: ...
    def counts(self, group: int) -> dict[str, int]: ...
    def latencies(self, group: int) -> list[list[int]]: ...
    def offsets(self, stream: int = 0) -> int: ...
    @property
    def lag_ns(self) -> int: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...
