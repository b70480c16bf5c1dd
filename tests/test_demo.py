"""`dmic demo`: what it prints and what it leaves behind."""

import argparse
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dmic import demo
from dmic.config import read_toml


def options(*arguments):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert demo.run(options("--quick", "--out", str(folder))) == 0
    return folder


def test_it_leaves_configuration_metrics_weights_and_a_picture(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.toml",
        "metrics.jsonl",
        "weights.safetensors",
        "retrieval.png",
    }
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1, 2]
    for record in records:
        for direction in ("infrared_to_visible", "visible_to_infrared"):
            assert 0 <= record[direction]["cmc"]["1"] <= record[direction]["cmc"]["10"] <= 1
            assert record[direction]["num_skipped"] == 0
    assert 0 < records[-1]["known"]["visible"]["purity"] <= 1


def test_the_weights_are_those_of_a_network_and_finite(finished):
    weights = load_file(finished / "weights.safetensors")
    assert any(name.startswith("stems.1.") for name in weights)
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())


def test_the_picture_is_a_picture(finished):
    with Image.open(finished / "retrieval.png") as picture:
        assert min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(maxcolors=10**7)) > 100, "it must not be blank"


def test_its_configuration_repeats_the_run_bit_for_bit(finished, tmp_path):
    assert demo.run(options("--config", str(finished / "config.toml"), "--out", str(tmp_path))) == 0
    first, again = (load_file(folder / "weights.safetensors") for folder in (finished, tmp_path))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert read_toml(tmp_path / "config.toml") == read_toml(finished / "config.toml")


@pytest.mark.parametrize(("arguments", "message"), [(("--epochs", "0"), "epochs must be at least 1, got 0")])
def test_bad_options_are_named_before_anything_is_written(arguments, message, tmp_path):
    folder = tmp_path / "none"
    with pytest.raises(ValueError, match=message):
        demo.run(options(*arguments, "--out", str(folder)))
    assert not folder.exists()
