"""The gateway: holds the viewers. Batches of events from the bus in, one shared frame a tick out.

The path of a comment on its way out: `feed` (bus, chain, backfill) → `live` (one stream's recent
events and position) → `tick` (every 10 ms: each audience's events, encoded once by a dialect) →
`engine` (the same bytes to every session). On its way in: `engine` → `commands` → `uproar.ipc`.
`server` puts the pieces together; `http` is the REST API beside it.
"""
