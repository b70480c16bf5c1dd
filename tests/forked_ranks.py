"""Ranks of a job, forked from one process that has imported `dmic` and keeps their store, each with a fate.

As a script it reads one JSON object a line, {"ranks": R, "call": NAME, "arguments": [...], "folder": DIR, "fates":
{rank: [NAME, PHASE, SECONDS]}}, runs the function of that name on every rank, and answers with the exit codes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch


class ForkedRanks:
    """The process that forks, on one thread; close it."""

    def __init__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def __call__(
        self, folder: Path, ranks: int, call: str, *arguments: object, fates=None
    ) -> tuple[list[int], list[str]]:
        """Exit codes and outputs of all ranks."""
        order = {"ranks": ranks, "call": call, "arguments": [str(a) for a in arguments], "folder": str(folder)}
        print(json.dumps({**order, "fates": fates or {}}), file=self._process.stdin, flush=True)
        codes = json.loads(self._process.stdout.readline())
        return codes, [(folder / f"rank{rank}.txt").read_text() for rank in range(ranks)]

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait() == 0


def killed(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stopped(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def out_of_memory(rank: int) -> None:
    raise MemoryError("no memory is left")


def gpu_out_of_memory(rank: int) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def meet(fate: str, phase: str, seconds: float) -> None:
    """When this rank enters the phase, or so much later."""
    from dmic.process_group import Watch

    enter = Watch.enter

    def enter_and_meet(watch, entered):
        enter(watch, entered)
        if entered != phase:
            return
        if seconds:
            timer = threading.Timer(seconds, globals()[fate], [0])
            timer.daemon = True
            timer.start()
        else:
            globals()[fate](0)

    Watch.enter = enter_and_meet


# What ranks can be asked to do


def dmic(*arguments: str) -> int:
    from dmic import cli

    return cli.main(arguments)


def dmic_of_rank(*arguments: str) -> int:
    """Of which {rank} is the number of the rank: files of its own."""
    return dmic(*(argument.replace("{rank}", os.environ["RANK"]) for argument in arguments))


def dmic_without_rank_1(*arguments: str) -> int:
    """Which ends before it joins."""
    return 1 if os.environ["RANK"] == "1" else dmic(*arguments)


def dmic_with_gpus(found: str, *arguments: str) -> int:
    """Where the machine of each rank has so many GPUs, which cannot compute; "full": as many as are needed."""
    from dmic import process_group

    found, start = found.split(",")[int(os.environ["RANK"])], process_group.start
    number = 99 if found == "full" else int(found)

    def set_device(device):
        if found == "full":
            raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    torch.cuda.is_available, torch.cuda.device_count, torch.cuda.set_device = (
        lambda: number > 0,
        lambda: number,
        set_device,
    )
    process_group.start = lambda device, timeout: start("cpu", timeout)
    return dmic(*arguments)


def same_stages(gallery: str, *cuts: str) -> int:
    """Every stage of rows cut unevenly is that of the whole, in every bit."""
    import numpy as np
    from compare import assert_same_bits

    from dmic import blockwise, ops, process_group
    from dmic.feature_rows import FeatureRows

    with process_group.started("cpu") as group:
        data = np.load(gallery)
        features = torch.as_tensor(data["features"])
        ids = [torch.as_tensor(data[name]) for name in ("camera_ids", "modality_ids")]
        rank, (block_rows, *bounds) = process_group.rank(group), map(int, cuts)
        begin, end = bounds[rank], bounds[rank + 1]
        ring = blockwise.Ring.join(end - begin, block_rows, torch.device("cpu"), group)
        k1, k2, k1_half, eps = 20, 6, 10, 0.6

        def own(csr):
            return blockwise._slice(csr, begin, end)

        def tensors(csr):
            return csr.row_ptr, csr.col_idx, csr.values

        part = FeatureRows.of("gallery", features).part(begin, end)
        lists = blockwise.knn_graph(part, k1, ring)
        idx, distances = ops.knn_graph(features, k1)
        assert_same_bits((lists.idx, lists.dist), (idx[begin:end], distances[begin:end]))
        of_all = process_group.all_gather_rows(lists.idx, group)
        encoding = blockwise.k_reciprocal_encoding(part, of_all, k1_half, ring)
        whole = ops.k_reciprocal_encoding(features, idx, k1_half)
        assert_same_bits(tensors(encoding), tensors(own(whole)))
        expanded = blockwise.invariant_expansion(encoding, of_all, k2, *ids, ring)
        whole = ops.invariant_expansion(whole, idx, k2, *ids)
        assert_same_bits(tensors(expanded), tensors(own(whole)))
        distance = blockwise.jaccard_distance(expanded, eps, ring)
        whole = ops.jaccard_distance(whole, eps)
        assert_same_bits(tensors(distance), tensors(own(whole)))
        labels, core_mask, num_clusters = blockwise.dbscan(distance, eps, 4, ring)
        all_labels, all_core = ops.dbscan(whole, eps, 4)
        assert_same_bits((labels, core_mask), (all_labels[begin:end], all_core[begin:end]))
        assert num_clusters == int(all_labels.max()) + 1 > 1
    return 0


def same_stages_with_late_copies(early: str, *arguments: str) -> int:
    """As if features went to a GPU."""
    from late_copies import LateCopies

    with LateCopies(early=early == "1").in_use():
        return same_stages(*arguments)


ODD_SETTINGS = {
    "k2": {"k2": 7},
    "folder": {"folder": "stages"},
    "k1 of a string": {"k1": "20"},
    "eps": {"eps": 2},
    "min_samples": {"min_samples": 0},
    "device": {"device": "tpu"},
    "folder of a number": {"folder": 5},
    "encoding": {"encoding": 1},
}


def different_settings(gallery: str, what: str) -> int:
    """Rank 1 has something else than rank 0."""
    import numpy as np

    from dmic import distributed, process_group, pseudo_labels

    try:
        with process_group.started("cpu") as group:
            odd = process_group.rank(group) == 1
            data = np.load(gallery)
            features, cameras = data["features"], data["camera_ids"]
            settings = {"k1": 20, "k2": 6} | (ODD_SETTINGS.get(what, {}) if odd else {})
            if odd and what == "columns":
                features = features[:, 1:]
            if odd and what == "ids":
                cameras = None
            if odd and what == "length":
                cameras = cameras[:-1]
            if odd and what == "nan":
                features = features.copy()
                features[5, 3] = np.nan
            if odd and what == "memory":
                sys.modules["dmic.pseudo_labels"]._check_ids = lambda *_: out_of_memory(1)
            if odd and what == "version":
                distributed.__version__ = "0.0.0"
            pseudo_labels(features, camera_ids=cameras, process_group=group, **settings)
    except (ValueError, ConnectionError) as error:
        print(error)
        return 2
    return 0


def different_files(folder: str, what: str) -> int:
    """Rank 1 reads another file than rank 0, or has other ids of it."""
    import numpy as np

    from dmic import process_group, pseudo_labels

    path, ids = Path(folder) / "features.npy", np.load(Path(folder) / "camera_ids.npy")
    try:
        with process_group.started("cpu") as group:
            if process_group.rank(group) == 1:
                path = path.with_name(f"{what}.npy") if what != "ids" else path
                ids = ids[::-1].copy() if what == "ids" else ids[: len(np.load(path))]
                path = np.load(path) if what == "array" else path
            pseudo_labels(path, camera_ids=ids, k1=20, process_group=group)
    except (ValueError, ConnectionError) as error:
        print(error)
        return 2
    return 0


def backend_fails(where: str) -> int:
    """As NCCL does it, which has a stack below what it says."""
    from dmic import process_group

    said = "NCCL error in: NCCLUtils.cpp:77, invalid usage\nLast error:\nDuplicate GPU detected\n"
    try:
        with process_group.started("cpu") as group:
            watch = process_group.Watch(group)
            with watch.guard() if where == "guarded" else contextlib.nullcontext():
                watch.enter("dbscan")
                raise torch.distributed.DistBackendError(f"{said}Exception raised from create (most recent call first)")
    except ConnectionError as error:
        print(error)
        return 2


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from late_store import LateStore

    from dmic import distributed, stage_files  # noqa: F401 (imported once, for all children)
    from dmic.commands import cluster, train  # noqa: F401
    from dmic.process_group import Watch

    Watch.GRACE = 1.0
    for line in sys.stdin:
        order = json.loads(line)
        store = LateStore()
        children = []
        for rank in range(order["ranks"]):
            child = os.fork()
            if child == 0:
                code = 1
                with contextlib.suppress(SystemExit), (Path(order["folder"]) / f"rank{rank}.txt").open("w") as output:
                    os.dup2(output.fileno(), 1)
                    os.dup2(output.fileno(), 2)
                    sys.stdout = sys.stderr = output
                    faulthandler.register(signal.SIGALRM, output, chain=True)  # writes where it is, and ends
                    signal.alarm(100)  # nothing that is asked here takes that long
                    try:
                        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(order["ranks"]), "LOCAL_RANK": str(rank)}
                        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port())}
                        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
                        if str(rank) in order["fates"]:
                            meet(*order["fates"][str(rank)])
                        code = globals()[order["call"]](*order["arguments"])
                    except Exception as error:
                        print(f"{type(error).__name__}: {error}")
                    output.flush()
                os._exit(code)
            children.append(child)
        store.open(order["ranks"])
        codes = {}
        while len(codes) < len(children):
            child, status = os.waitpid(-1, 0)
            codes[child] = os.waitstatus_to_exitcode(status)
            stopped = [c for c in children if c not in codes]
            if stopped and all(order["fates"].get(str(children.index(c)), [""])[0] == "hangs" for c in stopped):
                time.sleep(0.1)
                for c in stopped:  # it would hang for ever
                    os.kill(c, signal.SIGKILL)
        print(json.dumps([codes[child] for child in children]), flush=True)
        del store


if __name__ == "__main__":
    main()
