"""A few queries of a protocol and what they retrieve, for people to look at; drawn at random, not chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .data import LabeledGallery, Protocol
from .models import TwoStreamNetwork, embed
from .ranking import plain_distances, unit_rows
from .seeds import generator


@dataclass(frozen=True, eq=False)
class Retrieval:
    """One query and its nearest images, by position in the test gallery.

    Attributes:
        query: the query.
        results: for each network the images that the query sees, nearest first.
    """

    query: int
    results: tuple[list[int], ...]


def seen_mask(labeled: LabeledGallery, protocol: Protocol, query: int, gallery_idx: torch.Tensor) -> torch.Tensor:
    """Which of the gallery images int64 [G] a query sees by the camera rules of the protocol, bool [G]."""
    camera_ids = labeled.unlabeled.camera_ids
    own_camera, cameras = int(camera_ids[query]), camera_ids[gallery_idx]
    seen = torch.ones_like(gallery_idx, dtype=torch.bool)
    for query_camera, gallery_camera in protocol.ignored_cameras:
        if own_camera == query_camera:
            seen &= cameras != gallery_camera
    if protocol.same_camera_ignored:
        seen &= (labeled.person_ids[gallery_idx] != labeled.person_ids[query]) | (cameras != own_camera)
    return seen


def draw_queries(labeled: LabeledGallery, protocol: Protocol, *, num_queries: int, seed: int) -> list[int]:
    """Queries of the first trial that see a match, in random order, no two of one identity; or fewer."""
    trial = protocol.trials[0]
    order = torch.randperm(len(trial.query_idx), generator=generator(seed, "retrievals"))
    drawn: dict[int, int] = {}
    for query in trial.query_idx[order].tolist():
        if len(drawn) == num_queries:
            break
        person = int(labeled.person_ids[query])
        matches = labeled.person_ids[trial.gallery_idx] == person
        if person not in drawn and bool((matches & seen_mask(labeled, protocol, query, trial.gallery_idx)).any()):
            drawn[person] = query
    return list(drawn.values())


@torch.no_grad()
def retrievals(
    labeled: LabeledGallery,
    protocol: Protocol,
    networks: Sequence[TwoStreamNetwork],
    *,
    num_queries: int,
    num_results: int,
    seed: int = 0,
) -> list[Retrieval]:
    """What each network retrieves for the same few queries, ranked as `retrieval_metrics` ranks.

    Args:
        labeled: the test gallery.
        protocol: whose first trial is searched, by its camera rules.
        networks: in evaluation mode.
        num_queries, num_results: at most.
        seed: of the draw of the queries, which does not depend on what is retrieved.
    """
    queries = draw_queries(labeled, protocol, num_queries=num_queries, seed=seed)
    gallery_idx = protocol.trials[0].gallery_idx
    if not queries:
        return []
    distances = []
    for network in networks:
        query, gallery = (
            unit_rows(embed(network, labeled.unlabeled, sample_idx=sample_idx, device="cpu"))
            for sample_idx in (torch.tensor(queries), gallery_idx)
        )
        distances.append(plain_distances(query, gallery)(0, len(queries)))
    found = []
    for row, query in enumerate(queries):
        seen = seen_mask(labeled, protocol, query, gallery_idx)
        order = [rows[row].argsort(stable=True) for rows in distances]
        found.append(Retrieval(query, tuple(gallery_idx[o[seen[o]]][:num_results].tolist() for o in order)))
    return found
