"""State on a Redis or Valkey Cluster: the same keys and commands, each where its slot is.

No script and no command touches two keys, so nothing has to share a slot and no key has a hash tag.
What needs an order between two keys is two round trips: rings are written, *then* interest is read.
"""

from __future__ import annotations

import redis

from uproar.config import Config
from uproar.state import StateLost
from uproar.state.valkey import ValkeyState
from uproar.valkey_client import AWAY, sentence
from uproar.valkey_cluster import Cluster


class ClusterState(ValkeyState):
    """`uproar.state.State` on the cluster of `[state] nodes`."""

    def __init__(self, config: Config) -> None:
        self._cluster = Cluster(config.state)
        self._generation = 0  # of the cluster, when a lease was renewed last
        super().__init__(config, self._cluster)

    def lease_gateway(self, name: str, incarnation: str, connections: dict[str, int]) -> bool:
        """Renew a gateway's lease; False after a failover as well.

        The lease may have stood on one master while another lost what this gateway had told it.
        """
        stood = super().lease_gateway(name, incarnation, connections)
        known, self._generation = self._generation, self._cluster.generation
        return stood and known == self._generation

    def ping(self) -> None:
        try:
            answers = self._cluster.on_masters(("PING",))
        except (redis.RedisError, *AWAY) as error:
            raise StateLost(sentence(error, "the state server")) from error
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise StateLost(sentence(answer, "the state server")) from answer
