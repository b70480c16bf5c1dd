"""What a terminal shows: a line for every epoch, and the scores of every protocol under its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .evaluate import RANKS, MeanSpread, ProtocolResult


def percent(share: float | None) -> str:
    """`61.2` for 0.612; `-` where there is no value."""
    return "-" if share is None or share != share else f"{100 * share:.1f}"


class EpochLines:
    """One line per epoch of a training, under a header that says what the columns are."""

    CLUSTERS = "{:>5}  {:>9}  {:>9}  {:>9}  {:>6}  {:>6}"
    FIXED_WIDTH = 63  # of these columns and the time; as many protocols as fit beside them are shown, at least one

    def __init__(self, console: Console):
        self.console = console
        self.protocols: list[str] = []
        self.started = False

    def show(self, record: dict[str, Any]) -> None:
        """Print the line of a record of `dmic.train`: clusters+outliers, shares in percent, seconds."""
        if not self.started:
            self._print_header(record)
        clusters, mixed, loss, seconds = ["-"] * 3, None, "-", "-"
        if record["epoch"]:
            found = [record[name] for name in ("visible", "infrared", "shared")]
            clusters = [f"{kind['clusters']}+{kind['outliers']}" if kind["clusters"] else "-" for kind in found]
            mixed = record["shared"]["mixed_share"]
            loss = f"{sum(record['loss'].values()):.2f}"
            seconds = f"{sum(record['seconds'].values()):.0f} s"
        scores = {result["protocol"]: result["cmc"]["1"]["mean"] for result in record.get("retrieval", ())}
        rank1 = [f"{percent(scores.get(name)):>6}" for name in self.protocols]
        line = self.CLUSTERS.format(record["epoch"], *clusters, percent(mixed), loss)
        self.console.print("  ".join([line, *rank1, f"{seconds:>7}"]), soft_wrap=True)

    def _print_header(self, record: dict[str, Any]) -> None:
        self.started = True
        names = [result["protocol"] for result in record.get("retrieval", ())]
        self.protocols = names[: max(1, (self.console.width - self.FIXED_WIDTH) // 8)]
        legend = "clusters+outliers; mixed: % of joint clusters with both modalities"
        self.console.print(f"[dim]{legend}[/dim]", soft_wrap=True)
        for number, name in enumerate(self.protocols, 1):
            self.console.print(f"[dim]R1({number}): Rank-1 in %, {escape(name)}[/dim]", soft_wrap=True)
        if left_out := len(names) - len(self.protocols):
            self.console.print(f"[dim]{left_out} more protocols: at the end, and in the metrics[/dim]", soft_wrap=True)
        titles = [f"{f'R1({number})':>6}" for number in range(1, len(self.protocols) + 1)]
        columns = self.CLUSTERS.format("epoch", "visible", "infrared", "joint", "mixed", "loss")
        self.console.print("  ".join([f"[bold]{columns}", *titles, f"{'time':>7}[/bold]"]), soft_wrap=True)


def protocol_table(moments: Mapping[str, Sequence[ProtocolResult]], title: str = "Retrieval, %") -> Group:
    """Rank-1/5/10/20, mAP and mINP in percent: a small table for every protocol, under the protocol's name.

    It fits in 80 columns, also with several trials, whose mean and standard deviation are shown as `61.2 +-0.4`.

    Args:
        moments: results by when or how they came about, such as "before" and "after"; the last one is set in bold.
            With a single moment its name is left out.
        title: above the tables.

    Returns:
        Protocols in the order of their first appearance, each with its trials and the queries that count in all of
        them. The columns of all tables are aligned.
    """
    scores = (*(f"Rank-{rank}" for rank in RANKS), "mAP", "mINP")
    by_name: dict[str, list[tuple[str, ProtocolResult]]] = {}
    for moment, results in moments.items():
        for result in results:
            by_name.setdefault(result.name, []).append((moment, result))
    cells = {name: [_cells(result) for _, result in rows] for name, rows in by_name.items()}
    width = max((len(cell) for rows in cells.values() for row in rows for cell in row), default=0)
    parts: list[Text | Table] = [Text(title, "bold")]
    for name, rows in by_name.items():
        parts.append(Text.assemble("\n", (name, "bold"), (f"  {counts_text(rows[-1][1])}", "dim")))
        table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False, header_style="dim")
        if len(moments) > 1:
            table.add_column("", no_wrap=True, min_width=max(map(len, moments)))
        for score in scores:
            table.add_column(score, justify="right", no_wrap=True, min_width=max(width, len("Rank-20")))
        for (moment, _), row in zip(rows, cells[name], strict=True):
            last = moment == list(moments)[-1] and len(moments) > 1
            table.add_row(*((moment, *row) if len(moments) > 1 else row), style="bold" if last else None)
        parts.append(table)
    return Group(*parts)


def _cells(result: ProtocolResult) -> list[str]:
    means = (*result.cmc.values(), result.mean_average_precision, result.mean_inverse_negative_penalty)
    return [mean_spread(score, len(result.trials)) for score in means]


def counts_text(result: ProtocolResult) -> str:
    """`10 trials, 38,030 queries, 12 skipped`: queries that count and those without a match, in all trials."""
    num_trials = len(result.trials)
    counts = f"{num_trials} trial{'s' if num_trials > 1 else ''}, {result.num_queries:,} queries"
    return f"{counts}, {result.num_skipped:,} skipped" if result.num_skipped else counts


def mean_spread(score: MeanSpread, num_trials: int) -> str:
    """`61.2 +-0.4` for several trials, `61.2` for one; at most ten characters."""
    if num_trials == 1 or score.mean != score.mean:
        return percent(score.mean)
    mean = "100" if score.mean > 0.9995 else percent(score.mean)
    return f"{mean} +-{100 * score.spread:.0f}" if score.spread > 0.0995 else f"{mean} +-{percent(score.spread)}"
