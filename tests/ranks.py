"""A function on several ranks of this machine, in processes that are forked from one that has imported dmic."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from dmic import process_group

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["dmic.commands.train", "torch.distributed"])
SECONDS = 600  # more than any of these functions needs on a busy machine


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What function(group, *arguments) returns on each of `size` ranks: anything but tensors."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # no other process takes its port
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, size, store.port, sender, function, arguments))
        for rank, (_, sender) in enumerate(pipes)
    ]
    try:
        for process in ranks:
            process.start()
        answers = [receiver.recv() if receiver.poll(SECONDS) else (False, "no answer") for receiver, _ in pipes]
        assert all(done for done, _ in answers), "\n".join(text for done, text in answers if not done)
        for process in ranks:
            process.join(SECONDS)
        assert [process.exitcode for process in ranks] == [0] * size
    finally:
        for process in ranks:
            process.kill()
    return [answer for _, answer in answers]


def _rank(rank: int, size: int, port: int, sender: Any, function: Callable[..., Any], arguments: Any) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    names["TORCHELASTIC_USE_AGENT_STORE"] = True
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    try:
        with process_group.started("cpu") as group:
            sender.send((True, function(group, *arguments)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
