"""Views of single-band crops. A view maps pixels [n, C, H, W] and a generator to pixels of the same shape, float32.

The pixels may be rows `begin` on of a batch of `total`, whose other rows are made elsewhere: they become what they
would become in the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

MAX_SHIFT = 2  # pixels
GAMMA_SPREAD = 0.5  # log-exponents of tone curves are uniform in -+ this
NUM_BENDS = 4  # of a bent tone curve
BEND_SPREAD = 1.5  # a curve bends at places uniform in -+ this, in standard deviations of the crop from its mean
CONTRAST_FLOOR = 1.0  # grey levels, added to a crop's standard deviation: a flat crop stays flat
CURVE_FLOOR = 0.05  # the same of what a curve makes of a crop of unit contrast


def plain_view(
    images: torch.Tensor,
    generator: torch.Generator,
    begin: int = 0,
    total: int | None = None,
    *,
    mirrored: bool = True,
) -> torch.Tensor:
    """A random shift by up to MAX_SHIFT pixels, and one in two mirrored if `mirrored`; what moves in is reflected."""
    n, _, height, width = images.shape
    total, own = n if total is None else total, slice(begin, begin + n)
    images = images.float()
    if mirrored:
        chosen = (torch.rand(total, generator=generator) < 0.5)[own]
        images = torch.where(chosen[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (MAX_SHIFT,) * 4, mode="reflect")
    y, x = torch.randint(2 * MAX_SHIFT + 1, (2, total), generator=generator)[:, own]
    rows = (y[:, None] + torch.arange(height))[:, None, :, None]
    columns = (x[:, None] + torch.arange(width))[:, None, None, :]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[torch.arange(n)[:, None, None, None], channels, rows, columns]


def toned_view(
    images: torch.Tensor,
    generator: torch.Generator,
    begin: int = 0,
    total: int | None = None,
    *,
    mirrored: bool = True,
) -> torch.Tensor:
    """A plain view through a random tone curve: |x|**gamma on either side of the crop's mean.

    It stands in for channel augmentation. Exchanging channels needs several bands of one image; a crop here has one,
    and taking another band of the same place would use its identity.
    """
    view = plain_view(images, generator, begin, total, mirrored=mirrored)
    gamma = torch.empty(len(view) if total is None else total, 1, 1, 1)
    gamma = gamma.uniform_(-GAMMA_SPREAD, GAMMA_SPREAD, generator=generator)[begin : begin + len(view)].exp()
    centred = view - view.mean((1, 2, 3), keepdim=True)
    scale = centred.abs().amax((1, 2, 3), keepdim=True).clamp(min=1.0)
    return centred.sign() * (centred.abs() / scale) ** gamma * scale


def bent_view(
    images: torch.Tensor,
    generator: torch.Generator,
    begin: int = 0,
    total: int | None = None,
    *,
    mirrored: bool = True,
) -> torch.Tensor:
    """A plain view through a random curve that rises and falls: two surfaces may change places, or look the same.

    With v the grey levels in standard deviations from the crop's mean, the curve is a v + sum over bends b of w |v - b|
    with normal a and w, brought to unit contrast and blended with v in a random share. That is what another wavelength
    does to surfaces, and what a monotone tone curve cannot show; edges stay where they are. (Random curves in place of
    unseen sensors: global intensity non-linear augmentation, Ouyang et al., TMI 2023.)
    """
    view = plain_view(images, generator, begin, total, mirrored=mirrored)
    total, own = len(view) if total is None else total, slice(begin, begin + len(view))
    bends = torch.empty(total, NUM_BENDS, 1, 1, 1).uniform_(-BEND_SPREAD, BEND_SPREAD, generator=generator)[own]
    weights = torch.randn(total, NUM_BENDS, 1, 1, 1, generator=generator)[own]
    slope = torch.randn(total, 1, 1, 1, generator=generator)[own]
    blend = torch.rand(total, 1, 1, 1, generator=generator)[own]
    levels, mean, contrast = _standardized(view, CONTRAST_FLOOR)
    curve = slope * levels + (weights * (levels[:, None] - bends).abs()).sum(1)
    return levels.lerp(_standardized(curve, CURVE_FLOOR)[0], blend) * contrast + mean


def _standardized(maps: torch.Tensor, floor: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(maps - mean) / (standard deviation + floor) image by image, the mean, and what was divided by."""
    mean = maps.mean((1, 2, 3), keepdim=True)
    contrast = (maps - mean).square().mean((1, 2, 3), keepdim=True).sqrt() + floor
    return (maps - mean) / contrast, mean, contrast
