"""The report that a run leaves behind: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .charts import Series, Span, is_number, line_chart, stacked_bars
from .checkpoint import atomic_write
from .config import Config
from .constants import VISIBLE
from .data import Dataset, Gallery
from .data.pedestrians import NOTICE
from .evaluate import ProtocolResult
from .models import TwoStreamNetwork
from .report import counts_text, mean_spread, percent
from .report_style import STYLE
from .retrievals import Retrieval, retrievals
from .run import BUILD, CONFIG, RunFolder, build_network, build_stages
from .train import Stage

REPORT = "report.html"
SYNTHETIC = "The images are synthetic and show no person: a check of the system, no claim about people."
PLACES = (
    "The images are small noisy crops of one Landsat-7 scene (Olinda, Brazil). A place is an identity, a sensor band a "
    "camera: 1 to 3 are blue, green and red (visible), 4 to 6 NIR, SWIR1 and SWIR2 (infrared)."
)
NUM_QUERIES, NUM_RESULTS = 6, 6
QUERY_SEED = 0
THUMBNAIL = 112  # pixels, the longer side of an embedded image at least
MODALITY_NAMES = ("visible", "infrared")
CLUSTERINGS = {"visible": "visible", "infrared": "infrared", "shared": "joint"}  # in a record, and for people
PHASES = ("embed", "cluster", "load", "train", "evaluate")


def write_report(folder: RunFolder, config: Config, network: TwoStreamNetwork, dataset: Dataset) -> Path:
    """Write report.html of a finished run into its folder, all or nothing, from its records and its network.

    The network that training started from is built once more for the pictures; where its initial weights are no longer
    to be had, the page says so in place of those pictures.

    Args:
        folder: of the run, with its records.
        config: of the run.
        network: the trained one, in evaluation mode.
        dataset: that of `config`.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written, or a test image cannot be read.
    """
    run = _Run(config, dataset, folder.records(), build_stages(config))
    title = _title(config, dataset)
    parts = [
        *_introduction(title, run),
        *_scores(run),
        *(_curves(run) if run.epochs else ()),
        *_pictures(run, network),
        *_settings(folder),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    with atomic_write(folder / REPORT) as file:
        file.write(page.encode())
    return folder / REPORT


def is_synthetic(config: Config) -> bool:
    """Whether the images of a run show pedestrians that do not exist: their tree says so in a file."""
    root = Path(config.data.root) if config.data.root else None
    return root is not None and ((root if root.is_dir() else root.parent) / NOTICE).exists()


@dataclass(frozen=True, eq=False)
class _Run:
    """What the sections read."""

    config: Config
    dataset: Dataset
    records: list[dict[str, Any]]
    stages: tuple[Stage, ...]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of epochs that trained."""
        return [record for record in self.records if record["epoch"]]

    @property
    def scored(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record.get("retrieval")]

    @property
    def spans(self) -> list[Span]:
        spans, last = [], 0
        for number, stage in enumerate(self.stages, 1):
            spans.append(Span(f"stage {number}", last + 1, last + stage.num_epochs))
            last += stage.num_epochs
        return spans

    def has_joint(self, record: dict[str, Any]) -> bool:
        """Whether both modalities were clustered together in the epoch of a record."""
        return self.stages[record["stage"] - 1].objective.joint != "none"

    def per_clustering(self, value: Callable[[dict[str, Any], str], float | None]) -> list[Series]:
        """A line for each clustering of value(record, clustering); a gap where there is no joint one."""
        return [
            Series(
                title,
                [None if name == "shared" and not self.has_joint(r) else value(r, name) for r in self.epochs],
                style=style,
            )
            for style, (name, title) in enumerate(CLUSTERINGS.items())
        ]

    def chart(self, title: str, unit: str, series: Sequence[Series], **options: Any) -> str:
        """A `line_chart` over the epochs that trained."""
        return line_chart(title, unit, [r["epoch"] for r in self.epochs], series, self.spans, **options)


def _section(title: str, text: str, *parts: str) -> Iterator[str]:
    yield f"<h2>{escape(title)}</h2>"
    if text:
        yield f"<p class=faint>{escape(text)}</p>"
    yield from (part for part in parts if part)


def _charts(*charts: str) -> str:
    drawn = "".join(charts)
    return f"<div class=charts>{drawn}</div>" if drawn else ""


# ------------------------------------------------------------------------------------------- what it is, and the scores


def _title(config: Config, dataset: Dataset) -> str:
    return f"Synthetic pedestrians in the layout of {dataset.name}" if is_synthetic(config) else dataset.name


def _introduction(title: str, run: _Run) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>"
    yield (
        "<p>Unsupervised visible-infrared re-identification: trained with images, their cameras and their modalities, "
        "without identities.</p>"
    )
    if run.config.data.kind == "landsat":
        yield f"<p>{PLACES}</p>"
    if is_synthetic(run.config):
        yield (
            "<p class=notice><b>The images are synthetic.</b> They are drawn by a program and show no person. Scores "
            "on them check that the system works; they say nothing about people, and they are not comparable with "
            "scores on the real data set, whose layout and protocol names they share.</p>"
        )
    known = run.dataset.train_person_ids
    train = _describe(run.dataset.train, "identities unknown" if known is None else _identities(known))
    test = run.dataset.test
    tested = "none with identities" if test is None else _describe(test.unlabeled, _identities(test.person_ids))
    yield f"<p class=faint>Training images: {train}.<br>Test images: {tested}.</p>"


def _describe(gallery: Gallery, identities: str) -> str:
    num_visible = int((gallery.modality_ids == VISIBLE).sum())
    cameras = len(gallery.camera_ids.unique())
    return (
        f"{len(gallery):,} ({num_visible:,} visible, {len(gallery) - num_visible:,} infrared), "
        f"{cameras} camera{'s' if cameras != 1 else ''}, {identities}"
    )


def _identities(person_ids: torch.Tensor) -> str:
    return f"{len(person_ids.unique()):,} identities"


def _scores(run: _Run) -> Iterator[str]:
    if not run.scored:
        yield from _section("Scores", "There are no test images with identities, so nothing was scored.")
        return
    first, last = run.scored[0], run.scored[-1]
    before = {r["protocol"]: ProtocolResult.from_record(r) for r in first["retrieval"]} if first is not last else {}
    after = [ProtocolResult.from_record(result) for result in last["retrieval"]]
    text = f"Scores are of the last epoch ({last['epoch']}), not of the best one, in percent. Before: the network that "
    text += "training started from. With several trials: mean ± standard deviation."
    cards = "".join(_card(result, before.get(result.name)) for result in after)
    yield from _section("Scores", text, f"<div class=cards>{cards}</div>", _score_table(before, after))


def _card(result: ProtocolResult, before: ProtocolResult | None) -> str:
    lines = [f"<h3>{escape(result.name)}</h3>"]
    for name, of in (("Rank-1", lambda r: r.cmc[1]), ("mAP", lambda r: r.mean_average_precision)):
        was = f"<span class=was>{percent(of(before).mean)} &rarr;</span>" if before else ""
        now = f"<span class=now>{percent(of(result).mean)} %</span>"
        lines.append(f"<div><span class=name>{name}</span>{was}{now}</div>")
    return f"<div class=card>{''.join(lines)}</div>"


def _score_table(before: dict[str, ProtocolResult], after: Sequence[ProtocolResult]) -> str:
    ranks = list(after[0].cmc)
    heads = "".join(f"<th>{name}</th>" for name in ("", *(f"Rank-{rank}" for rank in ranks), "mAP", "mINP"))
    rows = []
    for result in after:
        counts = f"<span class=faint>{escape(counts_text(result))}</span>"
        rows.append(f"<tr class=protocol><td colspan={len(ranks) + 3}>{escape(result.name)} {counts}</td></tr>")
        for moment, scored in (("before", before.get(result.name)), ("after", result)):
            if scored:
                means = (*scored.cmc.values(), scored.mean_average_precision, scored.mean_inverse_negative_penalty)
                texts = [mean_spread(score, len(scored.trials)).replace("+-", "±") for score in means]
                cells = "".join(f"<td>{text}</td>" for text in texts)
                rows.append(f"<tr class={moment}><td>{moment}</td>{cells}</tr>")
    return f"<div class=wide><table><tr>{heads}</tr>{''.join(rows)}</table></div>"


# ------------------------------------------------------------------------------------------------------------- curves


def _curves(run: _Run) -> Iterator[str]:
    for section in (_retrieval_curves, _cluster_curves, _quality_curves, _loss_curves, _schedules, _time):
        yield from section(run)


def _retrieval_curves(run: _Run) -> Iterator[str]:
    by_protocol: dict[str, dict[int, ProtocolResult]] = {}
    for record in run.scored:
        for result in record["retrieval"]:
            by_protocol.setdefault(result["protocol"], {})[record["epoch"]] = ProtocolResult.from_record(result)
    drawn: list[tuple[str, list[Series]]] = []
    epochs = [record["epoch"] for record in run.scored]
    for name, results in by_protocol.items():
        if len(results) < 2:
            continue  # re-ranked in the last epoch only: a number, not a curve
        series = []
        for style, (title, of) in enumerate(
            (("Rank-1", lambda r: r.cmc[1]), ("mAP", lambda r: r.mean_average_precision))
        ):
            scores = [of(results[epoch]) if epoch in results else None for epoch in epochs]
            means, spreads = ([100 * score[part] if score else None for score in scores] for part in (0, 1))
            series.append(Series(title, means, spreads, style))
        drawn.append((name, series))
    highest = max((v for _, series in drawn for line in series for v in line.values if is_number(v)), default=0.0)
    charts = [
        line_chart(name, "%", epochs, series, run.spans, highest=highest, show=lambda value: f"{value:.1f}")
        for name, series in drawn
    ]
    if charts:
        text = (
            "Epoch 0 is before training. Numbers beside the names are the last ones; bands are the spread over trials."
        )
        yield from _section("Retrieval over training", text, _charts(*charts))


def _cluster_curves(run: _Run) -> Iterator[str]:
    known = run.dataset.train_person_ids
    reference = None if known is None else ("true identities", float(len(known.unique())))
    text = "What the clustering at the start of every epoch found. Outliers belong to no cluster."
    if known is not None:
        text += " The number of true identities is for comparison only, training does not know it."
    yield from _section(
        "Clusters",
        text,
        _charts(
            run.chart(
                "Clusters", "number", run.per_clustering(lambda r, name: r[name]["clusters"]), reference=reference
            ),
            run.chart("Outliers", "images", run.per_clustering(lambda r, name: r[name]["outliers"])),
            run.chart(
                "Cameras per cluster, mean",
                "number",
                run.per_clustering(lambda r, name: r[name]["cameras_per_cluster"]),
            ),
            run.chart(
                "Joint clusters that hold both modalities",
                "%",
                [
                    Series(
                        "mixed",
                        [_percentage(r["shared"]["mixed_share"]) if run.has_joint(r) else None for r in run.epochs],
                        style=2,
                    )
                ],
            ),
        ),
    )


def _percentage(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _quality_curves(run: _Run) -> Iterator[str]:
    title = "Clusters and true identities"
    if run.dataset.train_person_ids is None:
        yield from _section(title, "Nobody knows the identities of the training images, so purity cannot be measured.")
        return
    text = "Identities are used for these curves only, never for training. Purity: share of the clustered images whose "
    text += "identity is the most frequent one of their cluster. Splits: clusters that an identity is spread over."

    def known(record: dict[str, Any], clustering: str, measure: str) -> float | None:
        return record["known"][clustering][measure]

    yield from _section(
        title,
        text,
        _charts(
            run.chart("Purity", "%", run.per_clustering(lambda r, name: _percentage(known(r, name, "purity")))),
            run.chart("Splits per identity, mean", "number", run.per_clustering(lambda r, n: known(r, n, "splits"))),
        ),
    )


def _loss_curves(run: _Run) -> Iterator[str]:
    names = list(dict.fromkeys(name for record in run.epochs for name in record["loss"]))
    charts = []
    for title, chosen in (
        ("Against cluster memories", [name for name in names if not name.startswith("instance_")]),
        ("Against instance memories", [name for name in names if name.startswith("instance_")]),
    ):
        series = [
            Series(
                name.replace("shared", "joint").replace("_", " "), [r["loss"].get(name) for r in run.epochs], style=i
            )
            for i, name in enumerate(chosen)
        ]
        charts.append(run.chart(title, "nats", series))
    yield from _section("Losses", "Means over the iterations of an epoch, before they are weighted.", _charts(*charts))


def _schedules(run: _Run) -> Iterator[str]:
    epochs, per_modality, joint = [], [], []
    for span, stage in zip(run.spans, run.stages, strict=True):
        for epoch in range(stage.num_epochs):
            epochs.append(span.first + epoch)
            per_modality.append(stage.per_modality(epoch))
            joint.append(stage.joint(epoch) if stage.objective.joint != "none" else {})
    charts = [
        line_chart(
            title,
            unit,
            epochs,
            [
                Series("each modality", [settings[name] for settings in per_modality]),
                Series("joint", [settings.get(name) for settings in joint], style=2),
            ],
            run.spans,
        )
        for name, title, unit in (
            ("eps", "eps, the radius of DBSCAN", "Jaccard distance"),
            ("k2", "k2, neighbours that are averaged", "samples"),
        )
    ]
    yield from _section("Schedules", "Of the clustering, as the settings below say.", _charts(*charts))


def _time(run: _Run) -> Iterator[str]:
    series = [
        Series(phase, [record["seconds"].get(phase) for record in run.epochs], style=style)
        for style, phase in enumerate(PHASES)
    ]
    peak = max(record["peak_bytes"] for record in run.epochs)
    text = "Seconds of every epoch; load is the wait for batches. Scores before training and saving are not in them. "
    text += f"Peak memory: {peak / 2**30:.2f} GiB."
    epochs = [record["epoch"] for record in run.epochs]
    yield from _section(
        "Where the time went", text, _charts(stacked_bars("Seconds per epoch", "s", epochs, series, run.spans))
    )


# ----------------------------------------------------------------------------------------------------------- pictures


def _pictures(run: _Run, network: TwoStreamNetwork) -> Iterator[str]:
    test, protocols = run.dataset.test, run.dataset.protocols
    if test is None or not protocols:
        return
    protocol = protocols[0]
    networks = {"after training": network}
    missing = ""
    try:
        start = build_network(run.config, run.dataset.train.images.shape[1])
    except (OSError, ValueError) as error:
        missing = f" What it retrieved before training is not shown: {error}."
    else:
        device = next(network.parameters()).device
        networks = {"before training": start.eval().to(device), **networks}
    found = retrievals(
        test, protocol, list(networks.values()), num_queries=NUM_QUERIES, num_results=NUM_RESULTS, seed=QUERY_SEED
    )
    text = (
        f"{protocol.name}: queries of its first trial, drawn at random with a fixed seed (no two of one identity), not "
    )
    text += f"chosen, and the {NUM_RESULTS} nearest images that its camera rules let them see, nearest first. "
    text += f"Solid frame and check mark: the same identity; dashed frame and cross: another one.{missing}"
    if test.unlabeled.images.shape[1] == 1:
        text += " Contrast is stretched for the eye."
    cards = [_retrieval_card(test.unlabeled, test.person_ids, retrieval, list(networks)) for retrieval in found]
    if not cards:
        text = f"{protocol.name}: no query of the first trial has a match in what it sees."
    yield from _section("Retrieved images", text, *cards)


def _retrieval_card(gallery: Gallery, person_ids: torch.Tensor, retrieval: Retrieval, moments: Sequence[str]) -> str:
    strips = []
    for moment, results in zip(moments, retrieval.results, strict=True):
        right = [bool(person_ids[sample] == person_ids[retrieval.query]) for sample in results]
        shots = "".join(
            _shot(gallery, sample, "right" if same else "wrong", f"cam {int(gallery.camera_ids[sample]) + 1}")
            for sample, same in zip(results, right, strict=True)
        )
        strips.append(f"<div class=strip><span class=moment>{moment}</span>{shots}</div>")
    modality = MODALITY_NAMES[int(gallery.modality_ids[retrieval.query])]
    caption = f"query, {modality}, cam {int(gallery.camera_ids[retrieval.query]) + 1}"
    return f"<div class=retrieval>{_shot(gallery, retrieval.query, 'query', caption)}{''.join(strips)}</div>"


def _shot(gallery: Gallery, sample: int, kind: str, caption: str) -> str:
    image = _data_uri(gallery.images[torch.tensor([sample])][0].numpy())
    hint = {"right": "the same identity, ", "wrong": "another identity, "}.get(kind, "") + caption
    return (
        f'<figure class="shot {kind}"><img src="{image}" alt="{escape(hint)}">'
        f"<figcaption>{escape(caption).replace('cam ', '<span>cam </span>')}</figcaption></figure>"
    )


def _data_uri(pixels: np.ndarray) -> str:
    """An image uint8 [C, H, W] as an embedded JPEG whose longer side has THUMBNAIL pixels; one channel is stretched."""
    if len(pixels) == 1:
        low, high = np.percentile(pixels, (1, 99))
        pixels = (255 * ((pixels - low) / max(high - low, 1.0)).clip(0, 1)).astype(np.uint8)
        image = Image.fromarray(pixels[0])
    else:
        image = Image.fromarray(np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
    scale = THUMBNAIL / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


# ----------------------------------------------------------------------------------------------------------- settings


def _settings(folder: RunFolder) -> Iterator[str]:
    config = (folder / CONFIG).read_text(encoding="utf-8")
    build = json.loads((folder / BUILD).read_text(encoding="utf-8"))
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in _flat(build))
    yield from _section(
        "Settings and build",
        "",
        f"<details><summary>Every setting ({CONFIG})</summary><pre>{escape(config)}</pre></details>",
        f"<div class=wide><table class=facts>{rows}</table></div>",
    )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as rows of text; empty ones are left out."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}, ")
        elif value not in ("", None, []):
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
