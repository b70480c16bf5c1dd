"""Images per second of ImageFiles: decoding JPEGs of pedestrians' sizes, and copying them once they are cached.

    python -m pytest benchmarks/bench_decoding.py

The files are in the page cache: this measures decoding and resizing, not a disk. Processor seconds are those of all
threads, and hardly change with what else the machine does. What is measured takes the place of
benchmarks/results/decoding.json.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmic.data import ImageFiles

from . import measuring

RESULTS = Path(__file__).parent / "results" / "decoding.json"
NUM_IMAGES, SMOKE_IMAGES = 512, 8
BATCH = 64  # images asked for at once, as in training
ROUNDS = 9
SIZES = {"64x32": (64, 32), "128x64": (128, 64), "288x144": (288, 144)}
WORKERS, KEPT = (1, 2), ("cold", "cached")
MIN_WIDTH, MAX_WIDTH, ASPECT = 60, 200, 2.5  # of the files: a detector's crops of one scene
QUALITY = 90


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory, pytestconfig) -> list[str]:
    """Smooth blobs under sensor noise: files of about 3 bits a pixel, as photographs have at this quality."""
    folder, rng = tmp_path_factory.mktemp("jpegs"), np.random.default_rng(0)
    paths = []
    for number in range(SMOKE_IMAGES if pytestconfig.option.benchmark_disable else NUM_IMAGES):
        width = int(rng.integers(MIN_WIDTH, MAX_WIDTH + 1))
        size = width, round(width * ASPECT)
        blobs = Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noisy = np.asarray(blobs) + rng.normal(0, 6, (*size[::-1], 3))
        path = folder / f"{number}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def results(jpegs, pytestconfig) -> Iterator[list[dict]]:
    """Rows that are written once all of them are there."""
    rows: list[dict] = []
    yield rows
    if len(rows) == len(SIZES) * len(WORKERS) * len(KEPT):
        about = {
            "command": shlex.join(["python", "-m", "pytest", *pytestconfig.invocation_params.args]),
            "commit": measuring.commit(),
            "machine": measuring.machine(),
            "versions": measuring.versions(),
            "num_images": len(jpegs),
            "mean_file_bytes": round(float(np.mean([os.path.getsize(path) for path in jpegs]))),
        }
        RESULTS.write_text(json.dumps({**about, "results": rows}, indent=1) + "\n")


def read_all(images: ImageFiles, batches: tuple[torch.Tensor, ...]) -> None:
    for sample_idx in batches:
        images[sample_idx]


@pytest.mark.benchmark(group="decoding")
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("size", SIZES)
def test_image_files(benchmark, jpegs, results, size, num_workers, kept):
    height, width = SIZES[size]
    cache_bytes = 3 * height * width * len(jpegs) if kept == "cached" else 0
    images = ImageFiles(jpegs, height=height, width=width, cache_bytes=cache_bytes, num_workers=num_workers)
    batches = torch.randperm(len(jpegs), generator=torch.Generator().manual_seed(0)).split(BATCH)
    read_all(images, batches)
    assert images.cached_share == (1 if kept == "cached" else 0)
    processor = []

    def timed() -> None:
        start = time.process_time()
        read_all(images, batches)
        processor.append(time.process_time() - start)

    benchmark.pedantic(timed, rounds=ROUNDS)
    if benchmark.enabled:
        row = {"size": size, "num_workers": num_workers, "kept": kept}
        for name, found in (("seconds", benchmark.stats.stats.data), ("processor_seconds", processor)):
            spread = measuring.spread(found)
            row |= {f"images_per_{name.removesuffix('s')}": round(len(jpegs) / spread["median"]), name: spread}
        results.append(row)
