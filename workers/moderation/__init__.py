"""Moderation: what reads along and takes away, after the fact, what must not stay.

Comes in: comments as published, the streams' terms, and what was done about their authors. Goes
out: COMMENT_DELETED, FLAGGED and SANCTION, through ingest like anybody's. It owns no state but its
position in the log: all else is made anew from log, store and the files of terms.

A comment goes through the stages of `pipeline`: `rules` (with `lists` of `terms`, over what
`normalise` reads in a line), `linear` (a model over words), `reputation` (strikes). `moderator`
holds them together, `worker` is the process, `figures` is what it says of itself.
"""
