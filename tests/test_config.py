"""The configuration: a TOML round trip, recipes, single settings, and errors that name the nearest known key."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from dmic.config import Config, differences, from_dict, load_config, read_toml, recipes, to_toml
from dmic.constants import INFRARED, VISIBLE
from dmic.data.augment import bent_view, plain_view, toned_view
from dmic.run import build_batches, build_network, build_stages
from dmic.schedules import Schedule, fixed

tomllib = pytest.importorskip("tomllib", reason="reading TOML needs Python 3.11")


def test_a_configuration_survives_its_file(tmp_path):
    config = Config()
    config = replace(
        config,
        train=replace(config.train, seed=7),
        stage2=replace(config.stage2, joint=replace(config.stage2.joint, eps=Schedule("linear", 0.7, 0.5))),
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert read_toml(path) == config


def test_the_file_holds_every_default():
    values = tomllib.loads(to_toml(Config()))
    assert from_dict(values) == Config()
    assert values["stage2"]["joint"]["eps"]["kind"] == "geometric"
    assert values["stage2"]["joint"]["k1"] == 40.0, "a constant schedule is a number"


def test_a_constant_schedule_keeps_the_end_that_it_does_not_read():
    """A run that was started with it would be refused when it is resumed, as one with other settings."""
    config = load_config("regdb", ["stage1.per_modality.eps.kind=constant"])
    assert from_dict(tomllib.loads(to_toml(config))) == config
    assert config.stage1.per_modality.eps == Schedule("constant", 0.3, 0.2)


def test_what_is_absent_keeps_its_default():
    assert from_dict({"train": {"seed": 5}}) == replace(Config(), train=replace(Config().train, seed=5))


def test_a_number_is_a_constant_schedule():
    assert from_dict({"stage1": {"per_modality": {"eps": 0.5}}}).stage1.per_modality.eps == fixed(0.5)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_loads_and_describes_its_stages(name):
    config = load_config(name)
    assert config.data.kind in (name, "sysu_mm01"), "synthetic pedestrians come in the layout of SYSU-MM01"
    for stage in build_stages(config):
        for epoch in (0, stage.num_epochs - 1):
            for settings in (stage.per_modality(epoch), stage.joint(epoch)):
                assert 1 <= settings["k2"] <= settings["k1"]
                assert 0 < settings["eps"] <= 1
        assert stage.learning_rate(0) > 0
    assert build_batches(config, 3).num_iterations > 0


@pytest.mark.parametrize(("curves", "view"), [("monotone", toned_view), ("bent", bent_view)])
@pytest.mark.parametrize("mirrored", [True, False])
def test_views_and_features_of_places_are_as_set(curves, view, mirrored):
    config = load_config("landsat", [f"data.tone_curves={curves}", f"data.mirrored={str(mirrored).lower()}"])
    visible, infrared = (build_batches(config, 1).views[modality] for modality in (VISIBLE, INFRARED))
    images = torch.arange(400, dtype=torch.uint8).view(1, 1, 20, 20).expand(32, -1, -1, -1)
    for found, want in ((visible[0], plain_view), (visible[1], view), (infrared[0], plain_view)):
        first, second = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        assert torch.equal(found(images, first), want(images, second, mirrored=mirrored))
    assert (len(visible), len(infrared)) == (2, 1)
    assert build_network(config, 1).mirrored == mirrored
    assert build_network(config, 3).mirrored, "half of the views of colour images are mirror images"


def test_the_recipe_of_sysu_mm01_has_the_published_constants():
    config = load_config("sysu_mm01")
    first, second = build_stages(config)
    assert (first.num_epochs, second.num_epochs) == (50, 50)
    assert first.objective.joint == "none"
    assert second.objective.joint == "separate"
    assert second.per_modality(0) == {"k1": 30, "k2": 6, "eps": 0.6, "min_samples": 4, "expansion": "mie"}
    assert second.joint(0) == {"k1": 40, "k2": 11, "eps": 0.6, "min_samples": 4, "expansion": "mie"}
    last = second.joint(49)
    assert last["k2"] in (31, 32)
    assert last["eps"] == pytest.approx(0.3, abs=0.01)
    assert [second.learning_rate(epoch) for epoch in (0, 19, 20, 40)] == pytest.approx([3.5e-4, 3.5e-4, 3.5e-5, 3.5e-6])
    assert (config.train.num_classes, config.train.num_samples, config.train.num_iterations) == (4, 16, 200)
    assert (config.data.height, config.data.width) == (288, 144)


@pytest.mark.parametrize("name", ["sysu_mm01", "regdb", "llcm"])
def test_the_losses_and_optimiser_of_a_recipe_are_those_of_the_method(name):
    config = load_config(name)
    objective = config.objective
    assert (objective.instances, objective.temperature, objective.momentum) == (True, 0.05, 0.0)
    assert (objective.instance_weight, objective.joint_instance_weight, objective.combined_weight) == (1.0, 0.1, 0.7)
    assert not objective.mixed_only
    assert (config.train.weight_decay, config.train.accumulate, config.train.warmup) == (5e-4, 1, 0)
    assert (config.train.num_classes, config.train.num_samples) == (4, 16)
    assert (config.network.kind, config.network.weights, config.network.non_local) == ("resnet50", "imagenet", False)
    assert (config.stage1.joint_step, config.stage2.joint_step) == ("none", "separate")
    stages = config.stage1, config.stage2
    clusterings = [stage.per_modality for stage in stages] + [config.stage2.joint]
    assert all((found.min_samples, found.expansion) == (4, "mie") for found in clusterings)
    assert all(s.learning_rate == Schedule("step", 3.5e-4, 3.5e-6, interval=20) for s in stages)
    assert all(s.num_epochs == 50 and s.per_modality.k1 == fixed(30) for s in stages)
    assert all(s.per_modality.k2 == Schedule("geometric", 6, 18) for s in stages)


def test_the_recipe_of_regdb_has_the_published_constants():
    config = load_config("regdb")
    eps = Schedule("geometric", 0.3, 0.2)
    assert config.stage1.per_modality.eps == config.stage2.per_modality.eps == config.stage2.joint.eps == eps
    assert (config.stage2.joint.k1, config.stage2.joint.k2) == (fixed(38), Schedule("geometric", 6, 18))
    assert config.train.num_iterations == 100


def test_a_file_of_ones_own_takes_the_place_of_a_recipe(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("[train]\nseed = 5\n", encoding="utf-8")
    assert load_config(str(path), ["data.trial=2"]) == from_dict({"train": {"seed": 5}, "data": {"trial": 2}})


def test_single_settings_change_a_recipe():
    config = load_config("regdb", ["train.seed=3", "data.trial=7", "stage2.joint.eps=0.25", "network.kind=resnet18"])
    assert (config.train.seed, config.data.trial, config.network.kind) == (3, 7, "resnet18")
    assert config.stage2.joint.eps == fixed(0.25)
    eps = load_config("regdb", ["stage1.per_modality.eps.end=0.1"]).stage1.per_modality.eps
    assert eps == Schedule("geometric", 0.3, 0.1), "the rest is the recipe's"


def test_of_a_setting_that_is_given_twice_the_last_one_counts_and_spaces_do_not():
    config = load_config(
        "regdb", ["train.seed=3", " train.seed = 4 ", "network.kind = resnet18 ", "train.weight_decay=1"]
    )
    assert (config.train.seed, config.network.kind, config.train.weight_decay) == (4, "resnet18", 1.0)
    assert type(config.train.weight_decay) is float


def test_differences_name_every_setting():
    assert differences(Config(), Config()) == []
    other = load_config("regdb", ["train.seed=3"])
    found = differences(load_config("regdb"), other)
    assert found == ["train.seed: 0 and 3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("own.csv",), "train on it with: dmic train sysu_mm01 --set data.kind=manifest --data own.csv"),
        (("sysu",), "'sysu' is no file and no recipe, did you mean 'sysu_mm01'?"),
        (("nonsense",), "config: 'nonsense' is no file and no recipe .landsat, llcm, pedestrians, regdb, sysu_mm01."),
        ((".",), "config: . is a folder and no configuration; train on what is in it with: dmic train RECIPE --data ."),
        (("regdb", ["train.sed=3"]), "there is no key 'train.sed', did you mean 'seed'?"),
        (("regdb", ["train.seed"]), "a setting must look like section.key=value, got 'train.seed'"),
        (("regdb", ["=3"]), "a setting must look like section.key=value, got '=3'"),
        (("regdb", ["train.seed=abc"]), "train.seed must be int, got 'abc'"),
        (("regdb", ["train.weight_decay=nan"]), "config: train.weight_decay must be finite, got nan"),
        (("regdb", ["stage2.joint.eps=inf"]), "config: stage2.joint.eps: Schedule: .* must be finite, got inf"),
        (("regdb", ["stage2.joint_step=both"]), "joint_step must be one of separate, combined, none, got 'both'"),
        (("landsat", ["data.tone_curves=flat"]), "tone_curves must be one of monotone, bent, got 'flat'"),
        (("regdb", ["stage2.joint.expansion=all"]), "expansion must be one of mie, camera, modality, plain, got 'all'"),
    ],
)
def test_mistakes_in_recipes_and_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_config(*arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "there is no key 'trian', did you mean 'train'"),
        ({"stage1": {"num_epoch": 3}}, "there is no key 'stage1.num_epoch', did you mean 'num_epochs'"),
        ({"train": 3}, "train must be a table, got 3"),
        ({"stage1": {"num_epochs": "3"}}, "stage1.num_epochs must be int, got '3'"),
        ({"stage1": {"num_epochs": True}}, "stage1.num_epochs must be int, got True"),
        (
            {"stage2": {"joint": {"eps": {"kind": "cosine"}}}},
            "config: stage2.joint.eps: Schedule: kind must be one of constant, linear, geometric, two_phase",
        ),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stage2.joint.min_samples=0", "stage2.joint.min_samples must be at least 1, got 0"),
        ("stage1.num_epochs=-1", "stage1.num_epochs must be at least 0, got -1"),
        ("objective.temperature=0", "objective.temperature must be above 0, got 0.0"),
        ("objective.momentum=1", "objective.momentum must be below 1, got 1.0"),
        ("objective.momentum=-0.1", "objective.momentum must be at least 0, got -0.1"),
        ("objective.instance_weight=-1", "objective.instance_weight must be at least 0, got -1.0"),
        ("objective.joint_instance_weight=-1", "objective.joint_instance_weight must be at least 0, got -1.0"),
        ("objective.combined_weight=-1", "objective.combined_weight must be at least 0, got -1.0"),
        ("train.num_iterations=0", "train.num_iterations must be at least 1, got 0"),
        ("train.num_classes=0", "train.num_classes must be at least 1, got 0"),
        ("train.num_samples=0", "train.num_samples must be at least 1, got 0"),
        ("train.accumulate=0", "train.accumulate must be at least 1, got 0"),
        ("train.weight_decay=-1", "train.weight_decay must be at least 0, got -1.0"),
        ("train.warmup=-1", "train.warmup must be at least 0, got -1"),
        ("train.checkpoint_seconds=-1", "train.checkpoint_seconds must be at least 0, got -1.0"),
        ("evaluate.every=0", "evaluate.every must be at least 1, got 0"),
    ],
)
def test_a_value_out_of_range_is_named_before_hours_of_training(setting, message):
    with pytest.raises(ValueError, match=f"^config: {message}$"):
        load_config("regdb", [setting])


def test_a_number_that_is_not_finite_is_not_written():
    config = Config()
    config = replace(config, objective=replace(config.objective, temperature=math.inf))
    with pytest.raises(ValueError, match=r"config: objective\.temperature must be finite, got inf"):
        to_toml(config)


def test_a_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[train\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.toml: not a TOML file"):
        read_toml(path)
    path.write_bytes(b"[train]\nseed = 5 # \xff")
    with pytest.raises(ValueError, match=r"broken.toml: not a TOML file \(.*invalid start byte"):
        read_toml(path)


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Config().train.seed = 3
