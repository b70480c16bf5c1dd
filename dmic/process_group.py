"""The ranks of a job that torchrun started: who am I, which rows are mine, and what all of us hold.

Everywhere below the command line `None` is a group of one: such a process asks nobody and sends nothing. All ranks must
call what sends in the same order.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

Group = dist.ProcessGroup | None
GATHERED_BYTES = 1 << 23  # of all ranks at a time
TIMEOUT = timedelta(hours=2)  # how long one rank may decode, cluster, score or write before the others give up on it
LOST = re.compile(r"gloo/|NCCL|[Cc]onnection (reset|closed|refused|was)", re.ASCII)


def start(device: str | torch.device, timeout: timedelta = TIMEOUT) -> Group:
    """Join the ranks that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; torchrun sets them).

    Tensors on the CPU travel by gloo and those on a GPU by NCCL.

    Args:
        device: where this rank computes.
        timeout: how long the others wait for a rank that does not answer.

    Returns:
        The group of all ranks; None for a process that is alone.

    Raises:
        ValueError: the ranks cannot be reached.
    """
    if is_alone():
        return None
    device = torch.device(device)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the other ranks cannot be reached ({error}); start the job with torchrun") from error
    settle_at_exit()
    return dist.group.WORLD


@cache
def settle_at_exit() -> None:
    """Before the interpreter ends, leave it to the threads of gloo for a moment: they give back the tensors of the last
    message, and one that needs the interpreter for that when it has ended aborts the process (torch 2.14)."""
    atexit.register(time.sleep, 0.05)


def stop(group: Group) -> None:
    """Leave the group; it can be used no more."""
    if group is not None:
        dist.destroy_process_group(group)


@contextmanager
def started(device: str | torch.device, timeout: timedelta = TIMEOUT) -> Iterator[Group]:
    """The group of `start` for as long as the block lasts.

    Raises:
        ValueError: see `start`.
        ConnectionError: another rank is gone.
    """
    group = start(device, timeout)
    try:
        yield group
    except RuntimeError as error:
        if group is None or not is_lost(error):
            raise
        raise ConnectionError("another rank has ended or cannot be reached; what it wrote says why") from error
    # After an error there may be messages under way that nobody receives: leaving in order would wait for them.
    stop(group)


def is_alone() -> bool:
    """Whether this process has no other ranks beside it (WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def local_rank() -> int:
    """Number of this process among those of its machine, from 0 (LOCAL_RANK)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank(group: Group) -> int:
    """Number of this process, from 0."""
    return 0 if group is None else group.rank()


def size(group: Group) -> int:
    """Number of processes."""
    return 1 if group is None else group.size()


def share(n: int, group: Group) -> tuple[int, int]:
    """The rows [begin, end) of n that are this rank's: contiguous, in the order of ranks, and as even as can be."""
    own, ranks = rank(group), size(group)
    return n * own // ranks, n * (own + 1) // ranks


def all_gather_rows(rows: torch.Tensor, group: Group) -> torch.Tensor:
    """The rows of all ranks in the order of ranks, [sum of n, ...], on every rank; no gradient flows.

    Args:
        rows: [n, ...]; n may differ between ranks and may be 0, the rest of the shape and the dtype may not.
        group: the ranks.
    """
    if group is None:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(size(group))]
    dist.all_gather(counts, torch.tensor([len(rows)]), group=group)
    whole = torch.empty((int(sum(counts)), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    parts = whole.split([int(n) for n in counts])
    if len(set(map(len, parts))) == 1:
        step = max(1, GATHERED_BYTES // max(1, whole[: size(group)].nbytes))  # rows of a rank
        for begin in range(0, len(rows), step):  # the backend holds what it gathers twice
            piece = rows[begin : begin + step].detach().contiguous()
            dist.all_gather([part[begin : begin + step] for part in parts], piece, group=group)
        return whole
    parts[rank(group)].copy_(rows.detach())
    for source, part in enumerate(parts):
        if part.numel():
            dist.broadcast(part, group_src=source, group=group)
    return whole


def all_gather(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """The tensors of all ranks, which have one shape, as [R, ...] on every rank; no gradient flows."""
    whole = torch.empty((size(group), *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    dist.all_gather(list(whole), tensor.detach().contiguous(), group=group)
    return whole


def all_reduce(tensor: torch.Tensor, group: Group) -> None:
    """Overwrite a contiguous tensor by the sum of those of all ranks, which has the same bits on every rank."""
    if group is not None:
        dist.all_reduce(tensor, group=group)


def broadcast(tensor: torch.Tensor, group: Group) -> None:
    """Overwrite a contiguous tensor by that of rank 0."""
    if group is not None and tensor.numel():
        dist.broadcast(tensor, group_src=0, group=group)


def broadcast_state(
    state: tuple[dict[str, torch.Tensor], dict[str, Any]] | None, group: Group
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Tensors on the CPU by name and a JSON value, or None, from rank 0 to all; what others pass is not read."""
    if group is None:
        return state
    header = b""
    if rank(group) == 0:
        tensors, packed = state or ({}, {})
        shapes = {name: (str(tensor.dtype).removeprefix("torch."), tensor.shape) for name, tensor in tensors.items()}
        header = json.dumps([state is not None, shapes, packed]).encode()
    found, shapes, packed = json.loads(bytes(all_gather_rows(torch.tensor(list(header), dtype=torch.uint8), group)))
    if not found:
        return None
    if rank(group) != 0:
        tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in shapes.items()}
    for tensor in tensors.values():
        broadcast(tensor, group)
    return tensors, packed


def any_rank(flag: bool, group: Group) -> bool:
    """Whether the flag of any rank is set."""
    return bool(all_gather_rows(torch.tensor([flag]), group).any())


def barrier(group: Group) -> None:
    """Wait for all ranks."""
    if group is not None:
        dist.barrier(group)


@contextmanager
def first_on_its_machine(group: Group) -> Iterator[None]:
    """The block runs on one rank of every machine, then on the others: what the first downloads, the others find."""
    if local_rank() != 0:
        barrier(group)
    yield
    if local_rank() == 0:
        barrier(group)


def check_same(what: str, digest: str, group: Group) -> None:
    """Raise ValueError on every rank unless all have the same text, of the same length everywhere."""
    digests = all_gather_rows(torch.tensor([list(digest.encode())], dtype=torch.uint8), group)
    others = (digests != digests[0]).any(1).nonzero().flatten().tolist()
    if others:
        raise ValueError(f"all ranks must have the same {what}, but rank {others[0]} has others than rank 0")


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank cannot be reached any more."""
    return isinstance(error, dist.DistError) or LOST.search(str(error)) is not None


class Watch:
    """What every rank is doing, noted in the store of the job, so that those who outlive another can say what it was.

    A group that has lost a rank is of no use any more: the job ends on every rank, within GRACE of noticing, which is
    at once where a process has died and after the timeout of the group where it hangs.
    """

    GRACE = 3.0  # seconds in which the others may say what went wrong
    PREFIX = "dmic/watch"

    def __init__(self, group: Group):
        self.group = group
        self.store = None
        if group is not None:
            self.store = dist.distributed_c10d._get_default_store()
            settle_at_exit()
        self.phase = "the start"

    def enter(self, phase: str) -> None:
        """The next phase begins here."""
        self.phase = phase
        self._note("phase", phase)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Errors inside are told to the other ranks; an error that is a lost rank becomes one that names it.

        Raises:
            ConnectionError: which rank, in which phase, and why.
        """
        if self.group is None:
            yield
            return
        for key in ("failed", "survived"):  # of an error that somebody caught
            self._note(key, "")
        before = signal.getsignal(signal.SIGTERM)
        catches = threading.current_thread() is threading.main_thread() and before in (signal.SIG_DFL, None)
        if catches:  # torchrun ends the others as soon as one rank has ended
            signal.signal(signal.SIGTERM, _raise_stopped)
        try:
            yield
        except (RuntimeError, _Stopped) as error:
            if catches:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if isinstance(error, _Stopped) or is_lost(error):
                raise ConnectionError(self._who_was_lost()) from error
            self._note("failed", f"{type(error).__name__}: {error}")
            raise
        except BaseException as error:
            self._note("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            if catches:
                signal.signal(signal.SIGTERM, before)

    def _note(self, key: str, text: str) -> None:
        if self.store is None:
            return
        try:
            self.store.set(f"{self.PREFIX}/{key}/{rank(self.group)}", text)
        except RuntimeError as error:
            raise ConnectionError(
                f"the store of the job is gone, and with it the process that kept it ({error})"
            ) from error

    def _read(self, key: str, other: int) -> str | None:
        name = f"{self.PREFIX}/{key}/{other}"
        return (self.store.get(name).decode() or None) if self.store.check([name]) else None

    def _who_was_lost(self) -> str:
        others = [other for other in range(size(self.group)) if other != rank(self.group)]
        try:
            self.store.set(f"{self.PREFIX}/survived/{rank(self.group)}", self.phase)
            deadline = time.monotonic() + self.GRACE
            while True:
                for other in others:
                    if (cause := self._read("failed", other)) is not None:
                        return f"rank {other} failed in {self._read('phase', other) or 'the start'}: {cause}"
                silent = [other for other in others if self._read("survived", other) is None]
                if not silent or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            if not silent:
                return f"the ranks lost each other in {self.phase}; is the network there, and the timeout long enough?"
            was = ", ".join(f"rank {other} in {self._read('phase', other) or 'the start'}" for other in silent)
            return f"{was}: killed, or no answer within the timeout"
        except RuntimeError as error:
            return f"the process that keeps the store of the job is gone; this rank was in {self.phase} ({error})"


class _Stopped(BaseException):
    """SIGTERM while a watch was on."""


def _raise_stopped(*_: object) -> None:
    raise _Stopped
