"""Whether an error says that no memory was left, whoever raised it."""

from __future__ import annotations

import re

SAID = re.compile("out of memory|(not enough|can't allocate) memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of our ops, or of torch, which has a type of its own for GPUs alone; torch is not loaded for it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and SAID.search(str(error)) is not None)
