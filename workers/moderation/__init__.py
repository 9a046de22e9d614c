"""Moderation: what reads along and takes away, after the fact, what must not stay.

Comes in: comments as published. Goes out: COMMENT_DELETED with the term that matched, through
ingest like anybody's. It owns no state but its position in the log and the list of terms.

`normalise` folds a line to what a reader sees in it, `terms` searches it for the blocked terms,
`worker` is the process.
"""
