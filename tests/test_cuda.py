"""How the package behaves on a GPU: streams, devices, threads, memory, interrupts, other libraries' arrays.

Every body is a function of a place, so that all but what only a driver can do is also run where there is no GPU.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compare import assert_same_bits
from generators import duplicated_features, gallery
from safetensors.torch import save_file

import dmic
from dmic import _native, block_memory, blockwise, ops
from dmic._arrays import to_tensor
from dmic.feature_rows import FeatureRows

STAGES = ["knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan"]
SETTINGS = {"k1": 12, "k2": 4, "eps": 0.55}


class Gpu:
    """The first GPU."""

    num_samples, dim = 3000, 65
    out_of_memory = torch.OutOfMemoryError
    calls_back = True

    def __init__(self):
        self.device = torch.device("cuda", 0)

    def on_the_cpu(self) -> AbstractContextManager:
        """Where CPU tensors are clustered by the CPU."""
        return nullcontext()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def side_stream(self) -> AbstractContextManager:
        return torch.cuda.stream(torch.cuda.Stream(self.device))

    def work_for_a_while(self) -> None:
        """Keeps the current stream busy for about 0.1 s."""
        torch.cuda._sleep(200_000_000)

    def allocated(self) -> int:
        gc.collect()
        return torch.cuda.memory_allocated(self.device)

    def peak_of(self, run: Callable[[], object]) -> int:
        """Bytes beyond what was allocated before."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device) - before

    @contextmanager
    def with_no_more_than(self, num_bytes: int) -> Iterator[None]:
        """Lets torch allocate so much beyond what is allocated."""
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total, self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            torch.cuda.empty_cache()


class StandIn(Gpu):
    """The CPU in its place: one stream, and memory that is not counted but for the limit."""

    num_samples, dim = 90, 13
    out_of_memory = MemoryError

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.device = torch.device("cpu")
        self.monkeypatch = monkeypatch

    def synchronize(self) -> None:
        pass

    def side_stream(self) -> AbstractContextManager:
        return nullcontext()

    def work_for_a_while(self) -> None:
        pass

    def allocated(self) -> int:
        return 0

    def peak_of(self, run: Callable[[], object]) -> int:
        run()
        return 0

    @contextmanager
    def with_no_more_than(self, num_bytes: int) -> Iterator[None]:
        """Each stage takes a fifth of what is estimated for all."""
        needed = dmic.estimate_memory(self.num_samples, self.dim, **SETTINGS).peak_bytes

        def limited(*args, **kwargs):
            if num_bytes < needed // 5:
                raise RuntimeError("out of memory for float32 [1, 2]")
            return encoding(*args, **kwargs)

        encoding = ops.k_reciprocal_encoding
        with self.monkeypatch.context() as patch:
            patch.setattr(ops, "k_reciprocal_encoding", limited)
            yield


class Emulated(StandIn):
    """The CUDA kernels and their wrappers, in the emulator."""

    num_samples = 70
    calls_back = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__(monkeypatch)
        monkeypatch.syspath_prepend(Path(__file__).parent / "cuda_emulator")
        import kernel_checks

        monkeypatch.setattr(_native, "OPS", kernel_checks.plain_emulator().ops)

    @contextmanager
    def on_the_cpu(self) -> Iterator[None]:
        with self.monkeypatch.context() as patch:
            patch.setattr(_native, "OPS", None)
            yield


@pytest.fixture(params=["on_cuda", "on_cpu", "emulated"])
def place(request, monkeypatch) -> Gpu:
    if request.param == "on_cpu":
        return StandIn(monkeypatch)
    if request.param == "emulated":
        return Emulated(monkeypatch)
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return Gpu()


@pytest.fixture
def samples(place) -> dict[str, torch.Tensor]:
    """On the CPU: features and ids."""
    made = gallery(place.num_samples, place.dim)
    return {name: torch.from_numpy(getattr(made, name)) for name in ("features", "camera_ids", "modality_ids")}


def on(device: torch.device, samples: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in samples.items()}


def found(**inputs) -> tuple:
    result = dmic.pseudo_labels(**inputs, **SETTINGS)
    return result.labels, result.core_mask


@pytest.fixture
def want(place, samples) -> tuple:
    """Of the CPU."""
    with place.on_the_cpu():
        labels, core_mask = found(**samples)
    assert len(labels.unique()) > 3, "too easy"
    return labels, core_mask


@pytest.mark.parametrize("ids", [(), ("camera_ids",), ("modality_ids",), ("camera_ids", "modality_ids")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_pipeline_gives_the_labels_of_the_cpu(place, samples, ids, dtype):
    given = {"features": samples["features"].to(dtype)} | {name: samples[name] for name in ids}
    got = found(**on(place.device, given))
    assert {tensor.device for tensor in got} == {place.device}
    with place.on_the_cpu():
        assert_same_bits(got, found(**given))


def test_every_step_gives_the_bits_of_the_cpu_where_samples_are_the_same(place):
    features, _ = duplicated_features(place.num_samples, place.dim, copies=place.num_samples // 2)
    features[:5] = 0

    def steps(x: torch.Tensor) -> tuple:
        idx, dist = dmic.knn_graph(x, 12)
        encoding = dmic.k_reciprocal_encoding(x, idx, 6)
        expanded = dmic.invariant_expansion(encoding, idx, 5)
        distance = dmic.jaccard_distance(expanded, 1.0)
        return idx, dist, encoding, expanded, distance, *dmic.dbscan(distance, 0.5, 3)

    with place.on_the_cpu():
        want = steps(torch.from_numpy(features))
    got = steps(torch.from_numpy(features).to(place.device))
    assert_same_bits(tuple(item.to("cpu") if isinstance(item, dmic.Csr) else item.cpu() for item in got), want)


def test_no_samples(place):
    result = dmic.pseudo_labels(torch.zeros(0, 7, device=place.device), **SETTINGS)
    assert (result.labels.shape, result.labels.device.type) == ((0,), place.device.type)


def test_work_on_the_current_stream_is_waited_for(place, samples, want):
    """Features arrive on a side stream, late; what is done there next sees the labels."""
    source = on(place.device, samples)
    late = torch.zeros_like(source["features"])
    place.synchronize()
    with place.side_stream():
        place.work_for_a_while()
        late.copy_(source["features"])
        labels, core_mask = found(**source | {"features": late})
        kept = labels.clone(), core_mask.clone()
        late.zero_()
    place.synchronize()
    assert_same_bits(kept, want)


def test_two_streams_from_two_threads_at_once(place, samples, want):
    inputs = on(place.device, samples)
    place.synchronize()

    def run(_: int) -> list[tuple]:
        with place.side_stream():
            results = [found(**inputs) for _ in range(4)]
            place.synchronize()
        return results

    with ThreadPoolExecutor(2) as pool:
        results = [result for of_thread in pool.map(run, range(2)) for result in of_thread]
    assert len(results) == 8
    for result in results:
        assert_same_bits(result, want)


def test_a_device_that_is_not_the_current_one(place, samples, want):
    if place.device.type == "cuda":
        if torch.cuda.device_count() < 2:
            pytest.skip("one GPU")
        place.device = torch.device("cuda", torch.cuda.device_count() - 1)
    before = torch.cuda.current_device() if place.device.type == "cuda" else None
    got = found(**on(place.device, samples))
    assert {tensor.device for tensor in got} == {place.device}
    assert_same_bits(got, want)
    assert before is None or torch.cuda.current_device() == before


def test_ids_on_another_device_follow_the_features(place, samples, want):
    assert_same_bits(found(**samples | {"features": samples["features"].to(place.device)}), want)


@pytest.mark.parametrize("block_rows", [None, 31])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_elsewhere_are_clustered_on_the_device_block_by_block(
    place, samples, tmp_path, monkeypatch, block_rows, dtype
):
    if block_rows is not None:
        monkeypatch.setattr(block_memory, "MAX_BLOCK_ROWS", block_rows * place.num_samples // 70)
        monkeypatch.setattr(block_memory, "MIN_BLOCK_ROWS", 1)
    stored = samples["features"].to(dtype)
    save_file({"features": stored}, tmp_path / "gallery.safetensors")
    ids = {name: samples[name] for name in ("camera_ids", "modality_ids")}
    got = found(features=tmp_path / "gallery.safetensors", device=place.device, **ids)
    assert {tensor.device for tensor in got} == {place.device}
    of_memory = found(features=stored, device=place.device, **ids)
    assert {tensor.device.type for tensor in of_memory} == {"cpu"}
    with place.on_the_cpu():
        want = found(features=stored, **ids)
    assert_same_bits(got, want)
    assert_same_bits(of_memory, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blocks_that_are_read_ahead_are_those_of_the_file_and_of_memory(place, samples, tmp_path, dtype):
    """Taken on a current stream that is late, block by block; and the search over them has the bits of the whole."""
    stored = samples["features"].to(dtype)
    save_file({"features": stored}, tmp_path / "gallery.safetensors")
    n, before = len(stored), place.allocated()
    cuts = [*range(0, n, n // 7), n]
    ranges = [(cuts[i], cuts[i + 1]) for i in (0, 1, 0, 2, 2, 3, 1, 6, 5, 4, 4)]
    with place.on_the_cpu():
        want = ops.knn_graph(stored, 12)
    for source in [tmp_path / "gallery.safetensors", stored] * 3:
        features = FeatureRows.of("test", source, place.device)
        with features.ahead(ranges, max(end - begin for begin, end in ranges)) as read:
            taken = []
            for begin, end in ranges:
                place.work_for_a_while()
                taken.append(read(begin, end))
        place.synchronize()
        for (begin, end), found_rows in zip(ranges, taken, strict=True):
            assert torch.equal(found_rows.cpu(), stored[begin:end].float())
        del taken, found_rows, read
        lists = blockwise.knn_graph(features, 12, blockwise.Ring.join(n, n // 7, place.device, None))
        assert_same_bits((lists.idx.cpu(), lists.dist.cpu()), want)
        del lists
    assert place.allocated() == before


def test_inputs_of_any_strides(place, samples, want):
    inputs = on(place.device, samples)
    features = inputs["features"]
    wide = torch.full((len(features), 2 * features.shape[1] + 1), torch.nan, device=place.device)
    wide[:, 1::2] = features
    strided = {
        "features": wide[:, 1::2],
        "camera_ids": inputs["camera_ids"].repeat_interleave(3)[::3],
        "modality_ids": torch.stack([inputs["modality_ids"]] * 2, 1)[:, 1],
    }
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    assert_same_bits(found(**strided), want)
    assert_same_bits(found(**inputs | {"features": features.T.contiguous().T}), want)
    offset = torch.empty(features.numel() + 1, device=place.device)[1:].view_as(features).copy_(features)
    assert offset.data_ptr() % 16, "rows that start at no multiple of 16 bytes"
    assert_same_bits(found(**inputs | {"features": offset}), want)


def test_arrays_of_other_libraries_are_used_where_they_are(place, samples, want):
    if place.device.type == "cuda":
        library = pytest.importorskip("cupy", exc_type=ImportError)
        pointer = lambda array: array.data.ptr  # noqa: E731
    else:
        library, pointer = np, lambda array: array.ctypes.data
    arrays = {name: library.asarray(tensor.numpy()) for name, tensor in samples.items()}
    for name, array in arrays.items():
        tensor = to_tensor(array, name)
        assert (tensor.data_ptr(), tensor.device) == (pointer(array), place.device)
    labels, core_mask = found(**arrays)
    assert type(labels) is type(core_mask) is library.ndarray
    assert_same_bits((to_tensor(labels, "labels"), to_tensor(core_mask, "core_mask")), want)


@pytest.mark.parametrize("settings", [SETTINGS, {"k1": 30, "k2": 6, "eps": 0.6}, {"k1": 40, "k2": 32, "eps": 0.6}])
def test_no_more_memory_is_used_than_estimated(place, settings):
    n, dim = (20_000, 256) if place.device.type == "cuda" else (place.num_samples, place.dim)
    features = torch.from_numpy(gallery(n, dim).features).to(place.device)
    limit = dmic.estimate_memory(n, dim, device=place.device, **settings).peak_bytes
    run = lambda: dmic.pseudo_labels(features, max_memory=limit, **settings)  # noqa: E731
    run()  # what is allocated once and for all is not the clustering's
    assert place.peak_of(run) <= limit
    before = place.allocated()
    with pytest.raises(ValueError, match=r"^pseudo_labels: about .* is needed beyond the features, max_memory allows"):
        dmic.pseudo_labels(features, max_memory=10**6, **settings)
    assert place.allocated() == before


@pytest.mark.parametrize("settings", [{"k1": 30, "k2": 6, "eps": 0.6}, {"k1": 40, "k2": 32, "eps": 0.6}])
def test_blocks_use_no_more_memory_than_they_may(place, settings, tmp_path):
    n, dim = (20_000, 256) if place.device.type == "cuda" else (place.num_samples, place.dim)
    search = block_memory.Search(**settings, min_samples=4)
    sizes = block_memory.block_sizes(n)
    stated = [block_memory.block_memory(n, n, 1, dim, search, rows, device=place.device) for rows in sizes]
    limit = min(max(stages.values()) for stages in stated)
    features = torch.from_numpy(gallery(n, dim).features)
    save_file({"features": features}, tmp_path / "gallery.safetensors")
    of_file = lambda: dmic.pseudo_labels(  # noqa: E731
        tmp_path / "gallery.safetensors", device=place.device, max_memory=limit, **settings
    )
    want = of_file().labels.cpu()
    assert place.peak_of(of_file) <= limit
    on_device = features.to(place.device)
    assert place.peak_of(lambda: dmic.pseudo_labels(on_device, max_memory=limit, **settings)) <= limit
    assert torch.equal(dmic.pseudo_labels(features, **settings).labels, want)


def test_pairs_that_memory_does_not_allow_are_an_error(place):
    """A gallery of one place: every sample is within eps of every other."""
    n = 24_000 if place.device.type == "cuda" else 1500
    features = torch.ones(n, 4, device=place.device)
    settings = {"k1": 4, "k2": 1, "eps": 0.6}
    limit = dmic.estimate_memory(n, 4, device=place.device, **settings).peak_bytes
    neighbor_idx = torch.arange(4, device=place.device).expand(n, 4)  # all list the same four
    before = place.allocated()

    def run() -> None:
        encoding = dmic.Csr(
            torch.arange(n + 1, device=place.device),
            torch.zeros(n, dtype=torch.int32, device=place.device),
            torch.full((n,), 2**30, dtype=torch.int32, device=place.device),
            n,
        )
        with pytest.raises(ValueError, match=r"^jaccard_distance: .*pairs"):
            dmic.pseudo_labels(features, neighbor_idx=neighbor_idx, encoding=encoding, max_memory=limit, **settings)

    assert place.peak_of(run) <= limit
    assert place.allocated() == before


class StopError(Exception):
    pass


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_leaves_nothing_behind(place, samples, want, stage, calls):
    if not place.calls_back:
        pytest.skip("emulated ops do not call back")
    inputs = on(place.device, samples)
    before = place.allocated()
    seen = []

    def progress(name: str, done: int, total: int) -> None:
        seen.append(name)
        if name == stage and seen.count(name) > calls:
            raise StopError(stage)

    with pytest.raises(StopError, match=f"^{stage}$"):
        dmic.pseudo_labels(**inputs, **SETTINGS, progress=progress)
    place.synchronize()
    assert place.allocated() == before
    assert_same_bits(found(**inputs), want)


def test_less_memory_gives_the_same_labels_or_says_how_much_is_needed(place, samples, want):
    inputs = on(place.device, samples)
    needed = dmic.estimate_memory(place.num_samples, place.dim, device=place.device, **SETTINGS)
    before = place.allocated()
    errors = []
    for shift in range(12):  # from twice the estimate to next to nothing
        try:
            with place.with_no_more_than(2 * needed.peak_bytes >> shift):
                got = found(**inputs)
        except place.out_of_memory as error:
            errors.append(str(error))
        else:
            assert not errors, "more memory was not enough"
            assert_same_bits(got, want)
            del got
        assert place.allocated() == before
    assert 0 < len(errors) < 12
    needs = re.escape(f"pseudo_labels: out of memory; about {needed} is needed beyond the features")
    on_a_gpu = r", .* are free on cuda:0; move the features to the CPU, or "
    between = on_a_gpu if place.device.type == "cuda" else "; "
    for text in errors:
        assert re.fullmatch(rf"{needs}{between}lower k1=12, k2=4 or eps=0\.55", text)
    assert_same_bits(found(**inputs), want)


def test_a_build_without_kernels_says_so(monkeypatch):
    on_a_gpu = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    with pytest.raises(NotImplementedError) as caught:
        _native.call(None, torch.ops.dmic.knn_graph.default, on_a_gpu, 3, 0)
    assert str(caught.value) == "knn_graph: this build has no CUDA kernel for it; move the arguments to the CPU"


def test_the_torch_here_has_the_call_that_names_the_current_stream():
    """No header declares it where torch has no CUDA, so that it is looked up when a kernel is launched."""
    if not torch.version.cuda:
        pytest.skip("torch has no CUDA")
    source = (Path(__file__).parents[1] / "csrc" / "cuda" / "launch.h").read_text()
    (library,), (symbol,) = re.findall(r'dlopen\("([^"]+)"', source), re.findall(r'dlsym\(library, "([^"]+)"', source)
    assert hasattr(ctypes.CDLL(library, mode=os.RTLD_LAZY | os.RTLD_NOLOAD), symbol)
