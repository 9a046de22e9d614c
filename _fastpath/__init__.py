"""The compiled fast path: the reactor and the codecs.

It knows bytes, sockets and clocks, nothing of comments beyond their fields. Engines and codecs in
plain Python (`gateway.engine.reference`, `gateway.dialects.native`) are what it is measured against
and tested beside. Modules compile from `.pyx` at `make setup`, with the C files that `setup.py`
lists beside them; `build` tells how.
"""
