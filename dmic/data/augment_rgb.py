"""Views of RGB pedestrians. A view maps uint8 pixels [n, 3, H, W] and a generator to float32 [n, 3, H, W], grey levels.

The augmentations of the two-stream lineage (Ye et al., ICCV 2021, "Channel Augmented Joint Learning"; Zhong et al.,
AAAI 2020, "Random Erasing"), there defined after ImageNet normalisation. Networks here normalise in their first layer,
so views do in grey levels what amounts to the same: an erased rectangle has the mean colour (0 once normalised;
published code fills it with 0.49, 0.48, 0.45), and a channel copied to all three gives three equal channels once
normalised. In grey levels the copies differ by an offset and a gain, and leave 0..255 by up to 25. Copied grey levels
would do nothing to an infrared image, whose three channels are equal.

The generator is on the CPU and all draws come from it; images may be on any device and are not written to. They may be
rows `begin` on of a batch of `total`, whose other rows are made elsewhere: they become what they would become in the
whole batch.
"""

from __future__ import annotations

import torch

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)  # grey levels of R, G, B
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

PADDING = 10  # black pixels on each side of an image of PADDING_HEIGHT, scaled with the height
PADDING_HEIGHT = 288
FLIP_SHARE = 0.5
ERASED_SHARE = 0.5
ERASED_AREA = (0.02, 0.4)  # of the image, uniform
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width, uniform
ERASE_ATTEMPTS = 100  # rectangles drawn until one fits; an image that none fits stays whole
GREY_SHARE = 0.5


def visible_view(
    images: torch.Tensor, generator: torch.Generator, begin: int = 0, total: int | None = None
) -> torch.Tensor:
    """Pad with black, crop back, mirror (one in two), erase a rectangle (one in two).

    The padding is round(10 * H / 288) pixels on each side. The rectangle is shorter and narrower than the image.

    Raises:
        ValueError: `images` is not uint8 [n, 3, H, W].
    """
    return _cropped_and_erased("visible_view", images, generator, begin, total)


def exchanged_view(
    images: torch.Tensor, generator: torch.Generator, begin: int = 0, total: int | None = None
) -> torch.Tensor:
    """A visible view with one of its channels, uniformly, copied to all three.

    Raises:
        ValueError: `images` is not uint8 [n, 3, H, W].
    """
    view = _cropped_and_erased("exchanged_view", images, generator, begin, total)
    count, own = _place(view, begin, total)
    return _mix_channels(view, _copies()[torch.randint(3, (count,), generator=generator)[own]])


def infrared_view(
    images: torch.Tensor, generator: torch.Generator, begin: int = 0, total: int | None = None
) -> torch.Tensor:
    """A visible view and then, with equal chance: channel 0, 1 or 2 copied to all three, or else grey, one in two.

    Grey is the luma of the normalised channels; the other half of that last quarter stays as it is.

    Raises:
        ValueError: `images` is not uint8 [n, 3, H, W].
    """
    view = _cropped_and_erased("infrared_view", images, generator, begin, total)
    count, own = _place(view, begin, total)
    choice = torch.randint(4, (count,), generator=generator)[own]
    grey = torch.rand(count, generator=generator)[own] < GREY_SHARE
    choice[(choice == 3) & ~grey] = 4
    mixes = torch.cat([_copies(), torch.tensor(LUMA).expand(1, 3, 3), torch.eye(3)[None]])
    return _mix_channels(view, mixes[choice])


def _copies() -> torch.Tensor:
    """Mixes [3, 3, 3]: the k-th gives every output channel (row) the input channel (column) k."""
    return torch.eye(3)[:, None].expand(3, 3, 3)


def _mix_channels(views: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Multiply the normalised channels by `mix` [n, 3, 3], in place."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    gain = mix * (std[:, None] / std)
    offset = mean - gain @ mean
    gain, offset = gain.to(views.device), offset[:, :, None].to(views.device)
    for pixels, a, b in zip(views.flatten(2), gain, offset, strict=True):  # one by one they stay in the cache
        pixels.copy_(torch.addmm(b, a, pixels))
    return views


def _place(images: torch.Tensor, begin: int, total: int | None) -> tuple[int, slice]:
    """How many images to draw for, and which of the draws are those of `images`."""
    return len(images) if total is None else total, slice(begin, begin + len(images))


def _cropped_and_erased(
    name: str, images: torch.Tensor, generator: torch.Generator, begin: int, total: int | None
) -> torch.Tensor:
    if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"{name}: images must be uint8 [n, 3, H, W], got {images.dtype} {tuple(images.shape)}")
    (_, _, height, width), (count, own) = images.shape, _place(images, begin, total)
    padding = round(PADDING * height / PADDING_HEIGHT)
    shifts = torch.randint(-padding, padding + 1, (count, 2), generator=generator)[own].tolist()
    mirrored = (torch.rand(count, generator=generator) < FLIP_SHARE)[own].tolist()
    rectangles = _erased_rectangles(count, height, width, generator)[own].tolist()

    views = torch.zeros(images.shape, dtype=torch.float32, device=images.device)
    mean = torch.tensor(IMAGENET_MEAN, device=images.device)[:, None, None]
    for view, image, (y, x), is_mirrored, (top, left, h, w) in zip(
        views, images, shifts, mirrored, rectangles, strict=True
    ):
        inside = image[:, max(y, 0) : height + y, max(x, 0) : width + x]
        if is_mirrored:
            inside, x = inside.flip(2), -x
        view[:, max(-y, 0) : height - y, max(-x, 0) : width - x] = inside
        view[:, top : top + h, left : left + w] = mean
    return views


def _erased_rectangles(n: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Top, left, height and width of a rectangle per image, int64 [n, 4]; height and width are 0 for none."""
    erased = torch.rand(n, generator=generator) < ERASED_SHARE
    area, aspect, top, left = torch.rand(4, n, ERASE_ATTEMPTS, generator=generator, dtype=torch.float64)
    area = (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0])) * height * width
    aspect = ERASED_ASPECT[0] + aspect * (ERASED_ASPECT[1] - ERASED_ASPECT[0])
    h, w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (h < height) & (w < width)
    top, left = top * (height - h + 1), left * (width - w + 1)
    first = fits.to(torch.uint8).argmax(1)
    chosen = torch.stack([top, left, h, w], dim=2)[torch.arange(n), first].long()
    chosen[:, 2:] *= (erased & fits.any(1))[:, None]
    return chosen
