"""The demonstration: a conversation that reads well, and a player that survives a cut."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

from tests.unit import ws_peer
from uproar.auth import printable
from uproar.demo import HOST, SHOW, Said, conversation


def talk(count: int, seed: int = 1) -> list[Said]:
    return list(islice(conversation(random.Random(seed)), count))


def test_pace_is_lively_and_never_a_flood() -> None:
    for seed in range(5):
        clock, seconds = 0.0, Counter[int]()
        for said in talk(4000, seed):
            assert said.after_s >= 0
            clock += said.after_s
            seconds[int(clock)] += 1
        assert 2.0 <= 4000 / clock <= 6.0
        assert max(seconds.values()) <= 25
        assert sum(seconds[second] for second in range(2)) >= 10, "the first seconds are empty"
        assert max(said.after_s for said in talk(4000, seed)) < 8


def test_everybody_takes_part_and_nobody_breaks_the_limits() -> None:
    clock, minutes = 0.0, Counter[tuple[str, int]]()
    roles, hosts = Counter[str](), list[str]()
    for said in talk(6000):
        clock += said.after_s
        roles[said.who.role] += 1
        assert 1 <= len(said.text) <= 500
        assert printable(said.text)
        assert printable(said.who.name)
        if said.who.role == "viewer":
            minutes[said.who.id, int(clock // 60)] += 1
        if said.who == HOST:
            hosts.append(said.text)
    assert set(roles) == {"viewer", "vip", "moderator", "broadcaster"}
    assert max(minutes.values()) <= 15
    told = [beat.host for beat in SHOW]
    assert [text for text in hosts if text in told][: len(told)] == told


def test_replies_are_to_earlier_comments_of_others() -> None:
    said = {each.key: each for each in talk(4000)}
    order = {key: index for index, key in enumerate(said)}
    replies = [each for each in said.values() if each.reply_to is not None]
    assert len(replies) > 200
    for reply in replies:
        assert reply.reply_to is not None
        assert order[reply.reply_to] < order[reply.key]
        assert said[reply.reply_to].who != reply.who


def test_it_plays_and_survives_a_cut() -> None:
    with ws_peer.running() as peer:
        command = [sys.executable, "-m", "uproar.demo", "--url", peer.base, "--seed", "3"]
        environ = {**os.environ, "UPROAR_TOKEN": "t", "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(
            command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as demo:
            try:
                ws_peer.until(lambda: len(peer.events) > 15, 20)
                peer.cut_all()
                count = len(peer.events)
                ws_peer.until(lambda: len(peer.events) > count + 5, 20)
            finally:
                demo.kill()
            assert demo.stderr is not None
            log = demo.stderr.read().decode().splitlines()
        assert len(log) == 2, log  # connected, reconnected
        assert peer.headers[0]["Authorization"] == "Bearer t"
        assert {"color", "id", "name", "role"} == set(peer.events[0]["user"])
        assert any("reply_to" in command for command in peer.commands)
        assert len({event["user"]["id"] for event in peer.events}) > 10


def test_without_a_token_it_says_so() -> None:
    environ = {key: value for key, value in os.environ.items() if key != "UPROAR_TOKEN"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "uproar.demo"], env=environ, capture_output=True, timeout=20
    )
    assert ended.returncode == 1
    assert b"UPROAR_TOKEN is not set" in ended.stderr
