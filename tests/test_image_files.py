"""Image files: the pixels of Pillow, whatever the cache, the order and the number of threads."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image

from dmic.data import ImageFiles, image_files
from dmic.data.image_files import probe_images

HEIGHT, WIDTH, NUM_FILES = 12, 7, 11
IMAGE_BYTES = 3 * HEIGHT * WIDTH
SUFFIXES = ("jpg", "png", "bmp")


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    """Images of several formats and sizes."""
    folder = tmp_path_factory.mktemp("images")
    return [
        trees.write_image(folder / f"{number}.{SUFFIXES[number % 3]}", width=5 + number, height=40 - number)
        for number in range(NUM_FILES)
    ]


@pytest.fixture(scope="module")
def pixels(paths) -> torch.Tensor:
    images = []
    for path in paths:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
    return torch.stack(images)


def files(paths, **settings) -> ImageFiles:
    return ImageFiles(paths, height=HEIGHT, width=WIDTH, **settings)


def count_reads(monkeypatch) -> list[str]:
    """Paths that are read from now on, in the order of reading."""
    read, original = [], image_files.read_bytes

    def counted(path):
        read.append(path)
        return original(path)

    monkeypatch.setattr(image_files, "read_bytes", counted)
    return read


@pytest.mark.parametrize("num_workers", [1, 3, None])
@pytest.mark.parametrize("cached", [0, 4, NUM_FILES, 100])
def test_indexing_gives_what_a_tensor_of_all_pixels_would(paths, pixels, num_workers, cached):
    images = files(paths, num_workers=num_workers, cache_bytes=cached * IMAGE_BYTES)
    assert (images.shape, images.dtype, len(images)) == (tuple(pixels.shape), torch.uint8, NUM_FILES)
    for sample_idx in ([3], [5, 3, 5, 5, 0], [], list(range(NUM_FILES)), [10, 0, 10]):
        sample_idx = torch.tensor(sample_idx, dtype=torch.int64)
        found = images[sample_idx]
        assert (found.dtype, found.is_contiguous()) == (torch.uint8, True)
        assert torch.equal(found, pixels[sample_idx])


def test_results_do_not_alias_the_cache(paths, pixels):
    images = files(paths, cache_bytes=NUM_FILES * IMAGE_BYTES)
    for _ in range(2):
        images[torch.tensor([4])].zero_()
    assert torch.equal(images[torch.tensor([4])], pixels[[4]])


def test_a_cached_image_is_read_once_and_the_first_asked_for_are_cached(paths, monkeypatch):
    read = count_reads(monkeypatch)
    images = files(paths, cache_bytes=3 * IMAGE_BYTES + IMAGE_BYTES - 1)
    assert images.max_cached_share == 3 / NUM_FILES
    assert images.max_cached_bytes == 3 * IMAGE_BYTES
    assert images.cached_share == 0
    images[torch.tensor([9, 9, 2])]
    assert sorted(read) == sorted(str(paths[n]) for n in (2, 9)), "a repeated sample is decoded once"
    assert images.cached_share == 2 / NUM_FILES
    images[torch.tensor([2, 9])]
    assert len(read) == 2
    images[torch.tensor([0, 5, 0])]  # one of them still fits
    assert images.cached_share == 3 / NUM_FILES
    del read[:]
    images[torch.tensor([0, 2, 5, 9])]
    assert len(read) == 1


def test_without_a_cache_nothing_is_kept(paths, monkeypatch):
    read = count_reads(monkeypatch)
    images = files(paths)
    for _ in range(2):
        images[torch.tensor([1])]
    assert (len(read), images.cached_share, images.max_cached_bytes) == (2, 0, 0)


def test_threads_that_index_at_once_get_the_right_pixels_and_fill_the_cache_once(paths, pixels):
    for capacity in (NUM_FILES, 5):
        images = files(paths, num_workers=2, cache_bytes=capacity * IMAGE_BYTES)
        wrong = []

        def use(seed, images=images, wrong=wrong):
            generator = torch.Generator().manual_seed(seed)
            for _ in range(40):
                sample_idx = torch.randint(NUM_FILES, (6,), generator=generator)
                if not torch.equal(images[sample_idx], pixels[sample_idx]):
                    wrong.append(sample_idx)

        users = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        assert not wrong
        assert images.cached_share == capacity / NUM_FILES


def test_two_threads_that_decode_one_image_at_the_same_time_keep_it_once(paths, monkeypatch):
    both_have_missed, original = threading.Barrier(2, timeout=60), image_files.read_bytes

    def meeting(path):
        both_have_missed.wait()
        return original(path)

    monkeypatch.setattr(image_files, "read_bytes", meeting)
    images = files(paths, num_workers=1, cache_bytes=NUM_FILES * IMAGE_BYTES)
    users = [threading.Thread(target=images.__getitem__, args=(torch.tensor([4]),)) for _ in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert images.cached_share == 1 / NUM_FILES


def test_images_that_are_asked_for_together_are_decoded_at_the_same_time(paths, monkeypatch):
    all_at_once, original = threading.Barrier(3, timeout=60), image_files.read_bytes

    def meeting(path):
        all_at_once.wait()
        return original(path)

    monkeypatch.setattr(image_files, "read_bytes", meeting)
    assert len(files(paths, num_workers=3)[torch.tensor([4, 0, 7])]) == 3


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    grey = Image.fromarray(np.arange(0, 240, dtype=np.uint8).reshape(20, 12))
    for mode in ("L", "P", "LA"):
        grey.convert(mode).save(tmp_path / f"{mode}.png")
    images = ImageFiles([tmp_path / f"{mode}.png" for mode in ("L", "P", "LA")], height=20, width=12)
    for found in images[torch.arange(3)]:
        assert torch.equal(found, torch.arange(240, dtype=torch.uint8).reshape(20, 12).expand(3, 20, 12))


def test_a_jpeg_is_decoded_at_its_full_size_and_not_turned(tmp_path):
    path, turned = tmp_path / "large.jpg", Image.Exif()
    turned[0x0112] = 6  # orientation: show it a quarter turned
    pixels = np.random.default_rng(0).integers(0, 256, (160, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=turned)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
        whole = image.convert("RGB")
        assert whole.size == (96, 160)
        want = np.array(whole.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    assert torch.equal(files([path])[torch.tensor([0])][0], torch.from_numpy(want).permute(2, 0, 1))
    with Image.open(path) as image:
        image.draft("RGB", (WIDTH, HEIGHT))
        assert image.size != (96, 160), "a reduced size is there to be taken"


FAULTS = {
    "truncated.jpg": "is not a readable image",
    "truncated.png": "is not a readable image",
    "empty.jpg": "is empty",
    "text.jpg": "is not an image",
    "absent.jpg": "cannot be read",
    "deep.png": "more than 8 bits a channel",
    "float.tif": "more than 8 bits a channel",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    for name in ("truncated.jpg", "truncated.png"):
        trees.truncate(trees.write_image(folder / name, width=30, height=60))
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("hello")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(folder / "float.tif")
    return folder


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("name", FAULTS)
def test_an_unreadable_image_is_one_line_with_path_reason_and_advice(paths, faulty, name, num_workers):
    images = files([*paths, faulty / name], num_workers=num_workers, cache_bytes=10**6)
    with pytest.raises(ValueError) as caught:
        images[torch.tensor([0, NUM_FILES])]
    message = str(caught.value)
    assert message.startswith(f"{faulty / name}: ")
    assert FAULTS[name] in message
    assert "`dmic data check DIR`" in message
    assert "data.skip_unreadable = true" in message
    assert "\n" not in message
    assert images[torch.tensor([0])].shape == (1, 3, HEIGHT, WIDTH), "others can still be read"


def test_probes_say_what_is_wrong_and_tell_equal_files(paths, faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "PROBES_IN_FLIGHT", 4)  # several rounds, the last one not full
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(paths[0].read_bytes())
    everything = [str(path) for path in (*paths, copy, *(faulty / name for name in FAULTS))]
    calls = []
    probes = probe_images(everything, num_workers=2, progress=lambda *call: calls.append(call))
    assert [probe.fault for probe in probes[: NUM_FILES + 1]] == [None] * (NUM_FILES + 1)
    for probe, fault in zip(probes[NUM_FILES + 1 :], FAULTS.values(), strict=True):
        assert fault in probe.fault
    assert probes[NUM_FILES].digest == probes[0].digest
    assert len({probe.digest for probe in probes[:NUM_FILES]}) == NUM_FILES
    known = [bool(probe.digest) for probe in probes[NUM_FILES + 1 :]]
    assert known == [name not in ("empty.jpg", "absent.jpg") for name in FAULTS], "damaged files can be equal too"
    assert calls[-1] == ("decoding", len(everything), len(everything))


def test_memory_that_runs_out_is_no_fault_of_an_image(paths, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        files(paths)[torch.tensor([0])]


def test_of_no_images_none_are_cached():
    images = files([], cache_bytes=10**6)
    assert (images.max_cached_bytes, images.max_cached_share, images.cached_share) == (0, 0, 0)


def test_what_progress_raises_stops_the_probing(paths):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe_images([str(path) for path in paths], progress=stop)


@pytest.mark.parametrize(
    ("argument", "value", "least"), [("height", 0, 1), ("width", 0, 1), ("cache_bytes", -1, 0), ("num_workers", 0, 1)]
)
def test_bad_arguments_are_named(paths, argument, value, least):
    settings = {"height": HEIGHT, "width": WIDTH, argument: value}
    with pytest.raises(ValueError, match=f"^ImageFiles: {argument} must be at least {least}, got {value}$"):
        ImageFiles(paths, **settings)


@pytest.mark.parametrize("sample_idx", [torch.tensor([0], dtype=torch.int32), torch.tensor(0), torch.tensor([True])])
def test_an_index_of_another_kind_is_an_error(paths, sample_idx):
    with pytest.raises(ValueError, match=r"^ImageFiles: sample_idx must be int64 \[n\], got torch\."):
        files(paths)[sample_idx]
