"""Randomness by name: every draw of a run has a generator of its own, made from the run's seed and what is drawn.

Nothing is carried from one draw to the next, so a run that continues from iteration 173 draws what it would have drawn,
and the order in which threads ask does not matter.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the draw of that name, from a cryptographic hash of both."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A new generator on the CPU, seeded with `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
