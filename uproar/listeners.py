"""The listening sockets of a system: found free, shared out among the gateways, taken back.

The port is bound once without SO_REUSEPORT first: with it, a second system would silently share
the first one's port. Then each gateway has a SO_REUSEPORT socket of its own and the kernel spreads
new connections over them. The supervisor keeps a copy of each, so connections to a gateway that
died wait in its queue until it is back.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

from uproar.errors import ServeError

BACKLOG: Final = 4096  # the kernel caps it at net.core.somaxconn, 4096 by default


class Port:
    """A port that was free, bound but not listening; `close` it once the listeners stand."""

    def __init__(self, host: str, port: int, setting: str) -> None:
        """Bind it (0: any free one); raises ServeError that names the setting."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (socket.gaierror, UnicodeError) as error:
            raise ServeError(
                f"{host}: no address to listen on; set {setting.replace('port', 'host')}"
            ) from error
        self.family: int = found[0][0]
        self.address: tuple[Any, ...] = found[0][4]
        self._socket = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(self.address)
        except OSError as error:
            self._socket.close()
            raise _refused(host, port, setting, error) from error
        # With SO_REUSEADDR alone two sockets may be bound while neither listens.
        self.address = self._socket.getsockname()
        self.host: str = self.address[0]
        self.number: int = self.address[1]

    def close(self) -> None:
        """Let go of the probe; the listeners keep the port."""
        self._socket.close()


class Listener:
    """One listening socket of a port and its inheritable number.

    A gateway in *quarantine* runs on a stand-in that no client knows, so that it can prove itself
    while the kernel gives all connections to the others.
    """

    def __init__(self, port: Port, *, shared: bool) -> None:
        """Listen; `shared` with the port's other listeners by SO_REUSEPORT."""
        self._family, self._address, self._shared = port.family, port.address, shared
        self._socket: socket.socket | None = self._open(self._address)
        self.quarantined = False

    def fileno(self) -> int:
        """Return the descriptor that the next process inherits."""
        if self._socket is None:
            self._socket = self._open(self._address)
        return self._socket.fileno()

    @property
    def serving(self) -> bool:
        """Whether clients of the port can reach it."""
        return self._socket is not None and not self.quarantined

    def quarantine(self) -> None:
        """Leave the port; the next process gets a stand-in."""
        self.close()
        loopback = "::1" if self._family == socket.AF_INET6 else "127.0.0.1"
        self._socket = self._open((loopback, 0))
        self.quarantined = True

    def release(self) -> None:
        """Listen on the port again, for the next process."""
        self.close()
        self._socket = self._open(self._address)
        self.quarantined = False

    def close(self) -> None:
        """Stop listening, as far as this process is concerned."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self, address: tuple[Any, ...]) -> socket.socket:
        listener = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise ServeError(
                f"{address[0]}:{address[1]}: can't listen: {error.strerror}; "
                "another program took the port just now: start again"
            ) from error
        return listener


def url(scheme: str, host: str, port: int) -> str:
    """Return a URL without a path that works on this machine, for wildcard addresses too."""
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _refused(host: str, port: int, setting: str, error: OSError) -> ServeError:
    if error.errno == errno.EADDRINUSE:
        return ServeError(
            f"port {port} on {host} is taken by another program; stop that one, "
            f"or set {setting} to another port (0: any free one)"
        )
    if error.errno == errno.EACCES:
        return ServeError(
            f"port {port} on {host} needs more rights than you have; "
            f"set {setting} to one above 1023"
        )
    return ServeError(
        f"{host}:{port}: can't be bound: {error.strerror}; "
        f"set {setting} and {setting.replace('port', 'host')}"
    )
