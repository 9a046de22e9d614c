"""The restart policy, on a clock of the test's own."""

from uproar.restarts import Restarts


def deaths(policy, times, up_s=0.0):
    verdicts = []
    for moment in times:
        policy.started(moment - up_s)
        verdicts.append(policy.died(moment))
    return verdicts


def test_the_delay_doubles_up_to_its_bound():
    verdicts = deaths(Restarts(0.1, 1.0, 10.0), [1, 2, 3, 4, 5, 6])
    assert [verdict.delay_s for verdict in verdicts] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_the_delay_starts_anew_after_a_stable_time():
    policy = Restarts(0.1, 5.0, 10.0)
    deaths(policy, [1, 2, 3])
    assert deaths(policy, [20], up_s=9.9)[0].delay_s == 0.8
    assert deaths(policy, [40], up_s=10.0)[0].delay_s == 0.1


def test_only_a_second_death_within_the_stable_time_is_quick():
    policy = Restarts(0.1, 5.0, 10.0)
    assert [verdict.quick for verdict in deaths(policy, [0, 9, 19, 20])] == [
        False,
        True,
        False,
        True,
    ]


def test_a_start_that_fails_counts_as_a_death():
    policy = Restarts(0.1, 5.0, 10.0)
    assert policy.died(0.0).delay_s == 0.1
    assert policy.died(0.1) == (0.2, True)
    assert policy.count == 2


def test_stable_is_a_matter_of_the_last_start():
    policy = Restarts(0.1, 5.0, 10.0)
    assert not policy.stable(100.0)
    policy.started(100.0)
    assert not policy.stable(109.9)
    assert policy.stable(110.0)
    policy.died(111.0)
    assert not policy.stable(200.0)


def test_a_first_delay_above_the_bound_is_cut():
    assert Restarts(9.0, 2.0, 10.0).died(0.0).delay_s == 2.0
