"""The tables, and what must be true of a cluster before anything is promised on it."""

from __future__ import annotations

from typing import Final

# The schema, one entry a version; `schema_versions` has a row for each that was applied. Only ever
# append, and write every statement so that it may run twice.
MIGRATIONS: Final[list[tuple[str, ...]]] = [
    (
        # One list of all eras: a lightweight transaction on its partition gives the next number.
        """CREATE TABLE IF NOT EXISTS {ks}.eras (
            part text, era bigint, epoch text, PRIMARY KEY (part, era))""",
        # Apart from `eras`: cells of a lightweight transaction want no other writers.
        """CREATE TABLE IF NOT EXISTS {ks}.positions (
            part text, era bigint, position bigint, PRIMARY KEY (part, era))""",
        # Every event, in the log's order.
        """CREATE TABLE IF NOT EXISTS {ks}.history (
            stream text, era bigint, bucket bigint, offset bigint, comment_id uuid, type text,
            ts bigint, actor text, mask smallint, visibility tinyint, data blob,
            PRIMARY KEY ((stream, era, bucket), offset)
        ) WITH CLUSTERING ORDER BY (offset DESC)""",
        # Where the comments of an id stand. `uuid`, not `timeuuid`: that type refuses other
        # versions, and one odd id in a deletion would stop the archive. Time UUIDs sort alike.
        """CREATE TABLE IF NOT EXISTS {ks}.ids (
            stream text, minute bigint, comment_id uuid, era bigint, offset bigint,
            approved boolean, PRIMARY KEY ((stream, minute), comment_id, era, offset))""",
        # Where the comments of a user stand.
        """CREATE TABLE IF NOT EXISTS {ks}.users (
            stream text, slot int, era bigint, span bigint, user_id text, offset bigint,
            PRIMARY KEY ((stream, slot, era, span), user_id, offset)
        ) WITH CLUSTERING ORDER BY (user_id ASC, offset DESC)""",
        # Every event that is no comment once more, by its type.
        """CREATE TABLE IF NOT EXISTS {ks}.acts (
            stream text, type text, era bigint, span bigint, offset bigint,
            ts bigint, actor text, mask smallint, visibility tinyint, data blob,
            PRIMARY KEY ((stream, type, era, span), offset)
        ) WITH CLUSTERING ORDER BY (offset DESC)""",
        # What was said of a comment, in no table that a comment's own write touches.
        """CREATE TABLE IF NOT EXISTS {ks}.verdicts (
            stream text, day bigint, comment_id uuid, era bigint, offset bigint,
            deleted boolean, PRIMARY KEY ((stream, day), comment_id, era, offset))""",
        """CREATE TABLE IF NOT EXISTS {ks}.removals (
            stream text, user_id text, era bigint, offset bigint,
            PRIMARY KEY ((stream), user_id, era, offset))""",
        """CREATE TABLE IF NOT EXISTS {ks}.clears (
            stream text, era bigint, offset bigint, PRIMARY KEY ((stream), era, offset)
        ) WITH CLUSTERING ORDER BY (era DESC, offset DESC)""",
        # Which partitions there are, with the time that they cover.
        """CREATE TABLE IF NOT EXISTS {ks}.buckets (
            stream text, kind text, era bigint, bucket bigint, first_ts bigint, last_ts bigint,
            PRIMARY KEY ((stream), kind, era, bucket)
        ) WITH CLUSTERING ORDER BY (kind ASC, era DESC, bucket DESC)""",
    ),
]

MAKE_KEYSPACE: Final = """CREATE KEYSPACE IF NOT EXISTS {ks} WITH replication =
    {{'class': 'NetworkTopologyStrategy', '{datacenter}': {copies}}} AND durable_writes = true"""
MAKE_VERSIONS: Final = """CREATE TABLE IF NOT EXISTS {ks}.schema_versions (
    part text, version int, PRIMARY KEY (part, version)
) WITH CLUSTERING ORDER BY (version DESC)"""
READ_VERSION: Final = "SELECT version FROM {ks}.schema_versions WHERE part = 'all' LIMIT 1"
PUT_VERSION: Final = "INSERT INTO {ks}.schema_versions (part, version) VALUES ('all', %s)"

READ_SYNC: Final = "SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'"
READ_KEYSPACE: Final = """SELECT replication, durable_writes FROM system_schema.keyspaces
    WHERE keyspace_name = %s"""
SAFE_SYNC: Final = ("batch", "group")


def why_not_version(keyspace: str, version: int, *, writer: bool) -> str:
    """Return why this code can't work on a schema version, empty where it can."""
    if version > len(MIGRATIONS):
        return (
            f"keyspace {keyspace} has schema version {version}, this code knows "
            f"{len(MIGRATIONS)}; run the version of uproar that wrote it, or a later one"
        )
    if version < len(MIGRATIONS) and not writer:
        return (
            f"keyspace {keyspace} has schema version {version}, {len(MIGRATIONS)} is needed; "
            "the archive brings it there when it starts"
        )
    return ""


def why_not_nodes(datacenter: str, nodes: int, copies: int) -> str:
    """Return why a keyspace can't be made yet, empty where there are nodes enough."""
    if nodes >= copies:
        return ""
    return (
        f"data center {datacenter} has fewer nodes ({nodes}) than store.replication asks for "
        f"copies ({copies}); start more, or lower the setting where losing history is acceptable"
    )


def why_not_keyspace(
    keyspace: str, replication: dict[str, str], durable: bool, datacenter: str, copies: int
) -> str:
    """Return why a keyspace keeps less than what was asked for, empty where it keeps it."""
    if not durable:
        return (
            f"keyspace {keyspace} has durable_writes = false, so a restarted node forgets; "
            f"ALTER KEYSPACE {keyspace} WITH durable_writes = true"
        )
    found = replication.get(datacenter, replication.get("replication_factor", "0"))
    total, _, transient = found.partition("/")  # "3/1": one of the three is transient
    kept = int(total) - int(transient or 0)
    if kept < copies:
        return (
            f"keyspace {keyspace} keeps {kept} copies in {datacenter}, store.replication asks for "
            f"{copies}; ALTER KEYSPACE {keyspace} WITH replication = "
            f"{{'class': 'NetworkTopologyStrategy', '{datacenter}': {copies}}} and repair it, or "
            "lower the setting"
        )
    return ""


def why_not_sync(host: str, sync: str) -> str:
    """Return why a node would lose what it acknowledged, empty where it would not."""
    if sync in SAFE_SYNC:
        return ""
    return (
        f"Cassandra node {host} has commitlog_sync: {sync}, which acknowledges rows that a killed "
        "node forgets; set commitlog_sync: group and commitlog_sync_group_window: 5ms (or "
        "commitlog_sync: batch) in its cassandra.yaml and restart it"
    )
