"""The configuration: a TOML round trip, and errors that name the nearest known key."""

from dataclasses import FrozenInstanceError, replace

import pytest

from dmic.config import Config, from_dict, read_toml, to_toml
from dmic.schedules import Schedule

tomllib = pytest.importorskip("tomllib", reason="reading TOML needs Python 3.11")


def test_a_configuration_survives_its_file(tmp_path):
    config = Config()
    config = replace(
        config,
        train=replace(config.train, seed=7, expansion="plain"),
        joint=replace(config.joint, eps=Schedule("linear", 0.7, 0.5)),
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert read_toml(path) == config


def test_the_file_holds_every_default():
    values = tomllib.loads(to_toml(Config()))
    assert from_dict(values) == Config()
    assert values["joint"]["eps"] == {
        "kind": "geometric",
        "start": Config().joint.eps.start,
        "end": Config().joint.eps.end,
    }


def test_what_is_absent_keeps_its_default():
    assert from_dict({"train": {"seed": 5}}) == replace(Config(), train=replace(Config().train, seed=5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "there is no key 'trian', did you mean 'train'"),
        ({"train": {"num_epoch": 3}}, "there is no key 'train.num_epoch', did you mean 'num_epochs'"),
        ({"train": 3}, "train must be a table, got 3"),
        ({"train": {"num_epochs": "3"}}, "train.num_epochs must be int, got '3'"),
        ({"train": {"num_epochs": True}}, "train.num_epochs must be int, got True"),
        ({"joint": {"eps": {"kind": "cosine"}}}, "kind must be one of constant, linear, geometric, got 'cosine'"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_a_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[train\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.toml: not a TOML file"):
        read_toml(path)


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Config().train.seed = 3
