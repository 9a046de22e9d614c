"""The stages together: the strongest wins, each may be replaced or left out, and what follows."""

from __future__ import annotations

import pytest

from uproar import ids
from uproar.config import ConfigError, Moderation, load
from uproar.events import Comment, User, Visibility
from workers.moderation.moderator import Moderator
from workers.moderation.pipeline import Decision, Judged, Pipeline, Verdict
from workers.moderation.terms import Terms
from workers.moderation.worker import acts

START = 1_700_000_000_000


def comment(text, number=0, user="u", role="viewer"):
    comment_id = ids.build(START + number * 1000, 0, bytes(8))
    return Comment(comment_id, User(user, "Name", role), text, START)


def decide(moderator, found, number=0):
    return moderator.decide("s", found, START + number * 1000)


def moderator(*terms, **settings):
    made = Moderator(Moderation(**settings))
    made.lists.installation = Terms(terms)
    return made


class Says:
    """A stage of somebody's own."""

    def __init__(self, name, *verdicts):
        self.name = name
        self.verdicts = list(verdicts)
        self.saw = []

    def judge(self, comment):
        self.saw.append(list(comment.verdicts))
        return self.verdicts.pop(0) if self.verdicts else None


def test_nothing_found_is_allowed():
    assert Pipeline([Says("a"), Says("b")]).decide(Judged("x")) == Decision("allow")


def test_the_strongest_action_wins_and_all_are_kept():
    weak, strong = Verdict("flag", "w", "one", 0.9), Verdict("delete", "s", "two", 0.5, ((0, 1),))
    last = Says("c")
    decision = Pipeline([Says("a", weak), Says("b", strong), last]).decide(Judged("x"))
    assert decision[:6] == ("delete", "b", "s", "two", 0.5, ((0, 1),))
    assert decision.categories == {"one": 0.9, "two": 0.5}
    assert last.saw == [[("a", weak), ("b", strong)]]


def test_an_allowing_verdict_only_brings_its_score():
    decision = Pipeline([Says("a", Verdict("allow", "r", "toxic", 0.4))]).decide(Judged("x"))
    assert (decision.action, decision.stage, decision.rule) == ("allow", "", "")
    assert decision.categories == {"toxic": 0.4}


def test_three_stages():
    made = moderator("darn")
    assert decide(made, comment("good morning")).action == "allow"
    assert decide(made, comment("what a stupid idiot")).stage == "linear"
    decision = decide(made, comment("oh darn"), 0)
    assert (decision.action, decision.stage, decision.rule) == ("delete", "rules", "term: darn")
    decide(made, comment("darn", 1), 1)
    decision = decide(made, comment("darn it", 2), 2)
    assert (decision.action, decision.stage) == ("timeout", "reputation")
    assert decision.removal.rule == "term: darn"


@pytest.mark.parametrize(
    ("left_out", "actions"),
    [
        ("rules", ["allow", "delete"]),
        ("linear", ["delete", "allow"]),
        ("reputation", ["delete", "delete"]),
    ],
)
def test_each_stage_may_be_switched_off(left_out, actions):
    stages = [name for name in ("rules", "linear", "reputation") if name != left_out]
    made = moderator("darn", stages=stages)
    assert [s.name for s in made.pipeline.stages] == stages
    found = [decide(made, comment(t, n), n) for n, t in enumerate(["darn", "you are stupid"])]
    assert [decision.action for decision in found] == actions
    for number in range(3, 5):
        last = decide(made, comment("darn, you are stupid", number), number)
    assert last.action == ("delete" if left_out == "reputation" else "timeout")


def test_who_moderates_is_exempt_from_all_but_terms():
    made = moderator("darn", strikes=1, caps="delete", links="delete")
    assert decide(made, comment("YOU ARE STUPID example.com", role="moderator")).action == "allow"
    decision = decide(made, comment("darn", role="moderator"))
    assert (decision.action, decision.strike, decision.sanction) == ("delete", None, None)


def names(found):
    return [(act.type, act.nonce.rpartition(":")[2]) for act in found]


def test_what_a_decision_leads_to():
    made = moderator("darn", strikes=2)
    texts = ["hello", "a stupid idiot", "darn", "darn it"]
    found = []
    for number, text in enumerate(texts):
        said = comment(text, number)
        found.append(acts("s", said, decide(made, said, number), Visibility.ALL))
    assert [names(one) for one in found] == [
        [],
        [("FLAGGED", "flag")],
        [("COMMENT_DELETED", "delete"), ("SANCTION", "strike")],
        [("COMMENT_DELETED", "delete"), ("SANCTION", "strike"), ("SANCTION", "timeout")],
    ]
    flagged = found[1][0].data
    assert (flagged.category, flagged.comment.text) == ("toxic", "a stupid idiot")
    deleted, strike, timeout = (act.data for act in found[3])
    assert (deleted.by, deleted.reason) == ("moderation", "term: darn")
    assert (strike.user_id, strike.by, strike.reason) == ("u", "moderation", "term: darn")
    assert timeout.until == START + 3000 + 300_000
    nonces = [act.nonce for one in found for act in one]
    assert len(set(nonces)) == len(nonces)
    assert nonces[0] == f"moderation:{ids.to_text(comment('', 1).id)}:flag"
    assert all(len(nonce) <= 64 for nonce in nonces)


def test_a_shadow_banned_author_loses_comments_like_anybody_and_is_flagged_to_nobody():
    made = moderator("darn")
    for text, expected in [("darn", ["delete", "strike"]), ("a stupid idiot", [])]:
        said = comment(text)
        found = acts("s", said, decide(made, said), Visibility.SHADOW)
        assert [name for _, name in names(found)] == expected


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("stages", ["rules", "magic"], "moderation.stages"),
        ("stages", ["rules", "rules"], "moderation.stages"),
        ("links", "explode", "moderation.links"),
        ("flag_at", 0.99, "moderation.flag_at"),
        ("strikes_s", 601, "moderation.strikes_s"),
        ("timeouts_s", [0], "moderation.timeouts_s"),
        ("delete_at", 1.5, "moderation.delete_at"),
    ],
)
def test_bad_settings_are_named(tmp_path, setting, value, message):
    with pytest.raises(ConfigError, match=message):
        load(None, environ={}, flags={f"moderation.{setting}": value})


def test_what_a_service_wrote_in_a_name_earns_that_name_no_strike():
    moderator = Moderator(Moderation())
    moderator.lists.installation = Terms(["zorkmuffin"])
    user = User("u1", "Ann")
    for number, vouched in enumerate((True, False)):
        ts, comment_id = ids.IdMaker().make(1_763_836_000_000 + number)
        comment = Comment(comment_id, user, "zorkmuffin", ts)
        decision = moderator.decide("s", comment, ts, vouched=vouched)
        assert decision.removal
        assert bool(decision.strike or decision.sanction) is not vouched
