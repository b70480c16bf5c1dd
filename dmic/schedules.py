"""Pure functions of the epoch: how a setting of the clustering or of the optimiser moves over a stage.

Growing neighbourhoods and shrinking radii move the objective from telling samples apart to joining them across cameras
and modalities (dynamic neighbourhood clustering); the geometric form is the default, the others are its ablations. A
schedule grows where its end is above its start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("constant", "linear", "geometric", "two_phase", "step")
POSITIVE = ("geometric", "step")


@dataclass(frozen=True)
class Schedule:
    """A value that depends on the epoch, from `start` at epoch 0.

    constant: always `start`.
    linear: start + (end - start) * t, with t = epoch / num_epochs, as published.
    geometric: start * (end / start) ** t.
    two_phase: linear to `middle` over the first `interval` epochs, then linear to `end`.
    step: `start`, then a jump by one factor every `interval` epochs; the factor is such that the last value is `end`.

    >>> Schedule("geometric", 0.6, 0.3)(epoch=50, num_epochs=50)
    0.3
    >>> [Schedule("two_phase", 0.6, 0.5, middle=0.4, interval=10)(epoch, 50) for epoch in (0, 10, 50)]
    [0.6, 0.4, 0.5]

    Raises:
        ValueError: an unknown kind, a value that is not finite, a start or end that is not positive where one is
            divided by the other, or an interval below 1.
    """

    kind: str  # constant, linear, geometric, two_phase or step
    start: float  # value at epoch 0
    end: float  # value at epoch num_epochs, one after the last (step: at the last); constant: not read
    middle: float = 0.0  # two_phase: value at epoch `interval`
    interval: int = 10  # two_phase: epochs of the first phase; step: epochs between jumps

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Schedule: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        values = (self.start, self.middle, self.end)
        if not all(map(math.isfinite, values)):
            raise ValueError(f"Schedule: start, middle and end must be finite, got {', '.join(map(str, values))}")
        if self.kind in POSITIVE and min(self.start, self.end) <= 0:
            raise ValueError(f"Schedule: {self.kind} needs positive ends, got {self.start} and {self.end}")
        if self.interval < 1:
            raise ValueError(f"Schedule: interval must be at least 1 epoch, got {self.interval}")

    def __call__(self, epoch: int, num_epochs: int) -> float:
        """The value at `epoch` of a stage of `num_epochs`."""
        if not 0 <= epoch <= num_epochs or num_epochs < 1:
            raise ValueError(f"Schedule: epoch must be in [0, num_epochs], got {epoch} with num_epochs={num_epochs}")
        start, end, progress = self.start, self.end, epoch / num_epochs
        if self.kind == "constant":
            return start
        if self.kind == "linear":
            return start + (end - start) * progress
        if self.kind == "two_phase":
            if epoch <= self.interval:
                return start + (self.middle - start) * (epoch / self.interval)
            return self.middle + (end - self.middle) * (epoch - self.interval) / (num_epochs - self.interval)
        if self.kind == "step":
            num_jumps = (num_epochs - 1) // self.interval
            progress = min(epoch // self.interval, num_jumps) / num_jumps if num_jumps else 0.0
        return start * (end / start) ** progress


def fixed(value: float) -> Schedule:
    """A schedule that stays at `value`."""
    return Schedule("constant", value, value)


def neighborhood_size(value: float, k1: int) -> int:
    """A scheduled expansion size as a count: rounded (half to even) and kept in 1..k1."""
    return min(max(round(value), 1), k1)
