"""Every statement, by name. `{ks}` is the keyspace.

Retry and idempotence: all of them but `claim_era` are idempotent, because rows are facts that never
change and the cells that move carry their value as write time. They are tried once more after a
timeout, on the next node after another failure. `claim_era` is a lightweight transaction: after a
failure nobody knows whether it took place, so it is never repeated as such; the caller reads the
list of eras anew, at serial consistency, which also ends what was left half done.
"""

from __future__ import annotations

from typing import Final

_ROW: Final = "offset, type, ts, actor, mask, visibility, data"
_ACT: Final = "offset, ts, actor, mask, visibility, data"
_IN_BUCKET: Final = "stream = ? AND era = ? AND bucket = ? AND offset > ? AND offset < ?"
_IN_SPAN: Final = "stream = ? AND type = ? AND era = ? AND span = ? AND offset > ? AND offset < ?"
_BUCKETS: Final = """SELECT era, bucket, first_ts, last_ts FROM {ks}.buckets
    WHERE stream = ? AND kind = ? AND (era, bucket) >= (?, ?) AND (era, bucket) <= (?, ?)"""
# Within one partition: the server looks at its rows, and only those in the window travel.
_TIMED: Final = "AND ts >= ? AND ts < ?"

STATEMENTS: Final[dict[str, str]] = {
    # Eras and positions
    "eras": "SELECT era, epoch FROM {ks}.eras WHERE part = 'all'",
    "claim_era": "INSERT INTO {ks}.eras (part, era, epoch) VALUES ('all', ?, ?) IF NOT EXISTS",
    "positions": "SELECT era, position FROM {ks}.positions WHERE part = 'all'",
    "put_position": """INSERT INTO {ks}.positions (part, era, position) VALUES ('all', ?, ?)
        USING TIMESTAMP ?""",
    # Rows, as `layout.rows_of` gives them
    "put_history": """INSERT INTO {ks}.history
        (stream, era, bucket, offset, comment_id, type, ts, actor, mask, visibility, data)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TTL ?""",
    "put_id": """INSERT INTO {ks}.ids (stream, minute, comment_id, era, offset, approved)
        VALUES (?, ?, ?, ?, ?, ?) USING TTL ?""",
    "put_user": """INSERT INTO {ks}.users (stream, slot, era, span, user_id, offset)
        VALUES (?, ?, ?, ?, ?, ?) USING TTL ?""",
    "put_act": """INSERT INTO {ks}.acts
        (stream, type, era, span, offset, ts, actor, mask, visibility, data)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TTL ?""",
    "put_verdict": """INSERT INTO {ks}.verdicts (stream, day, comment_id, era, offset, deleted)
        VALUES (?, ?, ?, ?, ?, ?) USING TTL ?""",
    "put_removal": "INSERT INTO {ks}.removals (stream, user_id, era, offset) VALUES (?, ?, ?, ?)",
    "put_clear": "INSERT INTO {ks}.clears (stream, era, offset) VALUES (?, ?, ?)",
    "put_first": """INSERT INTO {ks}.buckets (stream, kind, era, bucket, first_ts)
        VALUES (?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?""",
    "put_last": """INSERT INTO {ks}.buckets (stream, kind, era, bucket, last_ts)
        VALUES (?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?""",
    # Reading
    "buckets_down": f"{_BUCKETS} LIMIT ?",
    "buckets_up": f"{_BUCKETS} ORDER BY kind DESC, era ASC, bucket ASC LIMIT ?",
    "history_down": f"SELECT {_ROW} FROM {{ks}}.history WHERE {_IN_BUCKET} LIMIT ?",
    "history_up": f"""SELECT {_ROW} FROM {{ks}}.history WHERE {_IN_BUCKET}
        ORDER BY offset ASC LIMIT ?""",
    "history_timed": f"""SELECT {_ROW} FROM {{ks}}.history WHERE {_IN_BUCKET} {_TIMED}
        ORDER BY offset ASC LIMIT ? ALLOW FILTERING""",
    "history_at": f"""SELECT {_ROW} FROM {{ks}}.history
        WHERE stream = ? AND era = ? AND bucket = ? AND offset IN ?""",
    "acts_down": f"SELECT {_ACT} FROM {{ks}}.acts WHERE {_IN_SPAN} LIMIT ?",
    "acts_up": f"SELECT {_ACT} FROM {{ks}}.acts WHERE {_IN_SPAN} ORDER BY offset ASC LIMIT ?",
    "acts_timed": f"""SELECT {_ACT} FROM {{ks}}.acts WHERE {_IN_SPAN} {_TIMED}
        ORDER BY offset ASC LIMIT ? ALLOW FILTERING""",
    "user_down": """SELECT offset FROM {ks}.users WHERE stream = ? AND slot = ? AND era = ?
        AND span = ? AND user_id = ? AND offset < ? LIMIT ?""",
    "ids": """SELECT comment_id, era, offset, approved FROM {ks}.ids
        WHERE stream = ? AND minute = ? AND comment_id IN ?""",
    "verdicts": """SELECT comment_id, era, offset, deleted FROM {ks}.verdicts
        WHERE stream = ? AND day = ? AND comment_id IN ?""",
    "removals": """SELECT user_id, era, offset FROM {ks}.removals
        WHERE stream = ? AND user_id IN ?""",
    "clears": "SELECT era, offset FROM {ks}.clears WHERE stream = ? LIMIT ?",
    "streams": "SELECT DISTINCT stream FROM {ks}.buckets",
}

SERIAL: Final = frozenset({"eras"})  # read at serial consistency
CONDITIONAL: Final = frozenset({"claim_era"})
