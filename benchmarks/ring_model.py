"""Time, memory and traffic of a clustering over ranks that was not run: for a gallery and machines of one's own.

    python -m benchmarks.ring_model --num-samples 1e7 --dim 512 --ranks 64
    python -m benchmarks.ring_model --num-samples 1e6 --dim 256 --device cpu --threads 8 --gigabytes-per-second 1
    python -m benchmarks.ring_model --num-samples 1e7 --ranks 64 --slow-rank 3:0.5 --slow-link 7-8:1
    python -m benchmarks.ring_model --write     # the table of docs/scale.md

Closed formulas are in `benchmarks.ring_costs` and `benchmarks.traffic`, the replay in `benchmarks.ring_replay`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dmic.block_memory import MAX_BLOCK_ROWS, MIN_BLOCK_ROWS, Search, choose_block_rows

from . import costs
from .ring_costs import Rates, compute_seconds, core_rates, gpu_rates, measured_in_blocks, memory, times
from .ring_replay import Link, Links, Replayed, replay, replay_in_step
from .traffic import STAGES, Case, sent_bytes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- python -m benchmarks.ring_model --write -->", "<!-- end of the model -->"
NUM_SAMPLES, RANKS = (1_000_000, 10_000_000, 100_000_000), (8, 64, 512)
MANY = 64


def case_for(options: argparse.Namespace, num_samples: int, ranks: int) -> Case:
    own = -(-num_samples // ranks)
    if options.max_memory:
        search, device = Search(options.k1, options.k2, 0.6, 4), "cuda" if options.device == "gpu" else "cpu"
        size = num_samples, own, ranks, options.dim, search
        rows = choose_block_rows("ring_model", *size, int(options.max_memory), device)
    else:
        rows = max(MIN_BLOCK_ROWS, min(MAX_BLOCK_ROWS, own))
    means = {name: getattr(options, name) for name in ("encoding_length", "expanded_length", "num_pairs", "rounds")}
    return Case.even(num_samples, ranks, rows, options.dim, k1=options.k1, k2=options.k2, **means)


def rates_for(case: Case, device: str, threads: int, simd: str) -> Rates:
    if device == "gpu":
        return gpu_rates(case)
    others = measured_in_blocks(simd=simd) if simd != "amx" else None
    return {stage: times(cost, 1 / threads) for stage, cost in core_rates(case, others=others).items()}


def usual_link(options: argparse.Namespace) -> Link:
    return Link(1e9 * options.gigabytes_per_second, 1e-6 * options.microseconds)


def undisturbed(case: Case, rates: Rates, link: Link) -> Replayed:
    """Equal ranks and links; of very many, one stands for all."""
    return replay_in_step(case, rates, link) if case.ranks > MANY else replay(case, rates, lambda a, b: link)


def exceptions(options: argparse.Namespace) -> tuple[list[float], Links]:
    """The speeds of all ranks and the links between them."""
    speeds, slow, usual = [1.0] * options.ranks, {}, usual_link(options)
    for text in (*options.slow_rank, *options.slow_link):
        name, _, value = text.partition(":")
        ranks = [int(rank) for rank in name.split("-")]
        if not all(0 <= rank < options.ranks for rank in ranks) or not float(value or 0) > 0:
            raise SystemExit(f"{text!r}: ranks are 0 to {options.ranks - 1}, and a speed is more than 0")
        if len(ranks) == 1:
            speeds[ranks[0]] = float(value)
        else:
            slow[tuple(ranks)] = usual._replace(bytes_per_second=1e9 * float(value))
    return speeds, lambda a, b: slow.get((a, b), usual)


def report(options: argparse.Namespace, console: Console) -> None:
    n, ranks, on_gpu = int(options.num_samples), options.ranks, options.device == "gpu"
    case = case_for(options, n, ranks)
    rates = rates_for(case, options.device, options.threads, options.simd)
    found = even = undisturbed(case, rates, usual_link(options))
    if options.slow_rank or options.slow_link:
        speeds, links = exceptions(options)
        found = replay(case, rates, links, speeds)
    columns = (compute_seconds(case, 0, rates), found.seconds, sent_bytes(case, 0), memory(case, on_gpu))
    table = Table("stage", "computes", "with the others", "sends", "holds beyond the features")
    for stage in STAGES:
        computed, seconds, sent, held = (column[stage] for column in columns)
        sizes = (costs.quantity(size, "B") for size in (sent, held))
        table.add_row(stage, costs.duration(computed), costs.duration(seconds), *sizes)
    features = costs.quantity(4 * len(case.ring(0).own) * case.dim, "B")
    console.print(f"{n:,} rows of {case.dim} over {ranks} ranks, blocks of {case.block_rows:,}; a rank has {features}")
    console.print(table)
    waited = costs.duration(found.total - found.busy[0])
    console.print(f"all: {costs.duration(found.total)}, of which rank 0 waits {waited}")
    if found is not even:
        console.print(f"what is slow makes it {found.total / even.total:.2f} times as long")
    if on_gpu:
        console.print("An H100 as benchmarks/costs.py predicts it: no GPU has confirmed these times.")


def page_table(options: argparse.Namespace) -> str:
    """For docs/scale.md."""
    lines = [
        "| N | GPUs | search | encoding | expansion | join | DBSCAN | all | a rank sends | holds | and features |",
        "|---|" + "---|" * 10,
    ]
    link = usual_link(options)
    for n in NUM_SAMPLES:
        for ranks in RANKS:
            case = case_for(options, n, ranks)
            found = undisturbed(case, gpu_rates(case), link)
            times = [costs.duration(seconds) for seconds in (*found.seconds.values(), found.total)]
            sizes = [sum(sent_bytes(case, 0).values()), max(memory(case, True).values())]
            sizes.append(4 * len(case.ring(0).own) * case.dim)
            cells = [f"{n:,}", str(ranks), *times, *(costs.quantity(size, "B") for size in sizes)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--num-samples", type=float, default=1e7)
    options.add_argument("--dim", type=int, default=512)
    options.add_argument("--ranks", type=int, default=8)
    options.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="of a rank")
    options.add_argument("--threads", type=int, default=1, help="of a rank on a CPU")
    options.add_argument("--simd", choices=("amx", "avx512"), default="amx", help="instructions of a CPU, as measured")
    options.add_argument("--max-memory", type=float, help="bytes of a rank, which decide how large blocks are")
    options.add_argument("--gigabytes-per-second", type=float, default=25, help="of the link of a rank, each way")
    options.add_argument("--microseconds", type=float, default=20, help="that a message takes, one way")
    options.add_argument("--slow-rank", nargs="*", default=[], metavar="RANK:SPEED", help="1 is as fast as the others")
    options.add_argument("--slow-link", nargs="*", default=[], metavar="FROM-TO:GB/S")
    options.add_argument("--k1", type=int, default=30)
    options.add_argument("--k2", type=int, default=6)
    options.add_argument("--encoding-length", type=float, default=30, help="mean of a row, as all of the next three")
    options.add_argument("--expanded-length", type=float, default=60)
    options.add_argument("--num-pairs", type=float, default=11, help="within eps, the sample itself included")
    options.add_argument("--rounds", type=int, default=5, help="of DBSCAN")
    options.add_argument("--write", action="store_true", help="write the table of docs/scale.md")
    return options


def main() -> None:
    options = parser().parse_args()
    if not options.write:
        report(options, Console(width=160))
        return
    table = page_table(options)
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    if END not in rest:
        raise SystemExit(f"{PAGE} must have the line {BEGIN!r} and after it {END!r}: the table goes between them")
    PAGE.write_text(f"{before}{begin}\n\n{table}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
