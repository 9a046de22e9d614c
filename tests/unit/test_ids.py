"""Comment ids: time UUIDs that are unique, carry their time, and are read strictly."""

import uuid

import pytest

from uproar import ids

T = 1_700_000_000_000


@pytest.mark.parametrize("ts", [0, 1, T, (1 << 44) - 1])
@pytest.mark.parametrize("sequence", [0, 1, 9_999])
def test_an_id_is_a_time_uuid_and_splits_into_what_made_it(ts, sequence):
    node = ids.new_node()
    made = ids.build(ts, sequence, node)
    assert ids.split(made) == (ts, sequence, node)
    read = uuid.UUID(bytes=made)
    assert (read.version, read.variant) == (1, uuid.RFC_4122)
    assert read.time == (ts + ids.GREGORIAN_OFFSET_MS) * 10_000 + sequence
    assert read.node >> 40 & 1, "not a hardware address"
    assert ids.to_text(made) == str(read)
    assert ids.from_text(str(read)) == ids.from_text(str(read).upper()) == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 36,
        "6d2ff0a0-5fe6-11ee-8c99-0242ac12000",
        "6d2ff0a0-5fe6-11ee-8c99-0242ac1200022",
        "6d2ff0a05fe611ee8c990242ac120002",
        "----6d2ff0a05fe611ee8c990242ac120002",
        "{{{{6d2ff0a05fe611ee8c990242ac120002",
        "+d2ff0a0-5fe6-11ee-8c99-0242ac120002",
        "6d2ff0a0_5fe6-11ee-8c99-0242ac120002",
        "6d2ff0a0-5fe6-11ee-8c99-0242ac12000é",
    ],
)
def test_nothing_else_is_read_as_an_id(text):
    with pytest.raises(ValueError):
        ids.from_text(text)


def test_ids_of_one_maker_are_unique_and_their_time_never_goes_back():
    maker = ids.IdMaker()
    made = [maker.make(ts) for ts in [T] * 25_000 + [T + 1, T + 10, T - 5, T + 10]]
    assert len({comment_id for _, comment_id in made}) == len(made)
    times = [ts for ts, _ in made]
    assert times == sorted(times)
    assert times[9_999] == T and times[10_000] == T + 1 and times[-1] == T + 10
    assert all(ids.split(comment_id)[0] == ts for ts, comment_id in made)


def test_two_makers_never_share_ids():
    assert ids.IdMaker().make(T)[1] != ids.IdMaker().make(T)[1]
