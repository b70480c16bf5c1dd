"""Two-stream networks: what is modality specific comes first, everything after it is shared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..constants import INFRARED, VISIBLE
from ..data import Gallery

EMBED_BATCH = 256  # images embedded at once; bounds memory, changes no result beyond rounding


class Standardize(nn.Module):
    """Every image to zero mean and unit contrast, as a camera's exposure control would.

    Takes pixels in grey levels; `floor` (grey levels) is added to the contrast, so that a flat image stays flat.
    """

    def __init__(self, floor: float = 2.0):
        super().__init__()
        self.floor = floor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        std, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
        return (images - mean) / (std + self.floor)


class GeMPool(nn.Module):
    """Generalised mean over each cell of a grid x grid partition: mean(x**p) ** (1 / p), p learned.

    [n, C, H, W] to [n, C * grid * grid]. A grid of 1 pools the whole image (Radenovic et al., TPAMI 2019).
    """

    def __init__(self, p: float = 3.0, grid: int = 1, floor: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.grid = grid
        self.floor = floor

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        powers = maps.clamp(min=self.floor).pow(self.p)
        return F.adaptive_avg_pool2d(powers, self.grid).pow(1 / self.p).flatten(1)


class TwoStreamNetwork(nn.Module):
    """Own stem per modality, shared trunk, pool, and a batch-norm neck whose bias stays 0.

    Args:
        stems: two modules, indexed by modality id.
        trunk: takes what either stem gives, [n, C, h, w] to [n, C', h', w'].
        head: pool and projection, [n, C', h', w'] to [n, embedding_dim].
        embedding_dim: d.
    """

    def __init__(self, stems: list[nn.Module], trunk: nn.Module, head: nn.Module, embedding_dim: int):
        super().__init__()
        self.stems = nn.ModuleList(stems)
        self.trunk = trunk
        self.head = head
        self.neck = nn.BatchNorm1d(embedding_dim)
        self.neck.bias.requires_grad_(False)

    def forward(self, visible: torch.Tensor | None, infrared: torch.Tensor | None) -> torch.Tensor:
        """Embeddings after the neck, L2-normalised, [n_visible + n_infrared, d]: visible first.

        Either batch of pixels [n, C, H, W] may be None. Both go through the trunk and the neck as one batch, so they
        share its statistics in training mode.
        """
        batches = {VISIBLE: visible, INFRARED: infrared}
        maps = [self.stems[modality](images) for modality, images in batches.items() if images is not None]
        return F.normalize(self.neck(self.head(self.trunk(torch.cat(maps)))))


@torch.no_grad()
def embed(network: TwoStreamNetwork, gallery: Gallery) -> torch.Tensor:
    """Features float32 [N, d]: the mean of the L2-normalised embeddings of an image and of its mirror image.

    The mean is not normalised again, so |f_i| <= 1. The network is left in the mode it was in.
    """
    was_training = network.training
    network.eval()
    features = torch.empty(len(gallery), network.neck.num_features)
    for modality in (VISIBLE, INFRARED):
        for sample_idx in (gallery.modality_ids == modality).nonzero().flatten().split(EMBED_BATCH):
            images = gallery.images[sample_idx].float()
            both = torch.cat([images, images.flip(3)])
            embeddings = network(both, None) if modality == VISIBLE else network(None, both)
            features[sample_idx] = embeddings.view(2, len(sample_idx), -1).mean(0)
    network.train(was_training)
    return features


def small_two_stream(*, width: int = 24, grid: int = 1, embedding_dim: int = 128, seed: int = 0) -> TwoStreamNetwork:
    """A network of seven layers from random weights, for single-band crops of about 20 x 20 pixels.

    The stems differ from the start, each with its own random weights. They keep only the magnitude of their responses:
    an edge between two surfaces is in the same place in visible and infrared light, but which side is brighter often
    differs, so signed responses would tie the modalities together the wrong way round as easily.

    Args:
        width: channels of the stems; the trunk has up to 4 times as many.
        grid: cells a side that the pool keeps.
        embedding_dim: d.
        seed: of the weights; the global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stems = [nn.Sequential(Standardize(), _edges(1, width)) for _ in range(2)]
        trunk = nn.Sequential(
            _block(width, width),
            _block(width, 2 * width, stride=2),
            _block(2 * width, 2 * width),
            _block(2 * width, 4 * width, stride=2),
            _block(4 * width, 4 * width),
        )
        head = nn.Sequential(GeMPool(grid=grid), nn.Linear(4 * width * grid**2, embedding_dim))
        network = TwoStreamNetwork(stems, trunk, head, embedding_dim)
    return network.to(memory_format=torch.channels_last)  # the faster layout for convolutions on CPUs


class _Magnitude(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.abs()


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def _edges(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(_conv(channels_in, channels_out), _Magnitude(), nn.BatchNorm2d(channels_out))


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    layers = _conv(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)
