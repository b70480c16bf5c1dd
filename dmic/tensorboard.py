"""The records of a run for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Every number of a record of `dmic.train`, by tag: retrieval in percent by protocol, seconds, bytes, shares."""
    found: dict[str, float | None] = {}
    for result in record.get("retrieval", ()):
        scores = {f"Rank-{rank}": score for rank, score in result["cmc"].items()}
        scores |= {"mAP": result["mean_average_precision"], "mINP": result["mean_inverse_negative_penalty"]}
        for name, score in scores.items():
            mean = score["mean"]
            found[f"retrieval, {result['protocol']}/{name}"] = None if mean is None else 100 * mean
    for clustering in ("visible", "infrared", "shared"):
        for name, value in (record.get(clustering, {}) | record.get("known", {}).get(clustering, {})).items():
            found[f"{name}/{clustering}"] = value
    for group in ("loss", "seconds"):
        found |= {f"{group}/{name}": value for name, value in record.get(group, {}).items()}
    found |= {f"training/{name}": record.get(name) for name in ("learning_rate", "peak_bytes")}
    return {tag: float(value) for tag, value in found.items() if value is not None and value == value}


def event_log(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that adds a record to the event files in `folder`; it does nothing if tensorboard is not installed.

    Epochs that are trained again after a resume take the place of what an earlier process wrote.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        if error.name != "tensorboard":
            raise
        return lambda record: None
    writer: SummaryWriter | None = None

    def log(record: dict[str, Any]) -> None:
        nonlocal writer
        writer = writer or SummaryWriter(str(folder), purge_step=record["epoch"])
        for tag, value in scalars(record).items():
            writer.add_scalar(tag, value, record["epoch"])
        writer.flush()

    return log
