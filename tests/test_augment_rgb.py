"""Views of RGB pedestrians: what they do to pixels, how often, and that nothing but the generator decides."""

import time

import pytest
import torch

from dmic.data.augment_rgb import (
    ERASED_AREA,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PADDING,
    exchanged_view,
    infrared_view,
    visible_view,
)

VIEWS = [visible_view, exchanged_view, infrared_view]
MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_STD)[:, None, None]


def pedestrians(n, height=48, width=24, seed=0):
    """Random pixels from 1 to 255: never black, and never the mean colour, which is no integer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (n, 3, height, width), generator=generator).to(torch.uint8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normalized(views):
    return (views - MEAN) / STD


def black(views):
    return (views == 0).all(1)


def erased(views):
    return (views == MEAN).all(1)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(5, 3, 48, 24), (2, 3, 37, 19), (1, 3, 288, 144), (0, 3, 48, 24)])
def test_a_view_is_float32_of_the_same_shape(view, shape):
    views = view(pedestrians(shape[0], *shape[2:]), seeded())
    assert views.shape == shape
    assert views.dtype == torch.float32
    assert torch.isfinite(views).all()


@pytest.mark.parametrize("view", VIEWS)
def test_the_generator_decides_everything_and_images_are_not_written_to(view):
    images = pedestrians(16)
    before, global_state = images.clone(), torch.get_rng_state()
    first, again, other = (view(images, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("view", VIEWS)
def test_every_call_draws_anew(view):
    images, generator = pedestrians(16), seeded()
    assert not torch.equal(view(images, generator), view(images, generator))


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_give_the_same_view(view):
    images = pedestrians(8)
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(view(images, seeded()), view(strided, seeded()))


def matches(views, images, padding):
    """For each view, the shifts and mirrorings that explain all of its pixels that are not erased."""
    height, width = images.shape[2:]
    visible = ~erased(views)[:, None]
    found = [[] for _ in images]
    for mirrored in (False, True):
        padded = torch.nn.functional.pad(images.float(), (padding,) * 4)
        for y in range(2 * padding + 1):
            for x in range(2 * padding + 1):
                crops = padded[:, :, y : y + height, x : x + width]
                crops = crops.flip(3) if mirrored else crops
                same = ((crops == views) | ~visible).flatten(1).all(1)
                for i in same.nonzero().flatten().tolist():
                    found[i].append((y, x, mirrored))
    return found


def test_a_visible_view_is_a_padded_crop_possibly_mirrored_with_a_rectangle_missing():
    """Every pixel is accounted for, the black ones too; shifts are uniform, half are mirrored, half erased."""
    n, padding = 600, 2
    images = pedestrians(n, height=48, width=24)
    assert round(PADDING * 48 / 288) == padding
    views = visible_view(images, seeded())
    found = matches(views, images, padding)
    assert all(len(explanations) == 1 for explanations in found)
    y, x, mirrored = torch.tensor([explanations[0] for explanations in found]).T
    for shift in (y, x):
        counts = shift.bincount(minlength=5)
        assert len(counts) == 5
        assert (counts / n - 0.2).abs().max() < 4 * (0.2 * 0.8 / n) ** 0.5
    for share in (mirrored.double().mean(), erased(views).flatten(1).any(1).double().mean()):
        assert abs(share - 0.5) < 4 * (0.25 / n) ** 0.5


def test_erased_pixels_are_one_rectangle_within_the_published_ranges():
    views = visible_view(pedestrians(2000, height=60, width=30), seeded())
    mask = erased(views)
    mask = mask[mask.flatten(1).any(1)]
    heights, widths = mask.any(2).sum(1), mask.any(1).sum(1)
    assert torch.equal(mask.sum((1, 2)), heights * widths), "not a rectangle"
    assert heights.max() < 60
    assert widths.max() < 30
    # sides are rounded to pixels, each by up to half a pixel
    largest = (heights - 0.5) * (widths - 0.5) / 1800
    smallest = (heights + 0.5) * (widths + 0.5) / 1800
    assert largest.max() <= ERASED_AREA[1]
    assert smallest.min() >= ERASED_AREA[0]
    assert ((heights - 0.5) / (widths + 0.5)).max() <= 1 / 0.3
    assert ((heights + 0.5) / (widths - 0.5)).min() >= 0.3
    taller = (heights > widths).double().mean()
    assert abs(taller - (1 / 0.3 - 1) / (1 / 0.3 - 0.3)) < 0.06, "height / width is uniform, width / height is not"
    area = mask.double().mean((1, 2))
    assert area.min() < 0.04
    assert area.max() > 0.36
    rows, columns = mask.any(2).any(0), mask.any(1).any(0)
    assert rows.all(), "some rows are never erased"
    assert columns.all(), "some columns are never erased"


@pytest.mark.parametrize(("height", "padding"), [(288, 10), (128, 4), (14, 0)])
def test_padding_scales_with_the_height(height, padding):
    views = visible_view(pedestrians(300, height=height, width=24), seeded())
    blackness = black(views)
    widest = max(int(blackness.all(2).sum(1).max()), int(blackness.all(1).sum(1).max()))
    assert widest == padding


def test_one_channel_of_a_visible_view_is_copied_to_all_three():
    images = pedestrians(900)
    visible, exchanged = normalized(visible_view(images, seeded())), normalized(exchanged_view(images, seeded()))
    torch.testing.assert_close(exchanged[:, :1].expand_as(exchanged), exchanged, rtol=0, atol=1e-4)
    distances = (exchanged[:, :1] - visible).abs().amax((2, 3))
    assert (distances.min(1).values < 1e-4).all()
    share = (distances.argmin(1).bincount(minlength=3) / 900).tolist()
    assert share == pytest.approx([1 / 3] * 3, abs=4 * (2 / 9 / 900) ** 0.5)


def test_infrared_views_copy_a_channel_or_turn_grey_or_stay():
    n = 800
    images = pedestrians(n)
    plain, infrared = normalized(visible_view(images, seeded())), infrared_view(images, seeded())
    grey = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * plain).sum(1, keepdim=True)
    candidates = [*(plain[:, k : k + 1] for k in range(3)), grey, plain]
    distances = torch.stack([(normalized(infrared) - c).abs().amax((1, 2, 3)) for c in candidates], 1)
    assert (distances.min(1).values < 1e-4).all()
    share = distances.argmin(1).bincount(minlength=5) / n
    assert share.tolist() == pytest.approx([0.25, 0.25, 0.25, 0.125, 0.125], abs=4 * (3 / 16 / n) ** 0.5)


def test_an_image_that_no_rectangle_fits_stays_whole():
    images = pedestrians(40, height=1, width=40)
    views = visible_view(images, seeded()).to(torch.uint8)
    assert all(torch.equal(v, i) or torch.equal(v, i.flip(2)) for v, i in zip(views, images, strict=True))


def test_pixels_that_stay_keep_their_bits():
    images = pedestrians(400)
    plain, infrared = visible_view(images, seeded()), infrared_view(images, seeded())
    same = (plain == infrared).flatten(1).all(1)
    assert same.double().mean() == pytest.approx(0.125, abs=0.07)


def test_erased_rectangles_keep_the_mean_colour_through_a_copy():
    images = pedestrians(200)
    where = erased(visible_view(images, seeded()))
    assert where.any()
    for view in (exchanged_view, infrared_view):
        values = normalized(view(images, seeded())).permute(0, 2, 3, 1)[where]
        torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-5)


def test_copies_of_an_image_with_equal_channels_differ_after_normalisation():
    """An infrared image has three equal channels: copying grey levels would do nothing to it."""
    grey = pedestrians(64)[:, :1].expand(64, 3, 48, 24)
    plain, infrared = (normalized(view(grey, seeded())) for view in (visible_view, infrared_view))
    changed = ((plain - infrared).abs().amax((1, 2, 3)) > 0.01).double().mean()
    assert changed == pytest.approx(0.875, abs=0.17)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("images", [torch.zeros(2, 1, 8, 4, dtype=torch.uint8), torch.zeros(2, 3, 8, 4)])
def test_other_images_are_errors(view, images):
    got = rf"{view.__name__}: images must be uint8 \[n, 3, H, W\], got {images.dtype} \(2, {images.shape[1]}, 8, 4\)"
    with pytest.raises(ValueError, match=got):
        view(images, seeded())


@pytest.mark.parametrize("view", VIEWS)
def test_a_batch_takes_less_time_than_decoding_it(view, threads):
    """64 images of full size: well below 1 ms of one core an image, which is what decoding a small JPEG takes."""
    threads(1)
    images = pedestrians(64, 288, 144)
    seconds = []
    for _ in range(5):
        start = time.thread_time()
        view(images, seeded())
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 64e-3
