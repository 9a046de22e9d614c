"""The compiled fast path: the reactor and the codecs, and the swarm that loads them.

It knows bytes, sockets and clocks, nothing of comments beyond their fields. Engines and codecs in
plain Python (`gateway.engine.reference`, `gateway.dialects.native`) are what it is tested beside.
Which file is what, and the path of a tick through them: docs/fast-path.md.
"""
