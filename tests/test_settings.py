"""Every setting of a configuration reaches the function that it is meant for."""

from dataclasses import fields, replace

import pytest

import dmic.run
from dmic.config import Config, DataConfig, ObjectiveConfig, load_config
from dmic.constants import INFRARED, VISIBLE
from dmic.data.augment_rgb import exchanged_view, infrared_view, visible_view
from dmic.run import RunFolder, build_batches, build_dataset, build_network, build_stages, run_training
from dmic.train import Objective


@pytest.fixture
def called_with(monkeypatch):
    """Put a function of `dmic.run` out of action; the dictionary gets the arguments that it is called with."""

    def watch(name):
        given = {}
        monkeypatch.setattr(dmic.run, name, lambda *values, **named: given.update(named, values=values))
        return given

    return watch


OBJECTIVE = ObjectiveConfig(False, 0.2, 0.3, 0.4, True, 0.5, 0.6)


def test_the_loop_is_given_seed_weight_decay_warmup_batches_and_stages(called_with, tmp_path):
    given = called_with("train")
    settings = ("seed=3", "weight_decay=0.25", "warmup=7", "num_iterations=5", "num_classes=6", "num_samples=2")
    config = load_config("landsat", ["data.num_crops=1", "train.accumulate=4", *(f"train.{s}" for s in settings)])
    network, dataset = run_training(replace(config, objective=OBJECTIVE), RunFolder(tmp_path / "run"))
    state, gallery, stages, batches = given["values"]
    assert (given["seed"], given["weight_decay"], given["warmup"]) == (3, 0.25, 7)
    assert (state.network, gallery) == (network, dataset.train)
    assert (batches.num_iterations, batches.num_classes, batches.num_samples, batches.accumulate) == (5, 6, 2, 4)
    assert [stage.objective.joint for stage in stages] == ["none", "separate"]


def test_a_stage_has_its_own_clusterings_and_the_objective_of_all():
    config = load_config("regdb", [f"stage{s}.{kind}.k1={10 * s + n}" for s in (1, 2) for n, kind in
                                   enumerate(("per_modality", "joint"))])  # fmt: skip
    stages = build_stages(replace(config, objective=OBJECTIVE))
    assert [(stage.per_modality(0)["k1"], stage.joint(0)["k1"]) for stage in stages] == [(10, 11), (20, 21)]
    want = {f.name: getattr(OBJECTIVE, f.name) for f in fields(OBJECTIVE)}
    assert [stage.objective for stage in stages] == [Objective(joint=joint, **want) for joint in ("none", "separate")]
    assert build_stages(replace(config, stage1=replace(config.stage1, num_epochs=0)))[0].joint(0)["k1"] == 21


@pytest.mark.parametrize(("eps", "k2", "want"), [(-0.5, 40.0, (0.0, 30)), (1.5, 0.2, (1.0, 1)), (0.5, 6.5, (0.5, 6))])
def test_what_a_schedule_gives_is_kept_in_range(eps, k2, want):
    config = load_config("regdb", [f"stage1.per_modality.eps={eps}", f"stage1.per_modality.k2={k2}"])
    settings = build_stages(config)[0].per_modality(0)
    assert (settings["eps"], settings["k2"]) == want


def test_colour_images_have_the_views_of_the_method():
    views = build_batches(Config(), 3).views
    assert views == {VISIBLE: (visible_view, exchanged_view), INFRARED: (infrared_view,)}


READ = {"height": 10, "width": 6, "cache_bytes": 5, "num_workers": 2, "skip_unreadable": True}


@pytest.mark.parametrize(("kind", "more"), [("sysu_mm01", {}), ("regdb", {"trial": 7}), ("manifest", {})])
def test_a_data_set_is_read_as_set(called_with, kind, more):
    given = called_with("open_dataset")
    build_dataset(Config(data=DataConfig(kind=kind, root="there", trial=7, **READ)))
    assert [str(value) for value in given.pop("values")] == [kind, "there"]
    assert given == READ | more


def test_the_embedded_gallery_is_made_as_set(called_with):
    given = called_with("landsat_dataset")
    build_dataset(Config(data=DataConfig(num_crops=3, train_share=0.25, validation=True, split_seed=4)))
    assert given == {"values": (), "num_crops": 3, "train_share": 0.25, "validation": True, "seed": 4}


def test_networks_are_built_as_set(called_with):
    small, resnet = called_with("small_two_stream"), called_with("resnet_two_stream")
    sizes = {"width": 5, "stem_stride": 2, "embedding_dim": 9}
    given = [f"network.{name}={value}" for name, value in (sizes | {"grid_height": 3, "grid_width": 4}).items()]
    build_network(load_config("landsat", [*given, "train.seed=6"]), 1)
    assert small == sizes | {"values": (), "num_channels": 1, "grid": (3, 4), "mirrored": False, "seed": 6}
    for depth, weights in ((18, None), (50, "imagenet")):
        kind = [f"network.kind=resnet{depth}", f"network.weights={weights or 'random'}"]
        build_network(load_config("landsat", [*kind, "network.non_local=true", "train.seed=6"]), 3)
        assert resnet == {"values": (), "depth": depth, "weights": weights, "non_local": True, "seed": 6}
