"""The native dialect against the shared vectors, and what moderators see that viewers do not."""

import json
from pathlib import Path

import pytest

from gateway.audiences import AudienceKey, sees
from gateway.dialects import native
from uproar import ids
from uproar.events import MASK_ALL, SHOWN, Comment, CommentDeleted, Event, User, Visibility

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "protocol.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_encoder_writes_the_vectors(vector):
    payload, text = native.encode("msgpack", vector["events"])
    assert (payload.hex(), text) == (vector["msgpack"], False)
    payload, text = native.encode("json", vector["events"])
    assert (json.loads(payload), text) == (vector["events"], True)


def _comment(offset=7, visibility=Visibility.ALL, mask=MASK_ALL):
    ts, comment_id = ids.IdMaker().make(1_763_836_000_000)
    data = Comment(comment_id, User("u1", "Ann", "vip", "#fff", ("sub",)), "hi 🎉", ts)
    return Event(offset, "COMMENT", ts, "u1", mask, visibility, data)


def test_only_moderators_are_told_what_is_hidden():
    held = _comment(visibility=Visibility.HELD)
    assert native.event_object(held, moderator=True)["visibility"] == "held"
    viewers = AudienceKey("s", "native", "json", "none", "all", "viewer")
    assert not sees(viewers, held)
    assert sees(viewers._replace(visibility="moderator"), held)


def test_rate_classes_follow_the_mask():
    sampled_out = _comment(mask=SHOWN)
    key = AudienceKey("s", "native", "json", "none", "all", "viewer")
    assert sees(key, sampled_out)
    assert not sees(key._replace(rate="50"), sampled_out)
    assert not sees(key, _comment(mask=0))


def test_a_comment_never_carries_a_nonce_and_leaves_absent_fields_out():
    shown = native.event_object(_comment())
    assert set(shown) == {"type", "id", "offset", "user", "text", "ts"}
    assert shown["user"] == {
        "id": "u1", "name": "Ann", "role": "vip", "color": "#fff", "badges": ["sub"],
    }  # fmt: skip
    deleted = Event(9, "COMMENT_DELETED", 1, "m", MASK_ALL, 0, CommentDeleted(b"\1" * 16))
    assert native.event_object(deleted)["comment_id"] == ids.to_text(b"\1" * 16)
