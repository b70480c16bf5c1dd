"""Several ranks train, embed and score as one process does, continue each other's runs, and end together."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_ranks import ForkedRanks
from PIL import Image
from ranks import on_ranks
from safetensors.torch import load_file
from torch import nn

import dmic.train
from dmic import cli, process_group
from dmic.checkpoint import load_checkpoint
from dmic.config import load_config, to_toml
from dmic.constants import INFRARED, VISIBLE
from dmic.data import Gallery, landsat_galleries
from dmic.data.augment import bent_view, plain_view, toned_view
from dmic.data.augment_rgb import exchanged_view, infrared_view, visible_view
from dmic.data.cross_modality import cross_modality_protocols
from dmic.data.image_files import ImageFiles
from dmic.evaluate import evaluate_protocol
from dmic.models import embed, share_statistics, small_two_stream
from dmic.ranking import Rerank
from dmic.run import Interrupted, RunFolder, agree_on_images, build_network, pack_state, run_training, save_weights
from dmic.train import Batches, Hooks, Objective, Stage, TrainingState, train

# Sums over a batch are added up in another order: 2**-24 of their size each, a few hundred of them in a row.
TOLERANCE = 1e-4
CLUSTERING = {"k1": 6, "k2": 3, "eps": 0.7, "min_samples": 2, "expansion": "mie"}
VIEWS = {VISIBLE: (plain_view, toned_view), INFRARED: (plain_view,)}
SETTINGS = (
    "network.width=4", "network.embedding_dim=16", "data.num_crops=1", "data.train_share=0.3",
    "train.num_classes=3", "train.num_samples=3", "train.num_iterations=3", "train.warmup=2",
    "stage1.num_epochs=1", "stage2.num_epochs=2", "evaluate.every=1",
    "stage1.learning_rate=1e-4", "stage2.learning_rate=1e-4",
    *(f"stage{s}.{kind}.{name}={value}" for s in (1, 2) for kind in ("per_modality", "joint")
      for name, value in CLUSTERING.items()),
)  # fmt: skip
MEASURED = ("seconds", "peak_bytes")


def train_command(folder, *more):
    return ["train", "landsat", "--out", str(folder), "--device", "cpu", *more, *(f"--set={s}" for s in SETTINGS)]


def torchrun(size, *command):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dmic.__file__).parents[1])}
    return subprocess.run([*launch, *command], env=environment, capture_output=True, text=True, timeout=600)


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_curve(records, expected):
    """Equal epochs, clusters and skipped losses; losses within the tolerance."""
    assert [record["epoch"] for record in records] == [record["epoch"] for record in expected]
    for record, wanted in zip(records, expected, strict=True):
        assert record.get("loss", {}) == pytest.approx(wanted.get("loss", {}), rel=TOLERANCE)
        for name in record.keys() - {"loss", "retrieval", *MEASURED}:
            assert record[name] == wanted[name], name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert cli.main(train_command(folder)) == 0
    return folder


# ------------------------------------------------------------------------------------------------------- the command


def test_two_ranks_of_torchrun_train_as_one_process(alone, tmp_path):
    folder = tmp_path / "run"
    done = torchrun(2, "-m", "dmic", *train_command(folder))
    assert done.returncode == 0, done.stderr
    assert_same_curve(records_of(folder), records_of(alone))
    assert records_of(folder)[0] == records_of(alone)[0], "before training the scores are the same numbers"
    weights, expected = (load_file(f / "weights.safetensors") for f in (folder, alone))
    changes = torch.cat([(weights[name] - expected[name]).abs().flatten().double() for name in expected])
    assert (changes > TOLERANCE).double().mean() < 1e-3, "but for weights whose gradient is rounding: Adam scales it up"
    assert json.loads((folder / "build.json").read_text())["ranks"] == 2
    assert done.stdout.count("report.html") == 1, "rank 0 alone reports"
    assert (folder / "config.toml").read_text() == (alone / "config.toml").read_text()
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}


def test_two_ranks_of_torchrun_score_as_one_process(alone, tmp_path):
    command = ["evaluate", str(alone), "--device", "cpu", "-o"]
    done = torchrun(2, "-m", "dmic", *command, str(tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert cli.main([*command, str(tmp_path / "one.json")]) == 0
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()


def test_a_rank_that_fails_ends_all_and_one_process_continues_their_run(alone, tmp_path):
    folder = tmp_path / "run"
    done = torchrun(2, str(Path(__file__).with_name("failing_rank.py")), *train_command(folder))
    assert done.returncode != 0
    how = f"once that is mended, continue with: dmic train --resume --out {folder}\n"
    assert f"dmic train: error: rank 1: an image is gone; {how}" in done.stderr
    assert f"dmic train: error: rank 0: rank 1 failed in train: OSError: an image is gone; {how}" in done.stderr
    assert [record["epoch"] for record in records_of(folder)] == [0, 1]
    assert cli.main(train_command(folder, "--resume")) == 0
    assert_same_curve(records_of(folder), records_of(alone))


@pytest.fixture(scope="module")
def forked():
    ranks = ForkedRanks()
    yield ranks
    ranks.close()


@pytest.mark.parametrize(
    ("phase", "victim"), [("evaluate", 1), ("embed", 0), ("cluster", 1), ("dbscan", 0), ("train", 0), ("train", 1)]
)
def test_a_killed_rank_is_named_with_its_phase(forked, tmp_path, phase, victim):
    folder, survivor = tmp_path / "run", 1 - victim
    codes, texts = forked(tmp_path, 2, "dmic", *train_command(folder), fates={victim: ["killed", phase, 0]})
    assert (codes[victim], codes[survivor]) == (-signal.SIGKILL, 2), texts
    how = f"once that is mended, continue with: dmic train --resume --out {folder}\n"
    lost = f"rank {victim} in {phase}: killed, or no answer within the timeout; {how}"
    assert f"dmic train: error: rank {survivor}: {lost}" in texts[survivor]


def test_a_killed_rank_is_named_by_one_that_torchrun_stops_before_it_notices(forked, tmp_path):
    fates = {0: ["stopped", "embed", 0], 1: ["killed", "embed", 0]}
    codes, texts = forked(tmp_path, 2, "dmic", *train_command(tmp_path / "run"), fates=fates)
    assert codes == [2, -signal.SIGKILL], texts
    assert "rank 0: rank 1 in embed: killed, or no answer within the timeout; once that is mended" in texts[0]


def test_a_rank_that_is_stopped_while_it_embeds_is_named(forked, tmp_path):
    fates = {0: ["stopped", "embed", 0]}
    codes, texts = forked(tmp_path, 2, "dmic", *train_command(tmp_path / "run"), fates=fates)
    assert codes == [130, 2], texts
    assert f"dmic: rank 0: interrupted; continue with: dmic train --resume --out {tmp_path / 'run'}\n" in texts[0]
    assert "dmic train: error: rank 1: rank 0 was stopped in embed; once that is mended, continue with: " in texts[1]


def test_a_rank_that_hangs_ends_the_run_within_the_timeout(forked, tmp_path):
    command = train_command(tmp_path / "run", "--timeout", str(5 / 60))
    start = time.monotonic()
    codes, texts = forked(tmp_path, 2, "dmic", *command, fates={1: ["hangs", "train", 0]})
    assert time.monotonic() - start < 5 + 30
    assert codes[0] == 2, texts
    assert "rank 0: rank 1 in train: killed, or no answer within the timeout; once that is mended" in texts[0]


def test_a_killed_rank_is_named_by_one_that_scores(forked, alone, tmp_path):
    command = ["evaluate", alone, "--device", "cpu", "-o", tmp_path / "scores.json"]
    codes, texts = forked(tmp_path, 2, "dmic", *command, fates={1: ["killed", "evaluate", 0]})
    assert codes == [2, -signal.SIGKILL], texts
    assert "dmic evaluate: error: rank 0: rank 1 in evaluate: killed, or no answer within the timeout\n" in texts[0]
    assert not (tmp_path / "scores.json").exists()


def test_a_rank_without_the_recipe_is_named(forked, tmp_path):
    (tmp_path / "0.toml").write_bytes((Path(dmic.__file__).parent / "recipes" / "landsat.toml").read_bytes())
    command = ["train", tmp_path / "{rank}.toml", "--out", tmp_path / "run", "--device", "cpu"]
    codes, texts = forked(tmp_path, 2, "dmic_of_rank", *command)
    assert codes == [2, 2], texts
    assert texts[1].startswith("dmic train: error: rank 1: "), texts
    cause = texts[1].removeprefix("dmic train: error: rank 1: ")
    assert str(tmp_path / "1.toml") in cause
    assert texts[0] == f"dmic train: error: rank 0: rank 1 failed in the start: ValueError: {cause}"


@pytest.mark.parametrize("what", ["missing", "other"])
def test_ranks_that_score_have_the_same_network(forked, alone, tmp_path, what):
    for rank in range(2):
        shutil.copytree(alone, tmp_path / str(rank))
    path = tmp_path / "1" / "weights.safetensors"
    if what == "missing":
        path.unlink()
    else:
        weights = load_file(path)
        weights[min(weights)] += 1
        path.write_bytes(save_weights(weights))
    command = ["evaluate", tmp_path / "{rank}", "--device", "cpu", "-o", tmp_path / "scores.json"]
    codes, texts = forked(tmp_path, 2, "dmic_of_rank", *command)
    assert codes == [2, 2], texts
    cause = "network: rank 1 and rank 0 must have the same weights ("
    if what == "missing":
        cause = f"{tmp_path / '1'}: not a finished run, weights.safetensors is missing"
        assert f"dmic evaluate: error: rank 0: rank 1 failed in the start: ValueError: {cause}" in texts[0]
    assert all(cause in text and text.count("error:") == 1 for text in texts), texts
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("what", ["the same", "missing", "content", "killed"])
def test_ranks_that_embed_have_the_same_images(forked, tmp_path, what):
    config = load_config("pedestrians", ("network.kind=small", "network.weights=random", "network.width=4"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(to_toml(config))
    weights = {name: tensor.contiguous() for name, tensor in build_network(config, 3).state_dict().items()}
    (run / "weights.safetensors").write_bytes(save_weights(weights))
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        for number in range(3):
            Image.new("RGB", (5, 6), (number, 0, 0)).save(tmp_path / str(rank) / f"{number}.png")
    if what == "content":
        Image.new("RGB", (5, 6), (0, 0, 9)).save(tmp_path / "1" / "2.png")
    if what == "missing":
        shutil.rmtree(tmp_path / "1")
    command = ["embed", run, tmp_path / "{rank}", "-o", tmp_path / "out.npz", "--modality", "visible"]
    fates = {1: ["killed", "embed", 0]} if what == "killed" else None
    codes, texts = forked(tmp_path, 2, "dmic_of_rank", *command, "--device", "cpu", fates=fates)
    assert (tmp_path / "out.npz").exists() == (what == "the same"), texts
    assert codes == {"the same": [0, 0], "killed": [2, -signal.SIGKILL]}.get(what, [2, 2]), texts
    if what == "content":
        assert all("rank 1 and rank 0 must have the same content, by a few images (" in text for text in texts), texts
    if what == "missing":
        assert "dmic embed: error: rank 0: rank 1 failed in the start: ValueError: " in texts[0]
        assert str(tmp_path / "1") in texts[0]
    if what == "killed":
        assert "dmic embed: error: rank 0: rank 1 in embed: killed, or no answer within the timeout\n" in texts[0]


# ---------------------------------------------------------------------------------------------- runs of several ranks


def run_on_ranks(group, folder, resume, stop_at):
    """A run of which rank 1 alone is asked to stop after so many iterations; how it ended."""
    count = 0
    step = dmic.train._step

    def interrupted(*arguments):
        nonlocal count
        step(*arguments)
        count += 1
        if count == stop_at and process_group.rank(group) == 1:
            signal.raise_signal(signal.SIGTERM)

    dmic.train._step = interrupted
    try:
        run_training(load_config("landsat", SETTINGS), RunFolder(folder), resume=resume, group=group)
    except Interrupted as stop:
        return str(stop)
    return "done"


def test_a_stop_that_one_rank_is_asked_for_is_saved_and_another_number_of_ranks_continues(alone, tmp_path):
    folder = tmp_path / "run"
    stopped = on_ranks(2, run_on_ranks, folder, False, 3 + 2 * 2)
    assert stopped == [f"continue with: dmic train --resume --out {folder}"] * 2
    saved = load_checkpoint(folder / "checkpoint.safetensors")[1]
    assert (saved["stage"], saved["epoch"], saved["iteration"]) == (1, 0, 2)
    assert on_ranks(3, run_on_ranks, folder, True, 0) == ["done"] * 3
    assert_same_curve(records_of(folder), records_of(alone))


def resume_with_a_blank_of_its_own(group, folder):
    build = dmic.run.build_blank

    def changed(*arguments):
        network = build(*arguments)
        if process_group.rank(group) == 1:
            next(network.parameters()).data += 1
        return network

    dmic.run.build_blank = changed
    network, _ = run_training(load_config("landsat", SETTINGS), RunFolder(folder), resume=True, group=group)
    return digest_of(TrainingState(network))


def test_weights_that_a_checkpoint_replaces_are_not_compared(alone, tmp_path):
    folder = shutil.copytree(alone, tmp_path / "run")
    said = on_ranks(2, resume_with_a_blank_of_its_own, folder)
    assert said[0] == said[1]
    expected, found = (load_file(f / "weights.safetensors") for f in (alone, folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def run_with_a_seed_of_its_own(group, folder):
    config = load_config("landsat", (*SETTINGS, f"train.seed={process_group.rank(group)}"))
    with pytest.raises(ValueError) as error:
        run_training(config, RunFolder(folder), group=group)
    return str(error.value)


def test_ranks_of_different_settings_do_not_start(tmp_path):
    message = "settings: rank 1 and rank 0 must have the same train.seed (1, not 0)"
    assert on_ranks(2, run_with_a_seed_of_its_own, tmp_path / "run") == [message] * 2
    assert not (tmp_path / "run").exists()


def run_of_another_version(group, folder):
    if process_group.rank(group) == 1:
        dmic.run.__version__ = "0.0.0"
    with pytest.raises(ValueError) as error:
        run_training(load_config("landsat", SETTINGS), RunFolder(folder), group=group)
    return str(error.value)


def test_ranks_of_different_versions_do_not_start(tmp_path):
    version = f"version of dmic ('0.0.0', not {dmic.__version__!r})"
    message = f"settings: rank 1 and rank 0 must have the same {version}"
    assert on_ranks(2, run_of_another_version, tmp_path / "run") == [message] * 2
    assert not (tmp_path / "run").exists()


def run_with_images_of_its_own(group, folder, what):
    build = dmic.run.build_dataset

    def changed(config):
        dataset = build(config)
        if process_group.rank(group) == 0:
            return dataset
        train, test = dataset.train, dataset.test
        images, camera_ids, modality_ids = train.images.clone(), train.camera_ids.clone(), train.modality_ids
        if what == "number":
            images, camera_ids, modality_ids = images[:-1], camera_ids[:-1], modality_ids[:-1]
        if what == "camera":
            camera_ids[-1] = (camera_ids[-1] + 1) % 6
        if what == "pixel":
            images[0, 0, 0, 0] ^= 1
        if what == "test":
            test = None
        return replace(dataset, train=Gallery(images, camera_ids, modality_ids), test=test)

    dmic.run.build_dataset = changed
    with pytest.raises(ValueError) as error:
        run_training(load_config("landsat", SETTINGS), RunFolder(folder), group=group)
    return str(error.value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("number", "training images: rank 1 and rank 0 must have the same number of images ("),
        ("camera", "training images: rank 1 and rank 0 must have the same camera_ids ('"),
        ("pixel", "training images: rank 1 and rank 0 must have the same content, by a few images ('"),
        ("test", "test images: rank 1 and rank 0 must have the same number of images (None, not "),
    ],
)
def test_ranks_of_different_images_do_not_start(tmp_path, what, message):
    said, other = on_ranks(2, run_with_images_of_its_own, tmp_path / "run", what)
    assert said == other
    assert said.startswith(message)
    assert not (tmp_path / "run").exists()


def compare_files(group, folder):
    paths = sorted((folder / str(process_group.rank(group))).glob("*/*.png"))
    ids = torch.zeros(2, len(paths), dtype=torch.int64)
    try:
        agree_on_images("images", Gallery(ImageFiles(paths, height=4, width=4), *ids), group)
    except ValueError as error:
        return str(error)
    return "the same"


@pytest.mark.parametrize("what", ["the same", "names", "content, by a few images"])
def test_image_files_are_compared_by_name_and_content_wherever_they_lie(tmp_path, what):
    for rank in range(2):
        for number in range(3):
            path = tmp_path / str(rank) / f"cam{number}" / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (5, 6), (number, 0, 0)).save(path)
    last = tmp_path / "1" / "cam2" / "1.png"
    if what == "names":
        last.rename(last.with_name("2.png"))
    if what == "content, by a few images":
        Image.new("RGB", (5, 6), (2, 0, 1)).save(last)
    said, other = on_ranks(2, compare_files, tmp_path)
    assert said == other
    assert said.startswith("the same" if what == "the same" else f"images: rank 1 and rank 0 must have the same {what}")


def digest_of(state):
    tensors, packed = pack_state(state)
    packed["record"] = {name: value for name, value in packed["record"].items() if name not in MEASURED}
    digest = hashlib.sha256(json.dumps(packed, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def short_training(group, case):
    """The losses of every epoch, and a digest of all that changes after every iteration."""
    gallery = landsat_galleries(num_crops=1)[0].unlabeled
    joint, num_classes, num_samples, accumulate = "separate", 4, 2, 1
    if case == "combined and accumulated":
        joint, accumulate = "combined", 2
    if case == "fewer samples than ranks":
        num_classes, num_samples = 2, 1
    if case == "one modality":
        own = gallery.modality_ids == VISIBLE
        gallery = Gallery(gallery.images[own], gallery.camera_ids[own], gallery.modality_ids[own])
    if case == "own statistics":
        dmic.train.share_statistics = lambda network, group: None
    if case == "joint batches of one modality":
        joint, accumulate = "combined", 2
        plan = dmic.train._plan_steps

        def one_stem(*arguments):
            steps, skipped = plan(*arguments)
            for step in steps:
                for unit in step[1:]:
                    del unit.samplers[INFRARED]
                    unit.terms[:] = [term for term in unit.terms if term.modality == VISIBLE]
            return steps, skipped

        dmic.train._plan_steps = one_stem
    objectives = Objective(), Objective(joint=joint)
    stages = [Stage(1, lambda _: CLUSTERING, lambda _: CLUSTERING, lambda _: 1e-4, o) for o in objectives]
    records, digests = [], []
    hooks = Hooks(
        log=lambda record: records.append({k: v for k, v in record.items() if k not in MEASURED}),
        after_iteration=lambda state: digests.append(digest_of(state)),
    )
    network = small_two_stream(width=4, embedding_dim=16)
    batches = Batches(2, num_classes, num_samples, VIEWS, accumulate)
    # Adam does not feel the scale of gradients, but for a large weight decay
    train(TrainingState(network), gallery, stages, batches, weight_decay=1.0, warmup=2, hooks=hooks, ranks=group)
    return records, digests


@pytest.mark.parametrize(
    "case",
    ["", "combined and accumulated", "fewer samples than ranks", "one modality", "joint batches of one modality"],
)
def test_ranks_hold_the_same_bits_after_every_iteration_and_lose_as_one_process(case, monkeypatch):
    for name in ("_plan_steps", "share_statistics"):
        monkeypatch.setattr(dmic.train, name, getattr(dmic.train, name))
    records, _ = short_training(None, case)
    shared = on_ranks(3, short_training, case)
    assert len(shared[0][1]) == 4
    assert all(digests == shared[0][1] for _, digests in shared)
    assert all(found == shared[0][0] for found, _ in shared)
    assert_same_curve(shared[0][0], records)


def test_statistics_of_each_rank_alone_would_be_noticed():
    (records, _), _ = on_ranks(2, short_training, "own statistics")
    with pytest.raises(AssertionError):
        assert_same_curve(records, short_training(None, "")[0])


# ------------------------------------------------------------------------------------------------------------- pieces


def embed_and_score(group):
    _, labeled = landsat_galleries(num_crops=1)
    network = small_two_stream(width=4, embedding_dim=16)
    features = embed(network, labeled.unlabeled, batch_size=100, group=group)
    results = [
        evaluate_protocol(features, labeled, protocol, rerank=rerank, group=group).as_record()
        for protocol in cross_modality_protocols(labeled)
        for rerank in (None, Rerank())
    ]
    return hashlib.sha256(features.numpy().tobytes()).hexdigest(), results


def test_features_and_scores_are_those_of_one_process():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = embed_and_score(None)
    torch.set_num_threads(threads)
    assert on_ranks(3, embed_and_score) == [expected] * 3


def piece_of_its_own(group, what):
    """`embed`, then `evaluate_protocol`, of which rank 1 is given something else."""
    odd = process_group.rank(group) == 1
    _, labeled = landsat_galleries(num_crops=1)
    gallery, network = labeled.unlabeled, small_two_stream(width=4, embedding_dim=16)
    protocol = cross_modality_protocols(labeled)[odd and what == "protocol"]
    batch_size, sample_idx = 0 if odd and what == "batch_size" else 100, torch.arange(len(gallery))
    if odd and what == "samples":
        sample_idx = sample_idx.flip(0)
    if odd and what == "modalities":
        gallery = replace(gallery, modality_ids=gallery.modality_ids.flip(0))
    if odd and what == "identities":
        labeled = replace(labeled, person_ids=labeled.person_ids.flip(0))
    if odd and what == "lost":
        network.stems = None
    try:
        features = embed(network, gallery, sample_idx=sample_idx, batch_size=batch_size, group=group)
        evaluate_protocol(features[:-1] if odd and what == "features" else features, labeled, protocol, group=group)
    except (ValueError, TypeError, ConnectionError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("batch_size", "embed: rank 1: batch_size must be at least 1, got 0"),
        ("samples", "embed: rank 1 and rank 0 must have the same sample_idx ("),
        ("modalities", "embed: rank 1 and rank 0 must have the same modality_ids ("),
        ("features", "evaluate_protocol: rank 1: features must be [N, d], got ("),
        ("protocol", "evaluate_protocol: rank 1 and rank 0 must have the same protocol ('"),
        ("identities", "evaluate_protocol: rank 1 and rank 0 must have the same person_ids ("),
    ],
)
def test_ranks_that_embed_or_score_different_things_refuse_to_start(what, said):
    first, other = on_ranks(2, piece_of_its_own, what)
    assert first.startswith(f"ValueError: {said}")
    assert other == first.replace("rank 1: ", "")


def score_different_things(group):
    """What every rank is told where rank 1 scores something else, one thing after the other."""
    odd, (_, labeled), said = process_group.rank(group) == 1, landsat_galleries(num_crops=1), []
    gallery, protocol = labeled.unlabeled, cross_modality_protocols(labeled)[0]
    given = {"features": torch.ones(len(gallery), 4), "labeled": labeled, "protocol": protocol, "rerank": None}
    cameras = replace(labeled, unlabeled=replace(gallery, camera_ids=gallery.camera_ids.flip(0)))
    trial = replace(protocol.trials[0], gallery_idx=protocol.trials[0].gallery_idx.flip(0))
    for other in (
        {"features": torch.ones(len(gallery), 3)},
        {"labeled": cameras},
        {"protocol": replace(protocol, trials=(trial,))},
        {"rerank": Rerank()},
    ):
        try:
            evaluate_protocol(**given | (other if odd else {}), group=group)
        except ValueError as error:
            said.append(str(error).removeprefix("evaluate_protocol: rank 1 and rank 0 must have the same "))
    return said


def test_ranks_that_score_different_things_are_told_which():
    first, other = on_ranks(2, score_different_things)
    assert first == other
    names = ("shape of features ([", "camera_ids ('", "trials ('", "rerank ('re-ranked, k1=20, k2=6, lambda=0.3', not ")
    assert [said.startswith(name) for said, name in zip(first, names, strict=True)] == [True] * 4, first


def test_a_rank_that_fails_while_it_embeds_is_named():
    first, other = on_ranks(2, piece_of_its_own, "lost")
    assert other == "TypeError: 'NoneType' object is not subscriptable"
    assert first == f"ConnectionError: rank 1 failed in embed: {other}"


def batch_norm_errors(group):
    """The largest differences from a batch norm that sees all 7 samples; ranks have 0, 3 and 4 of them."""
    begin, end = [(0, 0), (0, 3), (3, 7)][process_group.rank(group)]
    worst = 0.0
    for kind, shape in ((nn.BatchNorm2d, (7, 5, 4, 3)), (nn.BatchNorm1d, (7, 5))):
        draws = torch.Generator().manual_seed(0)
        values, gradient = (torch.randn(shape, generator=draws, dtype=torch.float64) + 3 for _ in range(2))
        whole, network = kind(5).double(), nn.Sequential(kind(5).double())
        for norm in (whole, network[0]):
            norm.weight.data.copy_(torch.arange(1, 6))
            norm.bias.data.copy_(torch.arange(5))
        share_statistics(network, group)
        own, every = values[begin:end].clone().requires_grad_(), values.clone().requires_grad_()
        found, expected = network(own), whole(every)
        found.backward(gradient[begin:end])
        expected.backward(gradient)
        pairs = [(found, expected[begin:end]), (own.grad, every.grad[begin:end])]
        for name in ("weight", "bias"):
            mine = getattr(network[0], name).grad
            process_group.all_reduce(mine, group)
            pairs.append((mine, getattr(whole, name).grad))
        pairs += [(getattr(network[0], name), getattr(whole, name)) for name in ("running_mean", "running_var")]
        worst = max([worst, *(float((a - b).abs().max()) for a, b in pairs if a.numel())])
        assert network[0].num_batches_tracked == 1
        assert torch.equal(network.eval()(values), nn.functional.batch_norm(
            values, network[0].running_mean, network[0].running_var, network[0].weight, network[0].bias))  # fmt: skip
    return worst


def test_a_shared_batch_norm_is_that_of_the_whole_batch():
    assert max(on_ranks(3, batch_norm_errors)) < 1e-12


@pytest.mark.parametrize("view", [plain_view, toned_view, bent_view, visible_view, exchanged_view, infrared_view])
@pytest.mark.parametrize(("begin", "end"), [(0, 3), (3, 7), (7, 7)])
def test_a_share_of_a_batch_has_the_views_that_it_has_in_the_whole(view, begin, end):
    channels = 1 if view in (plain_view, toned_view, bent_view) else 3
    images = torch.randint(256, (7, channels, 24, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = view(images, torch.Generator().manual_seed(1))
    own = view(images[begin:end], torch.Generator().manual_seed(1), begin, 7)
    assert torch.allclose(own, whole[begin:end], rtol=1e-5, atol=1e-3)


def talk(group):
    own = process_group.rank(group)
    rows = torch.full((2 * own, 3), own, dtype=torch.int32)
    state = ({"a": torch.arange(3), "none": torch.zeros(0, 2, dtype=torch.bfloat16)}, {"x": [0.1, None]})
    tensors, packed = process_group.broadcast_state(state if own == 0 else None, group)
    return (
        process_group.all_gather_rows(rows, group).tolist(),
        {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in tensors.items()},
        packed,
        process_group.broadcast_state(None, group),
        process_group.any_rank(own == 1, group),
        process_group.any_rank(False, group),
        process_group.share(10, group),
    )


def gather_in_pieces(group):
    """Rows that do not lie side by side and belong to a graph, of 12 bytes, two of every rank at a time."""
    own, process_group.GATHERED_BYTES = process_group.rank(group), 72
    part = (torch.arange(15.0).view(3, 5) + 100 * own).requires_grad_().T
    gathered = [
        process_group.all_gather_rows(rows, group)
        for rows in (part, part[: 5 - own], part[:, :0], part[:0], part.repeat(1, 9))
    ]
    gathered.append(process_group.all_gather(part, group))
    try:
        process_group.agree("talk", [{"a": 1, "c": 3}, {"b": 2, "c": 3}, {"a": 1, "c": 3}][own], group)
    except ValueError as error:
        return [(rows.shape, rows.requires_grad, rows.tolist()) for rows in gathered], str(error)


def test_rows_are_gathered_a_few_at_a_time():
    parts = [torch.arange(15.0).view(3, 5).T + 100 * own for own in range(3)]
    uneven = torch.cat([part[: 5 - own] for own, part in enumerate(parts)])
    whole = torch.cat(parts)
    expected = [whole, uneven, whole[:, :0], whole[:0], whole.repeat(1, 9), torch.stack(parts)]
    expected = [(rows.shape, False, rows.tolist()) for rows in expected]
    said = "talk: rank 1 and rank 0 must have the same a (None, not 1), b (2, not None)"
    assert on_ranks(3, gather_in_pieces) == [(expected, said)] * 3


def test_ranks_tell_each_other_what_they_hold():
    answers = on_ranks(3, talk)
    tensors = {"a": ("torch.int64", [0, 1, 2]), "none": ("torch.bfloat16", [])}
    same = ([[1] * 3] * 2 + [[2] * 3] * 4, tensors, {"x": [0.1, None]}, None, True, False)
    assert [answer[:-1] for answer in answers] == [same] * 3
    assert [answer[-1] for answer in answers] == [(0, 3), (3, 6), (6, 10)]


def test_a_process_that_is_alone_asks_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group.started("cpu") as group:
        assert group is None
    rows = torch.ones(2, 3)
    assert process_group.all_gather_rows(rows, None) is rows
    assert (process_group.rank(None), process_group.size(None), process_group.share(5, None)) == (0, 1, (0, 5))
