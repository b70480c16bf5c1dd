"""A gallery in blocks, in a file, on several ranks: the bits of one process, and what happens when a rank is lost."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked_ranks import ForkedRanks
from generators import gallery as generate

import dmic
from dmic import blockwise, feature_rows
from dmic.process_group import Watch

N, D = 420, 32
SEARCH = ("--k1", 20, "--k2", 6, "--eps", 0.6)
PHASES = (
    "knn_graph",
    "k_reciprocal_encoding",
    "invariant_expansion",
    "jaccard_distance",
    "dbscan",
    "the labels of all ranks",
)
KILLS = 30


def clustered_gallery(num_samples: int, dim: int) -> dict[str, np.ndarray]:
    made = generate(num_samples, dim)
    names = ("features", "camera_ids", "modality_ids")
    return {name: np.asarray(getattr(made, name)) for name in names}


@pytest.fixture(scope="module")
def ranks():
    forked = ForkedRanks()
    yield forked
    forked.close()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A file with features and ids, and the labels of one process."""
    made = clustered_gallery(N, D)
    path = tmp_path_factory.mktemp("gallery") / "gallery.npz"
    np.savez(path, **made)
    found = dmic.pseudo_labels(**made, k1=20, k2=6, eps=0.6)
    assert 5 < found.num_clusters < 60
    assert found.num_outliers > 0
    return path, np.asarray(found.labels)


def cluster(ranks, folder, gallery, *more, num_ranks=3, fates=None):
    out = folder / "labels.npz"
    call = ("cluster", gallery[0], "-o", out, *SEARCH, "--device", "cpu", "--resume", folder / "stages", *more)
    codes, texts = ranks(folder, num_ranks, "dmic", *call, fates=fates)
    return codes, texts, out


def cluster_own_file(ranks, folder, suffix):
    """Every rank that of its number."""
    call = ("cluster", folder / f"{{rank}}{suffix}", "-o", folder / "labels.npz", *SEARCH, "--device", "cpu")
    return ranks(folder, 2, "dmic_of_rank", *call)


def assert_right(out, gallery):
    with np.load(out) as found:
        np.testing.assert_array_equal(found["labels"], gallery[1])


@pytest.mark.parametrize(
    "cuts", [(0, N), (0, 150, N), (0, 0, 77, N), (0, 100, 100, 300, N), (0, 1, N, N), (0, 105, 210, 315, N)]
)
@pytest.mark.parametrize("block_rows", [64, 1000])
def test_every_stage_has_the_bits_of_the_whole(ranks, gallery, tmp_path, cuts, block_rows):
    codes, texts = ranks(tmp_path, len(cuts) - 1, "same_stages", gallery[0], block_rows, *cuts)
    assert codes == [0] * len(codes), texts


def test_two_agents_of_torchrun_meet_by_address_as_those_of_two_machines_do(gallery, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", *meeting]
    out = tmp_path / "labels.npz"
    command = [
        *launch,
        "-m",
        "dmic",
        "cluster",
        gallery[0],
        "-o",
        out,
        *SEARCH,
        "--device",
        "cpu",
        "--resume",
        tmp_path / "stages",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dmic.__file__).parents[1])}
    how = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    agents = [subprocess.Popen([*map(str, command)], **how) for _ in range(2)]
    try:
        printed = [agent.communicate(timeout=600)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert sum("wrote" in text for text in printed) == 1
    assert_right(out, gallery)


LAST_MESSAGE = """
import torch
from dmic import process_group
with process_group.started("cpu") as group:
    for _ in range(2):
        process_group.all_gather_rows(torch.ones(200, 8), group)
"""


def test_ranks_exit_in_order_right_after_the_last_message():
    """With the group in a variable of the script, so that its threads outlive it; they lose the race in about half of
    all runs if nothing is done."""
    for _ in range(5):
        with socket.create_server(("127.0.0.1", 0)) as free:
            job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        common = os.environ | job | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dmic.__file__).parents[1])}
        command = [sys.executable, "-c", LAST_MESSAGE]
        each = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        started = [subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True) for own in each]
        errors = [rank.communicate(timeout=60)[1] for rank in started]
        assert [rank.returncode for rank in started] == [0, 0], errors


def test_ranks_of_one_modality_only(ranks, tmp_path):
    made = clustered_gallery(N, D)
    order = np.argsort(made["modality_ids"], kind="stable")
    path = tmp_path / "sorted.npz"
    np.savez(path, **{name: array[order] for name, array in made.items()})
    visible = int((made["modality_ids"] == 0).sum())
    codes, texts = ranks(tmp_path, 2, "same_stages", path, 100, 0, visible, N)
    assert codes == [0, 0], texts


def test_stages_are_kept_and_any_number_of_ranks_goes_on(ranks, gallery, tmp_path):
    for number in (3, 1, 2, 4):
        codes, texts, out = cluster(ranks, tmp_path, gallery, num_ranks=number)
        assert codes == [0] * number, texts
        assert_right(out, gallery)
        assert ("knn_graph" in texts[0].replace("(in knn_graph)", "")) == (number == 3)
        out.unlink()


def test_there_may_be_more_ranks_than_samples(ranks, tmp_path):
    """So that the first has none, and each of the others fewer than a neighbourhood."""
    np.savez(tmp_path / "three.npz", features=np.array([[0, 0], [3, 0.2], [3, 0]], np.float32))
    call = ("cluster", tmp_path / "three.npz", "-o", tmp_path / "labels.npz", "--k1", 2, "--k2", 1, "--eps", 0.5)
    for number in (4, 2):
        more = ("--min-samples", 2, "--device", "cpu", "--resume", tmp_path / "stages")
        codes, texts = ranks(tmp_path, number, "dmic", *call, *more)
        assert codes == [0] * number, texts
        with np.load(tmp_path / "labels.npz") as found:
            assert found["labels"].tolist() == [-1, 0, 0]
        assert "1 (33.3 %)" in texts[0]
        (tmp_path / "labels.npz").unlink()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no checksum", "missing"])
@pytest.mark.parametrize("stage", ["knn_graph", "invariant_expansion", "jaccard_distance"])
def test_a_damaged_stage_is_never_used(ranks, gallery, tmp_path, stage, damage):
    assert cluster(ranks, tmp_path, gallery, num_ranks=2)[0] == [0, 0]
    for later in ("knn_graph", "invariant_expansion", "jaccard_distance"):
        if later > stage or (stage == "knn_graph" and later != stage):
            for path in (tmp_path / "stages").glob(f"{later}-*"):
                path.unlink()
    path = next((tmp_path / "stages").glob(f"{stage}-*.0-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    {
        "truncated": lambda: path.write_bytes(data[:-10]),
        "flipped": lambda: path.write_bytes(data),
        "no checksum": path.with_suffix(".json").unlink,
        "missing": path.unlink,
    }[damage]()
    codes, texts, out = cluster(ranks, tmp_path, gallery, num_ranks=2)
    assert codes == [0, 0], texts
    assert_right(out, gallery)


def test_what_a_killed_rank_left_of_a_file_is_deleted(ranks, gallery, tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / ".knn_graph-k1=20.0-420.safetensors.1.tmp").write_bytes(b"half")
    codes, texts, out = cluster(ranks, tmp_path, gallery, num_ranks=2)
    assert codes == [0, 0], texts
    assert_right(out, gallery)
    assert not list((tmp_path / "stages").glob(".*"))


def test_stages_of_something_else_are_refused(ranks, gallery, tmp_path):
    assert cluster(ranks, tmp_path, gallery, num_ranks=2)[0] == [0, 0]
    for what, key, place in (("features", "features", (5, 3)), ("ids", "camera_ids", 7), ("ids", "modality_ids", 9)):
        with np.load(gallery[0]) as data:
            changed = {name: data[name].copy() for name in data.files}
        changed[key][place] += 1
        np.savez(tmp_path / "changed.npz", **changed)
        codes, texts, _ = cluster(ranks, tmp_path, (tmp_path / "changed.npz",))
        assert codes == [2, 2, 2]
        number = "[0-9a-f]{16}"
        assert re.search(rf"holds stages of another gallery: {what} {number} \(now {number}\); choose", texts[0])


def test_stages_serve_the_settings_that_come_after_them(ranks, gallery, tmp_path):
    stages = ["knn_graph", "invariant_expansion", "jaccard_distance"]
    assert cluster(ranks, tmp_path, gallery, num_ranks=2)[0] == [0, 0]
    usual, done = {"k1": 20, "k2": 6, "eps": 0.6, "min_samples": 4}, set()
    for name, value, kept in (("min_samples", 6, 3), ("eps", 0.5, 2), ("k2", 5, 1), ("k1", 18, 0), ("eps", 0.6, 3)):
        settings = usual | {name: value}
        options = (f"--{name.replace('_', '-')}", value)
        codes, texts, out = cluster(ranks, tmp_path, gallery, *options, num_ranks=2)
        assert codes == [0, 0], texts
        told = texts[0].split("outliers")[1]  # the table, which has what ran
        assert [stage in told for stage in stages] == [index >= kept for index in range(3)], (name, told)
        with np.load(gallery[0]) as data:
            found = dmic.pseudo_labels(**data, **settings)
        assert_right(out, (None, found.labels))
        done.add(found.labels.tobytes())
    assert len(done) == 5, "settings that change nothing show nothing"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("k2", "rank 1 and rank 0 must have the same k2 (7, not 6)"),
        ("columns", f"rank 1 and rank 0 must have the same features ({D - 1}, not {D})"),
        ("ids", "rank 1 and rank 0 must have the same camera_ids (False, not True)"),
        ("version", "rank 1 and rank 0 must have the same version of dmic ('0.0.0', not"),
        ("length", "camera_ids must have shape [N]"),
        ("folder", "rank 1 and rank 0 must have the same folder (True, not False)"),
        ("nan", "features must be finite in float32, got nan at row 5, column 3"),
        ("memory", "out of memory; the arguments were being checked"),
    ],
)
def test_ranks_that_differ_refuse_to_start(ranks, gallery, tmp_path, what, message):
    codes, texts = ranks(tmp_path, 3, "different_settings", gallery[0], what)
    assert codes == [2, 2, 2], texts
    assert all(message in text for text in texts), texts


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("k1 of a string", "k1 must be an integer, got '20'"),
        ("eps", "eps must be in [0, 1], got 2"),
        ("min_samples", "min_samples must be at least 1, got 0"),
        ("device", "device must be cpu, cuda or cuda:NUMBER, got 'tpu'"),
        ("folder of a number", "folder must be a path, got 5"),
        ("encoding", "encoding cannot be given with a path, a process_group, a folder or a device"),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_of_all_that_names_it_once(ranks, gallery, tmp_path, what, message):
    codes, texts = ranks(tmp_path, 2, "different_settings", gallery[0], what)
    assert codes == [2, 2], texts
    said = texts[1].removeprefix("pseudo_labels: ")
    assert said.startswith(message)
    assert texts[0] == f"pseudo_labels: rank 1: {said}"


def test_a_rank_that_is_killed_while_arguments_are_checked_is_named(ranks, gallery, tmp_path):
    """In the library: the command watches too."""
    codes, texts = ranks(tmp_path, 2, "different_settings", gallery[0], "", fates={1: ["killed", "the arguments", 0]})
    assert codes == [2, -9], texts
    assert texts[0] == "rank 1 in the arguments: killed, or no answer within the timeout\n"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("0,1", "no GPU is left for local rank 1, the machine has 1: start torchrun with --nproc-per-node 1, or give "),
        ("0,full", "cuda:1 cannot be used (CUDA error: out of memory Compile with TORCH_USE_CUDA_DSA)"),
        ("9,0", "rank 1 and rank 0 must have the same kind of device ('cpu', not 'cuda')"),
    ],
)
@pytest.mark.parametrize("command", ["cluster", "train", "embed", "evaluate"])
def test_a_rank_without_its_gpu_is_named_by_all(ranks, gallery, tmp_path, command, found, message):
    arguments = {
        "cluster": (gallery[0], "-o", tmp_path / "labels.npz"),
        "train": ("landsat", "--out", tmp_path / "run"),
    }
    arguments |= {"embed": (tmp_path, "-o", tmp_path / "features.npz"), "evaluate": (tmp_path,)}
    start = time.monotonic()
    call = command, *arguments[command], "--timeout", 0.5
    codes, texts = ranks(tmp_path, 2, "dmic_with_gpus", found, *call)
    assert time.monotonic() - start < 20, "nobody waits for the timeout"
    assert codes == [2, 2], texts
    assert all(message in text and text.count("dmic ") == 1 for text in texts), texts
    if "rank 0" not in message:
        assert f"dmic {command}: error: rank 0: --device: rank 1: {message}" in texts[0]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("shorter", f"rank 1 and rank 0 must have the same number of samples ({N - 20}, not {N})"),
        ("other", "rank 1 and rank 0 must have the same features, by a few rows ("),
        ("half", "rank 1 and rank 0 must have the same dtype of features ('torch.float16', not 'torch.float32'), "),
        ("ids", "rank 1 and rank 0 must have the same camera_ids ("),
        ("array", "file of features (False, not True)"),
        ("nan", "nan.npy: features must be finite in float32, got nan at row 400, column 3"),
    ],
)
def test_ranks_that_read_different_files_refuse_to_start(ranks, gallery, tmp_path, what, message):
    with np.load(gallery[0]) as data:
        features, camera_ids = data["features"], data["camera_ids"]
    broken = features.copy()
    broken[400, 3] = np.nan
    files = {"features": features, "camera_ids": camera_ids, "shorter": features[:-20], "other": features * 2}
    files |= {"half": features.astype(np.float16), "nan": broken, "array": features}
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    codes, texts = ranks(tmp_path, 2, "different_files", tmp_path, what)
    assert codes == [2, 2], texts
    assert all(message in text for text in texts), texts


def test_ranks_with_different_npz_files_refuse_to_start(ranks, gallery, tmp_path):
    """The command reads such a file as a whole: its ranks ask each other."""
    shutil.copy(gallery[0], tmp_path / "0.npz")
    with np.load(gallery[0]) as data:
        np.savez(tmp_path / "1.npz", **{name: data[name][:-20] for name in data.files})
    codes, texts = cluster_own_file(ranks, tmp_path, ".npz")
    assert codes == [2, 2], texts
    message = f"rank 1 and rank 0 must have the same number of samples ({N - 20}, not {N})"
    assert all(message in text for text in texts), texts
    assert not (tmp_path / "labels.npz").exists()


@pytest.mark.parametrize("without", [0, 1])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_rank_without_the_file_is_named(ranks, gallery, tmp_path, suffix, without):
    with np.load(gallery[0]) as data:
        path = tmp_path / f"{1 - without}{suffix}"
        np.savez(path, **data) if suffix == ".npz" else np.save(path, data["features"])
    codes, texts = cluster_own_file(ranks, tmp_path, suffix)
    assert codes == [2, 2], texts
    cause = f"{tmp_path / f'{without}{suffix}'}: No such file or directory\n"
    other = f"dmic cluster: error: rank {1 - without}: rank {without} failed in the start: ValueError: {cause}"
    assert texts[without] == f"dmic cluster: error: rank {without}: {cause}"
    assert texts[1 - without].endswith(other), texts
    assert texts[1 - without].count("error:") == 1


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_nan_is_named_by_file_and_row_of_the_gallery(ranks, gallery, tmp_path, suffix, num_ranks):
    with np.load(gallery[0]) as data:
        arrays = dict(data)
    arrays["features"][403, 3] = np.nan  # which is none of the rows by which ranks compare galleries
    path = tmp_path / f"gallery{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else np.save(path, arrays["features"])
    codes, texts, out = cluster(ranks, tmp_path, (path,), num_ranks=num_ranks)
    assert codes == [2] * num_ranks, texts
    assert all(f"{path}: features must be finite in float32, got nan at row 403, column 3" in t for t in texts), texts
    assert not out.exists()


def test_killed_ranks_are_named_and_the_rest_goes_on(ranks, gallery, tmp_path):
    """Any of three ranks, in every phase, at its begin or a moment later; then any number of ranks goes on."""
    chance, killed, trials = random.Random(5), Counter(), 0
    while killed.total() < KILLS:
        folder = tmp_path / str(trials)
        folder.mkdir()
        turn, number = divmod(trials, len(PHASES))
        victim, phase = chance.randrange(3), PHASES[number]
        delay = chance.choice((0.001, 0.003, 0.01)) if turn % 2 else 0
        codes, texts, out = cluster(ranks, folder, gallery, fates={victim: ["killed", phase, delay]})
        assert codes[victim] == -9 or (delay and codes == [0] * 3), texts
        if codes[victim] == -9:
            killed[phase] += 1
            others = [rank for rank in range(3) if rank != victim]
            for rank in others:
                assert codes[rank] == 2 or (codes[rank] == 0 and (delay or phase == PHASES[-1])), texts
                if codes[rank] == 2:
                    assert f"rank {victim} in " in texts[rank], texts
                    assert delay or f"rank {victim} in {phase}: killed, or no answer" in texts[rank], texts
                    assert texts[rank].count("error:") == 1
        number = chance.randrange(1, 4)
        codes, texts, out = cluster(ranks, folder, gallery, num_ranks=number)
        assert codes == [0] * number, texts
        assert_right(out, gallery)
        assert not list(folder.rglob("*.npz.*"))
        trials += 1
        assert trials < 2 * KILLS, killed
    assert min(killed[phase] for phase in PHASES) >= KILLS // len(PHASES) // 2, killed


@pytest.mark.parametrize("phase", PHASES[:5])
def test_a_rank_that_is_stopped_says_so_and_is_named(ranks, gallery, tmp_path, phase):
    codes, texts, out = cluster(ranks, tmp_path, gallery, fates={1: ["stopped", phase, 0]})
    assert codes == [2, 2, 2], texts
    assert f"rank 1: stopped by SIGTERM in {phase}; the same command goes on" in texts[1]
    for rank in (0, 2):
        assert f"rank {rank}: rank 1 was stopped in {phase}; the same command goes on" in texts[rank], texts
    assert not out.exists()


def test_ranks_that_are_all_stopped_blame_nobody(ranks, gallery, tmp_path):
    codes, texts, _ = cluster(ranks, tmp_path, gallery, fates={rank: ["stopped", "dbscan", 0] for rank in range(3)})
    assert codes == [2, 2, 2], texts
    for rank in range(3):
        told = f"rank {rank}: stopped by SIGTERM in dbscan; the same command goes on from what is in {tmp_path}"
        assert told in texts[rank], texts


@pytest.mark.parametrize("delay", [0, 0.02])
def test_a_killed_rank_is_named_where_the_rest_is_then_stopped(ranks, gallery, tmp_path, delay):
    """As torchrun does it, here for one rank that has not noticed yet, or just has."""
    fates = {2: ["killed", "jaccard_distance", 0], 1: ["stopped", "jaccard_distance", delay]}
    codes, texts, _ = cluster(ranks, tmp_path, gallery, fates=fates)
    assert codes == [2, 2, -9], texts
    for rank in (0, 1):
        assert f"rank {rank}: rank 2 in jaccard_distance: killed, or no answer" in texts[rank], texts


@pytest.mark.parametrize("fate", ["out_of_memory", "gpu_out_of_memory"])
@pytest.mark.parametrize("phase", ["the finished stages", *PHASES[:5]])
def test_a_rank_out_of_memory_is_named_with_its_phase(ranks, gallery, tmp_path, phase, fate):
    codes, texts, out = cluster(ranks, tmp_path, gallery, fates={1: [fate, phase, 0]})
    assert codes == [2, 2, 2], texts
    advice = f"out of memory in {phase}; give a lower max_memory, with which blocks are smaller, use more ranks"
    assert f"error: rank 1: {advice}" in texts[1]
    for rank in (0, 2):
        assert f"error: rank {rank}: rank 1 failed in {phase}: MemoryError: pseudo_labels: {advice}" in texts[rank]
    assert not out.exists()


def test_a_rank_that_hangs_ends_the_job_within_the_timeout(ranks, gallery, tmp_path):
    start = time.monotonic()
    fates = {2: ["hangs", "jaccard_distance", 0]}
    codes, texts, out = cluster(ranks, tmp_path, gallery, "--timeout", 3 / 60, fates=fates)
    assert time.monotonic() - start < 3 + 2 * Watch.GRACE + 15
    assert codes[:2] == [2, 2], texts
    assert any("rank 2 in jaccard_distance: killed, or no answer within the timeout" in text for text in texts), texts
    assert not out.exists()


def test_a_rank_that_never_joins_is_named(ranks, gallery, tmp_path):
    command = ("cluster", gallery[0], "-o", tmp_path / "labels.npz", "--timeout", 2 / 60)
    codes, texts = ranks(tmp_path, 3, "dmic_without_rank_1", *command)
    assert codes == [2, 1, 2], texts
    told = "rank 1 did not join within the timeout; what it wrote says why, or its machine is gone\n"
    for rank in (0, 2):
        assert f"dmic cluster: error: rank {rank}: {told}" in texts[rank]


def test_a_group_of_gpus_alone_is_refused():
    dist.init_process_group("cuda:gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"that is cuda:gloo; make it by init_process_group.*cpu:gloo,cuda:nccl"):
            dmic.pseudo_labels(torch.ones(5, 3), k1=2, k2=1, process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def test_what_the_backend_says_is_not_lost(ranks, tmp_path):
    """Here an error of all ranks alike, as of two that were given one GPU."""
    codes, texts = ranks(tmp_path, 2, "backend_fails", "guarded")
    assert codes == [2, 2], texts
    said = "(NCCL error in: NCCLUtils.cpp:77, invalid usage Last error: Duplicate GPU detected)"
    whole = f"the ranks lost each other in dbscan; is the network there, and the timeout long enough? {said}\n"
    assert texts == [whole, whole]
    codes, texts = ranks(tmp_path, 2, "backend_fails", "alone")
    assert texts == [f"another rank has ended or cannot be reached; what it wrote says why {said}\n"] * 2


# One process


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_file_gives_the_labels_of_the_array(tmp_path, monkeypatch, suffix, dtype):
    from safetensors.torch import save_file

    monkeypatch.setattr(feature_rows, "PIECE_BYTES", 10_000)
    made = clustered_gallery(1500, D)
    features = torch.as_tensor(made.pop("features")).to(dtype)
    path = tmp_path / f"features{suffix}"
    if suffix == ".npy":
        np.save(path, features.numpy())
    else:
        save_file({"other": torch.ones(3), "features": features}, path)
    want = dmic.pseudo_labels(features, **made, k1=20, k2=6)
    found = dmic.pseudo_labels(path, **made, k1=20, k2=6)
    assert torch.equal(found.labels, want.labels)
    assert torch.equal(found.core_mask, want.core_mask)
    assert (found.num_clusters, found.num_outliers) == (want.num_clusters, want.num_outliers)
    assert found.num_clusters > 5


@pytest.mark.parametrize("out", [None, torch.empty(60, 3)])
def test_rows_of_another_dtype_are_read_in_pieces(tmp_path, monkeypatch, out):
    monkeypatch.setattr(feature_rows, "PIECE_BYTES", 7 * 3 * 8)
    values = np.random.default_rng(0).standard_normal((100, 3))
    np.save(tmp_path / "features.npy", values)
    rows = feature_rows.FeatureRows.of("test", tmp_path / "features.npy")
    read = rows.read(20, 80, out)
    assert torch.equal(read, torch.from_numpy(values[20:80].astype(np.float32)))
    assert out is None or read is out
    values[33, 1] = 1e300
    np.save(tmp_path / "features.npy", values)
    with pytest.raises(ValueError, match=r"finite in float32, got 1e\+300 at row 33, column 1"):
        rows.read(20, 80, out)


def test_max_memory_makes_blocks(tmp_path):
    made = clustered_gallery(6000, D)
    want = dmic.pseudo_labels(**made, k1=20, k2=6)
    needed = dmic.estimate_memory(6000, D, k1=20, k2=6).peak_bytes
    found = dmic.pseudo_labels(**made, k1=20, k2=6, max_memory=needed - 1)
    np.testing.assert_array_equal(found.labels, want.labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 2, 2), np.float32), r"features must have shape \[N, d\], got \(3, 2, 2\)"),
        (np.zeros((3, 2), np.int32), "features must be float32, float16 or float64, got int32"),
        (np.asfortranarray(np.zeros((5, 3), np.float32)), "must be stored in rows"),
        (
            np.full((50, 3), np.nan, np.float32),
            r"bad\.npy: features must be finite in float32, got nan at row 0, column 0",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    np.save(tmp_path / "bad.npy", content)
    with pytest.raises(ValueError, match=message):
        dmic.pseudo_labels(tmp_path / "bad.npy", k1=2, k2=1)


def test_a_file_without_rows_has_no_clusters(tmp_path):
    np.save(tmp_path / "empty.npy", np.zeros((0, 3), np.float32))
    found = dmic.pseudo_labels(tmp_path / "empty.npy")
    assert (len(found.labels), found.num_clusters, found.num_outliers) == (0, 0, 0)


def test_ranks_read_their_rows_of_a_file_with_ids_beside_it(ranks, gallery, tmp_path):
    """As docs/scale.md starts it."""
    with np.load(gallery[0]) as data:
        for name in data.files:
            np.save(tmp_path / f"{name}.npy", data[name])
    path, *ids = (tmp_path / f"{name}.npy" for name in ("features", "camera_ids", "modality_ids"))
    codes, texts, out = cluster(ranks, tmp_path, (path,), "--camera-ids", ids[0], "--modality-ids", ids[1], num_ranks=2)
    assert codes == [0, 0], texts
    assert_right(out, gallery)
    broken = np.load(path)
    broken[400, 3] = np.inf
    np.save(path, broken)
    codes, texts, _ = cluster(ranks, tmp_path, (path,))
    assert codes == [2] * 3, texts
    assert all("features.npy: features must be finite in float32, got inf at row 400, column 3" in t for t in texts)


def test_a_stage_is_written_and_read_in_place(tmp_path):
    """Without a second copy of it: `max_memory` counts none."""
    code = """
import sys, torch
from benchmarks import measuring
from dmic import blockwise
from dmic.block_memory import Search
from dmic.stage_files import StageFiles
ring = blockwise.Ring.join(1000, 1000, torch.device("cpu"), None)
files = StageFiles(sys.argv[1])
files.open({}, Search(k1=1, k2=1, eps=0.5, min_samples=1), ring)
files.save("knn_graph", torch.zeros(1000, 8)), files.load("knn_graph")
rows = torch.arange(20_000_000, dtype=torch.int32).view(1000, -1)
measuring.reset_peak(); before = measuring.current_bytes()
files.save("knn_graph", rows)
print(measuring.peak_bytes() - before)
measuring.reset_peak(); before = measuring.current_bytes()
found = files.load("knn_graph")
print(measuring.peak_bytes() - before - found.nbytes)
assert torch.equal(found, rows)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(dmic.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, read = map(int, done.stdout.split())
    assert written < 20_000_000, "of 80 MB"
    assert read < 100_000_000, "pages of the file, which the system can take back"


def test_a_truncated_file_is_named(tmp_path):
    np.save(tmp_path / "short.npy", np.zeros((50, 3), np.float32))
    whole = (tmp_path / "short.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"short\.npy"):
        dmic.pseudo_labels(tmp_path / "short.npy", k1=2, k2=1)
    (tmp_path / "bad.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match=r"bad\.safetensors: not a readable .safetensors file"):
        dmic.pseudo_labels(tmp_path / "bad.safetensors", k1=2, k2=1)


@pytest.mark.parametrize("rank", range(7))
def test_every_rank_posts_the_next_turn_and_none_beyond(monkeypatch, rank):
    """Also one whose turns are empty: where messages block in their order, as NCCL's do, all need the same one."""
    posted = set()
    of_nobody = SimpleNamespace(isend="isend", irecv="irecv", P2POp=lambda what, _, **peer: (what, peer["group_peer"]))
    of_nobody.batch_isend_irecv = lambda operations: posted.update(operations) or []
    monkeypatch.setattr(blockwise, "dist", of_nobody)
    group = SimpleNamespace(rank=lambda: rank, size=lambda: 7)
    ring = blockwise.Ring(group, (0, 0, 0, 90, 90, 90, 90, 200), 60, torch.device("meta"))
    turns, met = list(ring.full_turns()), []

    def load(rows):
        return [torch.empty(len(rows), 4, device="meta")]

    for number, (_, received) in enumerate(ring.pass_blocks(turns, load, lambda _, rows: load(rows))):
        for rows, (block,) in received:
            assert len(block) == len(rows)
            met.append(rows)
        near = turns[: number + 2]
        sent = {("isend", turn.to) for turn in near if len(turn.sent)}
        assert posted == sent | {("irecv", turn.source) for turn in near if len(turn.received)}
    assert [len(rows) for rows in met] == [len(rows) for turn in turns for rows in ring.blocks(turn.received)]
