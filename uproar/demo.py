"""A generated conversation that plays into one stream for ever, so that a new page is alive.

    UPROAR_TOKEN=… python -m uproar.demo --url http://127.0.0.1:8080 --stream demo

Comes in: a service token, which may name authors. Goes out: 2 to 6 comments a second by a made-up
audience that follows a made-up stream: a rocket club's launch, a kitchen, a game. `conversation` is
pure; the rest waits for the server, heals cuts and forgets what could not be sent.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Iterator
from itertools import count
from typing import Final, NamedTuple

import click

from uproar import wire
from uproar.client import Disconnected, Viewer, stream_url
from uproar.logs import configure, event

log = logging.getLogger(__name__)

REMEMBERED: Final = 400  # comments that a reply may still refer to


class Persona(NamedTuple):
    """One of the audience."""

    id: str
    name: str
    color: str
    role: str = "viewer"


class Said(NamedTuple):
    """One comment, `after_s` seconds after the one before. `reply_to` is the key of another."""

    after_s: float
    key: int
    who: Persona
    text: str
    reply_to: int | None = None


class Beat(NamedTuple):
    """Half a minute of the show: what the host says, and what the audience makes of it."""

    host: str
    reactions: tuple[str, ...]
    rate: float  # comments a second; a burst follows the host's words
    asked: tuple[str, str] | None = None  # a question and its answer
    in_order: bool = False  # the reactions, as in a countdown


def _split(texts: str) -> tuple[str, ...]:
    """Lists of short texts read best as one line."""
    return tuple(texts.split(" | "))


_COLORS: Final = (
    "#e4576b", "#d9722e", "#b8860b", "#5a9e3d", "#2a9d8f", "#1a93b8", "#3f7fe8", "#6c63e0",
    "#9b5de5", "#c74fc0", "#d6457f", "#8a7a5c", "#4f8f7f", "#7d8fa9",
)  # fmt: skip
_NAMES: Final = _split(
    "Mira | jonas_k | PixelFox | tofu🍙 | Ayşe | old_kettle | Lumi | bytebeetle | Rosalind | "
    "ひかり | Paco | moth.exe | Ines | quietstorm | Ørjan | snackwave | Tamsin | zero_gravitas | "
    "Łucja | mapmaker | Bram | dawnpatrol | Noor | cactus_cat | Élodie | hexagon | Sunny | "
    "nightowl42 | Kofi | gluonjam | Priya | waffles | Teodor | marshmallow | Yuki | driftwood | "
    "Anouk | threehats | Sami | velvetmoss | Ondřej | pancake_ninja"
)

HOST: Final = Persona("demo-host", "Juno Live", "#e0483e", "broadcaster")
MODERATORS: Final = (
    Persona("demo-mod-1", "Captain Otter", "#2fa36b", "moderator"),
    Persona("demo-mod-2", "Wilhelmina", "#3f7fe8", "moderator"),
)
VIPS: Final = (
    Persona("demo-vip-1", "Professor Fig", "#9b5de5", "vip"),
    Persona("demo-vip-2", "lanternfish", "#d6457f", "vip"),
)
VIEWERS: Final = tuple(
    Persona(f"demo-{number}", name, _COLORS[number * 5 % len(_COLORS)])
    for number, name in enumerate(_NAMES)
)

_LAUNCH: Final = (
    Beat(
        "Good evening everyone! Welcome to the launch field. Marmot 3 is on the rail 🚀",
        _split(
            "finally launch day! | Marmot 3 looks so good | that paint job 😍 | "
            "the little fins!! | go go Marmot | clear sky, perfect | "
            "is that a tiny otter on the nose cone? | goosebumps already | "
            "my kids are watching too | hello from a rainy balcony ☔"
        ),
        asked=(
            "How high is it supposed to go?",
            "About 3 km if the motor is in a good mood 🙂",
        ),
        rate=2.6,
    ),
    Beat(
        "Quick look at the weather: wind 4 m/s, gusts 6. We are good to go.",
        _split(
            "4 m/s is nothing | wind is fine | knock on wood 🪵 | clouds look friendly | "
            "GO for wind | last time it was 9 and we scrubbed 😅 | weather team best team | "
            "no scrub please 🙏"
        ),
        asked=(
            "What wind is too much for you?",
            "Above 8 m/s we pack up and have soup instead.",
        ),
        rate=2.4,
    ),
    Beat(
        "Range is clear. Arming the igniter… now.",
        _split(
            "ARMED 😳 | here we go | hands are sweating | range is clear, chat is not | "
            "deep breath | don't blink | I'm standing up | the red light is on! | "
            "everybody quiet 🤫"
        ),
        asked=(
            "Why is everyone 200 m away?",
            "Safety rule for a motor this size. Drones stay closer.",
        ),
        rate=3.2,
    ),
    Beat(
        "T-10! Count with me in chat!",
        _split("10 | 9 | 8! | 7 | SIX | 5 🔥 | 4 | 3!! | 2 | 1 🚀 | IGNITION | go go go"),
        in_order=True,
        rate=5.4,
    ),
    Beat(
        "LIFTOFF! Marmot 3 is flying!",
        _split(
            "LIFTOFF 🚀🚀🚀 | WOOOO | look at it go!! | that SOUND | straight as an arrow | "
            "🔥🔥🔥 | I screamed | my cat left the room | so fast! | GO MARMOT GO | "
            "beautiful 😭 | clean burn! | absolute scenes | lost it in the sun"
        ),
        rate=6.0,
    ),
    Beat(
        "Apogee at 3,120 m, a club record! Main parachute is out.",
        _split(
            "RECORD 🎉 | 3120!!! | parachute 🪂 | that's higher than my mountain hike | "
            "confetti please | clap clap clap 👏👏 | huge congrats | "
            "the otter is in space (almost) | new record!! | write it on the wall | what a flight"
        ),
        asked=(
            "How do you know the height so fast?",
            "A small radio altimeter on board, 20 readings a second.",
        ),
        rate=4.4,
    ),
    Beat(
        "Touchdown, 400 m east of the rail. The recovery crew is on its way with the good boots.",
        _split(
            "go get it! | boots on 🥾 | please no lake | it landed in the corn again 🌽 | "
            "soft landing 👌 | recovery crew are the heroes | any damage? | "
            "show us the nose cone! | what a day"
        ),
        asked=(
            "Can it fly again today?",
            "New motor, new chute pack, one hour. Maybe after the soup!",
        ),
        rate=2.8,
    ),
)

_KITCHEN: Final = (
    Beat(
        "While the crew is out: kitchen time! Tonight it's roasted pumpkin soup 🎃",
        _split(
            "SOUP TIME | the famous soup! | I came for the rocket and stay for the soup | "
            "pumpkin 🎃 | my favourite segment | so cozy | chef hat please | now I'm hungry | "
            "soup > rockets"
        ),
        asked=(
            "Do you need to peel the pumpkin?",
            "Not this kind, the skin gets soft in the oven.",
        ),
        rate=2.4,
    ),
    Beat(
        "Onions first, low heat, a pinch of salt. No hurry here.",
        _split(
            "low and slow | I can smell it | crying with you 🧅 | patience is the ingredient | "
            "onion gang | butter or oil? | the sound 😌 | ASMR stream now | wooden spoon approved"
        ),
        asked=(
            "Butter or oil?",
            "Both! Oil so it doesn't burn, butter because it's Friday somewhere.",
        ),
        rate=2.2,
    ),
    Beat(
        "Poll of the day: ginger in the soup, yes or no? 1 for yes, 2 for no!",
        _split(
            "1 | 1 | 1!! | 2 | 1 always | 2 sorry | 1 and chili | 2, fight me 😄 | 1 | 11111 | "
            "1 but little | ginger is life"
        ),
        rate=5.0,
    ),
    Beat(
        "Ginger wins! And… I dropped the spoon in the pot 🙈",
        _split(
            "😂😂😂 | SPOON DOWN | rip spoon | F for the spoon | clip it!! | one job 😂 | "
            "spoon soup | this is why I'm here | it's flavour now | lol classic | "
            "seasoned with wood"
        ),
        rate=5.2,
    ),
    Beat(
        "Saved it. Blend, taste, a bit of lime… oh wow, that's the one.",
        _split(
            "bon appétit! | lime is the trick | saving this recipe | recipe link when? | "
            "chef kiss 🤌 | need bread with that | the colour! 🧡 | making this tomorrow | "
            "show the bowl!"
        ),
        asked=(
            "How many people does this feed?",
            "Six humans, or four from the recovery crew.",
        ),
        rate=2.8,
    ),
)

_GAME: Final = (
    Beat(
        "Let's play while it cools! Back into Lantern Deep, floor 12, with one heart left 😬",
        _split(
            "floor 12 let's go | one heart is plenty | the lantern music ❤️ | you can do it | "
            "no hit run? | chat believes | doubt 😏 | this floor took me a week | "
            "love this game | nerves of steel"
        ),
        asked=(
            "What difficulty is this?",
            "Normal. I have a soup to survive for.",
        ),
        rate=2.8,
    ),
    Beat(
        "Left door or right door? Chat decides!",
        _split(
            "LEFT | left! | right | RIGHT RIGHT | left has the chest | never go right | "
            "right!! | left, trust me | it's always left | both | right, I saw a light | LEFT 🏮"
        ),
        rate=5.2,
    ),
    Beat(
        "Left it is… oh no. OH NO. It's the moth king!",
        _split(
            "MOTH KING 😱 | RUN | who said left | sorry 😅 | dodge dodge dodge | "
            "use the lamp oil! | I can't watch | he's so fluffy though | roll!! | "
            "second phase soon | left was a lie | heal?? there is no heal"
        ),
        rate=4.8,
    ),
    Beat(
        "Half a heart… last swing… YES! The moth king is down!",
        _split(
            "NO WAY | CLUTCH | HALF A HEART | GG 🎉 | that dodge!!! | I was shaking | insane | "
            "🔥🔥🔥 | W | clip clip clip | moth dust everywhere | never doubted | "
            "we take those | 👏👏👏"
        ),
        rate=6.0,
    ),
    Beat(
        "Loot time: a warm scarf, +2 to coziness. Worth it.",
        _split(
            "cozy build unlocked | scarf meta | +2 coziness is huge | "
            "fashion is the real endgame | worth every heart | scarf looks great | "
            "stack coziness! | drip check ✅"
        ),
        asked=(
            "Does coziness do anything?",
            "It makes the lantern last longer. And you look great.",
        ),
        rate=2.6,
    ),
    Beat(
        "Short stretch break, drink some water. Then the crew shows us what is left of Marmot 3!",
        _split(
            "water gang 💧 | stretching | hydrated ✅ | back in a sec | tea for me 🍵 | "
            "good call | my back says thanks | refill time | brb soup | posture check!"
        ),
        asked=(
            "Is the stream up as a replay later?",
            "Yes, with the whole chat, right after we finish.",
        ),
        rate=2.2,
    ),
)

SHOW: Final = _LAUNCH + _KITCHEN + _GAME

_GREETINGS: Final = _split(
    "hi everyone 👋 | hello chat! | hey Juno! | good evening from Lisbon | hi from Osaka 🇯🇵 | "
    "just got home, what did I miss? | first time here, looks fun! | hey hey | made it! | "
    "hello from the night shift 🌙 | morning from Vancouver ☕ | hola a todos | moin! | "
    "salut 👋 | back again ❤️ | hi mods, hi chat"
)
_WELCOMES: Final = ("welcome! 👋", "hey, good to see you", "welcome in!", "hi hi 🙂", "grab a seat")
_SMALL_TALK: Final = _split(
    "this is so relaxing | best chat on the internet | the music today 👌 | "
    "who picked this song? love it | haha | 😂 | ❤️ | so true | same here | "
    "chat is fast today | greetings from the train 🚆 | love this community | "
    "who else is eating right now? | my coffee is cold again | 👀 | "
    "stream quality is great today | I should be asleep | wholesome | lol | +1 | agreed | "
    "what a mood | 10/10 | the camera work today 👏 | this made my evening | nice nice nice"
)
_REPLIES: Final = _split(
    "same! | haha yes | exactly this | 😂😂 | you get it | true | couldn't agree more | "
    "right?! | no way 😄 | this ^ | ❤️ | well said"
)
_TO_HOST: Final = ("let's gooo", "best host", "we're ready!", "❤️ Juno", "love your streams")
_REMINDERS: Final = (
    "Welcome to everyone who just joined! Be kind, have fun 💚",
    "Small reminder: no spoilers for Lantern Deep past floor 12, please.",
    "Schedule: launch, kitchen, game, then the crew comes back.",
    "Questions for Juno? Ask away, we collect them 🙂",
)  # fmt: skip


def conversation(chance: random.Random) -> Iterator[Said]:
    """Yield what is said, for ever; the show starts over when it ends."""
    audience = _Audience(chance)
    yield from _spaced(audience.arrive())
    while True:
        for beat in SHOW:
            yield from _spaced(audience.follow(beat))


class _Bag:
    """Texts in random order (or as given), each once before any again."""

    def __init__(
        self, chance: random.Random, texts: tuple[str, ...], in_order: bool = False
    ) -> None:
        self._chance = chance
        self._texts = texts
        self._in_order = in_order
        self._left: list[str] = []

    def draw(self) -> str:
        """Return the next text."""
        if not self._left:
            self._left = list(reversed(self._texts))
            if not self._in_order:
                self._chance.shuffle(self._left)
        return self._left.pop()


class _At(NamedTuple):
    """A comment at its time within a beat, in seconds."""

    at: float
    key: int
    who: Persona
    text: str
    reply_to: int | None = None


def _spaced(lines: list[_At]) -> Iterator[Said]:
    before = 0.0
    for line in sorted(lines):
        yield Said(line.at - before, *line[1:])
        before = line.at


class _Audience:
    """Who talks next and about what."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._keys = count()
        self._greetings = _Bag(chance, _GREETINGS)
        self._small_talk = _Bag(chance, _SMALL_TALK)
        self._replies = _Bag(chance, _REPLIES)
        self._to_host = _Bag(chance, _TO_HOST)
        self._welcomes = _Bag(chance, _WELCOMES)
        self._reminders = _Bag(chance, _REMINDERS, in_order=True)

    def arrive(self) -> list[_At]:
        """The first seconds: a page that has just been opened is not to stay empty."""
        lines = [
            _At(0.15 * index, next(self._keys), who, self._greetings.draw())
            for index, who in enumerate(self._chance.sample(VIEWERS, 9))
        ]
        lines.append(_At(1.4, next(self._keys), MODERATORS[0], self._reminders.draw()))
        return lines

    def follow(self, beat: Beat) -> list[_At]:
        """What is said during one beat, in any order."""
        chance = self._chance
        lasts = 4.5 if beat.in_order else chance.uniform(16.0, 24.0)
        lines = [_At(0.2, next(self._keys), HOST, beat.host)]
        reactions = _Bag(chance, beat.reactions, beat.in_order)
        talkers = [*VIEWERS, *VIPS, *MODERATORS]
        chance.shuffle(talkers)
        at = chance.uniform(0.6, 1.2)
        for turn in count():
            lines += self._one(at, talkers[turn % len(talkers)], lines, reactions)
            # Everybody talks right after the host did, then it calms down.
            rate = beat.rate * (1.35 if at < lasts / 3 else 0.85)
            at += max(0.04, chance.expovariate(rate))
            if at > lasts:
                break
        if beat.asked is not None:
            question, answer = beat.asked
            asked_at, key = chance.uniform(2.0, lasts / 2), next(self._keys)
            lines.append(_At(asked_at, key, chance.choice(VIEWERS), question))
            answered_at = asked_at + chance.uniform(3.0, 6.0)
            lines.append(_At(answered_at, next(self._keys), HOST, answer, key))
        if chance.random() < 0.2:
            moderator = chance.choice(MODERATORS)
            lines.append(_At(lasts * 0.6, next(self._keys), moderator, self._reminders.draw()))
        return lines

    def _one(self, at: float, who: Persona, before: list[_At], reactions: _Bag) -> list[_At]:
        """One comment, and what somebody says to it later."""
        chance, key = self._chance, next(self._keys)
        kind = chance.random()
        if kind < 0.66:
            return [_At(at, key, who, reactions.draw())]
        if kind < 0.86:
            return [_At(at, key, who, self._small_talk.draw())]
        if kind < 0.91:
            lines = [_At(at, key, who, self._greetings.draw())]
            if chance.random() < 0.5 and who in VIEWERS:
                later, friend = at + chance.uniform(1.5, 4.0), chance.choice((*MODERATORS, *VIPS))
                lines.append(_At(later, next(self._keys), friend, self._welcomes.draw(), key))
            return lines
        heard = [line for line in before if line.at < at and line.who != who]
        to = chance.choice(heard[-12:])
        text = (self._to_host if to.who == HOST else self._replies).draw()
        return [_At(at, key, who, text, to.key)]


class Player:
    """Says lines over one viewer that heals itself; replies need the ids of what was said."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._ids: dict[int, str] = {}  # key of a comment to its id, the newest REMEMBERED
        self._refused: set[str] = set()
        self._run = f"{time.time_ns():x}"  # two demos never share a nonce

    def wait(self, seconds: float) -> None:
        """Read answers for a time, and for as long as there is no connection."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            for heard in self._viewer.recv(min(max(left, 0.0), 1.0)):
                self._hear(heard)
            if left <= 0 and self._viewer.core.session is not None:
                return

    def say(self, said: Said) -> None:
        """Send one comment; one that can't be sent now is forgotten."""
        who = said.who
        more: dict[str, object] = {
            "user": {"id": who.id, "name": who.name, "role": who.role, "color": who.color}
        }
        if said.reply_to in self._ids:
            more["reply_to"] = self._ids[said.reply_to]
        try:
            self._viewer.send(wire.comment(said.text, f"{self._run}-{said.key}", **more))
        except Disconnected:
            pass

    def _hear(self, heard: wire.Event) -> None:
        kind = heard["type"]
        if kind == "ACK":
            self._ids[int(heard["nonce"].rpartition("-")[2])] = heard["id"]
            if len(self._ids) > REMEMBERED:
                del self._ids[next(iter(self._ids))]
        elif kind == "WELCOME":
            event(log, "demo_reconnected", session=heard["session"])
        elif kind == "REJECTED" and heard["code"] not in self._refused:
            self._refused.add(heard["code"])  # once: a demo does not fill a log
            event(
                log,
                "demo_refused",
                level=logging.WARNING,
                code=heard["code"],
                message=heard["message"],
            )


def play(url: str, stream: str, token: str, seed: int | None = None) -> None:
    """Play for ever; raises Disconnected after a terminal close code, ValueError for a bad URL."""
    viewer = Viewer(
        stream_url(url, stream),
        codec="msgpack",
        token=token,
        reconnect=True,
        backlog=0,
        rate=5,  # the fewest comments back: only the answers matter here
        backoff_max_s=2.0,
    )
    try:
        while True:
            try:
                welcome = viewer.connect(5.0)
                break
            except TimeoutError:
                continue  # the server is not up yet
        event(log, "demo_connected", stream=stream, session=welcome["session"])
        player = Player(viewer)
        for said in conversation(random.Random(seed)):
            player.wait(said.after_s)
            player.say(said)
    finally:
        viewer.close()


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option("--stream", default="demo", show_default=True, metavar="ID")
@click.option("--seed", type=int, help="For the same conversation each time.")
def main(url: str, stream: str, seed: int | None) -> None:
    """Play a generated conversation into a stream; service token in UPROAR_TOKEN."""
    configure("demo")
    token = os.environ.get("UPROAR_TOKEN")
    if not token:
        sys.exit("UPROAR_TOKEN is not set; put a service token in it (`uproar token`)")
    try:
        play(url, stream, token, seed)
    except (Disconnected, ValueError) as error:
        sys.exit(f"the demo has ended: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
