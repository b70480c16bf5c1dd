"""Every op once, at sizes that compute-sanitizer can bear, along every path: results are those of the CPU.

compute-sanitizer --tool racecheck python -m benchmarks.every_op
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .gpu_device import DEVICES
from .sizes import generate_gallery_on


def wide_encoding(num_samples: int, num_wide: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An encoding in which a few rows have `length` columns, more than tables in shared memory hold, and the others
    one: row_ptr, col_idx, values."""
    lengths = torch.ones(num_samples, dtype=torch.int64)
    lengths[torch.arange(num_wide) * (num_samples // num_wide)] = length
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    columns, values = [], []
    for row, count in enumerate(lengths.tolist()):
        columns.append((torch.arange(count) * (num_samples // count) + row) % num_samples)
        weights = torch.full((count,), 2**30 // count, dtype=torch.int32)
        weights[0] += 2**30 - int(weights.sum())
        values.append(weights)
    sorted_columns = torch.cat([column.sort().values for column in columns])
    return row_ptr, sorted_columns.int(), torch.cat(values)


def runs(num_samples: int, wide_samples: int) -> Iterator[tuple[str, Callable[[Any, torch.device], tuple]]]:
    """(name, run(ops, device)): tensors of any op, on the device."""
    from dmic import Csr
    from dmic._native import call

    gallery = generate_gallery_on(torch.device("cpu"), num_samples, 37, "hard", images_per_identity=9)
    features = gallery.features
    duplicated = features.clone()
    duplicated[num_samples // 3 :] = features[0]  # no list is long enough for its nearest: rows are redone
    k1, k1_half, k2 = 12, 6, 5
    wide = wide_encoding(wide_samples, 4, wide_samples * 3 // 4)
    short = wide_encoding(num_samples, 8, num_samples // 2)

    def tensors(result: Any) -> tuple:
        return (result.row_ptr, result.col_idx, result.values) if isinstance(result, Csr) else tuple(result)

    def put(rows: tuple, device: torch.device) -> Csr:
        return Csr(*(tensor.to(device) for tensor in rows), num_cols=len(rows[0]) - 1)

    def steps(x: torch.Tensor, ids: tuple[str, ...], max_distance: float) -> Callable[[Any, torch.device], tuple]:
        def run(ops: Any, device: torch.device) -> tuple:
            on_device = x.to(device)
            idx, dist = ops.knn_graph(on_device, k1)
            encoding = ops.k_reciprocal_encoding(on_device, idx, k1_half)
            given = {name: getattr(gallery, name).to(device) for name in ids}
            expanded = ops.invariant_expansion(encoding, idx, k2, **given)
            distance = ops.jaccard_distance(expanded, max_distance)
            results = (encoding, expanded, distance, ops.dbscan(distance, 0.5, 3))
            return (idx, dist, *(tensor for result in results for tensor in tensors(result)))

        return run

    yield "a gallery", steps(features, ("camera_ids", "modality_ids"), 0.6)
    yield "duplicates, all distances", steps(duplicated, ("camera_ids",), 1.0)
    yield "aligned rows, no ids", steps(features[:, :32].contiguous(), (), 0.3)
    for name, rows, max_distance in (("wide rows", wide, 1.0), ("rows of half the columns", short, 0.8)):
        lists = torch.arange(len(rows[0]) - 1, dtype=torch.int32)[:, None]
        lists = torch.cat([lists, (lists + 1) % len(lists)], 1)

        def expand(ops: Any, device: torch.device, rows: tuple = rows, lists: torch.Tensor = lists) -> tuple:
            return tensors(ops.invariant_expansion(put(rows, device), lists.to(device), 2))

        def join(ops: Any, device: torch.device, rows: tuple = rows, max_distance: float = max_distance) -> tuple:
            return tensors(ops.jaccard_distance(put(rows, device), max_distance))

        yield f"invariant_expansion, {name}", expand
        yield f"jaccard_distance, {name}", join

    def encode_in_pieces(ops: Any, device: torch.device) -> tuple:
        on_device = features.to(device)
        sets = ops.k_reciprocal_sets(ops.knn_graph(on_device, k1)[0], k1_half, num_samples // 5, num_samples // 2)
        rows = on_device[num_samples // 5 : num_samples // 2]
        dots = ops.sampled_dots(rows, on_device, *sets)
        return (*sets, dots, *tensors(ops.k_reciprocal_weights(*sets, dots, num_samples)))

    yield "pieces of an encoding", encode_in_pieces
    yield (
        "round_features",
        lambda ops, device: call(None, torch.ops.dmic.round_features.default, features.to(device), 3),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    options = parser.parse_args(arguments)
    import dmic.ops

    sizes = (300, 12_000) if options.device == "cuda" else (40, 400)
    cpu = torch.device("cpu")
    cases = list(runs(*sizes))
    wanted = [run(dmic.ops, cpu) for _, run in cases]
    device = DEVICES[options.device]()
    device.prepare()
    wrong = 0
    for (name, run), want in zip(cases, wanted, strict=True):
        got = run(dmic.ops, device.device)
        device.synchronize()
        equal = all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
        wrong += not equal
        print(f"{name}: {'the bits of the CPU' if equal else 'OTHER BITS than the CPU'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
