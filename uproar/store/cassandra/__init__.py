"""STORE on Apache Cassandra, for history that one machine no longer holds.

Comes in: the same events and positions as in SQLite, from one archive or several, each with
partitions of its own. Goes out: the same pages. `store` is the adapter, `layout` says where a row
lies, `marks` lays deletions over rows, `statements` holds the CQL, `schema` the tables and what is
refused, `connection` the driver. docs/scaling-out.md has the settings that a cluster needs.
"""

from uproar.store.cassandra.store import CassandraStore

__all__ = ["CassandraStore"]
