"""What every process of uproar shares: the vocabulary, configuration, auth and the four adapters.

Comes in: nothing. Goes out: names. A gateway (`gateway/`) holds viewers, a worker (`workers/`)
turns the log into ring, store and decisions; both speak through the roles defined here:
`uproar.log` (ordered, durable), `uproar.bus` (fan-out), `uproar.state` (a cache of the log) and
`uproar.store` (history).
"""

__version__ = "0.1.0"
