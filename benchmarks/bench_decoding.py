"""Images per second of ImageFiles: decoding JPEGs of pedestrians' sizes, and copying them once they are cached.

The files are in the page cache: this measures decoding and resizing, not a disk.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from dmic.data import ImageFiles

from . import measuring

NUM_IMAGES, SMOKE_IMAGES = 512, 8
BATCH = 64  # images asked for at once, as in training
SIZES = {"128x64": (128, 64), "288x144": (288, 144)}
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


def read_all(images: ImageFiles, batches: tuple[torch.Tensor, ...]) -> None:
    for sample_idx in batches:
        images[sample_idx]


@pytest.mark.benchmark(group="decoding")
@pytest.mark.parametrize("kept", ["cold", "cached"])
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_image_files(benchmark, jpegs, size, num_workers, kept):
    height, width = SIZES[size]
    cache_bytes = 3 * height * width * len(jpegs) if kept == "cached" else 0
    images = ImageFiles(jpegs, height=height, width=width, cache_bytes=cache_bytes, num_workers=num_workers)
    batches = torch.randperm(len(jpegs), generator=torch.Generator().manual_seed(0)).split(BATCH)
    read_all(images, batches)
    assert images.cached_share == (1 if kept == "cached" else 0)
    benchmark.pedantic(read_all, (images, batches), rounds=5)
    benchmark.extra_info.update(
        num_images=len(jpegs),
        mean_file_bytes=round(float(np.mean([os.path.getsize(path) for path in jpegs]))),
        device="cpu",
        commit=measuring.commit(),
    )
    if benchmark.enabled:
        benchmark.extra_info["images_per_second"] = round(len(jpegs) / benchmark.stats.stats.median)
