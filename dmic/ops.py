"""The five clustering ops and the pieces of one of them: public wrapper and fake registration side by side.

Every function takes torch tensors, numpy arrays and anything that speaks DLPack or ``__cuda_array_interface__``, of any
strides, and returns the same kind of arrays on the same device. Results are exact and have the same bits for every
number of threads, block size and device (``docs/algorithm.md`` says how they are defined, ``dmic.reference`` computes
them slowly). ``progress`` is called as ``progress(stage, done, total)`` from the calling thread about twenty times a
second; an exception it raises, like Ctrl-C, stops the op and propagates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ._arrays import ANY_IDS, dtype_name, like, to_integer, to_tensor
from ._native import build_info, call
from .csr import Csr
from .directions import leading_directions

Progress = Callable[[str, int, int], None]


def _features(op: str, features: Any, name: str = "features") -> torch.Tensor:
    tensor = to_tensor(features, f"{op}: {name}")
    if not tensor.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, got {dtype_name(tensor.dtype)}")
    single = tensor.float().contiguous()
    if tensor.dtype == torch.float64 and (lost := single.isinf() & tensor.isfinite()).any():
        row, column = lost.nonzero()[0].tolist() if tensor.dim() == 2 else (0, 0)
        value = float(tensor[lost][0])
        raise ValueError(f"{op}: {name} must fit float32, got {value} at row {row}, column {column}")
    return single


def _floats(op: str, name: str, array: Any, device: torch.device) -> torch.Tensor:
    tensor = to_tensor(array, f"{op}: {name}")
    if not tensor.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, got {dtype_name(tensor.dtype)}")
    return tensor.to(device, torch.float32).contiguous()


def _number(op: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{op}: {name} must be a number, got {value!r}") from None


def _indices(
    op: str, name: str, array: Any, dtype: torch.dtype, allowed: str = "[0, N)", advice: str = ""
) -> torch.Tensor:
    """Integers of any width as `dtype`; a value that does not fit is an error, not a wrap-around."""
    tensor = to_tensor(array, f"{op}: {name}", f"integers{advice}")
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise ValueError(f"{op}: {name} must be integers, got {dtype_name(tensor.dtype)}{advice}")
    if tensor.dtype == dtype and (tensor.numel() == 0 or int(tensor.min()) >= 0):
        return tensor.contiguous()  # lists of all samples may be all that fits: nothing of their size beside them
    wide = tensor.to(torch.int64)
    bad = (wide < 0) | (wide > torch.iinfo(dtype).max)
    if bad.any():
        value = int(wide[bad][0])
        value += 2**64 if tensor.dtype == torch.uint64 and value < 0 else 0
        raise ValueError(f"{op}: {name} must be in {allowed}, got {value}")
    return wide.to(dtype).contiguous()


def _ids(op: str, name: str, array: Any, device: torch.device) -> torch.Tensor | None:
    return None if array is None else _indices(op, name, array, torch.int64, "[0, 2**63)", f" ({ANY_IDS})").to(device)


def _csr(op: str, name: str, csr: Csr) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not isinstance(csr, Csr):
        raise TypeError(f"{op}: {name} must be a dmic.Csr, got {type(csr).__name__}")
    parts = (csr.row_ptr, csr.col_idx, csr.values)
    names = (f"{op}: {name}.row_ptr", f"{op}: {name}.col_idx", f"{op}: {name}.values")
    return tuple(to_tensor(part, text).contiguous() for part, text in zip(parts, names, strict=True))


def _pattern(op: str, row_ptr: Any, col_idx: Any, device: torch.device | None = None) -> tuple[torch.Tensor, ...]:
    """Which entries of a matrix are stored, on `device` or where row_ptr is."""
    starts = _indices(op, "row_ptr", row_ptr, torch.int64, "[0, nnz]")
    columns = _indices(op, "col_idx", col_idx, torch.int32, "[0, 2**31)")
    device = device or starts.device
    return starts.to(device), columns.to(device)


def _num_cols(op: str, encoding: Csr) -> int:
    """As the compiled ops take it: -1 is one column per row."""
    num_cols = to_integer(encoding.num_cols, f"{op}: encoding.num_cols")
    if not 0 <= num_cols < 2**31:
        raise ValueError(f"{op}: encoding.num_cols must be in [0, 2**31), got {num_cols}")
    return -1 if num_cols == encoding.num_rows else num_cols


def _wrap(tensors: tuple[torch.Tensor, ...], kind: Any, num_cols: int | None = None) -> Csr:
    """By default square."""
    restore = like(kind)
    row_ptr, col_idx, values = tensors
    num_cols = row_ptr.shape[0] - 1 if num_cols is None else num_cols
    return Csr(restore(row_ptr), restore(col_idx), restore(values), num_cols)


def _fake_pattern(like_tensor: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    return like_tensor.new_empty(rows + 1, dtype=torch.int64), like_tensor.new_empty(nnz, dtype=torch.int32)


def _fake_csr(like_tensor: torch.Tensor, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    row_ptr, col_idx = _fake_pattern(like_tensor, rows)
    return row_ptr, col_idx, like_tensor.new_empty(col_idx.shape, dtype=dtype)


def knn_graph(
    features: Any, k1: int, *, block_rows: int = 0, directions: Any = None, progress: Progress | None = None
) -> tuple[Any, Any]:
    """The k1 nearest samples of each sample by Euclidean distance, itself included; exact.

    Args:
        features: floating point [N, d], finite; rounded to float32 if wider. Norms are arbitrary.
        k1: list length, counting the sample itself; 1 <= k1 <= N.
        block_rows: rows and columns compared at a time; 0 chooses. Changes time and memory, not a bit of the result.
        directions: as in `knn_between`, [0, d] to compare in full; None chooses. Change time, not a bit of the result.
        progress: see the module.

    Returns:
        neighbor_idx: int32 [N, k1], nearest first; equal distances by ascending index.
        neighbor_dist: float32 [N, k1], squared Euclidean distances, ascending.

    Raises:
        ValueError: features not [N, d], not finite; k1 out of range; directions that are not orthonormal.

    Source: R(i, k1) of k-reciprocal re-ranking, Zhong et al., CVPR 2017, as implemented in the SpCL lineage, where
    lists count the sample itself.

    >>> import numpy as np
    >>> knn_graph(np.array([[0.0], [1.0], [3.0]]), k1=2)
    (array([[0, 1],
           [1, 0],
           [2, 1]], dtype=int32), array([[0., 1.],
           [0., 1.],
           [0., 4.]], dtype=float32))
    """
    restore = like(features)
    neighbor_idx, neighbor_dist, _ = knn_graph_and_redone(
        features, k1, block_rows=block_rows, directions=directions, progress=progress
    )
    return restore(neighbor_idx), restore(neighbor_dist)


def knn_graph_and_redone(
    features: Any, k1: int, *, block_rows: int = 0, directions: Any = None, progress: Progress | None = None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """`knn_graph` as tensors, and the number of rows whose float16 candidates were not proved complete and that were
    therefore compared with every sample exactly. Depends on the device: the CPU has no such rows."""
    tensor = _features("knn_graph", features)
    k1, block_rows = to_integer(k1, "knn_graph: k1"), to_integer(block_rows, "knn_graph: block_rows")
    compiling = torch.compiler.is_compiling()
    if directions is not None:
        axes = _floats("knn_graph", "directions", directions, tensor.device)
    else:
        axes = None if compiling or tensor.dim() != 2 else search_directions(tensor, k1, len(tensor))
    op = torch.ops.dmic.knn_graph.default
    neighbor_idx, neighbor_dist, redone = call(progress, op, tensor, k1, block_rows, axes)
    return neighbor_idx, neighbor_dist, redone if compiling else int(redone)


def search_directions(features: torch.Tensor, k1: int, num_samples: int) -> torch.Tensor | None:
    """`leading_directions` of a gallery of num_samples, of which these are some, for the processor that the search runs
    on: [0, d] where comparing in full is cheaper. None on a GPU, which has no use for them."""
    if features.device.type != "cpu":
        return None
    found = leading_directions(features, k1, num_samples, simd=build_info()["simd_used"])
    return features.new_empty(0, features.shape[1]) if found is None else found


def knn_between(
    features: Any,
    split: int,
    k1: int,
    farthest: Any = None,
    *,
    block_rows: int = 0,
    directions: Any = None,
    progress: Progress | None = None,
) -> tuple[Any, Any]:
    """The k1 nearest samples of the other side, for each sample of two sides; exact.

    Rows [0, split) are compared with rows [split, N), each pair once for both lists, and with no row of their own side.
    This is how a gallery that does not fit a machine is searched: two blocks of it at a time. It is the op `knn_graph`,
    and errors and progress have that name.

    Args:
        features: floating point [N, d], finite; rounded to float32 if wider. Norms are arbitrary.
        split: rows of the first side; 0 <= split <= N.
        k1: list length; 1 <= k1 <= N. A list is shorter if the other side is.
        farthest: floating point [N], at least 0, infinity included: list i holds nothing beyond farthest[i], compared
            in float32. Who has the k1-th nearest of earlier blocks gives its distance here, and the search drops all
            else from the start. None is infinity.
        block_rows: rows and columns compared at a time; 0 chooses. Changes time and memory, not a bit of the result.
        directions: floating point [m, d], orthonormal rows along which features vary most, as
            `dmic.directions.leading_directions` finds them, or None to compare in full. Change time, not a bit of the
            result. A GPU has no use for them.
        progress: see the module.

    Returns:
        neighbor_idx: int32 [N, k1], rows of `features`, nearest first; equal distances by ascending index. A short
            list ends with -1.
        neighbor_dist: float32 [N, k1], squared Euclidean distances, ascending; infinity where the index is -1.

    Raises:
        ValueError: features not [N, d], not finite; split or k1 out of range; farthest negative or NaN; directions
            that are not orthonormal.

    >>> import numpy as np
    >>> knn_between(np.array([[0.0], [1.0], [3.0]]), split=2, k1=2)
    (array([[ 2, -1],
           [ 2, -1],
           [ 1,  0]], dtype=int32), array([[ 9., inf],
           [ 4., inf],
           [ 4.,  9.]], dtype=float32))
    """
    op = "knn_graph"
    tensor, restore = _features(op, features), like(features)
    split, k1 = to_integer(split, f"{op}: split"), to_integer(k1, f"{op}: k1")
    block_rows = to_integer(block_rows, f"{op}: block_rows")
    limits = None if farthest is None else _floats(op, "farthest", farthest, tensor.device)
    axes = None if directions is None else _floats(op, "directions", directions, tensor.device)
    if split == 0 and tensor.dim() == 2:
        split = len(tensor)  # to the op 0 is no split; an empty side is an empty side
    arguments = (tensor, k1, block_rows, axes, split, limits)
    neighbor_idx, neighbor_dist, _ = call(progress, torch.ops.dmic.knn_graph.default, *arguments)
    return restore(neighbor_idx), restore(neighbor_dist)


@torch.library.register_fake("dmic::knn_graph")
def _(features, k1, block_rows=0, directions=None, split=0, farthest=None):
    rows = features.shape[0]
    idx, dist = features.new_empty(rows, k1, dtype=torch.int32), features.new_empty(rows, k1)
    return idx, dist, features.new_empty(1, dtype=torch.int64)


def k_reciprocal_encoding(features: Any, neighbor_idx: Any, k1_half: int, *, progress: Progress | None = None) -> Csr:
    """Each sample as weights over its expanded k-reciprocal set: softmax of -(2 - 2 f_i . f_j).

    Args:
        features: floating point [N, d], finite.
        neighbor_idx: integers [N, k1] in [0, N), distinct in a row, nearest first; from `knn_graph`
            or any other exact search.
        k1_half: size of the half lists without the sample itself: the first k1_half + 1 columns; 0 <= k1_half < k1.
            The published choice is ``int(numpy.around(k1 / 2))``.
        progress: see the module.

    Returns:
        Csr with int32 values in units of 2**-30; every row sums to exactly 2**30, or is empty where the sample is
        missing from its own list.

    Raises:
        ValueError: shapes, dtypes or ranges as above; repeated indices in a row.

    Source: V in Zhong et al., CVPR 2017, equations 3 to 7.
    """
    tensor = _features("k_reciprocal_encoding", features)
    lists = _indices("k_reciprocal_encoding", "neighbor_idx", neighbor_idx, torch.int32).to(tensor.device)
    k1_half = to_integer(k1_half, "k_reciprocal_encoding: k1_half")
    return _wrap(call(progress, torch.ops.dmic.k_reciprocal_encoding.default, tensor, lists, k1_half), features)


@torch.library.register_fake("dmic::k_reciprocal_encoding")
def _(features, neighbor_idx, k1_half):
    return _fake_csr(features, features.shape[0], torch.int32)


def k_reciprocal_sets(
    neighbor_idx: Any, k1_half: int, begin: int = 0, end: int | None = None, *, progress: Progress | None = None
) -> tuple[Any, Any]:
    """The expanded k-reciprocal sets of rows [begin, end): the columns of their `k_reciprocal_encoding`.

    Args:
        neighbor_idx: integers [N, k1] in [0, N), distinct in a row, nearest first: of all N samples. Rows that are
            not wanted are not checked to be distinct.
        k1_half: as in `k_reciprocal_encoding`.
        begin, end: the rows wanted, 0 <= begin <= end <= N; end=None is N.
        progress: see the module.

    Returns:
        row_ptr: int64 [end - begin + 1]; the set of sample begin + i is stored at positions row_ptr[i] to
            row_ptr[i + 1].
        col_idx: int32 [nnz], samples in [0, N), ascending inside a set.

    Raises:
        ValueError: shapes, dtypes or ranges as above; repeated indices in a row that is wanted.

    Source: R* in Zhong et al., CVPR 2017, equation 3.
    """
    op = "k_reciprocal_sets"
    lists = _indices(op, "neighbor_idx", neighbor_idx, torch.int32)
    k1_half, begin = to_integer(k1_half, f"{op}: k1_half"), to_integer(begin, f"{op}: begin")
    end = lists.shape[:1].numel() if end is None else to_integer(end, f"{op}: end")
    restore = like(neighbor_idx)
    row_ptr, col_idx = call(progress, torch.ops.dmic.k_reciprocal_sets.default, lists, k1_half, begin, end)
    return restore(row_ptr), restore(col_idx)


@torch.library.register_fake("dmic::k_reciprocal_sets")
def _(neighbor_idx, k1_half, begin, end):
    return _fake_pattern(neighbor_idx, end - begin)


def sampled_dots(
    rows: Any,
    others: Any,
    row_ptr: Any,
    col_idx: Any,
    *,
    check_finite: bool = True,
    progress: Progress | None = None,
) -> Any:
    """Dot products of the pairs that are stored, a sampled dense-dense product (SDDMM): rows[i] . others[j].

    Args:
        rows: floating point [n, d], finite; rounded to float32 if wider.
        others: floating point [m, d], finite; may be `rows` itself.
        row_ptr: integers [n + 1], from 0 to nnz, never falling.
        col_idx: integers [nnz] in [0, m), strictly ascending inside a row.
        check_finite: False if all rows are known to be finite; where they are not, products are not either.
        progress: see the module.

    Returns:
        float64 [nnz], in the order of col_idx. Each depends on its two rows alone, so the columns may be taken in
        blocks.

    Raises:
        ValueError: shapes, dtypes or ranges as above.
    """
    op = "sampled_dots"
    left = _features(op, rows, "rows")
    right = _features(op, others, "others").to(left.device)
    pattern = _pattern(op, row_ptr, col_idx, left.device)
    return like(rows)(call(progress, torch.ops.dmic.sampled_dots.default, left, right, *pattern, bool(check_finite)))


@torch.library.register_fake("dmic::sampled_dots")
def _(rows, others, row_ptr, col_idx, check_finite=True):
    return rows.new_empty(col_idx.shape, dtype=torch.float64)


def k_reciprocal_weights(
    row_ptr: Any, col_idx: Any, dots: Any, num_cols: int | None = None, *, progress: Progress | None = None
) -> Csr:
    """Rows of an encoding from the dot products of their members: softmax of -(2 - 2 dot).

    With the sets of `k_reciprocal_sets` and their `sampled_dots` these are rows of `k_reciprocal_encoding`.

    Args:
        row_ptr: integers [n + 1], from 0 to nnz, never falling.
        col_idx: integers [nnz] in [0, num_cols), strictly ascending inside a row, at most 2**30 in each.
        dots: float64 [nnz], finite, below 2**1023 in magnitude.
        num_cols: number of columns of the result; None is n.
        progress: see the module.

    Returns:
        Csr [n, num_cols] with int32 values in units of 2**-30; every row that is not empty sums to exactly 2**30.
        Weights that round to zero are not stored.

    Raises:
        ValueError: shapes, dtypes or ranges as above.

    Source: V in Zhong et al., CVPR 2017, equation 7.
    """
    op = "k_reciprocal_weights"
    starts, columns = _pattern(op, row_ptr, col_idx)
    products = to_tensor(dots, f"{op}: dots").to(starts.device).contiguous()
    num_cols = starts.numel() - 1 if num_cols is None else to_integer(num_cols, f"{op}: num_cols")
    if columns.numel() and (last := int(columns.max())) >= num_cols:
        raise ValueError(f"{op}: col_idx must be in [0, num_cols), got {last} with num_cols={num_cols}")
    result = call(progress, torch.ops.dmic.k_reciprocal_weights.default, starts, columns, products)
    return _wrap(result, dots, num_cols)


@torch.library.register_fake("dmic::k_reciprocal_weights")
def _(row_ptr, col_idx, dots):
    return _fake_csr(row_ptr, row_ptr.shape[0] - 1, torch.int32)


def invariant_expansion(
    encoding: Csr,
    neighbor_idx: Any,
    k2: int,
    camera_ids: Any = None,
    modality_ids: Any = None,
    *,
    progress: Progress | None = None,
) -> Csr:
    """The mean encoding of each sample's k2 nearest samples, nested: sample, then camera, then modality.

    With neither ids this is plain local query expansion; with camera ids, camera-invariant; with modality ids alone,
    modality-invariant; with both, modality-camera-invariant (MIE): each modality present among the neighbours weighs
    the same, each camera in it, each sample in that.

    Args:
        encoding: Csr [N, C] of `k_reciprocal_encoding`. C is N; or the size of the gallery, of whose rows the encoding
            has those that the lists need.
        neighbor_idx: integers [M, >= k2] in [0, N), distinct in a row, nearest first: rows of the encoding. M is N, or
            the number of samples to expand.
        k2: neighbours averaged, counting the sample itself; 1 returns the encoding unchanged if C and M are N, else the
            rows that the lists begin with.
        camera_ids: integers [N], not negative, or None for one camera. Gaps are fine.
        modality_ids: integers [N], not negative, or None for one modality.
        progress: see the module.

    Returns:
        Csr [M, C] like the encoding: int32 in units of 2**-30, rows summing to exactly 2**30 or empty.

    Raises:
        ValueError: shapes, dtypes or ranges as above; rows of the encoding that do not sum to 2**30.

    Source: PCA (plain and modality-invariant), DMIC section MIE; arXiv 2412.08231.
    """
    op = "invariant_expansion"
    parts, num_cols = _csr(op, "encoding", encoding), _num_cols(op, encoding)
    device = parts[0].device
    lists = _indices(op, "neighbor_idx", neighbor_idx, torch.int32).to(device)
    cameras = _ids(op, "camera_ids", camera_ids, device)
    modalities = _ids(op, "modality_ids", modality_ids, device)
    k2 = to_integer(k2, f"{op}: k2")
    native = torch.ops.dmic.invariant_expansion.default
    result = call(progress, native, *parts, lists, k2, cameras, modalities, num_cols)
    return _wrap(result, encoding.values, encoding.num_cols)


@torch.library.register_fake("dmic::invariant_expansion")
def _(row_ptr, col_idx, values, neighbor_idx, k2, camera_ids=None, modality_ids=None, num_cols=-1):
    return _fake_csr(row_ptr, neighbor_idx.shape[0], torch.int32)


def jaccard_distance(
    encoding: Csr,
    max_distance: float,
    *,
    max_pairs: int | None = None,
    partners: Csr | None = None,
    progress: Progress | None = None,
) -> Csr:
    """Jaccard distances of all pairs within max_distance: J = 1 - s / (2 - s), s = sum of the smaller weights.

    Args:
        encoding: Csr [n, C] of `invariant_expansion` or `k_reciprocal_encoding`. C is n; or the size of the gallery, of
            whose rows the encoding has some.
        max_distance: in [0, 1]; compared in float32, as ``values <= max_distance`` would be. 1 returns every pair
            that overlaps at all, which can be thousands a row.
        max_pairs: stop with an error as soon as more pairs than this are found (each counted once), or None. What is
            returned takes 16 bytes a pair and its making 8 more; a gallery with hubs can have far more than N of them.
        partners: Csr [m, C], other rows of the same gallery. Then only pairs of a row of `encoding` and one of these
            are looked for, which are numbered from n on: so two parts of a gallery are joined. None: all pairs.
        progress: see the module.

    Returns:
        Csr [N, N] with float32 values, N = n, or n + m with partners: pairs with s > 0 and J <= max_distance, in both
        directions, and without partners the diagonal (of non-empty rows). Pairs that are not stored are farther;
        without overlap J is 1.

    Raises:
        ValueError: max_distance out of range; rows that do not sum to 2**30; partners with another number of columns;
            more than max_pairs.

    Source: Zhong et al., CVPR 2017, equation 10.
    """
    op = "jaccard_distance"
    parts, num_cols = _csr(op, "encoding", encoding), _num_cols(op, encoding)
    max_distance = _number(op, "max_distance", max_distance)
    limit = -1 if max_pairs is None else to_integer(max_pairs, f"{op}: max_pairs")
    if max_pairs is not None and limit < 0:
        raise ValueError(f"{op}: max_pairs must not be negative, got {max_pairs}")
    others = (None, None, None)
    if partners is not None:
        others = _csr(op, "partners", partners)
        if partners.num_cols != encoding.num_cols:
            got = f"{partners.num_cols} and {encoding.num_cols}"
            raise ValueError(f"{op}: partners must have as many columns as encoding, got {got}")
    native = torch.ops.dmic.jaccard_distance.default
    return _wrap(call(progress, native, *parts, max_distance, limit, *others, num_cols), encoding.values)


@torch.library.register_fake("dmic::jaccard_distance")
def _(
    row_ptr,
    col_idx,
    values,
    max_distance,
    max_pairs=-1,
    partner_row_ptr=None,
    partner_col_idx=None,
    partner_values=None,
    num_cols=-1,
):
    others = 0 if partner_row_ptr is None else partner_row_ptr.shape[0] - 1
    return _fake_csr(row_ptr, row_ptr.shape[0] - 1 + others, torch.float32)


def dbscan(distance: Csr, eps: float, min_samples: int, *, progress: Progress | None = None) -> tuple[Any, Any]:
    """DBSCAN on sparse distances; the same labels as scikit-learn's ``DBSCAN(metric="precomputed")``.

    Args:
        distance: symmetric Csr [N, N], float32, of `jaccard_distance` with max_distance >= eps. Pairs that are not
            stored count as farther than eps.
        eps: radius, at least 0; compared in float32.
        min_samples: samples within eps, the sample itself included, that make it a core sample; at least 1.
        progress: see the module.

    Returns:
        labels: int64 [N]; clusters numbered by their smallest core index, a border sample in the lowest-numbered
            cluster that has a core sample within eps, -1 for noise.
        core_mask: bool [N].

    Raises:
        ValueError: distances that are not symmetric, negative or NaN; eps or min_samples out of range.

    Source: Ester et al., KDD 1996.
    """
    parts = _csr("dbscan", "distance", distance)
    if distance.num_rows != distance.num_cols:
        raise ValueError(f"dbscan: distance must have one column per sample, got shape {distance.shape}")
    eps, min_samples = _number("dbscan", "eps", eps), to_integer(min_samples, "dbscan: min_samples")
    restore = like(distance.values)
    labels, core_mask = call(progress, torch.ops.dmic.dbscan.default, *parts, eps, min_samples)
    return restore(labels), restore(core_mask)


@torch.library.register_fake("dmic::dbscan")
def _(row_ptr, col_idx, values, eps, min_samples):
    rows = row_ptr.shape[0] - 1
    return row_ptr.new_empty(rows), row_ptr.new_empty(rows, dtype=torch.bool)


def round_features(features: Any, exponent: int, *, progress: Progress | None = None) -> tuple[Any, Any]:
    """features * 2**exponent rounded to float16, and a bound on what the rounding lost: what certificates are made of.

    Args:
        features: floating point [N, d], finite.
        exponent: in [-126, 127]; no scaled value may exceed 65504 in magnitude.
        progress: see the module.

    Returns:
        rounded: float16 [N, d], to nearest even.
        residual_norm: float32 [N], the Euclidean norm of features * 2**exponent - rounded, rounded up.

    Raises:
        ValueError: features not finite, or out of the range of float16 after scaling.
    """
    tensor = _features("round_features", features)
    exponent = to_integer(exponent, "round_features: exponent")
    restore = like(features)
    rounded, residual_norm = call(progress, torch.ops.dmic.round_features.default, tensor, exponent)
    return restore(rounded), restore(residual_norm)


@torch.library.register_fake("dmic::round_features")
def _(features, exponent):
    return features.new_empty(features.shape, dtype=torch.float16), features.new_empty(features.shape[0])
