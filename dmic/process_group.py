"""The ranks of a job that torchrun started: who am I, which rows are mine, and what all of us hold.

Everywhere below the command line `None` is a group of one: such a process asks nobody and sends nothing. All ranks must
call what sends in the same order.
"""

from __future__ import annotations

import atexit
import hashlib
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
JOINED = "dmic/joined"  # in the store of the job
PROBE = 7919  # tag of messages that nobody receives
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
        ValueError: the ranks cannot be reached; says which did not come, where torchrun keeps the store.
    """
    if is_alone():
        return None
    backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
    missing = []
    try:
        store, own, ranks = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        store.set(f"{JOINED}/{own}", "")
        try:
            prefixed = dist.PrefixStore("default_pg", store)
            dist.init_process_group(backend, store=prefixed, rank=own, world_size=ranks, timeout=timeout)
        except RuntimeError:
            missing = [f"rank {other}" for other in range(ranks) if not store.check([f"{JOINED}/{other}"])]
            raise
    except (RuntimeError, ValueError) as error:
        if missing:
            did_not = f"{', '.join(missing)} did not join within the timeout"
            raise ValueError(f"{did_not}; what it wrote says why, or its machine is gone") from error
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
        why = backend_error(error)
        raise ConnectionError(f"another rank has ended or cannot be reached; what it wrote says why ({why})") from error
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


def agree(name: str, settings: dict[str, Any], group: Group, problem: str | None = None) -> None:
    """Raise ValueError on every rank if one has a problem, or other settings than rank 0."""
    if group is None:
        if problem is not None:
            raise ValueError(problem)
        return
    text = json.dumps([problem, settings]).encode()
    lengths = all_gather_rows(torch.tensor([len(text)]), group).tolist()
    texts = all_gather_rows(torch.tensor(list(text), dtype=torch.uint8), group).split(lengths)
    told = [json.loads(bytes(part)) for part in texts]
    for other, (theirs, _) in enumerate(told):
        if theirs is not None:
            named = f"{name}: rank {other}: {theirs.removeprefix(f'{name}: ')}"
            raise ValueError(theirs if other == rank(group) else named)
    first = told[0][1]
    for other, (_, theirs) in enumerate(told):
        odd = [key for key in {**first, **theirs} if theirs.get(key) != first.get(key)]
        different = [f"{key} ({theirs.get(key)!r}, not {first.get(key)!r})" for key in odd]
        if different:
            raise ValueError(f"{name}: rank {other} and rank 0 must have the same {', '.join(different)}")


def digest(tensor: torch.Tensor) -> str:
    """Of the bits of a tensor, for ranks to `agree` on."""
    return hashlib.sha256(tensor.cpu().contiguous().numpy()).hexdigest()[:16]


def check_backend(name: str, group: Group) -> None:
    """Raise ValueError for a group that cannot send tensors on the CPU: counts and texts are such everywhere."""
    if group is not None and "cpu:" not in (config := dist.get_backend_config(group)):
        raise ValueError(
            f"{name}: process_group must send tensors on the CPU too, got one that is {config}; "
            'make it by init_process_group("cpu:gloo,cuda:nccl")'
        )


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank cannot be reached any more."""
    return isinstance(error, dist.DistError) or LOST.search(str(error)) is not None


def backend_error(error: RuntimeError) -> str:
    """What the backend said, in one line and without its stack."""
    return " ".join(str(error).partition("Exception raised from")[0].split())


class Watch:
    """What every rank is doing, noted in the store of the job, so that those who outlive another can say what it was.

    A group that has lost a rank is of no use any more: the job ends on every rank, within GRACE of noticing, which is
    at once where a process has died and after the timeout of the group where it hangs.
    """

    GRACE = 3.0  # seconds in which the others may say what went wrong
    PREFIX = "dmic/watch"
    ENDINGS = ("failed", "stopped", "survived")  # what a rank notes of itself before it ends

    def __init__(self, group: Group):
        self.group = group
        self.store = None
        self.probes = []  # messages that nobody receives, kept until the process ends
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

        Guards may be nested: the inner one tells.

        Raises:
            ConnectionError: which rank, in which phase, and why; or that SIGTERM has stopped this one.
        """
        if self.group is None:
            yield
            return
        for ending in self.ENDINGS:  # of an error that somebody caught
            self._note(ending, "")
        before = signal.getsignal(signal.SIGTERM)
        catches = threading.current_thread() is threading.main_thread()
        catches = catches and before in (signal.SIG_DFL, None, _raise_stopped)
        if catches:  # torchrun ends the others as soon as one rank has ended
            signal.signal(signal.SIGTERM, _raise_stopped)
        try:
            yield
        except BaseException as error:
            if catches:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if before is _raise_stopped:
                before = signal.SIG_IGN  # until the guard around this one has ended too
            if (told := self._tell(error)) is not None:
                raise ConnectionError(told) from error
            raise
        finally:
            if catches:
                signal.signal(signal.SIGTERM, before)

    def _key(self, what: str, other: int | None = None) -> str:
        return f"{self.PREFIX}/{what}/{rank(self.group) if other is None else other}"

    def _note(self, what: str, text: str) -> None:
        if self.store is None:
            return
        try:
            self.store.set(self._key(what), text)
        except RuntimeError as error:
            raise ConnectionError(
                f"the store of the job is gone, and with it the process that kept it ({error})"
            ) from error

    def _read(self, what: str, other: int) -> str | None:
        key = self._key(what, other)
        return (self.store.get(key).decode() or None) if self.store.check([key]) else None

    def _tell(self, error: BaseException) -> str | None:
        """Note how this rank ends; what is to be said in place of the error, or None if that says it all."""
        stopped = isinstance(error, (_Stopped, KeyboardInterrupt))
        lost = isinstance(error, RuntimeError) and is_lost(error)
        try:
            if any(self._read(ending, rank(self.group)) for ending in self.ENDINGS):
                return None  # a guard inside has told
            if not stopped and not lost:
                self.store.set(self._key("failed"), f"{type(error).__name__}: {error}")
                return None
            if (who := self._who_was_lost(stopped)) is not None:
                return who
        except RuntimeError as gone:
            if lost:
                return f"the process that keeps the store of the job is gone; this rank was in {self.phase} ({gone})"
        if lost:
            lost_each_other = f"the ranks lost each other in {self.phase}; is the network there, and the timeout long"
            return f"{lost_each_other} enough? ({backend_error(error)})"
        return f"stopped by SIGTERM in {self.phase}" if isinstance(error, _Stopped) else None

    def _who_was_lost(self, stopped: bool) -> str | None:
        """The ranks that ended this one, once all have noted how they end or had the time to; None: nobody did.

        One that notes nothing was killed or hangs, or else has not noticed yet: where some cannot be reached, or a rank
        was stopped, this one or another, it is held against those that cannot be reached alone.
        """
        others = [other for other in range(size(self.group)) if other != rank(self.group)]
        # one that has left without waiting for this one to note anything was stopped alone
        left = [other for other in others if self._read("stopped", other) is not None and self._is_gone(other)]
        self.store.set(self._key("stopped" if stopped else "survived"), self.phase)
        deadline = time.monotonic() + self.GRACE
        while True:
            for other in others:
                if (cause := self._read("failed", other)) is not None:
                    return f"rank {other} failed in {self._phase(other)}: {cause}"
            first = [other for other in others if self._read("stopped", other) is not None]
            noticed = [other for other in others if self._read("survived", other) is not None]
            silent = [other for other in others if other not in first + noticed]
            if not silent or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        gone = [other for other in silent if self._is_gone(other)]
        silent = gone if gone or first or (stopped and not noticed) else silent
        if silent:
            was = ", ".join(f"rank {other} in {self._phase(other)}" for other in silent)
            return f"{was}: killed, or no answer within the timeout"
        first = left if stopped else first
        return ", ".join(f"rank {other} was stopped in {self._phase(other)}" for other in first) or None

    def _phase(self, other: int) -> str:
        return self._read("phase", other) or "the start"

    def _is_gone(self, other: int) -> bool:
        """Whether the connection to another rank is broken; the group is of no use afterwards."""
        try:
            self.probes.append(dist.isend(torch.zeros(1), group=self.group, group_dst=other, tag=PROBE))
        except RuntimeError:
            return True
        return False


class _Stopped(BaseException):
    """SIGTERM while a watch was on."""


def _raise_stopped(*_: object) -> None:
    raise _Stopped
