"""Every setting of a run in one frozen tree, written into its folder as TOML and read back from there.

The algorithms take plain arguments; only the commands read this.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from .schedules import Schedule


@dataclass(frozen=True)
class DataConfig:
    """The embedded gallery."""

    num_crops: int = 6  # crops of a place per sensor band
    train_share: float = 2 / 3  # share of the places that train; the others are the unseen test places
    seed: int = 0  # of the split and of the crops


@dataclass(frozen=True)
class NetworkConfig:
    """The small two-stream network."""

    width: int = 24  # channels of a stem
    grid: int = 1  # cells a side that the pool keeps
    embedding_dim: int = 128  # numbers in a feature


@dataclass(frozen=True)
class ClusterConfig:
    """One clustering of every epoch."""

    k1: int  # neighbours searched, the sample itself included
    k2: Schedule  # neighbours that the expansion averages, the sample itself included; rounded, kept in 1..k1
    eps: Schedule  # radius of DBSCAN, a Jaccard distance in [0, 1]
    min_samples: int = 4  # samples within eps of a core sample, itself included


PER_MODALITY = ClusterConfig(k1=20, k2=Schedule("constant", 6.0, 6.0), eps=Schedule("constant", 0.6, 0.6))
JOINT = ClusterConfig(k1=40, k2=Schedule("constant", 32.0, 32.0), eps=Schedule("geometric", 0.6, 0.45))


@dataclass(frozen=True)
class TrainConfig:
    """The loop and the optimiser."""

    num_epochs: int = 16  # passes of embed, cluster, train, evaluate
    num_iterations: int = 60  # optimiser steps of each kind in an epoch
    joint_start: float = 0.17  # share of the epochs after which the joint clustering begins
    expansion: str = "mie"  # "mie": invariant to camera and modality; "plain": ids are ignored
    num_classes: int = 8  # clusters in a batch
    num_samples: int = 4  # images of a cluster in a batch, per modality
    temperature: float = 0.05  # of the softmax over similarities
    momentum: float = 0.0  # share of its old value that a memory row keeps
    learning_rate: Schedule = field(default_factory=lambda: Schedule("geometric", 3.5e-3, 1e-4))  # of Adam
    weight_decay: float = 5e-4  # of Adam
    seed: int = 0  # of the weights, the batches, the views and the memory updates


@dataclass(frozen=True)
class Config:
    """A whole run of `dmic demo`."""

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    per_modality: ClusterConfig = field(default_factory=lambda: PER_MODALITY)
    joint: ClusterConfig = field(default_factory=lambda: JOINT)
    train: TrainConfig = field(default_factory=TrainConfig)


def to_toml(config: Any) -> str:
    """The configuration as TOML: every field, defaults included, one table per nested dataclass."""
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
        import tomllib
    except ModuleNotFoundError:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise ValueError(f"{path}: reading TOML needs Python 3.11 or later, or: pip install tomli") from None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not TOML
        raise ValueError(f"{path}: not a TOML file ({error})") from None
    return from_dict(values)


def _tables(config: Any, path: tuple[str, ...]) -> list[str]:
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    nested = {name: value for name, value in values.items() if is_dataclass(value)}
    plain = [f"{name} = {json.dumps(value)}" for name, value in values.items() if name not in nested]
    lines = [*([f"\n[{'.'.join(path)}]"] if path else []), *plain] if plain else []
    for name, value in nested.items():
        lines += _tables(value, (*path, name))
    return lines


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
        if is_dataclass(current[name]):
            current[name] = _update(current[name], value, where)
        else:
            current[name] = _typed(value, types[name], where)
    return type(config)(**current)


def _typed(value: Any, expected: type, where: str) -> Any:
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise ValueError(f"config: {where} must be {expected.__name__}, got {value!r}")
    return value
