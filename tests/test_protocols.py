"""Protocols against rankings worked out by hand and against `rankings`, a second implementation by the book."""

import io
import itertools
import json
import math
import statistics

import numpy as np
import pytest
import rankings
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from dmic.data import Gallery, LabeledGallery, Protocol, Trial
from dmic.data.cross_modality import cross_modality_protocols
from dmic.evaluate import (
    ProtocolResult,
    RetrievalMetrics,
    evaluate_protocol,
    pooled,
    retrieval_metrics,
    used_samples,
)
from dmic.ranking import Rerank, cosine, reranked_distances, unit_rows
from dmic.report import protocol_table

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RULES = {
    "nothing": {},
    "camera pairs": {"ignored_cameras": ((2, 1), (0, 0), (5, 3))},
    "same camera": {"same_camera_ignored": True},
    "unique ids": {"unique_ids": True},
    "SYSU-MM01": {"ignored_cameras": ((2, 1),), "unique_ids": True},
    "LLCM": {"same_camera_ignored": True, "unique_ids": True},
}


def at_angles(*degrees):
    """Unit vectors in the plane: the nearer in angle, the higher ranked."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def labeled_gallery(person_ids, camera_ids=None, modality_ids=None):
    zeros = torch.zeros(len(person_ids), dtype=torch.int64)
    cameras, modalities = (zeros if ids is None else torch.as_tensor(ids) for ids in (camera_ids, modality_ids))
    images = torch.zeros(len(person_ids), 1, 1, 1, dtype=torch.uint8)
    return LabeledGallery(Gallery(images, cameras, modalities), torch.as_tensor(person_ids))


def random_trials(num_samples, num_trials, generator):
    """Disjoint queries and galleries in no order, different in every trial."""
    for _ in range(num_trials):
        order = torch.randperm(num_samples, generator=generator)
        yield Trial(order[: num_samples // 4], order[num_samples // 4 : -num_samples // 10])


def random_case(num_samples=90, seed=0):
    """Few directions, so that ties and duplicates are everywhere; identities of which some are seen only once."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randint(-2, 3, (num_samples // 3, 5), generator=generator).float()
    features = directions[torch.randint(len(directions), (num_samples,), generator=generator)]
    features *= torch.tensor([1.0, 0.5, 3.0])[torch.randint(3, (num_samples, 1), generator=generator)]
    person_ids, camera_ids = (torch.randint(high, (num_samples,), generator=generator) for high in (24, 6))
    trials = tuple(random_trials(num_samples, 3, generator))
    return features, labeled_gallery(person_ids, camera_ids), trials


def evaluated_by_hand(angles, person_ids, camera_ids, **rules):
    """One query (the first image) and a gallery (the others)."""
    trial = Trial(torch.tensor([0]), torch.arange(1, len(angles)))
    result = evaluate_protocol(
        at_angles(*angles), labeled_gallery(person_ids, camera_ids), Protocol("by hand", (trial,), **rules)
    )
    return result.trials[0]


# ----------------------------------------------------------------------------------------- worked out by hand


def test_a_query_does_not_see_ignored_cameras_and_ranks_close_up():
    # Ranked: person 8 camera 1, 7 camera 1, 8 camera 0, 7 camera 3, 8 camera 3, 7 camera 4. Camera 2 does not see
    # camera 1, which leaves 8, 7, 8, 7: matches at ranks 2 and 4.
    ids, cameras = [7, 8, 7, 8, 7, 8, 7], [2, 1, 1, 0, 3, 3, 4]
    found = evaluated_by_hand([0, 10, 20, 30, 40, 50, 60], ids, cameras, ignored_cameras=((2, 1),))
    assert found.cmc == {1: 0.0, 5: 1.0, 10: 1.0, 20: 1.0}
    assert found.mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found.mean_inverse_negative_penalty == pytest.approx(2 / 4)


def test_the_camera_rule_has_a_direction_and_takes_other_cameras_as_they_are():
    # The query is of camera 1; (2, 1) is about queries of camera 2. All six count: matches at ranks 2, 4 and 6.
    ids, cameras = [7, 8, 7, 8, 7, 8, 7], [1, 2, 1, 0, 3, 1, 4]
    found = evaluated_by_hand([0, 10, 20, 30, 40, 50, 60], ids, cameras, ignored_cameras=((2, 1),))
    assert found.mean_average_precision == pytest.approx((1 / 2 + 2 / 4 + 3 / 6) / 3)
    assert found.mean_inverse_negative_penalty == pytest.approx(3 / 6)


def test_a_query_does_not_see_its_own_identity_from_its_own_camera():
    # Ranked: 7 camera 2 (not seen), 8 camera 2 (another person: seen), 7 camera 0,
    # 7 camera 2 (not seen), 7 camera 1. That leaves 8, 7, 7.
    found = evaluated_by_hand([0, 10, 20, 30, 40, 50], [7, 7, 8, 7, 7, 7], [2, 2, 2, 0, 2, 1], same_camera_ignored=True)
    assert found.cmc[1] == 0.0
    assert found.mean_average_precision == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.mean_inverse_negative_penalty == pytest.approx(2 / 3)


def test_unique_ids_rank_identities_for_cmc_and_images_for_the_means():
    # Ranked: 8, 8, 8, 9, 8, 9, 7, 8, 7. Images: 7 is first at rank 7. Identities: 8, 9, 7, so it is third.
    ids = [7, 8, 8, 8, 9, 8, 9, 7, 8, 7]
    trial = Trial(torch.tensor([0]), torch.arange(1, 10))
    features, labeled = at_angles(*range(0, 100, 10)), labeled_gallery(ids)
    images, identities = (
        retrieval_metrics(
            features[trial.query_idx],
            features[trial.gallery_idx],
            labeled.person_ids[trial.query_idx],
            labeled.person_ids[trial.gallery_idx],
            unique_ids=unique_ids,
            ranks=(2, 3, 6, 7),
        )
        for unique_ids in (False, True)
    )
    assert images.cmc == {2: 0.0, 3: 0.0, 6: 0.0, 7: 1.0}
    assert identities.cmc == {2: 0.0, 3: 1.0, 6: 1.0, 7: 1.0}
    for found in (images, identities):
        assert found.mean_average_precision == pytest.approx((1 / 7 + 2 / 9) / 2)
        assert found.mean_inverse_negative_penalty == pytest.approx(2 / 9)


def test_an_identity_that_is_not_seen_takes_no_place_among_unique_ids():
    # Ranked: 8 camera 1 (not seen), 9 camera 0, 7 camera 0, 8 camera 0: among identities 7 is second.
    found = evaluated_by_hand(
        [0, 10, 20, 30, 40], [7, 8, 9, 7, 8], [2, 1, 0, 0, 0], ignored_cameras=((2, 1),), unique_ids=True
    )
    assert found.mean_average_precision == pytest.approx(1 / 2)
    features, cameras = at_angles(0, 10, 20, 30, 40), torch.tensor([2, 1, 0, 0, 0])
    ids = torch.tensor([7, 8, 9, 7, 8])
    found = retrieval_metrics(
        *(features[:1], features[1:], ids[:1], ids[1:]),
        query_camera_ids=cameras[:1],
        gallery_camera_ids=cameras[1:],
        ignored_cameras=((2, 1),),
        unique_ids=True,
        ranks=(1, 2),
    )
    assert found.cmc == {1: 0.0, 2: 1.0}


def test_a_query_whose_only_match_is_not_seen_is_skipped_and_counted():
    for rules in ({"ignored_cameras": ((2, 1),)}, {"same_camera_ignored": True}):
        camera = 1 if "ignored_cameras" in rules else 2
        found = evaluated_by_hand([0, 10, 20], [7, 7, 8], [2, camera, 0], **rules)
        assert (found.num_queries, found.num_skipped) == (0, 1)
        assert math.isnan(found.mean_average_precision)


def test_ties_go_to_the_lower_gallery_position_of_the_trial_not_of_the_data_set():
    features, labeled = at_angles(0, 30, 30, 30), labeled_gallery([1, 1, 2, 3])
    for gallery, rank in (((1, 2, 3), 1), ((2, 1, 3), 2), ((3, 2, 1), 3)):
        protocol = Protocol("ties", (Trial(torch.tensor([0]), torch.tensor(gallery)),))
        assert evaluate_protocol(features, labeled, protocol).mean_average_precision.mean == pytest.approx(1 / rank)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_equal_images_tie_wherever_the_matrix_product_puts_them(orthogonal):
    generator = torch.Generator().manual_seed(3)
    one, two, other = torch.randn(3, 131, generator=generator)
    query = torch.cat([one, two]).expand(7, 262)
    image = torch.cat([two, -one]) if orthogonal else torch.cat([two, other])  # sums that are 0 on paper are not
    gallery = image * 2.0 ** (torch.arange(1003) % 5)[:, None]
    products = unit_rows(query)[0].double() * unit_rows(gallery)[0].double()
    orders = [torch.randperm(262, generator=generator) for _ in range(9)]
    assert len({float(products[order].cumsum(0)[-1]) for order in orders}) > 1, "the sum must depend on its order"
    for match in (0, 1, 500, 1001, 1002):
        ids = (torch.arange(1003) == match).long()
        found = retrieval_metrics(query, gallery, torch.ones(7).long(), ids)
        assert found.mean_average_precision == pytest.approx(1 / (match + 1), rel=1e-12)


def test_the_spread_is_the_standard_deviation_over_trials():
    # Trial 1 finds the match first, trial 2 second: mAP 1 and 1 / 2, Rank-1 1 and 0.
    features, labeled = at_angles(0, 10, 20, 30), labeled_gallery([1, 2, 1, 2])
    trials = (Trial(torch.tensor([0]), torch.tensor([2, 3])), Trial(torch.tensor([0]), torch.tensor([1, 2])))
    result = evaluate_protocol(features, labeled, Protocol("two trials", trials))
    assert result.mean_average_precision == pytest.approx((0.75, 0.25))
    assert result.cmc[1] == pytest.approx((0.5, 0.5))
    assert result.cmc[5] == (1.0, 0.0)
    assert (result.num_queries, result.num_skipped) == (2, 0)
    single = evaluate_protocol(features, labeled, Protocol("one trial", trials[1:]))
    assert single.mean_average_precision == (0.5, 0.0)


# --------------------------------------------------------------------------------------------------- by the book


def assert_equals_the_book(result, book):
    assert len(result.trials) == len(book)
    for found, want in zip(result.trials, book, strict=True):
        assert found.cmc == pytest.approx({r: want[f"rank{r}"] for r in rankings.RANKS}, abs=1e-12)
        assert found.mean_average_precision == pytest.approx(want["ap"], rel=1e-9)
        assert found.mean_inverse_negative_penalty == pytest.approx(want["inp"], rel=1e-9)
        assert (found.num_queries, found.num_skipped) == (want["num_queries"], want["num_skipped"])
    for r in rankings.RANKS:
        scores = [want[f"rank{r}"] for want in book]
        assert result.cmc[r] == pytest.approx((statistics.fmean(scores), statistics.pstdev(scores)), abs=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_second_implementation(rules, seed, device):
    features, labeled, trials = random_case(seed=seed)
    protocol = Protocol("random", trials, **rules)
    book = rankings.book_protocol(features.numpy(), labeled, protocol)
    assert sum(trial["num_skipped"] for trial in book) > 0, "the case must hold queries without a match"
    for trial in trials:
        distances = np.array(rankings.book_distances(features[trial.query_idx], features[trial.gallery_idx]))
        assert len(np.unique(distances)) < distances.size / 5, "the case must be full of ties"
    for chunk_bytes in (1, 20_000, 10**9):
        result = evaluate_protocol(features.to(device), labeled, protocol, chunk_bytes=chunk_bytes)
        assert_equals_the_book(result, book)


def test_the_rules_of_the_random_cases_differ():
    features, labeled, trials = random_case()
    scores = {
        name: (result.mean_average_precision, result.cmc)
        for name, rules in RULES.items()
        for result in [evaluate_protocol(features, labeled, Protocol(name, trials, **rules))]
    }
    for one, other in itertools.combinations(scores, 2):
        assert scores[one] != scores[other], (one, other)


# ----------------------------------------------------------------------------------------------------- re-ranking


def clear_case(num_people=12, num_images=5, dim=16, noise=0.5, seed=0):
    """People as directions with noise: queries and gallery of one trial."""
    generator = torch.Generator().manual_seed(seed)
    person_ids = torch.arange(num_people).repeat(num_images)
    noises = torch.randn(len(person_ids), dim, generator=generator)
    features = torch.randn(num_people, dim, generator=generator)[person_ids] + noise * noises
    order = torch.randperm(len(person_ids), generator=generator)
    cut = len(order) // 3
    return (
        features,
        labeled_gallery(person_ids, torch.arange(len(person_ids)) // num_people % 3),
        Trial(order[:cut], order[cut:]),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (15, 1, 0.0), (7, 7, 0.5), (1, 1, 0.3)])
def test_reranked_distances_are_those_of_the_formulas(k1, k2, weight, device):
    for seed in range(2):
        features, _, trial = clear_case(noise=0.9, seed=seed)
        query, gallery = features[trial.query_idx], features[trial.gallery_idx]
        want = rankings.book_reranked(query.numpy(), gallery.numpy(), k1, k2, weight)
        sides = unit_rows(query.to(device)), unit_rows(gallery.to(device))
        distances = reranked_distances(*sides, Rerank(k1, k2, weight))
        found = torch.cat([distances(0, 7), distances(7, 8), distances(8, len(query))]).cpu().numpy()
        # float32 Jaccard distances and cosines in steps of 2**-24; weights of at most N members in steps of 2**-30
        np.testing.assert_allclose(found, want, rtol=0, atol=4 * 2**-24 + len(features) * 2**-30)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_reranked_metrics_equal_a_second_implementation(rules):
    features, labeled, trial = clear_case(noise=0.9)
    protocol = Protocol("clear", (trial,), **rules)
    result = evaluate_protocol(features, labeled, protocol, rerank=Rerank())
    assert_equals_the_book(result, rankings.book_protocol(features.numpy(), labeled, protocol, rerank=(20, 6, 0.3)))
    assert result.name == "clear, re-ranked, k1=20, k2=6, lambda=0.3"
    assert result.trials != evaluate_protocol(features, labeled, protocol).trials


def test_reranking_helps_where_neighbours_agree():
    features, labeled, trial = clear_case(num_people=30, num_images=9, dim=24, noise=1.0)
    protocol = Protocol("clear", (trial,))
    plain, reranked = (evaluate_protocol(features, labeled, protocol, rerank=r) for r in (None, Rerank(k1=9, k2=4)))
    assert reranked.mean_average_precision.mean > plain.mean_average_precision.mean + 0.05


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_a_weight_of_one_is_the_plain_ranking(rules):
    features, labeled, trials = random_case()
    protocol = Protocol("random", trials, **rules)
    plain, reranked = (evaluate_protocol(features, labeled, protocol, rerank=r) for r in (None, Rerank(weight=1)))
    assert reranked.trials == plain.trials
    assert reranked.name == "random, re-ranked, k1=20, k2=6, lambda=1"


@pytest.mark.parametrize("image", [(1.0, 1.0, 1.0), (2.0, 0.0, 0.0)])
def test_a_gallery_of_one_repeated_image_is_all_ties(image):
    features, labeled = torch.tensor(image).expand(12, 3), labeled_gallery(torch.arange(12) % 3)
    protocol = Protocol("equal", (Trial(torch.tensor([0]), torch.arange(1, 12)),))
    rerank = Rerank(k1=4, k2=2)
    for way in (None, rerank):
        result = evaluate_protocol(features, labeled, protocol, rerank=way)
        assert result.mean_average_precision.mean == pytest.approx((1 / 3 + 2 / 6 + 3 / 9) / 3)
    distances = reranked_distances(unit_rows(features[:1]), unit_rows(features[1:]), rerank)(0, 1)
    assert distances.isfinite().all()
    assert len(distances.unique()) == 1


def test_cosines_do_not_leave_their_range():
    rows = unit_rows(torch.ones(1, 58))  # float32 rounds 1 / sqrt(58) up by more than most
    assert float((rows.double() ** 2).sum()) > 1 + 1.5 * 2**-24, "the product must exceed 1 even when rounded"
    assert cosine(rows, torch.cat([rows, -rows])).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k1": 5}, r"Rerank: k2 must be in \[1, k1\], got k2=6 with k1=5"),
        ({"k2": 0}, r"Rerank: k2 must be in \[1, k1\], got k2=0 with k1=20"),
        ({"weight": 1.5}, r"Rerank: weight must be in \[0, 1\], got 1.5"),
        ({"weight": math.nan}, r"Rerank: weight must be in \[0, 1\], got nan"),
    ],
)
def test_bad_reranking_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rerank(**arguments)


# --------------------------------------------------------------------------------------------------------- memory


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("rerank", [None, Rerank(k1=8, k2=3)], ids=["plain", "re-ranked"])
def test_no_array_holds_every_pair(rerank):
    features, labeled, trial = clear_case(num_people=200, num_images=6, noise=0.2)
    num_pairs = len(trial.query_idx) * len(trial.gallery_idx)
    protocol = Protocol("large", (trial,), ignored_cameras=((2, 1),), same_camera_ignored=True, unique_ids=True)
    results = []
    for chunk_bytes, whole in ((10**9, True), (10**6, False)):
        with LargestTensor() as sizes:
            results.append(evaluate_protocol(features, labeled, protocol, rerank=rerank, chunk_bytes=chunk_bytes))
        assert (sizes.largest >= num_pairs) == whole, "the measurement must see the array that a single chunk makes"
        if not whole:
            assert sizes.largest <= max(features.numel(), num_pairs // 8)
    assert results[0] == results[1]


# ------------------------------------------------------------------------------------------- protocols and results


def test_only_the_rows_that_trials_read_must_be_there():
    features, labeled, trials = random_case()
    first = trials[0]
    second = Trial(first.gallery_idx[:9], first.query_idx[3:])
    used = used_samples([Protocol("one", (first,)), Protocol("two", (second, second))])
    want = sorted({i for trial in (first, second) for idx in vars(trial).values() for i in idx.tolist()})
    assert used.dtype == torch.int64
    assert used.tolist() == want
    assert len(used) < len(features)
    assert used_samples([]).tolist() == []

    partial = torch.full_like(features, math.nan)
    partial[used] = features[used]
    protocol = Protocol("both", (first, second))
    assert evaluate_protocol(partial, labeled, protocol) == evaluate_protocol(features, labeled, protocol)


def test_a_gallery_without_protocols_gets_one_per_direction():
    labeled = labeled_gallery([5, 5, 6, 6, 6], modality_ids=[0, 1, 0, 1, 0])
    to_visible, to_infrared = cross_modality_protocols(labeled)
    assert (to_visible.name, to_infrared.name) == ("infrared to visible", "visible to infrared")
    assert [idx.tolist() for idx in vars(to_visible.trials[0]).values()] == [[1, 3], [0, 2, 4]]
    assert [idx.tolist() for idx in vars(to_infrared.trials[0]).values()] == [[0, 2, 4], [1, 3]]
    with pytest.raises(ValueError, match="both modalities are needed, got 0 infrared and 2 visible"):
        cross_modality_protocols(labeled_gallery([1, 1]))


def test_a_record_survives_json_and_has_no_nan():
    features, labeled, trials = random_case()
    nobody = Trial(torch.tensor([0]), torch.empty(0, dtype=torch.int64))
    for protocol in (Protocol("all", trials), Protocol("nobody", (nobody,))):
        result = evaluate_protocol(features, labeled, protocol)
        record = result.as_record()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["protocol"] == protocol.name
        assert (record["num_queries"], record["num_skipped"]) == (result.num_queries, result.num_skipped)
        if protocol.name == "all":
            assert record["cmc"]["1"] == {"mean": result.cmc[1].mean, "spread": result.cmc[1].spread}
            assert [trial["mean_average_precision"] for trial in record["trials"]] == [
                trial.mean_average_precision for trial in result.trials
            ]
        else:
            assert record["mean_inverse_negative_penalty"] == {"mean": None, "spread": None}
            assert record["trials"][0]["cmc"]["20"] is None
            assert math.isnan(ProtocolResult.from_record(record).mean_average_precision.mean)
        assert ProtocolResult.from_record(record).as_record() == record


def test_bad_arguments_are_named():
    features, labeled, trials = random_case()
    protocol = Protocol("bad", trials[:1])
    with pytest.raises(ValueError, match=r"features must be \[N, d\], got \(89, 5\) with N=90"):
        evaluate_protocol(features[1:], labeled, protocol)
    with pytest.raises(ValueError, match="'none' must have at least one trial"):
        evaluate_protocol(features, labeled, Protocol("none", ()))
    for wrong in (90, -1):
        outside = Protocol("outside", (Trial(torch.tensor([0]), torch.tensor([3, wrong])),))
        with pytest.raises(ValueError, match=rf"'outside' must be in \[0, N\), got {wrong} with N=90"):
            evaluate_protocol(features, labeled, outside)
    row = int(trials[0].gallery_idx[2])
    holed = features.clone()
    holed[row, 1] = math.inf
    with pytest.raises(ValueError, match=f"got NaN or infinity in row {row}$"):
        evaluate_protocol(holed, labeled, protocol)
    with pytest.raises(ValueError, match=r"k1 must be in \[1, N\], got k1=82 with N=81"):
        evaluate_protocol(features, labeled, protocol, rerank=Rerank(k1=82))
    sides = features[:2], features[2:4], labeled.person_ids[:2], labeled.person_ids[2:4]
    for rule in ({"same_camera_ignored": True}, {"ignored_cameras": ((0, 1),)}):
        with pytest.raises(ValueError, match="query_camera_ids are needed to ignore images by camera, got None"):
            retrieval_metrics(*sides, gallery_camera_ids=torch.zeros(2).long(), **rule)
    with pytest.raises(ValueError, match=r"gallery_camera_ids \[n\] must agree, got \(2, 5\) and \(3,\)"):
        retrieval_metrics(*sides, gallery_camera_ids=torch.zeros(3).long())


# ----------------------------------------------------------------------------------------------------- for people


def shown(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def test_the_name_of_the_protocol_stands_above_its_numbers():
    features, labeled = at_angles(0, 10, 20, 30, 90), labeled_gallery([1, 2, 1, 2, 9])
    query = torch.tensor([0, 4])
    trials = (Trial(query, torch.tensor([2, 3])), Trial(query, torch.tensor([1, 2])))
    protocols = Protocol("two trials", trials), Protocol("one trial", trials[1:])
    before, after = ([evaluate_protocol(rows, labeled, p) for p in protocols] for rows in (features, features.flip(1)))
    lines = shown(protocol_table({"before": before, "after": after})).splitlines()
    starts = [line.split("  ")[0].split(" ")[0] for line in lines]
    assert starts == ["Retrieval,", "", "two", "", "before", "after", "", "one", "", "before", "after"]
    assert lines[2].startswith("two trials  2 trials, 2 queries, 2 skipped")
    assert lines[7].startswith("one trial  1 trial, 1 queries, 1 skipped")
    assert "50.0 +-50" in lines[4]  # Rank-1
    assert "75.0 +-25" in lines[4]  # mAP
    assert "+-" not in lines[9]
    assert "0.0" in lines[9]


def test_the_table_of_one_moment_does_not_name_it():
    features, labeled, trials = random_case()
    text = shown(protocol_table({"": [evaluate_protocol(features, labeled, Protocol("random", trials[:1]))]}))
    assert "random" in text
    assert "Rank-20" in text
    assert "+-" not in text


def test_ten_trials_fit_in_80_columns_and_nothing_is_cut():
    def result(name, shares):
        trials = (RetrievalMetrics(dict.fromkeys((1, 5, 10, 20), s), s, s, 3_803, 12_345) for s in shares)
        return ProtocolResult(name, tuple(trials))

    name = "SYSU-MM01, indoor search, single shot, re-ranked, k1=20, k2=6, lambda=0.3"
    cases = {
        "100 +-0.0": [1.0] * 10,
        "50.0 +-50": [0.0, 1.0] * 5,
        "61.2 +-0.4": [0.608, 0.616] * 5,
        "-": [math.nan] * 2,
    }
    for cell, shares in cases.items():
        text = shown(protocol_table({"before": [result(name, shares)], "after": [result(name, shares)]}))
        assert name in text
        assert max(map(len, text.splitlines())) <= 80
        assert "\u2026" not in text
        rows = [line for line in text.splitlines() if line.startswith(("before", "after"))]
        assert [row.count(f" {cell}") for row in rows] == [6, 6]


def test_scores_of_several_runs_are_means_over_the_trials_of_all():
    def result(name, *precisions):
        return ProtocolResult(name, tuple(RetrievalMetrics({1: p / 2}, p, p / 4, 10, 1) for p in precisions))

    runs = [[result(f"RegDB, trial {n}, {way}", p + q) for way, q in (("a to b", 0.0), ("b to a", 0.1))] for n, p in
            ((1, 0.2), (10, 0.4), (3, 0.9))]  # fmt: skip
    first, second = pooled(runs)
    assert (first.name, second.name) == ("RegDB, a to b, trials 1, 10, 3", "RegDB, b to a, trials 1, 10, 3")
    assert first.mean_average_precision.mean == pytest.approx(0.5)
    assert first.mean_average_precision.spread == pytest.approx((0.26 / 3) ** 0.5)
    assert second.mean_average_precision.mean == pytest.approx(0.6)
    assert (second.cmc[1].mean, second.num_queries, second.num_skipped) == (pytest.approx(0.3), 30, 3)
    assert pooled(runs[:1]) == runs[0]
    seeds = pooled([[result("SYSU", 0.1, 0.3)], [result("SYSU", 0.4, 0.6)]])
    assert [(found.name, len(found.trials)) for found in seeds] == [("SYSU, 2 runs", 4)]
    with pytest.raises(ValueError, match=r"^pooled: runs must have the same protocols, got \['RegDB, a to b', .* and "):
        pooled([runs[0], runs[1][:1]])
    with pytest.raises(ValueError, match=r"got \['SYSU'\] and \['LLCM'\]$"):
        pooled([[result("SYSU", 0.1)], [result("LLCM", 0.1)]])
