"""The store of a job whose ranks are forked before there is one."""

from __future__ import annotations

import os

import torch.distributed as dist


class LateStore:
    """Its thread takes locks of the C library when a rank connects (it asks for the name of the other side), and a rank
    that is forked at that moment finds them locked for ever. No other process takes its port; delete it to close it.
    """

    def __init__(self):
        self._reads, self._writes = os.pipe()
        self._store = None

    def open(self, ranks: int) -> None:
        """By the process that has forked all of them."""
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(self._writes, self._store.port.to_bytes(2, "big") * ranks)
        os.close(self._writes)
        os.close(self._reads)

    def port(self) -> int:
        """By each of the ranks, once: waits until it is open."""
        return int.from_bytes(os.read(self._reads, 2), "big")
