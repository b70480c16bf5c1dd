"""The suite's results in docs: growth curves of every op and method, and the table of whole clusterings."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- python -m benchmarks.suite -->", "<!-- end of the results -->"
PANELS = ("all five", "knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan")
COLORS = {
    "dmic": "#c2410c",
    "published dense pipeline": "#334155",
    "faiss-cpu": "#2563eb",
    "torch mm + topk": "#16a34a",
    "scipy sparse": "#9333ea",
    "scikit-learn sparse": "#0891b2",
}


def curves(results: list[dict], kind: dict, panel: str, quantity: str) -> dict[str, tuple[list[int], list[float]]]:
    """N and seconds or MB of each method, ascending, over the results whose case is `kind` but for its size."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for result in sorted(results, key=lambda r: r["num_samples"]):
        if result["case"] | {"size": kind["size"]} != kind:
            continue
        for name, method in result["methods"].items():
            measured = method.get("stages", {}).get(panel)
            if measured and name in COLORS:
                sizes, values = lines.setdefault(name, ([], []))
                sizes.append(result["num_samples"])
                seconds = measured["seconds"]["median"]
                values.append(seconds if quantity == "seconds" else max(measured["peak_bytes"] / 1e6, 0.1))
    return lines


def draw(results: list[dict], kind: dict, folder: Path) -> None:
    """growth.svg and growth.png: time above, memory below, a column for each op; a line ends where its method does."""
    pyplot.rcParams |= {"svg.hashsalt": "dmic", "font.size": 8}  # the same file from the same numbers
    figure, axes = pyplot.subplots(2, len(PANELS), figsize=(16, 6), sharex=True, sharey="row", layout="constrained")
    names: dict[str, object] = {}
    for row, (quantity, label) in enumerate((("seconds", "seconds"), ("bytes", "peak MB beyond the features"))):
        for axis, panel in zip(axes[row], PANELS, strict=True):
            for name, (sizes, values) in curves(results, kind, panel, quantity).items():
                names[name] = axis.plot(sizes, values, marker="o", markersize=3, color=COLORS[name], label=name)[0]
            axis.set(xscale="log", yscale="log", title=panel if row == 0 else "", xlabel="samples" if row else "")
            sizes = sorted({result["num_samples"] for result in results})
            axis.set_xticks(sizes, [f"{size / 1000:.0f}k" for size in sizes])
            axis.set_xticks([], minor=True)
            axis.grid(True, which="major", linewidth=0.3)
        axes[row][0].set_ylabel(label)
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=len(COLORS), frameon=False)
    figure.savefig(folder / "growth.svg", metadata={"Date": None})
    figure.savefig(folder / "growth.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def kind_of(case: dict) -> str:
    norms = "unit" if case["unit_norm"] else "free"
    return f"{case['difficulty']}, {norms} norms, d {case['dim']}, k {case['k1']}/{case['k2']}"


def after_the_search(results: list[dict]) -> list[str]:
    """Markdown: what a row of a gallery costs us in every stage but the search, cases of one kind together."""
    whole, search, *after = PANELS
    lines = [
        "Microseconds that a row takes after the search, and their share of the whole:",
        "",
        f"| features | N | {' | '.join(after)} | share |",
        "|" + "---|" * (len(after) + 3),
    ]
    for result in sorted(results, key=lambda r: (kind_of(r["case"]), r["num_samples"])):
        stages = result["methods"].get("dmic", {}).get("stages", {})
        if whole not in stages:
            continue
        seconds = {stage: stages[stage]["seconds"]["median"] for stage in PANELS}
        micros = " | ".join(f"{seconds[stage] / result['num_samples'] * 1e6:.1f}" for stage in after)
        share = sum(seconds[stage] for stage in after) / (seconds[search] + sum(seconds[stage] for stage in after))
        lines.append(f"| {kind_of(result['case'])} | {result['num_samples']:,} | {micros} | {share:.0%} |")
    return lines


def block(document: dict) -> str:
    """Markdown: the pictures, the whole clusterings, what was skipped and why, and what the stages cost a row."""
    machine = document["machine"]
    lines = [
        f"{machine['cpu']}, {machine['torch_threads']} threads, commit `{document['commit']}`:",
        "",
        "![Time and memory of every op against the number of samples](growth.svg)",
        "",
        "| N | features | method | seconds, median (runs) | peak MB beyond the features | answer |",
        "|---|---|---|---|---|---|",
    ]
    for result in sorted(document["results"], key=lambda r: r["num_samples"]):
        start = f"| {result['num_samples']:,} | {kind_of(result['case'])} |"
        for name, method in result["methods"].items():
            if "skipped" in method:
                lines.append(f"{start} {name} | - | - | {method['skipped']} |")
            elif "all five" in method["stages"]:
                whole = method["stages"]["all five"]
                seconds = whole["seconds"]
                numbers = f"{seconds['median']:.2f} ({len(seconds['repeats'])}) | {whole['peak_bytes'] / 1e6:.0f}"
                lines.append(f"{start} {name} | {numbers} | {whole['answer'] or '-'} |")
    lines += ["", *after_the_search(document["results"])]
    return "\n".join([*lines, "", "Commands:", "", *(f"    {command}" for command in document["commands"])]) + "\n"


def publish(document: dict, kind: dict, folder: Path = DOCS) -> None:
    """The pictures, of cases of one kind, into `folder`; the block into its benchmarks.md."""
    draw(document["results"], kind, folder)
    page = folder / "benchmarks.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    if END not in rest:
        raise ValueError(f"{page} must have the line {BEGIN!r} and after it {END!r}: the results go between them")
    page.write_text(f"{before}{begin}\n\n{block(document)}\n{END}{rest.partition(END)[2]}")
