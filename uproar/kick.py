"""Kicking: every open session of a user is closed with code 4005, by the gateways that hold it.

The registry tells which gateways those are. A session opened within the last half second may not
stand there yet; a kick is no ban, and who is kicked may come back.
"""

from __future__ import annotations

from uproar import ephemeral
from uproar.bus import Bus, control_channel
from uproar.state import Seat, State


def kick(state: State, bus: Bus, user: str, stream: str | None = None) -> list[Seat]:
    """Tell the gateways of a user's sessions, on one stream or on all; return these sessions.

    The answer does not wait for the sessions to be closed. Raises StateLost or BusLost.
    """
    seats = [seat for seat in state.seats(user) if stream is None or seat.stream == stream]
    payload = ephemeral.encode("kick", ephemeral.Kick(user, stream))
    gateways = sorted({seat.gateway for seat in seats})
    if gateways:
        bus.publish([(control_channel(gateway), payload) for gateway in gateways])
    return seats
