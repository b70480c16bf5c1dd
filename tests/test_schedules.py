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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule("cosine", 1, 2), "kind must be one of constant, linear, geometric, got 'cosine'"),
        (lambda: Schedule("geometric", 0, 2), "needs positive ends, got 0 and 2"),
        (lambda: Schedule("linear", 0, 2)(6, 5), r"epoch must be in \[0, num_epochs\], got 6 with num_epochs=5"),
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
