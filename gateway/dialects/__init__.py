"""Dialects: from bytes to commands, and from a tick of events to bytes, once per audience.

`native` is the protocol of docs/protocol.md in both codecs. Others (IRC, MQTT, SSE) are a class of
the same shape each.
"""
