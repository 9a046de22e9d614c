"""Who asks, where a balancer stands between: X-Forwarded-For, as far as it comes from ours.

The compiled reactor does the same in C (`behind` in `_fastpath/reactor.c`); tests hold both to it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

_MAPPED: Final = bytes(10) + b"\xff\xff"  # before the four bytes of an IPv4 address


class Proxies:
    """The networks whose word counts; nobody's by default."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        """Raises ValueError for what is no network."""
        self._networks: list[tuple[int, int]] = []  # first address, how many bits may differ
        self.packed = b""  # 17 bytes each: the address as 16, then the bits that count
        for network in map(ipaddress.ip_network, networks):
            first = network.network_address.packed
            fixed = network.prefixlen + (96 if network.version == 4 else 0)
            first = _MAPPED + first if network.version == 4 else first
            self._networks.append((int.from_bytes(first), 128 - fixed))
            self.packed += first + bytes([fixed])

    def trusts(self, address: str) -> bool:
        """Whether a peer's word counts."""
        read = _read(address) if self._networks else None
        return read is not None and self._has(read)

    def viewer(self, peer: str, forwarded: str) -> str:
        """Return the right-most address that is none of ours, the peer's being the last.

        An entry that is no address ends the list: who wrote it is the nearest that is known.
        """
        if not self.trusts(peer) or not forwarded:
            return peer
        nearest = peer
        for entry in reversed(forwarded.split(",")):
            read = _read(_bare(entry.strip(" \t")))
            if read is None:
                break
            nearest = _text(read)
            if not self._has(read):
                break
        return nearest

    def _has(self, address: bytes) -> bool:
        number = int.from_bytes(address)
        return any((number ^ first) >> free == 0 for first, free in self._networks)


def _bare(entry: str) -> str:
    """Return the address of `1.2.3.4:80`, `[::1]` or `[::1]:80`."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _read(text: str) -> bytes | None:
    try:
        return _MAPPED + socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        pass
    try:
        return socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None


def _text(address: bytes) -> str:
    if address.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)
