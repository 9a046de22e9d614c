"""Commands: both codecs alike; a bad one costs itself and no input raises."""

import json
import random

import msgpack
import pytest

from gateway.commands import COMMANDS_MAX, Author, BadCommand, CommentCommand, PingCommand, parse

CODECS = pytest.mark.parametrize("pack", [json.dumps, msgpack.packb], ids=["json", "msgpack"])


@CODECS
def test_commands_come_one_by_one_or_in_an_array(pack):
    ping = {"type": "PING"}
    comment = {"type": "COMMENT", "text": "hej 👋", "nonce": "n"}
    assert parse(pack(ping)) == [PingCommand()]
    assert parse(pack([])) == []
    assert parse(pack([comment, ping])) == [CommentCommand("hej 👋", "n"), PingCommand()]
    full = {**comment, "reply_to": "x", "ts": 5, "user": {"id": "u", "name": "U", "role": "vip"}}
    assert parse(pack(full)) == [CommentCommand("hej 👋", "n", "x", Author("u", "U", "vip"), 5)]
    assert parse(pack([ping] * COMMANDS_MAX)) == [PingCommand()] * COMMANDS_MAX
    assert parse(pack([ping] * 20)) == [PingCommand()] * 20, "an array with a longer head"


@CODECS
@pytest.mark.parametrize(
    ("bad", "nonce", "said"),
    [
        ({"type": "DANCE", "nonce": "n"}, "n", "DANCE"),
        ({"text": "no type", "nonce": "n"}, "n", "type"),
        ({"type": "COMMENT", "nonce": "n"}, "n", "text"),
        ({"type": "COMMENT", "text": 5, "nonce": "n"}, "n", "str"),
        ({"type": "COMMENT", "text": "a", "nonce": "n", "colour": 1}, "n", "colour"),
        ({"type": "COMMENT", "text": "a", "nonce": 5}, None, "str"),
        ({"type": "COMMENT", "text": "a", "nonce": ""}, None, "nonce must be"),
        ({"type": "COMMENT", "text": "a", "nonce": "n" * 65}, None, "nonce must be"),
        ({"type": "COMMENT", "text": "a", "nonce": "n\0"}, None, "nonce must be"),
        ({"type": "COMMENT", "text": "a", "nonce": "n", "ts": -1}, "n", "int"),
        ({"type": "COMMENT", "text": "a", "nonce": "n", "ts": 1 << 53}, "n", "int"),
        ({"type": "COMMENT", "text": "a", "nonce": "n", "user": "u"}, "n", "object"),
        ({"type": "PING", "nonce": "n"}, "n", "nonce"),
        ({}, None, "type"),
        ("PING", None, "object"),
        (None, None, "object"),
        (5, None, "object"),
    ],
)
def test_a_bad_command_is_refused_alone_with_its_nonce(pack, bad, nonce, said):
    for found in (parse(pack(bad)), parse(pack([{"type": "PING"}, bad]))[1:]):
        (refused,) = found
        assert isinstance(refused, BadCommand)
        assert refused.nonce == nonce
        assert said in refused.message and "`" not in refused.message


@CODECS
def test_an_array_of_too_many_is_one_refusal(pack):
    (refused,) = parse(pack([{"type": "PING"}] * (COMMANDS_MAX + 1)))
    assert "at most 100" in refused.message and refused.nonce is None


@pytest.mark.parametrize(
    "data",
    [
        "", " ", "hello", "[", "{", '{"type":"COMMENT","text":"\\ud800","nonce":"n"}', "[" * 60_000,
        '{"a":' * 10_000, '[{"type":"PING"}', '{"type":"PING"} {"type":"PING"}', "NaN", "\ufeff{}",
        b"", b"\xc1", b"\x91", b"\x91" * 60_000, b"\x81\xa4type", b"\xdd\xff\xff\xff\xff",
        b"\xa2\xff\xfe", b"\x82\xa4type\xa7COMMENT\xa4text\xa2\xff\xfe", b"\xdc\x00",
        b"\x82\xa4type\xa7COMMENT\xa4text\xa3\xed\xa0\x80",
    ],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_what_can_t_be_read_is_one_refusal(data):
    (refused,) = parse(data)
    assert isinstance(refused, BadCommand)
    assert 0 < len(refused.message) <= 200
    assert refused.nonce is None or refused.nonce == "n"


def test_no_text_that_is_taken_holds_a_lone_surrogate():
    for text in ("\\ud800", "a\\udfff", "\\ud800\\ud800", "\\udc00\\ud800"):
        (found,) = parse(f'{{"type":"COMMENT","text":"{text}","nonce":"n"}}')
        if isinstance(found, CommentCommand):
            found.text.encode()


def test_random_changes_raise_nothing():
    chance = random.Random(3)
    command = {"type": "COMMENT", "text": "hej", "nonce": "n", "user": {"id": "u", "name": "U"}}
    for pack in (lambda value: json.dumps(value).encode(), msgpack.packb):
        good = pack([command, {"type": "PING"}])
        for _ in range(2000):
            data = bytearray(good)
            for _ in range(chance.randint(1, 5)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            if pack is msgpack.packb:
                parse(bytes(data))
            else:
                parse(data.decode("utf-8", "replace"))
