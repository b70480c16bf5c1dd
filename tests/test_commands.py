"""`dmic train`, `evaluate`, `embed`, `data` and `demo` as a user calls them: what they print and leave behind."""

import csv
import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
import trees
from forked_ranks import ForkedRanks
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dmic import cli
from dmic.commands import common
from dmic.config import read_toml
from dmic.data import samples_in_folder
from dmic.data.pedestrians import DEFAULT, Difficulty, write_pedestrians
from dmic.landsat_picture import retrieval_picture
from dmic.models import embed
from dmic.run import build_dataset, build_network, load_run

TINY = (
    "data.height=32",
    "data.width=16",
    "network.width=4",
    "network.embedding_dim=16",
    "network.grid_height=2",
    "stage1.num_epochs=1",
    "stage2.num_epochs=1",
    "train.num_iterations=2",
    "train.num_classes=4",
    *(f"stage{stage}.{kind}.{name}" for stage in (1, 2) for kind in ("per_modality", "joint") for name in (
        "k1=6", "k2=3", "eps=0.5", "min_samples=2")),
)  # fmt: skip


def settings(*values):
    return [part for value in values for part in ("--set", value)]


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("pedestrians") / "tree"
    write_pedestrians(root, num_identities=12, images_per_camera=2, num_test_identities=4, height=32, width=16)
    return root


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "pedestrians"
    arguments = ["train", "pedestrians", "--data", str(tree), "--out", str(folder), "--device", "cpu", *settings(*TINY)]
    assert cli.main(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert cli.main(["demo", "--quick", "--out", str(folder)]) == 0
    return folder


class TestTrain:
    def test_it_leaves_configuration_build_metrics_checkpoint_and_weights(self, trained, tree):
        names = {path.name for path in trained.iterdir() if path.is_file()}
        assert names >= {"config.toml", "build.json", "metrics.jsonl", "checkpoint.safetensors", "weights.safetensors"}
        records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in records] == [0, 1, 2]
        assert read_toml(trained / "config.toml").data.root == str(tree)
        assert json.loads((trained / "build.json").read_text())["torch"] == torch.__version__

    def test_every_score_carries_the_name_of_its_protocol(self, trained):
        record = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
        names = [result["protocol"] for result in record["retrieval"]]
        assert len(names) == 4
        assert all(name.startswith("SYSU-MM01, ") for name in names)
        assert all(
            0 <= result["cmc"]["1"]["mean"] <= result["cmc"]["20"]["mean"] <= 1 for result in record["retrieval"]
        )

    def test_an_epoch_says_what_the_clusters_are_worth_where_identities_are_known(self, trained):
        record = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
        assert set(record["known"]["shared"]) == {"purity", "splits"}
        assert record["peak_bytes"] > 10**7
        assert set(record["seconds"]) == {"embed", "cluster", "load", "train", "evaluate"}

    def test_a_folder_that_holds_a_run_is_not_overwritten(self, trained, tree, run):
        before = (trained / "weights.safetensors").read_bytes()
        code, _, err = run("train", "pedestrians", "--data", tree, "--out", trained, *settings(*TINY))
        assert code == 2
        assert "holds a run already; continue it with --resume, or choose another --out" in err
        assert (trained / "weights.safetensors").read_bytes() == before

    def test_a_run_with_other_settings_is_refused_with_the_difference(self, trained, tree, run):
        arguments = ("train", "pedestrians", "--data", tree, "--out", trained, "--resume")
        code, _, err = run(*arguments, *settings(*TINY, "train.seed=5"))
        assert code == 2
        assert "holds a run with other settings (train.seed: 0 and 5)" in err
        code, _, err = run("train", "--out", trained, "--resume", *settings("train.warmup=5"))
        assert (code, "holds a run with other settings (train.warmup: 60 and 5)" in err) == (2, True)

    def test_a_finished_run_that_is_resumed_stays_as_it_is(self, trained, run):
        before = (trained / "metrics.jsonl").read_text(), load_file(trained / "weights.safetensors")
        assert run("train", "--out", trained, "--resume", "--device", "cpu")[0] == 0
        assert (trained / "metrics.jsonl").read_text() == before[0]
        after = load_file(trained / "weights.safetensors")
        assert all(torch.equal(before[1][name], after[name]) for name in after)

    def test_a_resumed_recipe_knows_where_the_data_were_and_prints_the_first_and_the_last_scores(self, trained, run):
        code, printed, err = run(
            "train", "pedestrians", "--out", trained, "--resume", "--device", "cpu", *settings(*TINY)
        )
        assert (code, err) == (0, "")
        records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
        moments = {"before": records[0], "after": records[-1]}
        precision = {name: record["retrieval"][0]["mean_average_precision"]["mean"] for name, record in moments.items()}
        assert precision["before"] != precision["after"]
        for name, value in precision.items():
            row = next(line for line in printed.splitlines() if line.startswith(name))
            assert f" {100 * value:.1f} +-" in row
        assert "The images are synthetic and show no person" in printed

    def test_a_data_set_that_is_not_there_is_named_before_anything_is_written(self, run, tmp_path):
        code, _, err = run("train", "sysu_mm01", "--data", tmp_path / "none", "--out", tmp_path / "run")
        assert code == 2
        assert err == f"dmic train: error: {tmp_path / 'none'} does not exist\n"
        assert not (tmp_path / "run").exists()
        code, _, err = run("train", "sysu_mm01", "--out", tmp_path / "run")
        assert "data.root must say where sysu_mm01 is; on the command line: --data PATH" in err

    def test_a_folder_for_the_recipe_that_brings_its_images_is_an_error(self, run, tmp_path):
        code, _, err = run("train", "landsat", "--data", tmp_path, "--out", tmp_path / "run")
        problem = f"--data {tmp_path}: the images of landsat are part of dmic, leave it out"
        assert (code, err) == (2, f"dmic train: error: {problem}\n")
        assert not (tmp_path / "run").exists()

    def test_a_missing_recipe_or_device_is_named(self, run, tmp_path):
        assert "name a RECIPE" in run("train")[2]
        code, _, err = run("train", "landsat", "--device", "tpu9", "--out", tmp_path / "run")
        assert (code, "--device must be cpu, cuda or cuda:NUMBER, got 'tpu9'" in err) == (2, True)


RECIPES = {  # a tree in the official layout, and what its scores are called
    "sysu_mm01": (
        lambda root: trees.sysu_mm01(root, train=tuple(range(11, 19)), val=(19, 20)),
        "SYSU-MM01, all search",
    ),
    "regdb": (lambda root: trees.regdb(root, persons=20, images=3), "RegDB, trial 1, "),
    "llcm": (lambda root: trees.llcm(root, train=tuple(range(10, 22))), "LLCM, "),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_from_the_original_tree_to_a_report(name, run, threads, tmp_path):
    threads(1)  # the same weights and clusters in every run
    make, protocol = RECIPES[name]
    small = [setting for setting in TINY if not setting.startswith(("network", "data"))]
    small += ["network.kind=resnet18", "network.weights=random", "data.height=32", "data.width=16"]
    arguments = ("train", name, "--data", make(tmp_path / "tree"), "--out", tmp_path / "run", "--device", "cpu")
    code, printed, err = run(*arguments, *settings(*small))
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"cluster_visible", "cluster_infrared", "instance_visible", "instance_infrared"} <= set(record["loss"])
    assert any(result["protocol"].startswith(protocol) for result in record["retrieval"])
    assert protocol in printed
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


class TestEvaluate:
    def test_it_repeats_the_scores_of_the_last_epoch(self, trained, run, tmp_path):
        out = tmp_path / "evaluation.json"
        code, printed, _ = run("evaluate", trained, "--device", "cpu", "-o", out)
        assert code == 0
        record = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
        assert json.loads(out.read_text()) == record["retrieval"]
        assert "SYSU-MM01" in printed

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            ("none/scores.json", "none/scores.json: there is no folder none"),
            ("scores.txt", "scores.txt: the extension of the output must be .json, got .txt"),
            ("folder.json", "folder.json: is a folder"),
        ],
    )
    def test_a_bad_output_is_found_before_any_image_is_read(self, trained, run, tmp_path, monkeypatch, out, message):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("dmic.commands.evaluate.open_test", lambda *_: pytest.fail("too late"))
        (tmp_path / "folder.json").mkdir()
        assert run("evaluate", trained, "--device", "cpu", "-o", out) == (2, "", f"dmic evaluate: error: {message}\n")

    def test_re_ranking_is_reported_beside_the_plain_ranking(self, trained, run, tmp_path):
        out = tmp_path / "evaluation.json"
        assert run("evaluate", trained, "--rerank", "--device", "cpu", "-o", out)[0] == 0
        names = [result["protocol"] for result in json.loads(out.read_text())]
        assert len(names) == 8
        assert sum("re-ranked, k1=20, k2=6, lambda=0.3" in name for name in names) == 4

    def test_the_trials_of_several_runs_are_scored_together(self, trained, run, tmp_path):
        tree, out, folders = trees.regdb(tmp_path / "tree", persons=12, images=3), tmp_path / "out.json", []
        for trial in (2, 7):
            folders.append(tmp_path / f"run_{trial}")
            given = settings(*TINY, "network.kind=small", f"data.trial={trial}")
            assert run("train", "regdb", "--data", tree, "--out", folders[-1], "--device", "cpu", *given)[0] == 0
        assert "the scores of several runs need a file of their own: -o OUT.json" in run("evaluate", *folders)[2]
        code, printed, _ = run("evaluate", *folders, "--device", "cpu", "-o", out)
        assert code == 0
        alone = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1])["retrieval"] for f in folders]
        for position, name in enumerate(("visible to infrared", "infrared to visible")):
            found, parts = json.loads(out.read_text())[position], [results[position] for results in alone]
            assert found["protocol"] == f"RegDB, {name}, trials 2, 7"
            assert found["protocol"] in printed
            assert found["trials"] == [trial for part in parts for trial in part["trials"]]
        assert run("evaluate", trained, trained, "--device", "cpu", "-o", out)[0] == 0
        assert json.loads(out.read_text())[0]["protocol"] == "SYSU-MM01, all search, single shot, 2 runs"
        code, _, err = run("evaluate", trained, folders[0], "--device", "cpu", "-o", out)
        assert (code, "pooled: runs must have the same protocols, got ['SYSU-MM01, all" in err) == (2, True)

    def test_a_folder_without_a_finished_run_is_named(self, run, tmp_path):
        code, _, err = run("evaluate", tmp_path)
        assert (code, "not a finished run, config.toml is missing" in err) == (2, True)


class TestEmbed:
    def test_ranks_embed_what_one_process_does_in_a_file_that_ranks_read(self, trained, tree, run, tmp_path):
        call = ("embed", trained, tree / "cam1", "--modality", "visible", "--device", "cpu", "-o")
        search = ("--k1", 4, "--k2", 2, "--device", "cpu", "-o")
        one, two = tmp_path / "one.npz", tmp_path / "two.safetensors"
        assert run(*call, one)[0] == 0
        with closing(ForkedRanks()) as ranks:
            codes, texts = ranks(tmp_path, 2, "dmic", *call, two, fates={1: ["killed", "embed", 0]})
            assert (codes, two.exists()) == ([2, -9], False), texts
            assert "rank 0: rank 1 in embed: killed, or no answer within the timeout\n" in texts[0]
            codes, texts = ranks(tmp_path, 2, "dmic", *call, two)
            assert codes == [0, 0], texts
            assert (texts[0].count("wrote "), texts[1]) == (1, "")
            codes, texts = ranks(tmp_path, 2, "dmic", "cluster", two, *search, tmp_path / "2.npz")
            assert codes == [0, 0], texts
        with np.load(one) as of_one, safe_open(two, "np") as of_two:
            for name in ("features", "camera_ids", "modality_ids"):
                assert np.array_equal(of_one[name], of_two.get_tensor(name))
            assert json.loads(of_two.metadata()["paths"]) == of_one["paths"].tolist()
        assert run("cluster", one, *map(str, search), tmp_path / "1.npz")[0] == 0
        with np.load(tmp_path / "1.npz") as of_one, np.load(tmp_path / "2.npz") as of_two:
            assert np.array_equal(of_one["labels"], of_two["labels"])

    def test_a_folder_becomes_features_that_can_be_clustered(self, trained, tree, run, tmp_path):
        out = tmp_path / "features.npz"
        code, _, err = run("embed", trained, tree / "cam1", "--modality", "visible", "-o", out, "--device", "cpu")
        assert (code, err) == (0, "")
        with np.load(out) as file:
            assert file["features"].shape == (len(file["paths"]), 16)
            assert file["features"].dtype == np.float32
            assert set(file["modality_ids"].tolist()) == {0}
            assert len(set(file["camera_ids"].tolist())) == len(list((tree / "cam1").iterdir()))
        assert run("cluster", out, "--k1", "4", "--k2", "2", "-o", tmp_path / "labels.npz")[0] == 0

    def test_a_folder_of_infrared_images_goes_through_the_infrared_stem(self, trained, tree, run, tmp_path):
        features = []
        for modality, number in (("visible", 0), ("infrared", 1)):
            out = tmp_path / f"{modality}.npz"
            assert run("embed", trained, tree / "cam3", "--modality", modality, "-o", out, "--device", "cpu")[0] == 0
            with np.load(out) as file:
                assert set(file["modality_ids"].tolist()) == {number}
                features.append(file["features"])
        assert not np.array_equal(*features)
        network = load_run(trained)[1]
        infrared = samples_in_folder(tree / "cam3", 1).gallery(height=32, width=16)
        assert np.allclose(features[1], embed(network, infrared).numpy(), atol=1e-6)

    def test_a_manifest_needs_no_modality(self, trained, run, tmp_path):
        (tmp_path / "own.csv").write_text("path,modality,camera\n")
        code, _, err = run("embed", trained, tmp_path / "own.csv", "--modality", "visible", "-o", tmp_path / "out.npz")
        assert (code, "a manifest has the modality of every image, leave out --modality" in err) == (2, True)

    def test_a_manifest_says_the_modality_and_camera_of_every_image(self, trained, tree, run, tmp_path):
        rows = [(path, "infrared" if camera == 3 else "visible", camera) for camera in (2, 3)
                for path in sorted((tree / f"cam{camera}").rglob("*.jpg"))]  # fmt: skip
        manifest = tmp_path / "own.csv"
        with manifest.open("w", newline="") as file:
            csv.writer(file).writerows([("path", "modality", "camera"), *rows])
        out = tmp_path / "features.npz"
        assert run("embed", trained, manifest, "-o", out, "--device", "cpu")[0] == 0
        with np.load(out) as file:
            assert file["modality_ids"].tolist() == [int(row[1] == "infrared") for row in rows]
            assert file["camera_ids"].tolist() == [row[2] - 2 for row in rows]

    def test_without_a_source_the_images_of_the_run_are_embedded(self, trained, run, tmp_path):
        out = tmp_path / "features.npz"
        assert run("embed", trained, "-o", out, "--device", "cpu")[0] == 0
        config, network = load_run(trained)
        dataset = build_dataset(config)
        with np.load(out) as file:
            assert np.allclose(file["features"], embed(network, dataset.train).numpy(), atol=1e-6)
            assert file["paths"].tolist() == list(dataset.train.images.paths)
            assert np.array_equal(file["person_ids"], dataset.train_person_ids)
            assert np.array_equal(file["camera_ids"], dataset.train.camera_ids)
        code, _, err = run("embed", trained, "--modality", "visible", "-o", out)
        assert (code, "its images have a modality each, leave out --modality" in err) == (2, True)

    def test_a_folder_without_a_modality_is_an_error(self, trained, tree, run, tmp_path):
        code, _, err = run("embed", trained, tree / "cam1", "-o", tmp_path / "features.npz")
        assert (code, "say with --modality what a folder holds: infrared, visible" in err) == (2, True)


class TestRanks:
    def test_more_ranks_than_gpus_say_what_to_do(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "9")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        monkeypatch.setenv("LOCAL_RANK", "7")
        assert common.device("auto") == "cuda:7"
        monkeypatch.setenv("LOCAL_RANK", "8")
        want = "no GPU is left for local rank 8, the machine has 8: start torchrun with --nproc-per-node 8, or give "
        with pytest.raises(ValueError, match=want):
            common.device("auto")

    def test_the_demo_is_of_one_process(self, run, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        code, _, err = run("demo")
        assert (code, "start it without torchrun" in err) == (2, True)

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nMore"), "CUDA out of memory. Tried 2 GiB. More"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't allocate memory"),
            (MemoryError(), "out of memory"),
        ],
    )
    def test_memory_that_runs_out_is_reported_in_one_line(self, run, monkeypatch, error, line):
        def full(options):
            raise error

        monkeypatch.setattr("dmic.commands.doctor.run", full)
        code, _, err = run("doctor")
        assert (code, err) == (2, f"dmic doctor: error: {line}\n")


class TestData:
    def test_a_tree_is_drawn_and_checked(self, run, tmp_path):
        root = tmp_path / "tree"
        options = ("--identities", 6, "--test-identities", 2, "--images", 1, "--height", 32, "--width", 16)
        code, printed, _ = run("data", "pedestrians", root, *options)
        assert (code, "images of synthetic pedestrians" in printed) == (0, True)
        code, printed, _ = run("data", "check", root)
        assert code == 0
        assert "(sysu_mm01): 0 errors" in printed
        next(root.glob("cam1/*/*.jpg")).write_bytes(b"not an image")
        code, printed, _ = run("data", "check", root)
        assert code == 1
        assert "(sysu_mm01): 1 error, 6 differences" in printed

    def test_a_tree_is_checked_as_what_it_is_said_to_be(self, tree, run):
        code, printed, _ = run("data", "check", tree, "--kind", "regdb")
        assert (code, "train_visible_1.txt: is missing" in printed) == (1, True)

    def test_a_folder_of_something_else_is_told_the_layout_once(self, run, tmp_path):
        code, _, err = run("train", "sysu_mm01", "--data", tmp_path, "--out", tmp_path / "run")
        assert (code, err.count("\n"), err.count(": is missing"), err.count("expected exp/")) == (2, 1, 9, 1)

    def test_no_thread_to_decode_is_an_error(self, tree, run):
        code, _, err = run("data", "check", tree, "--workers", 0)
        assert (code, err) == (2, "dmic data: error: --workers must be at least 1, got 0\n")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--identities", 2), "--identities must be in [3, "),
            (
                ("--test-identities", 9, "--identities", 10),
                "--test-identities must be in [1, 8] with --identities=10, got 9",
            ),
            (("--images", 0), "--images must be in [1, "),
            (("--camera-share", 1.5), "--camera-share must be in [0, 1], got 1.5"),
            (("--workers", -1), "--workers must not be negative, got -1"),
            (("--seed", -1), "--seed must not be negative, got -1"),
            (("--height", 1), "--height must be at least "),
            (("--width", 1), "--width must be at least "),
            (("--difficulty", 6), "--difficulty must be in [0, 5], got 6"),
            (("--difficulty", "nan"), "--difficulty must be in [0, 5], got nan"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_option(self, run, tmp_path, options, message):
        code, _, err = run("data", "pedestrians", tmp_path / "new", *options)
        assert code == 2
        assert err.startswith(f"dmic data: error: {message}")
        assert not (tmp_path / "new").exists()

    def test_a_path_that_looks_like_an_argument_stays_as_it_is(self, run, tmp_path):
        folder = tmp_path / "seed=3"
        folder.mkdir()
        code, _, err = run("data", "check", folder)
        assert code == 2
        assert str(folder) in err

    def test_a_folder_that_is_not_empty_is_refused(self, run, tmp_path):
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "file").write_text("")
        code, _, err = run("data", "pedestrians", tmp_path / "root")
        assert code == 2
        assert err.startswith("dmic data: error: DIR must not exist or be an empty folder, got '")

    def test_pedestrians_are_drawn_as_asked_for(self, run, monkeypatch, tmp_path):
        given = {}
        monkeypatch.setattr("dmic.commands.data.write_pedestrians", lambda root, **named: given.update(named) or 7)
        options = {"identities": 30, "test-identities": 9, "images": 3, "camera-share": 0.5, "difficulty": 0.25}
        options |= {"height": 40, "width": 20, "seed": 6, "workers": 2}
        code, printed, _ = run("data", "pedestrians", tmp_path / "new", *(f"--{k}={v}" for k, v in options.items()))
        assert (code, "wrote 7 images of synthetic pedestrians" in printed) == (0, True)
        assert given.pop("difficulty") == Difficulty(0.25, 0.25, 0.25, 0.25 * DEFAULT.occlusion)
        assert given == {
            "num_identities": 30,
            "num_test_identities": 9,
            "images_per_camera": 3,
            "camera_share": 0.5,
            "height": 40,
            "width": 20,
            "seed": 6,
            "num_workers": 2,
            "progress": None,
        }

    def test_a_folder_of_nothing_known_is_an_error(self, run, tmp_path):
        code, _, err = run("data", "check", tmp_path)
        assert (code, "holds no known data set" in err) == (2, True)


class TestDemo:
    def test_it_leaves_what_training_leaves_and_a_picture(self, demo):
        names = {path.name for path in demo.iterdir()}
        assert names >= {"config.toml", "metrics.jsonl", "weights.safetensors", "retrieval.png"}
        records = [json.loads(line) for line in (demo / "metrics.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in records] == [0, 1, 2]
        for record in records:
            assert [result["protocol"] for result in record["retrieval"]] == [
                "infrared to visible",
                "visible to infrared",
            ]
            assert all(result["num_skipped"] == 0 for result in record["retrieval"])
        assert 0 < records[-1]["known"]["visible"]["purity"] <= 1

    def test_the_weights_are_finite(self, demo):
        weights = load_file(demo / "weights.safetensors")
        assert any(name.startswith("stems.1.") for name in weights)
        assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())

    def test_the_picture_is_a_picture(self, demo):
        with Image.open(demo / "retrieval.png") as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(maxcolors=10**7)) > 100, "it must not be blank"

    def test_a_demo_that_is_resumed_has_its_picture_too(self, demo, run, tmp_path, monkeypatch):
        """Of the network that training started from, and of the trained one."""
        seen = []

        def draw(test, features, rank1):
            seen.append((test.unlabeled, *features))
            return retrieval_picture(test, features, rank1)

        monkeypatch.setattr("dmic.commands.train.retrieval_picture", draw)
        shutil.copytree(demo, tmp_path / "demo", ignore=shutil.ignore_patterns("retrieval.png", "weights.safetensors"))
        code, printed, _ = run("train", "--resume", "--out", tmp_path / "demo", "--device", "cpu")
        assert (code, "infrared queries and the visible places" in printed) == (0, True)
        assert (tmp_path / "demo" / "retrieval.png").read_bytes() == (demo / "retrieval.png").read_bytes()
        ((images, before, after),) = seen
        assert torch.equal(before, embed(build_network(read_toml(demo / "config.toml"), 1), images, device="cpu"))
        assert not torch.equal(before, after)

    def test_its_configuration_repeats_the_run_bit_for_bit(self, demo, run, tmp_path):
        assert run("train", demo / "config.toml", "--out", tmp_path / "again", "--device", "cpu")[0] == 0
        first, again = (load_file(folder / "weights.safetensors") for folder in (demo, tmp_path / "again"))
        assert all(torch.equal(first[name], again[name]) for name in first)

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    def test_its_crops_can_be_embedded_and_clustered_but_no_files(self, demo, tree, run, tmp_path, suffix):
        out = tmp_path / f"features{suffix}"
        assert run("embed", demo, "-o", out, "--device", "cpu")[0] == 0
        code, printed, _ = run("cluster", out, "--k1", 8, "--k2", 3, "-o", tmp_path / "labels.npz", "--device", "cpu")
        assert (code, "modalities per cluster" in printed) == (0, True)
        with np.load(tmp_path / "labels.npz") as file:
            assert len(file["labels"]) == len(build_dataset(load_run(demo)[0]).train)
        code, _, err = run("embed", demo, tree, "--modality", "visible", "-o", out)
        assert (code, "without SOURCE its own images are embedded" in err) == (2, True)
