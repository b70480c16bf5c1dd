"""Schedules: end points, shape, errors."""

import math

import pytest

from dmic.schedules import Schedule, neighborhood_size


@pytest.mark.parametrize("kind", ["linear", "geometric"])
def test_a_schedule_goes_from_start_to_end(kind):
    schedule = Schedule(kind, 0.6, 0.3)
    assert schedule(0, 50) == 0.6
    assert schedule(50, 50) == pytest.approx(0.3, rel=1e-15)
    values = [schedule(epoch, 50) for epoch in range(51)]
    assert values == sorted(values, reverse=True)


def test_the_middle_is_the_arithmetic_or_the_geometric_mean():
    assert Schedule("linear", 6, 18)(10, 20) == pytest.approx(12)
    assert Schedule("geometric", 6, 18)(10, 20) == pytest.approx(math.sqrt(6 * 18))


def test_a_constant_schedule_never_moves():
    assert {Schedule("constant", 0.6, 0.1)(epoch, 9) for epoch in range(10)} == {0.6}


def test_a_schedule_with_a_larger_end_grows():
    values = [Schedule("geometric", 6, 18)(epoch, 10) for epoch in range(11)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(18)


def test_two_phases_meet_in_the_middle_and_end_at_the_end():
    schedule = Schedule("two_phase", 0.6, 0.5, middle=0.4, interval=10)
    assert [schedule(epoch, 50) for epoch in (0, 5, 10, 30, 50)] == pytest.approx([0.6, 0.5, 0.4, 0.45, 0.5])
    assert schedule(3, 5) == pytest.approx(0.54), "a stage shorter than the first phase stays in it"
    assert Schedule("two_phase", 0.6, 0.5, middle=0.4)(10, 10) == pytest.approx(0.4), "one as long ends in the middle"


def test_steps_are_a_tenth_each_as_published():
    schedule = Schedule("step", 3.5e-4, 3.5e-6, interval=20)
    rates = [schedule(epoch, 50) for epoch in range(50)]
    assert rates == pytest.approx([3.5e-4] * 20 + [3.5e-5] * 20 + [3.5e-6] * 10)
    assert Schedule("step", 1.0, 0.1, interval=20)(4, 5) == 1.0, "no jump fits"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule("cosine", 1, 2), "kind must be one of constant, .*, step, got 'cosine'"),
        (lambda: Schedule("geometric", 0, 2), "needs positive ends, got 0 and 2"),
        (lambda: Schedule("step", 1, 0), "needs positive ends, got 1 and 0"),
        (lambda: Schedule("linear", 1, float("nan")), "start, middle and end must be finite, got 1, 0.0, nan"),
        (lambda: Schedule("constant", float("-inf"), 0), "must be finite, got -inf"),
        (lambda: Schedule("two_phase", 1, 2, middle=float("inf")), "must be finite, got 1, inf, 2"),
        (lambda: Schedule("step", 1, 2, interval=0), "interval must be at least 1 epoch, got 0"),
        (lambda: Schedule("linear", 0, 2)(6, 5), r"epoch must be in \[0, num_epochs\], got 6 with num_epochs=5"),
        (lambda: Schedule("linear", 0, 2)(-1, 5), "got -1 with num_epochs=5"),
        (lambda: Schedule("linear", 0, 2)(0, 0), "got 0 with num_epochs=0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=f"^Schedule: .*{message}"):
        make()


@pytest.mark.parametrize(
    ("value", "k1", "size"), [(0.2, 30, 1), (6.4, 30, 6), (6.5, 30, 6), (7.5, 30, 8), (99, 30, 30)]
)
def test_neighborhood_sizes_are_rounded_and_kept_in_range(value, k1, size):
    assert neighborhood_size(value, k1) == size


def test_steps_end_at_the_end_where_epochs_are_a_multiple_of_the_interval():
    rate = Schedule("step", 0.1, 0.001, interval=20)
    assert [rate(epoch, 40) for epoch in (0, 19, 20, 39, 40)] == pytest.approx([0.1, 0.1, 0.001, 0.001, 0.001])
