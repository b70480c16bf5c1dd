"""Training survives: killed, interrupted or stopped by a fault, it goes on and ends with the bits it would have had."""

import ast
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import forked_runs
import pytest
import torch
import trees
from safetensors.torch import load_file, save_file

import dmic
from dmic import cli
from dmic import run as run_module
from dmic.checkpoint import atomic_write, load_checkpoint, save_checkpoint
from dmic.commands import common
from dmic.config import load_config
from dmic.run import RunFolder

CLUSTERING = ("k1=6", "k2=3", "eps=0.7", "min_samples=2")
SMALL = (
    "network.width=4", "network.embedding_dim=16", "train.num_classes=4", "train.num_samples=3",
    "stage1.num_epochs=1", "stage2.num_epochs=1", "train.num_iterations=3", "train.warmup=2", "evaluate.every=2",
    *(f"stage{s}.{kind}.{value}" for s in (1, 2) for kind in ("per_modality", "joint") for value in CLUSTERING),
)  # fmt: skip
LANDSAT = (*SMALL, "data.num_crops=1", "data.train_share=0.3")
LONGER = (
    *LANDSAT,
    "stage1.num_epochs=2",
    "stage2.num_epochs=2",
    "train.num_iterations=8",
    "train.checkpoint_seconds=0",
)
PEDESTRIANS = (*SMALL, "data.height=32", "data.width=16", "network.grid_height=2", "data.cache_bytes=0")
NUM_KILLS = 20
NEVER_THE_SAME = ("seconds", "peak_bytes")


def train_command(folder, settings, *more, recipe="landsat"):
    return ["train", recipe, "--out", str(folder), "--device", "cpu", *more, *(f"--set={s}" for s in settings)]


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder, uninterrupted, *, but=NEVER_THE_SAME):
    """Equal bits of the weights and of everything in the records that is no measurement."""
    weights, expected = (load_file(f / "weights.safetensors") for f in (folder, uninterrupted))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    lines, wanted = (
        [{k: v for k, v in record.items() if k not in but} for record in records_of(f)] for f in (folder, uninterrupted)
    )
    assert lines == wanted
    assert not list(folder.glob(".*.tmp")), "nothing is left over"


# -------------------------------------------------------------------------------------------------------------- SIGKILL


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    runs = forked_runs.ForkedRuns(tmp_path_factory.mktemp("forked"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def uninterrupted(forked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, output = forked(*train_command(folder, LONGER))
    assert code == 0, output
    return folder


def fates_in_random_order(seed):
    """Certain deaths where a file is half written or two files disagree, and deaths at any moment."""
    draws = random.Random(seed)
    certain = [
        *({"fate": "killed_in_write", "checkpoints": n} for n in (1, 2, 1)),
        *({"fate": "killed_before_rename", "checkpoints": n} for n in (1, 2)),
        {"fate": "killed_after_rename", "checkpoints": 1},
        {"fate": "killed_in_log"},
        {"fate": "killed_after_log"},
    ]
    anywhere = [
        {"fate": "killed_after", "checkpoints": n % 2, "seconds": draws.uniform(0, (0.8, 0.15)[n % 2])}
        for n in range(NUM_KILLS - len(certain) - 2)
    ]
    draws.shuffle(fates := certain + anywhere)
    return [{"fate": "killed_in_phase", "phase": phase} for phase in ("embed", "knn_graph")] + fates


def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(forked, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    fates = fates_in_random_order(0)
    assert len(fates) == NUM_KILLS
    for fate in fates:
        again = ["--resume"] if (folder / "config.toml").exists() else []
        code, output = forked(*train_command(folder, LONGER, *again), **fate)
        assert code == -signal.SIGKILL, f"{fate}: ended with {code} before it could be killed: {output}"
        half_written = list(folder.glob(".checkpoint.*.tmp"))
        if fate["fate"] in ("killed_in_write", "killed_before_rename"):
            assert len(half_written) == 1
        if fate["fate"] == "killed_in_log":
            assert not (folder / "metrics.jsonl").read_text().endswith("\n")
        if (folder / "checkpoint.safetensors").exists():
            load_checkpoint(folder / "checkpoint.safetensors")
    code, output = forked(*train_command(folder, LONGER, "--resume"))
    assert code == 0, output
    assert_same_run(folder, uninterrupted)
    assert all(record["labels"] for record in records_of(folder)[1:]), "labels were compared"


def test_the_command_itself_is_killed_and_ends_with_the_same_bits(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "dmic", *train_command(folder, LONGER)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    checkpoint = folder / "checkpoint.safetensors"
    draws = random.Random(1)
    before = None
    for again in ([], ["--resume"]):
        process = subprocess.Popen([*command, *again], env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_ino == before):
            time.sleep(0.002)
        time.sleep(draws.uniform(0, 0.2))
        assert process.poll() is None, "ended before it could be killed"
        process.kill()
        process.wait()
        before = checkpoint.stat().st_ino
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, uninterrupted, but=(*NEVER_THE_SAME, "labels"))


# --------------------------------------------------------------------------------------------------- SIGINT and SIGTERM


@pytest.fixture
def dmic_train(capsys):
    """`dmic train`; the exit code and what it wrote to stderr, which is one line unless all went well."""

    def call(*arguments, **recipe):
        code = cli.main(train_command(*arguments, **recipe))
        error = capsys.readouterr().err
        assert error.count("\n") == (code != 0), error
        return code, error

    return call


@pytest.fixture
def watch(monkeypatch):
    """Have a function called with every progress of a run."""

    def install(progress):
        @contextmanager
        def phases(console):
            yield progress

        monkeypatch.setattr(common, "phases", phases)

    return install


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(train_command(folder, LANDSAT)) == 0
    return folder


def send(*signals, phase, number=1):
    """A progress function that sends signals to its own process at the given call of a phase."""
    calls = 0

    def progress(name, done, total):
        nonlocal calls
        calls += name == phase
        if name == phase and calls == number:
            for signum in signals:
                signal.raise_signal(signum)

    return progress


def saved_moment(folder):
    state = load_checkpoint(folder / "checkpoint.safetensors")[1]
    return state["stage"], state["epoch"], state["iteration"]


PHASES = ("embed", "train", "knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan")


def test_a_run_that_is_interrupted_in_every_phase_ends_with_the_same_bits(dmic_train, watch, whole, tmp_path):
    folder = tmp_path / "a run"
    seen = set()
    watch(lambda name, done, total: seen.add(name))
    assert dmic_train(tmp_path / "watched", LANDSAT)[0] == 0
    assert seen == set(PHASES)
    for number, phase in enumerate(PHASES):
        watch(send((signal.SIGINT, signal.SIGTERM)[number % 2], phase=phase))
        code, error = dmic_train(folder, LANDSAT, *["--resume"][:number])
        assert code == 130
        assert error == f"dmic: interrupted; continue with: dmic train --resume --out '{folder}'\n"
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    watch(None)
    assert cli.main(["train", "--resume", "--out", str(folder), "--device", "cpu"]) == 0, "as the message says"
    assert_same_run(folder, whole)


@pytest.mark.parametrize(
    ("phase", "number", "moment"),
    [("train", 3 + 2, (1, 0, 3)), ("train", 1, (0, 0, 2)), ("embed", 4 + 2 + 2 + 1, (1, 0, 3))],
    ids=["in the last iteration", "in an iteration", "while the last epoch is evaluated"],
)
def test_an_interrupt_loses_no_iteration(dmic_train, watch, whole, tmp_path, phase, number, moment):
    watch(send(signal.SIGINT, phase=phase, number=number))
    assert dmic_train(tmp_path / "run", LANDSAT)[0] == 130
    assert saved_moment(tmp_path / "run") == moment
    done = []
    watch(lambda name, *_: done.append(name))
    assert dmic_train(tmp_path / "run", LANDSAT, "--resume")[0] == 0
    assert done.count("train") == 2 * 3 - (3 * moment[0] + moment[2])
    assert_same_run(tmp_path / "run", whole)


def test_a_second_interrupt_stops_at_once_and_the_checkpoint_stays(dmic_train, watch, whole, tmp_path):
    watch(send(signal.SIGINT, signal.SIGINT, phase="train", number=3 + 2))
    code, error = dmic_train(tmp_path / "run", LANDSAT)
    assert (code, "continue with: dmic train --resume --out" in error) == (130, True)
    assert saved_moment(tmp_path / "run") == (0, 1, 0), "that of the end of the first epoch"
    watch(None)
    assert dmic_train(tmp_path / "run", LANDSAT, "--resume")[0] == 0
    assert_same_run(tmp_path / "run", whole)


def test_seconds_before_a_stop_count(dmic_train, watch, tmp_path):
    watch(send(signal.SIGINT, phase="train", number=1))
    assert dmic_train(tmp_path / "run", LANDSAT)[0] == 130
    before = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")[1]["record"]["seconds"]["train"]
    assert before > 0
    watch(None)
    assert dmic_train(tmp_path / "run", LANDSAT, "--resume")[0] == 0
    assert records_of(tmp_path / "run")[1]["seconds"]["train"] > before


# ---------------------------------------------------------------------------------------------------- files and folders


@contextmanager
def room_for(num_bytes):
    """No file can grow beyond so many bytes, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_a_checkpoint_costs_what_came_after_the_last_one(
    dmic_train, monkeypatch, whole, tmp_path
):
    folder = tmp_path / "run"
    calls = []

    def save(path, *state):
        calls.append(path.read_bytes() if path.exists() else None)
        with room_for(10_000 if len(calls) == 2 else resource.RLIM_INFINITY):
            save_checkpoint(path, *state)

    monkeypatch.setattr(run_module, "save_checkpoint", save)
    code, error = dmic_train(folder, LANDSAT)
    assert code == 2
    assert error == (
        f"dmic train: error: {folder}/checkpoint.safetensors: could not be written (File too large); the earlier file "
        f"is untouched; once that is mended, continue with: dmic train --resume --out {folder}\n"
    )
    assert (folder / "checkpoint.safetensors").read_bytes() == calls[1]
    assert not list(folder.glob(".*.tmp")), "what was written of it makes room again"
    assert dmic_train(folder, LANDSAT, "--resume")[0] == 0
    assert_same_run(folder, whole)


def test_a_disk_that_is_full_at_a_record_leaves_half_a_line_that_resuming_mends(
    dmic_train, monkeypatch, whole, tmp_path
):
    folder = tmp_path / "run"

    def log(self, record, unlimited=RunFolder.log):
        path = self / "metrics.jsonl"
        with room_for(path.stat().st_size + 20 if record["epoch"] == 2 else resource.RLIM_INFINITY):
            unlimited(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log)
        code, error = dmic_train(folder, LANDSAT)
    assert code == 2
    assert "metrics.jsonl: could not be written (File too large); once that is mended, continue with: " in error
    assert not (folder / "metrics.jsonl").read_text().endswith("\n")
    assert [record["epoch"] for record in RunFolder(folder).records()] == [0, 1]
    assert dmic_train(folder, LANDSAT, "--resume")[0] == 0
    assert_same_run(folder, whole)


def test_a_disk_that_is_full_from_the_start_leaves_no_run(dmic_train, whole, tmp_path):
    folder = tmp_path / "run"
    with room_for(100):
        code, error = dmic_train(folder, LANDSAT)
    assert (code, "config.toml: could not be written (File too large); there is no earlier one" in error) == (2, True)
    assert dmic_train(folder, LANDSAT)[0] == 0
    assert_same_run(folder, whole)


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half(error):
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    for error in (OSError("gone"), ValueError("a mistake")):
        with pytest.raises(type(error)):
            write_half(error)
        assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_what_a_killed_writer_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, alive = int(done.stdout), os.getppid()
    for name in (f".file.{dead}.tmp", f".file.{alive}.tmp", ".file.part.tmp", f".file.other.{dead}.tmp"):
        (tmp_path / name).write_text("half")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    kept = {f".file.{alive}.tmp", ".file.part.tmp", f".file.other.{dead}.tmp", "file"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_folder_that_cannot_be_written_to_is_named(dmic_train, tmp_path):
    (tmp_path / "file").touch()
    code, error = dmic_train(tmp_path / "file" / "run", LANDSAT)
    assert (code, "run: cannot be written to (Not a directory); choose another --out" in error) == (2, True)


def test_a_folder_without_permission_is_named():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)  # nothing is forbidden to root
            with RunFolder(folder).held(load_config("landsat"), resume=False):
                pass
        except ValueError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.read() == f"{folder}: cannot be written to (Permission denied); choose another --out"
    folder.rmdir()


def test_a_folder_belongs_to_one_process_at_a_time(dmic_train, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, error = dmic_train(folder, LANDSAT, "--resume")
        assert (code, f"{folder}: another process is at work on this run" in error) == (2, True)
    assert dmic_train(folder, LANDSAT, "--resume")[0] == 0


def test_there_must_be_a_run_to_resume(dmic_train, tmp_path):
    code, error = dmic_train(tmp_path / "run", LANDSAT, "--resume")
    assert (code, "there is no run to resume, config.toml is missing" in error) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint.safetensors", "weights.safetensors"])
def test_results_without_a_configuration_are_not_overwritten(dmic_train, tmp_path, name):
    (tmp_path / name).write_text("precious")
    code, error = dmic_train(tmp_path, LANDSAT)
    assert (code, "holds a run already" in error) == (2, True)
    assert (tmp_path / name).read_text() == "precious"


def test_a_damaged_record_is_named_with_its_line(dmic_train, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0] + lines[1][10:] + lines[2])
    code, error = dmic_train(folder, LANDSAT, "--resume")
    assert (code, "metrics.jsonl:2: not a record (" in error) == (2, True)


def test_other_settings_are_refused_with_the_difference_and_free_ones_are_not(dmic_train, watch, whole, tmp_path):
    folder = tmp_path / "run"
    watch(send(signal.SIGINT, phase="train"))
    assert dmic_train(folder, LANDSAT)[0] == 130
    watch(None)
    before = (folder / "checkpoint.safetensors").read_bytes()
    code, error = dmic_train(folder, (*LANDSAT, "train.seed=3", "stage2.joint.eps=0.5"), "--resume")
    assert code == 2
    assert "holds a run with other settings (stage2.joint.eps" in error
    assert "train.seed: 0 and 3)" in error
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    code, error = dmic_train(folder, (*LANDSAT, "data.kind=sysu_mm01", "data.root=nowhere"), "--resume")
    assert code == 2
    assert "holds a run with other settings (data.kind" in error, "before the data set is looked for"
    free = ("data.root=elsewhere", "data.num_workers=1", "data.cache_bytes=5", "train.checkpoint_seconds=0")
    assert dmic_train(folder, (*LANDSAT, *free), "--resume")[0] == 0
    assert_same_run(folder, whole)


# ------------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.fixture
def stopped(dmic_train, watch, tmp_path):
    """A run that was interrupted after its fifth iteration, and its checkpoint."""
    folder = tmp_path / "run"
    watch(send(signal.SIGINT, phase="train", number=4))
    assert dmic_train(folder, LANDSAT)[0] == 130
    watch(None)
    return folder, folder / "checkpoint.safetensors"


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_truncated_checkpoint_is_an_error(dmic_train, stopped, kept):
    folder, path = stopped
    path.write_bytes(path.read_bytes()[:kept])
    code, error = dmic_train(folder, LANDSAT, "--resume")
    assert code == 2
    assert f"{path}: not a checkpoint, or a damaged one (" in error


@pytest.mark.parametrize("part", ["a tensor", "the state"])
def test_a_byte_that_has_changed_is_an_error(dmic_train, stopped, part):
    folder, path = stopped
    data = bytearray(path.read_bytes())
    data[-1 if part == "a tensor" else data.index(b"learning_rate") + 1] ^= 1
    path.write_bytes(data)
    code, error = dmic_train(folder, LANDSAT, "--resume")
    assert code == 2
    assert f"{path}: a damaged checkpoint, its content is not what was written" in error


def test_weights_are_no_checkpoint(dmic_train, stopped, whole):
    folder, path = stopped
    shutil.copy(whole / "weights.safetensors", path)
    code, error = dmic_train(folder, LANDSAT, "--resume")
    assert (code, f"{path}: not a checkpoint, it has weights but no state" in error) == (2, True)
    save_file({"x": torch.zeros(2)}, path)
    assert "it has weights but no state" in dmic_train(folder, LANDSAT, "--resume")[1]


def test_the_checkpoint_of_another_network_is_an_error(dmic_train, stopped):
    folder, path = stopped
    tensors, state = load_checkpoint(path)
    save_checkpoint(path, tensors | {"network.neck.weight": torch.ones(17)}, state)
    code, error = dmic_train(folder, LANDSAT, "--resume")
    assert (code, f"{path}: does not hold the state of this network (" in error) == (2, True)
    save_checkpoint(path, {name: tensor for name, tensor in tensors.items() if name != "network.neck.weight"}, state)
    assert "does not hold the state of this network (" in dmic_train(folder, LANDSAT, "--resume")[1]


def test_the_checkpoint_of_other_images_is_an_error_and_without_it_the_run_starts_again(dmic_train, stopped, whole):
    folder, path = stopped
    tensors, state = load_checkpoint(path)
    save_checkpoint(path, tensors, state | {"gallery": "another"})
    code, error = dmic_train(folder, LANDSAT, "--resume")
    assert (code, f"{path}: was trained on other images than these (" in error) == (2, True)
    path.unlink()
    assert dmic_train(folder, LANDSAT, "--resume")[0] == 0
    assert_same_run(folder, whole)


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    labels = torch.arange(6)
    save_checkpoint(tmp_path / "file", {"a": labels, "b": labels, "c": labels[2:], "none": labels[:0]}, {"x": 0.1})
    tensors, state = load_checkpoint(tmp_path / "file")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 3, 4, 5], "c": [2, 3, 4, 5], "none": []
    }  # fmt: skip
    assert state == {"x": 0.1}


# ------------------------------------------------------------------------------------------------------ images, weights


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("sysu") / "tree"
    return trees.sysu_mm01(root, train=(3, 11, 12, 15, 20), val=(7, 8), test=(2, 30), count=lambda p, c: 2)


@pytest.fixture(scope="module")
def trained_on_tree(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(train_command(folder, PEDESTRIANS, "--data", str(tree), recipe="pedestrians")) == 0
    return folder


def test_an_image_that_cannot_be_read_any_more_is_named_and_the_run_goes_on_when_it_can(
    dmic_train, monkeypatch, tree, trained_on_tree, tmp_path
):
    folder = tmp_path / "run"
    broken = tree / "cam1" / "0011" / "0002.jpg"
    pixels = broken.read_bytes()

    def log(self, record, whole=RunFolder.log):
        whole(self, record)
        if record["epoch"] == 1:
            trees.truncate(broken)

    command = (folder, PEDESTRIANS, "--data", str(tree))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log)
        code, error = dmic_train(*command, recipe="pedestrians")
    assert code == 2
    assert f"{broken}: is not a readable image (" in error
    assert "`dmic data check DIR` lists all such images" in error
    assert saved_moment(folder) == (0, 1, 0)
    broken.write_bytes(pixels)
    assert dmic_train(*command, "--resume", recipe="pedestrians")[0] == 0
    assert_same_run(folder, trained_on_tree)


def test_images_may_move_between_two_starts(dmic_train, watch, tree, trained_on_tree, tmp_path):
    folder = tmp_path / "run"
    watch(send(signal.SIGINT, phase="train"))
    assert dmic_train(folder, PEDESTRIANS, "--data", str(tree), recipe="pedestrians")[0] == 130
    watch(None)
    moved = shutil.copytree(tree, tmp_path / "moved")
    assert dmic_train(folder, PEDESTRIANS, "--data", str(moved), "--resume", recipe="pedestrians")[0] == 0
    assert_same_run(folder, trained_on_tree)


def test_other_images_are_refused(dmic_train, watch, tree, tmp_path):
    folder = tmp_path / "run"
    watch(send(signal.SIGINT, phase="train"))
    assert dmic_train(folder, PEDESTRIANS, "--data", str(tree), recipe="pedestrians")[0] == 130
    watch(None)
    other = shutil.copytree(tree, tmp_path / "other")
    (other / "cam1" / "0011" / "0002.jpg").unlink()
    code, error = dmic_train(folder, PEDESTRIANS, "--data", str(other), "--resume", recipe="pedestrians")
    assert (code, "was trained on other images than these (83), see data.root" in error) == (2, True)


def test_weights_that_are_not_there_are_named_before_anything_is_written(dmic_train, tree, tmp_path):
    settings = (*PEDESTRIANS, "network.kind=resnet18", f"network.weights={tmp_path}/none.safetensors")
    code, error = dmic_train(tmp_path / "run", settings, "--data", str(tree), recipe="pedestrians")
    assert code == 2
    assert f"{tmp_path}/none.safetensors" in error
    assert not (tmp_path / "run").exists()


def test_resuming_does_not_need_the_weights_that_training_began_with(dmic_train, watch, monkeypatch, stopped, whole):
    folder, _ = stopped
    started = []

    def build(config, num_channels, build=run_module.build_network):
        started.append(config.network.weights)
        return build(config, num_channels)

    monkeypatch.setattr(run_module, "build_network", build)
    assert dmic_train(folder, LANDSAT, "--resume")[0] == 0
    assert started == ["random"]
    assert_same_run(folder, whole)


# --------------------------------------------------------------------------------------------------- numbers and memory


def test_memory_that_runs_out_in_clustering_is_one_line_and_the_run_goes_on(dmic_train, monkeypatch, whole, tmp_path):
    folder = tmp_path / "run"

    def fail(*_, **__):
        if not (folder / "checkpoint.safetensors").exists():
            return expand(*_, **__)
        raise MemoryError("std::bad_alloc")

    expand = dmic.ops.invariant_expansion
    with monkeypatch.context() as patch:
        patch.setattr(dmic.ops, "invariant_expansion", fail)
        code, error = dmic_train(folder, LANDSAT)
    assert code == 2
    assert "out of memory; about " in error
    assert f"lower k1=6, k2=3 or eps=0.7; with more memory, continue with: dmic train --resume --out {folder}" in error
    assert saved_moment(folder) == (0, 1, 0)
    assert dmic_train(folder, LANDSAT, "--resume")[0] == 0
    assert_same_run(folder, whole)


def test_memory_of_a_gpu_that_runs_out_is_one_line_too(dmic_train, watch, tmp_path):
    def fail(phase, done, total):
        if phase == "train":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB")

    watch(fail)
    code, error = dmic_train(tmp_path / "run", LANDSAT)
    assert (code, "CUDA out of memory. Tried to allocate 9 GB; with more memory, continue with: " in error) == (2, True)


def test_a_mistake_of_ours_is_not_dressed_up(watch, tmp_path):
    def fail(phase, done, total):
        raise RuntimeError("a lost candidate")

    watch(fail)
    with pytest.raises(RuntimeError, match=r"^a lost candidate$"):
        cli.main(train_command(tmp_path / "run", LANDSAT))


def test_a_learning_rate_that_blows_the_network_up_leaves_no_poisoned_checkpoint(dmic_train, tmp_path):
    folder = tmp_path / "run"
    settings = (*LANDSAT, "stage2.learning_rate=1e30", "train.checkpoint_seconds=0")
    code, error = dmic_train(folder, settings)
    assert code == 2
    assert " in epoch 2" in error
    assert "lower the learning rate or lengthen the warm-up, and start again" in error
    tensors, _ = load_checkpoint(folder / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert [record["epoch"] for record in records_of(folder)] == [0, 1]


def test_weights_that_are_not_finite_are_not_saved(stopped):
    folder, path = stopped
    before = path.read_bytes()
    config = load_config(str(folder / "config.toml"))
    gallery = run_module.build_dataset(config).train
    state = RunFolder(folder).restore(run_module.build_network(config, 1), gallery)
    state.network.neck.running_var[3] = float("inf")
    with pytest.raises(ValueError, match=r"the weights are no longer finite in epoch 2; lower the learning rate or"):
        RunFolder(folder).save(state, gallery)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ("1e39", "learning_rate must be a finite number from 0, got 1e+39 in epoch 1"),
        ("-1.0", "learning_rate must be a finite number from 0, got -1.0 in epoch 1"),
        ("inf", "config: stage1.learning_rate: Schedule: start, middle and end must be finite, got inf"),
    ],
)
def test_a_learning_rate_that_is_no_rate_is_an_error(dmic_train, tmp_path, rate, message):
    code, error = dmic_train(tmp_path / "run", (*LANDSAT, f"stage1.learning_rate={rate}"))
    assert code == 2
    assert message in error


@pytest.mark.parametrize("settings", [("eps=0.0", "min_samples=50"), ("eps=1.0", "k1=400", "k2=1", "min_samples=1")])
def test_an_epoch_of_outliers_or_of_one_cluster_says_what_to_change(dmic_train, tmp_path, settings):
    changed = (f"stage2.{kind}.{value}" for kind in ("per_modality", "joint") for value in settings)
    code, error = dmic_train(tmp_path / "run", (*LANDSAT, *changed))
    assert code == 2
    assert "epoch 2 has nothing to train on: no clustering found two classes with {" in error
    assert error.endswith("; start again and raise eps or lower min_samples\n")
    assert saved_moment(tmp_path / "run") == (0, 1, 0), "the epoch before is safe"


def one_cluster_and_outliers(gallery, sample_idx):
    return torch.where(torch.arange(len(sample_idx)) < 20, 0, -1)


def a_cluster_for_every_camera(gallery, sample_idx):
    return gallery.camera_ids[sample_idx].unique(return_inverse=True)[1]


def two_clusters(gallery, sample_idx):
    return torch.arange(len(sample_idx)) % 2


ALONE = {"cluster_visible", "cluster_infrared", "instance_visible", "instance_infrared"}
JOINT = {"shared_visible", "shared_infrared", "instance_shared_visible", "instance_shared_infrared"}
INSTANCES = {name for name in ALONE | JOINT if name.startswith("instance")}


@pytest.mark.parametrize(
    ("cluster", "learned"),
    [
        (one_cluster_and_outliers, INSTANCES),
        (a_cluster_for_every_camera, ALONE | JOINT),
        (two_clusters, ALONE | JOINT),
    ],
)
def test_odd_clusterings_train_what_they_can(dmic_train, monkeypatch, tmp_path, cluster, learned):
    monkeypatch.setattr(
        "dmic.train.cluster", lambda features, gallery, sample_idx, ranks, **_: cluster(gallery, sample_idx)
    )
    assert dmic_train(tmp_path / "run", LANDSAT)[0] == 0
    first, second = records_of(tmp_path / "run")[1:]
    assert set(second["loss"]) == learned
    assert set(second["skipped"]) == (ALONE | JOINT) - learned
    assert all(0 < value < 100 for record in (first, second) for value in record["loss"].values())
    if cluster is a_cluster_for_every_camera:
        assert second["visible"]["cameras_per_cluster"] == 1
    if cluster is two_clusters:
        assert second["visible"]["clusters"] == 2 < load_config("landsat", LANDSAT).train.num_classes


# -------------------------------------------------------------------------------------------------------------- pickles


def test_nothing_unpickles():
    """Whoever can put a file on the disk must not be able to run code: no pickle, and torch.load of weights only."""
    package = Path(dmic.__file__).parent
    loads = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(package)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"dill", "joblib", "cloudpickle", "shelve", "marshal"}, where
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert given.get("allow_pickle", "False") == "False", where
            assert called not in ("torch.jit.load", "torch.hub.load", "eval", "exec", "pd.read_pickle"), where
            assert not called.startswith("pickle."), where
            if called == "torch.load":
                loads.append(where)
                assert given.get("weights_only") == "True", where
    assert loads, "what is looked for is found"
