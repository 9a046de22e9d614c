"""The servers of a scaled-out uproar, real ones, on loopback: for tests, benchmarks and a look.

Comes in: `python -m deploy.stack up|down|…` (`make stack-up`), or a test that makes one of the
classes. Goes out: Kafka in KRaft mode, Cassandra and a Valkey cluster, at pinned versions with
small heaps, each in a directory of its own with its configuration, data, log and pid file. What a
pid file names is stopped or killed, nothing else. Made for one machine: no replication of anything
across hosts, no passwords.
"""
