"""How much memory each stage takes at most if rows are clustered block by block on the emulated ops.

As a program, with libfailing_memory.so preloaded, `block_memory_checks.py REPORT` clusters galleries from a file, alone
and over ranks that it forks, as if blocks were copied to a GPU, whose memory alone counts, and writes the peaks as
JSON; test_block_memory.py judges. It checks on the way that the labels are those of the CPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # compare, generators
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # dmic

import emulator_build as build
import kernel_checks
import numpy as np
import torch
from generators import gallery
from late_copies import LateCopies
from late_store import LateStore
from memory_checks import STAGES, FailingMemory

from dmic import _native, blockwise, process_group, pseudo_labels

KINDS = ("peaks", "lengths")
GATHERING = ("k_reciprocal_encoding", "invariant_expansion")  # before these, ranks gather lists and ids


@dataclass(frozen=True)
class Case:
    num_samples: int
    num_features: int
    num_ranks: int
    block_rows: int
    k1: int = 20
    k2: int = 6
    eps: float = 0.6
    noise: float = 0.7

    @property
    def search(self) -> dict[str, Any]:
        return {"k1": self.k1, "k2": self.k2, "eps": self.eps}


CASES = [
    Case(240, 32, 1, 240),  # one block is all
    Case(240, 32, 1, 60),
    Case(240, 32, 1, 20),
    Case(240, 61, 1, 60, k2=1),  # columns that are filled up
    Case(200, 400, 1, 40, k1=8),  # features take most
    Case(160, 16, 1, 40, k1=60, k2=20, eps=0.9, noise=3.0),  # and rows and pairs
    Case(240, 16, 1, 240, k1=40, k2=20, eps=0.1),  # and rows alone
    Case(240, 16, 1, 40, k1=40, k2=20, eps=0.1),
    Case(360, 8, 1, 24, k1=45, k2=2),
    Case(240, 32, 2, 120),  # halves of blocks meet
    Case(240, 32, 2, 40),
    Case(240, 400, 3, 40, k1=8),
    Case(360, 16, 3, 40),
    Case(360, 16, 3, 30, k1=40, k2=20, eps=0.1),
    Case(240, 16, 3, 20, k1=60, k2=20, eps=0.9, noise=3.0),
    Case(320, 8, 8, 40, k1=60, k2=2),  # lists of all take most
    Case(480, 8, 8, 20, k1=12, k2=1, noise=10.0),
]


def watched(memory: FailingMemory, found: dict[str, dict], stage: str, op: Callable) -> Callable:
    """The stage, which notes the most bytes that are held meanwhile, and how many values its rows have."""

    def run(*args: Any, **kwargs: Any) -> Any:
        gathered = memory.peak()  # and no more is counted from before
        result = op(*args, **kwargs)
        found["peaks"][stage] = max(memory.peak(), gathered if stage in GATHERING else 0)
        if isinstance(result, blockwise.Csr):
            found["lengths"][stage] = result.nnz / result.num_rows
        return result

    return run


def cluster(memory: FailingMemory, case: Case, path: Path, ids: dict, group: process_group.Group) -> dict:
    found = {"peaks": {}, "lengths": {}}
    with (
        mock.patch.multiple(
            blockwise, **{name: watched(memory, found, name, getattr(blockwise, name)) for name in STAGES}
        ),
        LateCopies(early=True, current_early=True).in_use(),
        mock.patch("dmic.distributed.choose_block_rows", return_value=case.block_rows),
        mock.patch.object(process_group, "GATHERED_BYTES", 4096),  # in proportion to these galleries
    ):
        memory.begin()
        result = pseudo_labels(path, **ids, **case.search, process_group=group)
        memory.end()
    return found | {"labels": result.labels.tolist()}


def on_rank(memory: FailingMemory, case: Case, rank: int, port: int, path: Path, ids: dict) -> dict:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.num_ranks, "MASTER_ADDR": "127.0.0.1"}
    names |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in names.items()})
    with process_group.started("cpu") as group:
        return cluster(memory, case, path, ids, group)


def run(memory: FailingMemory, case: Case, folder: Path) -> dict:
    """On ranks that are children of this process."""
    data = gallery(case.num_samples, case.num_features, noise=case.noise)
    ids = {"camera_ids": data.camera_ids.astype(np.int32), "modality_ids": data.modality_ids.astype(np.int32)}  # copied
    path = folder / "features.npy"
    np.save(path, data.features)
    want = pseudo_labels(data.features, **ids, **case.search).labels.tolist()
    store = LateStore()
    children = []
    for rank in range(case.num_ranks):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)  # or threads that start at once race for torch's pool, which the fork broke
                _native.OPS = torch.ops.dmic_emu
                (folder / f"{rank}.json").write_text(json.dumps(on_rank(memory, case, rank, store.port(), path, ids)))
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    store.open(case.num_ranks)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * case.num_ranks, case
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(case.num_ranks)]
    assert [label for rank in ranks for label in rank["labels"]] == want, case
    most = {kind: {name: max(rank[kind][name] for rank in ranks) for name in ranks[0][kind]} for kind in KINDS}
    return {"case": asdict(case)} | most


def main() -> None:
    (report,) = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    memory = FailingMemory()
    kernel_checks.Emulator(build.library()).configure(schedule=0, workers=1)
    with tempfile.TemporaryDirectory() as folder:
        found = [run(memory, case, Path(folder)) for case in CASES]
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
