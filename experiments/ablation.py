"""Trains every variant of an ablation with several seeds and prints the table of means and spreads.

    python -m experiments.ablation experiments/landsat.toml --jobs 2

An ablation file names a recipe, settings that all variants share, and for each variant the settings that make it. The
variants in its table `with_identities` train on true identities, of which that share is mixed (experiments.oracle).
Results are appended to a JSON file in results/, run by run, so a run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from dmic.config import load_config
from dmic.data import LabeledGallery
from dmic.data.cross_modality import cross_modality_protocols
from dmic.evaluate import evaluate_protocol
from dmic.models import embed
from dmic.run import RunFolder, build_dataset, build_network, load_run

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("Rank-1", "mAP", "own Rank-1", "clusters", "outliers", "purity", "splits", "mixed")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("ablation", type=Path, metavar="FILE.toml")
    parser.add_argument("--data", type=Path, metavar="PATH", help="the data set's folder, where the recipe needs one")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights that every run starts from (experiments.pretrain)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE.json", help="default: results/, named as the ablation; for other data"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one thread each")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="leave the other variants out")
    parser.add_argument(
        "--table", action="store_true", help="print the table of the results that are there, train nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    ablation = tomllib.loads(options.ablation.read_text(encoding="utf-8"))
    results = options.results or RESULTS / options.ablation.with_suffix(".json").name
    if not options.table:
        wanted = [
            (variant, seed)
            for seed in options.seeds
            for variant in ablation["variants"]
            if options.only is None or variant in options.only
        ]
        for variant, _ in wanted:  # a mistake in a setting must not wait for its turn
            load_config(ablation["recipe"], settings_of(ablation, variant, 0))
        done = {(run["variant"], run["seed"]) for run in load_results(results)}
        todo = [pair for pair in wanted if pair not in done]
        with ThreadPoolExecutor(options.jobs) as pool:
            for run in pool.map(lambda pair: run_variant(ablation, *pair, options), todo):
                results.write_text(json.dumps([*load_results(results), run], indent=1) + "\n", encoding="utf-8")
                print(f"{run['variant']}, seed {run['seed']}: {run['seconds']:.0f} s", flush=True)
    print(table(ablation, load_results(results)))
    return 0


def settings_of(ablation: dict[str, Any], variant: str, seed: int) -> list[str]:
    """What `--set` is given: the shared settings, those of the variant, and the seed."""
    tables = (ablation.get("settings", {}), ablation["variants"][variant])
    return [*(f"{key}={toml_value(value)}" for table in tables for key, value in table.items()), f"train.seed={seed}"]


def toml_value(value: Any) -> str:
    """A number, a word or an inline table, as TOML writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def run_variant(ablation: dict[str, Any], variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one variant in a process of its own, and keep the records of its first and last epoch and a curve."""
    settings = settings_of(ablation, variant, seed)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        mixed = ablation.get("with_identities", {}).get(variant)
        program = ["dmic"] if mixed is None else ["experiments.oracle", "--mixed", str(mixed)]
        command = [sys.executable, "-m", *program, "train", ablation["recipe"], "--out", str(out), "--device", "cpu"]
        command += [part for setting in settings for part in ("--set", setting)]
        command += ["--data", str(options.data)] if options.data else []
        command += ["--set", f"network.weights={options.weights}"] if options.weights else []
        start = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        records = RunFolder(out).records() if out.exists() else []
        # A training that ends for want of clusters is a result, not a failure of the experiment.
        stopped = process.stderr.strip().splitlines()[-1] if process.returncode else ""
        if process.returncode and "nothing to train on" not in stopped:
            raise RuntimeError(f"{variant}, seed {seed}: {process.stderr}")
        own = None if process.returncode else {"before": own_gallery(out, start=True), "after": own_gallery(out)}
    scored = [record for record in records if record.get("retrieval")]
    return {
        "variant": variant,
        "seed": seed,
        "settings": settings,
        "data": options.data.name if options.data else None,
        "weights": options.weights.name if options.weights else None,
        "seconds": seconds,
        "stopped": stopped,
        "machine": f"{os.cpu_count()} x {platform.machine()}, one thread",
        "before": brief(scored[0]),
        "after": brief(scored[-1] | {key: records[-1].get(key) for key in ("visible", "infrared", "shared", "known")}),
        "own_gallery": own,
        "curve": [brief(record) for record in records],
    }


def own_gallery(run: Path, *, start: bool = False) -> dict[str, Any]:
    """Retrieval across modalities among the people that the run was trained on, as `brief` has it of others."""
    config, network = load_run(run)
    dataset = build_dataset(config)
    if start:
        network = build_network(config, dataset.train.images.shape[1]).eval()
    labeled = LabeledGallery(dataset.train, dataset.train_person_ids)
    features = embed(network, dataset.train)
    results = [evaluate_protocol(features, labeled, protocol) for protocol in cross_modality_protocols(labeled)]
    return brief({"retrieval": [result.as_record() for result in results]})["retrieval"]


def brief(record: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a record that the tables and curves show."""
    kept = {key: record[key] for key in ("epoch", "visible", "infrared", "shared", "known") if record.get(key)}
    if record.get("retrieval"):
        kept["retrieval"] = {
            result["protocol"]: {"rank1": result["cmc"]["1"]["mean"], "map": result["mean_average_precision"]["mean"]}
            for result in record["retrieval"]
        }
    return kept


def load_results(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def table(ablation: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Means and spreads over the seeds as Markdown, in percent where that is usual; joint clusters if there are any."""
    rows = {}
    for variant in ablation["variants"]:
        runs = [run for run in results if run["variant"] == variant]
        if runs:
            rows[variant] = [measure(run["after"], run.get("own_gallery")) for run in runs]
    columns = [name for name in COLUMNS if any(row[name] is not None for runs in rows.values() for row in runs)]
    lines = ["| variant | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for variant, runs in rows.items():
        cells = [
            spread([row[column] for row in runs], 0 if column in ("clusters", "outliers") else 1) for column in columns
        ]
        lines.append(f"| {variant} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(after: dict[str, Any], own: dict[str, Any] | None = None) -> dict[str, float | None]:
    """One run in numbers: retrieval is the mean over protocols; clusters are the joint ones, else both modalities'."""
    retrieval = list(after["retrieval"].values())
    joint = after.get("shared") and after["shared"]["clusters"] > 0
    kinds = ["shared"] if joint else ["visible", "infrared"]
    found = [after[kind] for kind in kinds if kind in after]
    known = [after["known"][kind] for kind in kinds] if after.get("known") else []
    mixed = after["shared"]["mixed_share"] if joint else None
    return {
        "Rank-1": 100 * mean(score["rank1"] for score in retrieval),
        "mAP": 100 * mean(score["map"] for score in retrieval),
        "own Rank-1": 100 * mean(score["rank1"] for score in own["after"].values()) if own else None,
        "clusters": float(sum(kind["clusters"] for kind in found)),
        "outliers": float(sum(kind["outliers"] for kind in found)),
        "purity": 100 * mean(kind["purity"] for kind in known) if known else None,
        "splits": mean(kind["splits"] for kind in known) if known else None,
        "mixed": None if mixed is None else 100 * mixed,
    }


def spread(values: list[float | None], digits: int) -> str:
    """`61.2 +- 0.4`; `-` where no run has a value."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.{digits}f} +- {pstdev(known):.{digits}f}" if known else "-"


if __name__ == "__main__":
    sys.exit(main())
