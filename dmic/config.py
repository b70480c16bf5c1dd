"""Every setting of a run in one frozen tree, written into its folder as TOML and read back from there.

The algorithms take plain arguments; only `dmic.run` and the commands read this. A recipe is a TOML file of the package
with the published constants of a data set.
"""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from .schedules import Schedule, fixed

EXPANSIONS = ("mie", "camera", "modality", "plain")
JOINT_STEPS = ("separate", "combined", "none")
TONE_CURVES = ("monotone", "bent")


@dataclass(frozen=True)
class DataConfig:
    """What to train on."""

    kind: str = "landsat"  # landsat (embedded), sysu_mm01, regdb, llcm, or manifest
    root: str = ""  # folder of the original tree, or file of the manifest; not used by landsat
    height: int = 288  # pixels of a decoded image; not used by landsat
    width: int = 144  # pixels
    trial: int = 1  # regdb: which of its ten splits
    cache_bytes: int = 8_000_000_000  # decoded images kept in memory, at most
    num_workers: int = 4  # threads that decode images
    skip_unreadable: bool = False  # leave images out that cannot be decoded, instead of stopping
    num_crops: int = 6  # landsat: crops of a place per sensor band
    train_share: float = 2 / 3  # landsat: share of the places that train; the others are the unseen test places
    validation: bool = False  # landsat: test on a third of the training places instead, to choose settings
    split_seed: int = 0  # landsat: of the split and of the crops
    mirrored: bool = True  # landsat: a mirror image shows the same place: training sees it, features average it
    tone_curves: str = "monotone"  # landsat: of the second visible view; "bent": they rise and fall

    def __post_init__(self) -> None:
        _check_choice("tone_curves", self.tone_curves, TONE_CURVES)


@dataclass(frozen=True)
class NetworkConfig:
    """The two-stream network."""

    kind: str = "small"  # small, resnet18 or resnet50
    weights: str = "imagenet"  # "imagenet" (resnets: torchvision's download; small: random), "random", or a file
    non_local: bool = False  # resnets: non-local blocks of AGW
    width: int = 24  # small: channels of a stem
    stem_stride: int = 1  # small: pixels between the responses of a stem
    grid_height: int = 1  # small: cells down that the pool keeps
    grid_width: int = 1  # small: cells across
    embedding_dim: int = 128  # small: numbers in a feature


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"config: {name} must be finite, got {value}")


def _check_range(config: Any, least: float, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"config: {name} must be at least {least}, got {getattr(config, name)}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"config: {name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class ClusterConfig:
    """One clustering of every epoch. A number in place of a schedule is a constant one."""

    k1: Schedule  # neighbours searched, the sample itself included; rounded
    k2: Schedule  # neighbours that the expansion averages, the sample itself included; rounded, kept in 1..k1
    eps: Schedule  # radius of DBSCAN, a Jaccard distance in [0, 1]
    min_samples: int = 4  # samples within eps of a core sample, itself included
    expansion: str = "mie"  # "plain" ignores ids, "camera" and "modality" balance one of them, "mie" both

    def __post_init__(self) -> None:
        _check_choice("expansion", self.expansion, EXPANSIONS)
        _check_range(self, 1, "min_samples")


PER_MODALITY = ClusterConfig(fixed(30), Schedule("geometric", 6, 18), Schedule("geometric", 0.6, 0.3))
JOINT = ClusterConfig(fixed(40), Schedule("geometric", 11, 32), Schedule("geometric", 0.6, 0.3))


@dataclass(frozen=True)
class StageConfig:
    """One stage; its schedules start at its first epoch."""

    num_epochs: int = 50  # passes of embed, cluster, train
    joint_step: str = "none"  # "none"; "separate": an optimiser step of its own; "combined": one step with the others
    learning_rate: Schedule = field(default_factory=lambda: Schedule("step", 3.5e-4, 3.5e-6, interval=20))  # of Adam
    per_modality: ClusterConfig = field(default_factory=lambda: PER_MODALITY)
    joint: ClusterConfig = field(default_factory=lambda: JOINT)  # only read with a joint step

    def __post_init__(self) -> None:
        _check_choice("joint_step", self.joint_step, JOINT_STEPS)
        _check_range(self, 0, "num_epochs")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The losses (hybrid modality contrastive learning)."""

    instances: bool = True  # instance memories beside the cluster memories
    instance_weight: float = 1.0  # of the instance memory of one modality
    joint_instance_weight: float = 0.1  # of the instance memory of both
    combined_weight: float = 0.7  # of all joint terms in a combined step
    mixed_only: bool = False  # joint batches hold only clusters of both modalities
    temperature: float = 0.05  # of the softmax over similarities
    momentum: float = 0.0  # share of its old value that a memory row keeps, in [0, 1)

    def __post_init__(self) -> None:
        _check_range(self, 0, "instance_weight", "joint_instance_weight", "combined_weight", "momentum")
        if self.momentum >= 1:
            raise ValueError(f"config: momentum must be below 1, got {self.momentum}")
        if self.temperature <= 0:
            raise ValueError(f"config: temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True)
class TrainConfig:
    """The loop and the optimiser."""

    num_iterations: int = 200  # optimiser steps of each kind in an epoch
    num_classes: int = 4  # P, clusters in a batch
    num_samples: int = 16  # K, images of a cluster in a batch, per modality
    accumulate: int = 1  # batches whose gradients make one step
    weight_decay: float = 5e-4  # of Adam
    warmup: int = 0  # iterations of the first epoch in which the learning rate rises to its value
    seed: int = 0  # of the weights, the batches, the views and the memory updates
    checkpoint_seconds: float = 600.0  # at most so much work is lost; a checkpoint is also written after each epoch

    def __post_init__(self) -> None:
        _check_range(self, 1, "num_iterations", "num_classes", "num_samples", "accumulate")
        _check_range(self, 0, "weight_decay", "warmup", "checkpoint_seconds")


@dataclass(frozen=True)
class EvaluateConfig:
    """When and how retrieval is scored."""

    every: int = 5  # epochs; the first moment (before training) and the last epoch always are
    rerank: bool = False  # the last epoch also with k-reciprocal re-ranking, reported separately

    def __post_init__(self) -> None:
        _check_range(self, 1, "every")


@dataclass(frozen=True)
class Config:
    """A whole run of `dmic train`."""

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    stage1: StageConfig = field(default_factory=StageConfig)
    stage2: StageConfig = field(default_factory=lambda: StageConfig(joint_step="separate"))
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def num_epochs(self) -> int:
        return self.stage1.num_epochs + self.stage2.num_epochs


def recipes() -> dict[str, str]:
    """The text of every recipe of the package, by name."""
    folder = files("dmic") / "recipes"
    return {
        path.name.removesuffix(".toml"): path.read_text("utf-8") for path in folder.iterdir() if path.suffix == ".toml"
    }


def load_config(name: str, settings: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration of a recipe or a TOML file, with single settings changed.

    Args:
        name: of a recipe, or the path of a TOML file.
        settings: such as "train.seed=3" or "stage2.joint.eps=0.5"; values as in TOML, or plain words.

    Raises:
        ValueError: no such recipe or file, text that is not TOML, an unknown key, or a value of the wrong type.
    """
    known = recipes()
    if name in known:
        config = from_dict(_parse_toml(known[name], name))
    elif Path(name).suffix.lower() in (".csv", ".parquet"):
        given = f"dmic train sysu_mm01 --set data.kind=manifest --data {name}"
        raise ValueError(f"config: {name} is a manifest and no configuration; train on it with: {given}")
    elif Path(name).is_file():
        config = read_toml(Path(name))
    elif Path(name).is_dir():
        given = f"dmic train RECIPE --data {name}, where RECIPE is one of {', '.join(sorted(known))}"
        raise ValueError(f"config: {name} is a folder and no configuration; train on what is in it with: {given}")
    else:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"config: {name!r} is no file and no recipe{meant} ({', '.join(sorted(known))})")
    for setting in settings:
        config = _update(config, _setting(setting), "")
    return config


def to_toml(config: Any) -> str:
    """The configuration as TOML: every field, defaults included, one table per nested dataclass.

    Raises:
        ValueError: a number is not finite.
    """
    return "\n".join(_tables(config, ())).lstrip("\n") + "\n"


def from_dict(values: dict[str, Any]) -> Config:
    """A Config from nested tables; what is absent keeps its default.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a value of another type, or a table that lacks one.
    """
    return _update(Config(), values, "")


def read_toml(path: Path) -> Config:
    """The configuration in a TOML file. Needs Python 3.11 or the package tomli.

    Raises:
        ValueError: the file is not TOML, or see `from_dict`.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from None
    return from_dict(_parse_toml(text, str(path)))


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Every setting that is not the same in two configurations, as `train.seed: 0 and 3`."""
    found = []
    for f in fields(first):
        where = f"{path}.{f.name}" if path else f.name
        one, other = getattr(first, f.name), getattr(second, f.name)
        if is_dataclass(one):
            found += differences(one, other, where)
        elif one != other:
            found.append(f"{where}: {one!r} and {other!r}")
    return found


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise ValueError(f"{where}: reading TOML needs Python 3.11 or later, or: pip install tomli") from None
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not a TOML file ({error})") from None


def _setting(text: str) -> dict[str, Any]:
    """`a.b=value` as nested tables; a value that is not TOML is a plain word."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"config: a setting must look like section.key=value, got {text!r}")
    try:
        parsed = _parse_toml(f"value = {value.strip()}", "--set")["value"]
    except ValueError:
        parsed = value.strip()
    for name in reversed(key.strip().split(".")):
        parsed = {name: parsed}
    return parsed


def _tables(config: Any, path: tuple[str, ...]) -> list[str]:
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    nested = {name: value for name, value in values.items() if is_dataclass(value) and not isinstance(value, Schedule)}
    for name, value in values.items():
        if isinstance(value, float):
            _check_finite(".".join((*path, name)), value)
    plain = [f"{name} = {_value(value)}" for name, value in values.items() if name not in nested]
    lines = [*([f"\n[{'.'.join(path)}]"] if path else []), *plain] if plain else []
    for name, value in nested.items():
        lines += _tables(value, (*path, name))
    return lines


def _value(value: Any) -> str:
    """A TOML value; a constant schedule is a number, another one an inline table."""
    if not isinstance(value, Schedule):
        return json.dumps(value)
    if value == fixed(value.start):
        return json.dumps(value.start)
    return "{ " + ", ".join(f"{f.name} = {json.dumps(getattr(value, f.name))}" for f in fields(value)) + " }"


def _update(config: Any, values: Any, path: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} must be a table, got {values!r}")
    types = get_type_hints(type(config))
    current = {f.name: getattr(config, f.name) for f in fields(config)}
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if name not in current:
            near = difflib.get_close_matches(name, current, n=1, cutoff=0.0)[0]
            raise ValueError(f"config: there is no key {where!r}, did you mean {near!r}?")
        if isinstance(current[name], Schedule):
            current[name] = _schedule(current[name], value, where)
        elif is_dataclass(current[name]):
            current[name] = _update(current[name], value, where)
        else:
            current[name] = _typed(value, types[name], where)
    try:
        return type(config)(**current)
    except ValueError as error:  # it names the key, not where it is
        raise ValueError(str(error).replace("config: ", f"config: {path}.", 1)) from None


def _schedule(current: Schedule, value: Any, where: str) -> Schedule:
    try:
        return fixed(float(value)) if type(value) in (int, float) else _update(current, value, where)
    except ValueError as error:
        text = str(error)
        raise (error if text.startswith("config: ") else ValueError(f"config: {where}: {text}")) from None


def _typed(value: Any, expected: type, where: str) -> Any:
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise ValueError(f"config: {where} must be {expected.__name__}, got {value!r}")
    if expected is float:
        _check_finite(where, value)
    return value
