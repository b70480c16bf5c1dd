"""Views of single-band crops. A view maps pixels [n, C, H, W] and a generator to pixels of the same shape, float32.

The pixels may be rows `begin` on of a batch of `total`, whose other rows are made elsewhere: they become what they
would become in the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

MAX_SHIFT = 2  # pixels
GAMMA_SPREAD = 0.5  # log-exponents of tone curves are uniform in -+ this


def plain_view(
    images: torch.Tensor, generator: torch.Generator, begin: int = 0, total: int | None = None
) -> torch.Tensor:
    """A random mirror image (one in two) and shift by up to MAX_SHIFT pixels; what moves in is reflected."""
    n, _, height, width = images.shape
    total, own = n if total is None else total, slice(begin, begin + n)
    mirrored = (torch.rand(total, generator=generator) < 0.5)[own]
    images = images.float()
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (MAX_SHIFT,) * 4, mode="reflect")
    y, x = torch.randint(2 * MAX_SHIFT + 1, (2, total), generator=generator)[:, own]
    rows = (y[:, None] + torch.arange(height))[:, None, :, None]
    columns = (x[:, None] + torch.arange(width))[:, None, None, :]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[torch.arange(n)[:, None, None, None], channels, rows, columns]


def toned_view(
    images: torch.Tensor, generator: torch.Generator, begin: int = 0, total: int | None = None
) -> torch.Tensor:
    """A plain view through a random tone curve: |x|**gamma on either side of the crop's mean.

    It stands in for channel augmentation. Exchanging channels needs several bands of one image; a crop here has one,
    and taking another band of the same place would use its identity.
    """
    view = plain_view(images, generator, begin, total)
    gamma = torch.empty(len(view) if total is None else total, 1, 1, 1)
    gamma = gamma.uniform_(-GAMMA_SPREAD, GAMMA_SPREAD, generator=generator)[begin : begin + len(view)].exp()
    centred = view - view.mean((1, 2, 3), keepdim=True)
    scale = centred.abs().amax((1, 2, 3), keepdim=True).clamp(min=1.0)
    return centred.sign() * (centred.abs() / scale) ** gamma * scale
