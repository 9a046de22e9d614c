"""The processes that turn submissions into the log, and the log into ring, store and decisions.

`ingest` (owns the log's partitions; core: `admission`), `coordinator` (log → ring and bus; core:
`chain`), `archive` (log → store), `moderation` (log → deletions, through ingest). Each is an
operating-system process that may be killed at any moment: what it does is a function of the log.
"""
