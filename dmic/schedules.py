"""Pure functions of the epoch: how a setting of the clustering or of the optimiser moves over a stage.

Growing neighbourhoods and shrinking radii move the objective from telling samples apart to joining them across cameras
and modalities (dynamic neighbourhood clustering); the geometric form is the default, the others are its ablations.
"""

from __future__ import annotations

from dataclasses import dataclass


def constant(start: float, end: float, progress: float) -> float:
    """Always `start`."""
    return start


def linear(start: float, end: float, progress: float) -> float:
    """start + (end - start) * progress."""
    return start + (end - start) * progress


def geometric(start: float, end: float, progress: float) -> float:
    """start * (end / start) ** progress; both ends positive."""
    return start * (end / start) ** progress


SCHEDULES = {"constant": constant, "linear": linear, "geometric": geometric}


@dataclass(frozen=True)
class Schedule:
    """A value that depends on the epoch.

    >>> Schedule("geometric", 0.6, 0.3)(epoch=50, num_epochs=50)
    0.3

    Raises:
        ValueError: an unknown kind, or an end of a geometric schedule that is not positive.
    """

    kind: str  # constant, linear or geometric
    start: float  # value at epoch 0
    end: float  # value at epoch num_epochs, one after the last; a constant schedule does not read it

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"Schedule: kind must be one of {', '.join(SCHEDULES)}, got {self.kind!r}")
        if self.kind == "geometric" and min(self.start, self.end) <= 0:
            raise ValueError(f"Schedule: a geometric one needs positive ends, got {self.start} and {self.end}")

    def __call__(self, epoch: int, num_epochs: int) -> float:
        """The value at `epoch` of a stage of `num_epochs`; progress is epoch / num_epochs, as published."""
        if not 0 <= epoch <= num_epochs or num_epochs < 1:
            raise ValueError(f"Schedule: epoch must be in [0, num_epochs], got {epoch} with num_epochs={num_epochs}")
        return SCHEDULES[self.kind](self.start, self.end, epoch / num_epochs)


def neighborhood_size(value: float, k1: int) -> int:
    """A scheduled expansion size as a count: rounded (half to even) and kept in 1..k1."""
    return min(max(round(value), 1), k1)
