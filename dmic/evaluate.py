"""What a network is worth, measured with identities that training never sees: retrieval metrics and cluster quality."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .constants import NOISE
from .data import LabeledGallery, Protocol
from .process_group import Group, Watch, agree, all_gather_rows, digest, share
from .ranking import Rerank, plain_distances, reranked_distances, unit_rows

RANKS = (1, 5, 10, 20)
TRIAL = re.compile(r", trial (\d+)")  # in the name of a protocol that is one of several splits
CHUNK_BYTES = 256_000_000  # memory for the rankings of one chunk of queries
BYTES_PER_PAIR = 96  # distance, order, ranks and matches of one query and one gallery image, with temporaries


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries that have a match in the gallery; shares, not percent; NaN if no query has one.

    Attributes:
        cmc: for each rank r asked for, the share of queries whose first match is among the first r results.
        mean_average_precision: of AP = mean over matches of (matches so far / rank).
        mean_inverse_negative_penalty: of INP = number of matches / rank of the last match.
        num_queries: queries that count.
        num_skipped: queries without a match in what they see of the gallery.
    """

    cmc: dict[int, float]
    mean_average_precision: float
    mean_inverse_negative_penalty: float
    num_queries: int
    num_skipped: int


class MeanSpread(NamedTuple):
    """Of one score over the trials of a protocol: mean and population standard deviation, which is 0 for one trial."""

    mean: float
    spread: float


@dataclass(frozen=True)
class ProtocolResult:
    """The scores of one protocol; shares, not percent. A mean over trials is NaN if no query of one of them counts.

    Attributes:
        name: the protocol's, and how the ranking was re-ranked if it was: to be shown beside every number.
        trials: the metrics of every trial, in the protocol's order; at least one.
    """

    name: str
    trials: tuple[RetrievalMetrics, ...]

    @property
    def cmc(self) -> dict[int, MeanSpread]:
        """By rank: 1, 5, 10, 20."""
        return {rank: _mean_spread([trial.cmc[rank] for trial in self.trials]) for rank in self.trials[0].cmc}

    @property
    def mean_average_precision(self) -> MeanSpread:
        return _mean_spread([trial.mean_average_precision for trial in self.trials])

    @property
    def mean_inverse_negative_penalty(self) -> MeanSpread:
        return _mean_spread([trial.mean_inverse_negative_penalty for trial in self.trials])

    @property
    def num_queries(self) -> int:
        """Queries that count, in all trials together."""
        return sum(trial.num_queries for trial in self.trials)

    @property
    def num_skipped(self) -> int:
        """Queries without a match, in all trials together."""
        return sum(trial.num_skipped for trial in self.trials)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> ProtocolResult:
        """The result that `as_record` was called on."""

        def number(value: float | None) -> float:
            return float("nan") if value is None else value

        trials = tuple(
            RetrievalMetrics(
                cmc={int(rank): number(share) for rank, share in trial["cmc"].items()},
                mean_average_precision=number(trial["mean_average_precision"]),
                mean_inverse_negative_penalty=number(trial["mean_inverse_negative_penalty"]),
                num_queries=trial["num_queries"],
                num_skipped=trial["num_skipped"],
            )
            for trial in record["trials"]
        )
        return cls(record["protocol"], trials)

    def as_record(self) -> dict[str, Any]:
        """Everything as JSON holds it: ranks are strings, NaN is None."""
        means = ("mean_average_precision", "mean_inverse_negative_penalty")
        counts = ("num_queries", "num_skipped")
        return {
            "protocol": self.name,
            "cmc": {str(rank): _record(score) for rank, score in self.cmc.items()},
            **{mean: _record(getattr(self, mean)) for mean in means},
            **{count: getattr(self, count) for count in counts},
            "trials": [
                {
                    "cmc": {str(rank): _json_number(share) for rank, share in trial.cmc.items()},
                    **{mean: _json_number(getattr(trial, mean)) for mean in means},
                    **{count: getattr(trial, count) for count in counts},
                }
                for trial in self.trials
            ],
        }


def pooled(runs: Sequence[Sequence[ProtocolResult]]) -> list[ProtocolResult]:
    """One result for every protocol, with the trials of all runs; the name says which runs.

    Args:
        runs: at least one, each with results of the same protocols in the same order. The number of a trial in a name,
            "RegDB, trial 3, visible to infrared", may differ.

    Raises:
        ValueError: runs of different protocols.
    """
    if len(runs) == 1:
        return list(runs[0])
    names = [[TRIAL.sub("", result.name) for result in results] for results in runs]
    for other in names[1:]:
        if other != names[0]:
            raise ValueError(f"pooled: runs must have the same protocols, got {names[0]} and {other}")
    results = []
    for name, *of_one in zip(names[0], *runs, strict=True):
        numbers = [number[1] for result in of_one if (number := TRIAL.search(result.name))]
        which = f"trials {', '.join(numbers)}" if numbers else f"{len(runs)} runs"
        results.append(ProtocolResult(f"{name}, {which}", tuple(trial for r in of_one for trial in r.trials)))
    return results


@torch.no_grad()
def retrieval_metrics(
    query_features: torch.Tensor,
    gallery_features: torch.Tensor,
    query_person_ids: torch.Tensor,
    gallery_person_ids: torch.Tensor,
    *,
    query_camera_ids: torch.Tensor | None = None,
    gallery_camera_ids: torch.Tensor | None = None,
    ignored_cameras: Sequence[tuple[int, int]] = (),
    same_camera_ignored: bool = False,
    unique_ids: bool = False,
    rerank: Rerank | None = None,
    ranks: tuple[int, ...] = RANKS,
    chunk_bytes: int = CHUNK_BYTES,
    group: Group = None,
) -> RetrievalMetrics:
    """Rank the gallery for every query by cosine, ties to the lower gallery position, and score the rankings.

    What a query does not see is taken out of its ranking before ranks are counted. With its G > 0 matches at ranks
    r_1 < ... < r_G: AP = mean of i / r_i, INP = G / r_G, and it counts for cmc[r] if r_1 <= r (Ye et al., TPAMI 2022,
    for INP). Queries with G = 0 are skipped and counted. Ranks beyond the gallery's size are allowed.

    Cosines are rounded to multiples of 2**-24: images that differ by less tie. Everything stays on the device of the
    features. Memory is linear in the gallery: queries are taken in chunks of `chunk_bytes`.

    Args:
        query_features: floating point [Q, d], any norms; a zero row is equally similar (0) to everything.
        gallery_features: floating point [G, d], on the same device.
        query_person_ids: int64 [Q].
        gallery_person_ids: int64 [G].
        query_camera_ids: int64 [Q]; needed, like the gallery's, where a rule below asks for cameras.
        gallery_camera_ids: int64 [G].
        ignored_cameras: pairs (query camera id, gallery camera id): such a query does not see such gallery images.
        same_camera_ignored: a query does not see gallery images of its own identity from its own camera.
        unique_ids: cmc ranks identities, each at its best position, instead of images; AP and INP always rank images.
        rerank: k-reciprocal re-ranking over queries and gallery together; memory grows with the pairs that overlap.
        ranks: positive.
        chunk_bytes: bounds the temporary memory, one query at a time at least.
        group: processes that rank for some queries each; all pass the same arguments and get the same metrics.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, camera ids that are missing, a rank below 1,
            or fewer images than the k1 of `rerank`.
    """
    sides = {
        "query": (query_features, query_person_ids, query_camera_ids),
        "gallery": (gallery_features, gallery_person_ids, gallery_camera_ids),
    }
    for side, (features, person_ids, camera_ids) in sides.items():
        _check_side(side, features, person_ids, camera_ids)
        if camera_ids is None and (ignored_cameras or same_camera_ignored):
            raise ValueError(f"retrieval_metrics: {side}_camera_ids are needed to ignore images by camera, got None")
    if query_features.shape[1] != gallery_features.shape[1]:
        got = f"d={query_features.shape[1]} and d={gallery_features.shape[1]}"
        raise ValueError(f"retrieval_metrics: query_features and gallery_features must agree in d, got {got}")
    if min(ranks, default=1) < 1:
        raise ValueError(f"retrieval_metrics: ranks must be at least 1, got {min(ranks)}")

    device = gallery_features.device
    query, gallery = unit_rows(query_features), unit_rows(gallery_features)
    distances = reranked_distances(query, gallery, rerank) if rerank else plain_distances(query, gallery)
    query_person_ids, gallery_person_ids = query_person_ids.to(device), gallery_person_ids.to(device)
    query_camera_ids, gallery_camera_ids = (
        None if camera_ids is None else camera_ids.to(device) for camera_ids in (query_camera_ids, gallery_camera_ids)
    )
    identities, identity_idx = gallery_person_ids.unique(return_inverse=True)

    num_columns = len(gallery) + (len(query) if rerank else 0)
    chunk = max(1, chunk_bytes // (BYTES_PER_PAIR * max(1, num_columns)))
    scores = [torch.empty(0, 3, dtype=torch.float64, device=device)]
    begin, end = share(len(query), group)
    for start in range(begin, end, chunk):
        stop = min(start + chunk, end)
        matches = query_person_ids[start:stop, None] == gallery_person_ids
        seen = torch.ones_like(matches)
        for query_camera, gallery_camera in ignored_cameras:
            seen &= (query_camera_ids[start:stop, None] != query_camera) | (gallery_camera_ids != gallery_camera)
        if same_camera_ignored:
            seen &= ~(matches & (query_camera_ids[start:stop, None] == gallery_camera_ids))

        order = distances(start, stop).argsort(dim=1, stable=True)
        seen, matches = seen.gather(1, order), (matches & seen).gather(1, order)
        rank, found = seen.cumsum(1), matches.cumsum(1)
        count = matches.sum(1)
        passed = seen & (found == 0)
        if unique_ids:
            nobody = torch.zeros(len(passed), len(identities), dtype=torch.uint8, device=device)
            passed = nobody.scatter_reduce(1, identity_idx[order], passed.to(torch.uint8), "amax")
        first_rank = passed.sum(1) + 1
        last_rank = (seen & (found < count[:, None])).sum(1) + 1
        precision = torch.where(matches, found.double() / rank, 0).sum(1) / count
        scores.append(torch.stack([first_rank, precision, count / last_rank.double()], 1)[count > 0])

    first_rank, precision, penalty = all_gather_rows(torch.cat(scores), group).unbind(1)
    return RetrievalMetrics(
        cmc={r: float((first_rank <= r).double().mean()) for r in ranks},
        mean_average_precision=float(precision.mean()),
        mean_inverse_negative_penalty=float(penalty.mean()),
        num_queries=len(first_rank),
        num_skipped=len(query) - len(first_rank),
    )


def evaluate_protocol(
    features: torch.Tensor,
    labeled: LabeledGallery,
    protocol: Protocol,
    *,
    rerank: Rerank | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    group: Group = None,
) -> ProtocolResult:
    """Score every trial of a protocol with `retrieval_metrics`.

    Args:
        features: floating point [N, d] by position in `labeled`; only the rows of `used_samples([protocol])` are read.
        labeled: who and which camera; N images.
        protocol: queries, galleries and rules.
        rerank: re-rank queries and gallery of each trial; the result's name then says so.
        chunk_bytes, group: see `retrieval_metrics`.

    Raises:
        ValueError: features not [N, d] or not finite in a row that is read, a protocol without trials or with positions
            outside the gallery, or fewer images in a trial than the k1 of `rerank`; on every rank, if features or
            positions are wrong on one, or it has another protocol or other ids than rank 0.
        ConnectionError: another rank was lost; says which, and in which phase.
    """
    watch, problem, marks = Watch(group), None, {}
    with watch.guard():
        watch.enter("evaluate")
        try:
            _check_protocol(features, labeled, protocol)
            if group is not None:
                positions = [idx for trial in protocol.trials for idx in (trial.query_idx, trial.gallery_idx)]
                marks = {"protocol": protocol.name, "rerank": str(rerank), "shape of features": list(features.shape)}
                marks |= {"trials": digest(torch.cat(positions)), "person_ids": digest(labeled.person_ids)}
                marks |= {"camera_ids": digest(labeled.unlabeled.camera_ids)}
        except ValueError as error:
            problem = str(error)
        agree("evaluate_protocol", marks, group, problem)
        return _evaluate_protocol(features, labeled, protocol, rerank, chunk_bytes, group)


def _check_protocol(features: torch.Tensor, labeled: LabeledGallery, protocol: Protocol) -> None:
    if features.dim() != 2 or len(features) != len(labeled.unlabeled):
        got = f"{tuple(features.shape)} with N={len(labeled.unlabeled)}"
        raise ValueError(f"evaluate_protocol: features must be [N, d], got {got}")
    if not protocol.trials:
        raise ValueError(f"evaluate_protocol: {protocol.name!r} must have at least one trial, got none")
    used = used_samples([protocol])
    if len(outside := used[(used < 0) | (used >= len(features))]):
        got = f"{int(outside[0])} with N={len(features)}"
        raise ValueError(f"evaluate_protocol: positions of {protocol.name!r} must be in [0, N), got {got}")


def _evaluate_protocol(features, labeled, protocol, rerank, chunk_bytes, group) -> ProtocolResult:
    ids, camera_ids = labeled.person_ids, labeled.unlabeled.camera_ids
    trials = []
    for trial in protocol.trials:
        query_idx, gallery_idx = trial.query_idx, trial.gallery_idx
        sides = [features[side_idx.to(features.device)] for side_idx in (query_idx, gallery_idx)]
        for side_idx, side in zip((query_idx, gallery_idx), sides, strict=True):
            if (row := _not_finite(side)) is not None:
                got = f"NaN or infinity in row {int(side_idx[row])}"
                raise ValueError(f"evaluate_protocol: features must be finite where a trial reads them, got {got}")
        trials.append(
            retrieval_metrics(
                *sides,
                ids[query_idx],
                ids[gallery_idx],
                query_camera_ids=camera_ids[query_idx],
                gallery_camera_ids=camera_ids[gallery_idx],
                ignored_cameras=protocol.ignored_cameras,
                same_camera_ignored=protocol.same_camera_ignored,
                unique_ids=protocol.unique_ids,
                rerank=rerank,
                chunk_bytes=chunk_bytes,
                group=group,
            )
        )
    return ProtocolResult(f"{protocol.name}, {rerank}" if rerank else protocol.name, tuple(trials))


def used_samples(protocols: Sequence[Protocol]) -> torch.Tensor:
    """Positions that any trial of any of the protocols reads, int64, ascending: the only images worth embedding."""
    read = [idx for protocol in protocols for trial in protocol.trials for idx in (trial.query_idx, trial.gallery_idx)]
    return torch.cat([torch.empty(0, dtype=torch.int64), *read]).unique()


def purity(labels: torch.Tensor, person_ids: torch.Tensor) -> float:
    """Share of the clustered samples whose identity is the most frequent one of their cluster; NaN without clusters.

    Args:
        labels: int64 [N]; NOISE samples do not count.
        person_ids: int64 [N].
    """
    clustered = labels != NOISE
    pairs, counts = torch.stack([labels[clustered], person_ids[clustered]]).unique(dim=1, return_counts=True)
    if pairs.numel() == 0:
        return float("nan")
    largest = counts.new_zeros(int(pairs[0].max()) + 1).scatter_reduce_(0, pairs[0], counts, "amax")
    return float(largest.sum() / counts.sum())


def splits(labels: torch.Tensor, person_ids: torch.Tensor) -> float:
    """Mean number of clusters that an identity is spread over, identities without a clustered sample left out."""
    clustered = labels != NOISE
    pairs = torch.stack([person_ids[clustered], labels[clustered]]).unique(dim=1)
    return pairs.shape[1] / len(pairs[0].unique()) if pairs.numel() else float("nan")


def _check_side(side: str, features: torch.Tensor, person_ids: torch.Tensor, camera_ids: torch.Tensor | None) -> None:
    for name, ids in (("person_ids", person_ids), ("camera_ids", camera_ids)):
        if ids is not None and (features.dim() != 2 or ids.shape != features.shape[:1]):
            got = f"{tuple(features.shape)} and {tuple(ids.shape)}"
            raise ValueError(f"retrieval_metrics: {side}_features [n, d] and {side}_{name} [n] must agree, got {got}")
    if (row := _not_finite(features)) is not None:
        raise ValueError(f"retrieval_metrics: {side}_features must be finite, got NaN or infinity in row {row}")


def _not_finite(features: torch.Tensor) -> int | None:
    """The first row that holds NaN or infinity, or None."""
    bad = ~features.isfinite().all(1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def _mean_spread(values: list[float]) -> MeanSpread:
    scores = torch.tensor(values, dtype=torch.float64)
    return MeanSpread(float(scores.mean()), float(scores.std(correction=0)))


def _record(score: MeanSpread) -> dict[str, float | None]:
    return {name: _json_number(value) for name, value in score._asdict().items()}


def _json_number(value: float) -> float | None:
    return None if value != value else value
