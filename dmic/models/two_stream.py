"""Two-stream networks: what is modality specific comes first, everything after it is shared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import nn

from ..constants import INFRARED, VISIBLE
from ..data import Gallery
from ..data.prefetch import prefetch
from ..process_group import Group, Watch, agree, all_gather_rows, digest, share

POOLED_STRIDE = 4  # of small stems: from here on edges are pooled
EMBED_BATCH = 256  # images embedded at once; bounds memory, changes no result beyond rounding

Progress = Callable[[str, int, int], None]


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
    """Generalised mean over each cell of a partition of the image: mean(x**p) ** (1 / p), p learned.

    [n, C, H, W] to [n, C * rows * columns] for a grid of rows x columns. A grid of (1, 1) pools the whole image
    (Radenovic et al., TPAMI 2019). Works and answers in float32 at least, also under autocast: the 8 bits of a bfloat16
    are too few for a power and its root.
    """

    def __init__(self, p: float = 3.0, grid: tuple[int, int] = (1, 1), floor: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.grid = grid
        self.floor = floor

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = maps.to(torch.promote_types(maps.dtype, self.p.dtype))
        powers = F.adaptive_avg_pool2d(maps.clamp(min=self.floor).pow(self.p), self.grid)
        # floor**p underflows from p = 6.4: the root of 0 would have an infinite gradient
        return powers.clamp(min=torch.finfo(powers.dtype).tiny).pow(1 / self.p).flatten(1)


class TwoStreamNetwork(nn.Module):
    """Own stem per modality, shared trunk, pool, and a batch-norm neck whose bias stays 0.

    Args:
        stems: two modules, indexed by modality id.
        trunk: takes what either stem gives, [n, C, h, w] to [n, C', h', w'].
        head: pool and projection, [n, C', h', w'] to [n, embedding_dim].
        embedding_dim: d.
        mirrored: an image and its mirror image show the same, so that a feature is the mean of both.
    """

    def __init__(
        self, stems: list[nn.Module], trunk: nn.Module, head: nn.Module, embedding_dim: int, *, mirrored: bool = True
    ):
        super().__init__()
        self.mirrored = mirrored
        self.stems = nn.ModuleList(stems)
        self.trunk = trunk
        self.head = head
        self.neck = nn.BatchNorm1d(embedding_dim)
        self.neck.bias.requires_grad_(False)

    def forward(self, visible: torch.Tensor | None, infrared: torch.Tensor | None) -> torch.Tensor:
        """Embeddings after the neck, L2-normalised, [n_visible + n_infrared, d]: visible first.

        Either batch of pixels [n, C, H, W] may be None. Both go through the trunk and the neck as one batch, so they
        share its statistics in training mode. Under autocast the embeddings are float32 all the same.
        """
        batches = {VISIBLE: visible, INFRARED: infrared}
        maps = [self.stems[modality](images) for modality, images in batches.items() if images is not None]
        pooled = self.head(self.trunk(torch.cat(maps)))
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(self.neck(pooled.to(self.neck.weight.dtype)))


@torch.no_grad()
def embed(
    network: TwoStreamNetwork,
    gallery: Gallery,
    *,
    sample_idx: torch.Tensor | None = None,
    batch_size: int = EMBED_BATCH,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    group: Group = None,
) -> torch.Tensor:
    """Features float32 [n, d]: the mean of the L2-normalised embeddings of an image and of its mirror image.

    The mean is not normalised again, so |f_i| <= 1. A network that is not `mirrored` embeds the image alone. It is left
    in the mode it was in, and works where its parameters are, on a GPU under bfloat16 autocast; images in files are
    decoded one batch ahead of it.

    Args:
        network: takes pixels in grey levels.
        gallery: its images, one modality after the other.
        sample_idx: int64 [n], the samples to embed, in the order of the features; all of them if None.
        batch_size: images at once, beside their mirror images; bounds memory, changes no result beyond rounding.
        device: of the features; where the parameters are if None.
        progress: called as progress("embed", done, total) after each batch, from the calling thread.
        group: ranks that embed some batches each; the batches, and so the features, are those of one process.

    Raises:
        ValueError: `batch_size` is below 1, or `sample_idx` is not int64 [n] or goes beyond the gallery; on every rank,
            if that is so on one, or it has other samples, modalities or batches than rank 0.
        ConnectionError: another rank was lost; says which, and in which phase.
    """
    if sample_idx is None:
        sample_idx = torch.arange(len(gallery))
    watch, problem, marks = Watch(group), None, {}
    with watch.guard():
        watch.enter("embed")
        try:
            if batch_size < 1:
                raise ValueError(f"embed: batch_size must be at least 1, got {batch_size}")
            _check_sample_idx(sample_idx, len(gallery))
            if group is not None:
                marks = {"number of images": len(gallery), "batch_size": batch_size}
                marks |= {"sample_idx": digest(sample_idx), "modality_ids": digest(gallery.modality_ids)}
        except ValueError as error:
            problem = str(error)
        agree("embed", marks, group, problem)
        return _embed(network, gallery, sample_idx, batch_size, device, progress, group)


def _embed(network, gallery, sample_idx, batch_size, device, progress, group) -> torch.Tensor:
    modality_ids = gallery.modality_ids[sample_idx]
    rows = [
        (modality, batch)
        for modality in (VISIBLE, INFRARED)
        for batch in (modality_ids == modality).nonzero().flatten().split(batch_size)
        if len(batch)
    ]
    begin, end = share(len(rows), group)
    order = torch.cat([torch.empty(0, dtype=torch.int64), *(batch for _, batch in rows)])
    rows = rows[begin:end]
    total = sum(len(batch) for _, batch in rows)

    def load() -> Iterator[torch.Tensor]:
        for _, batch in rows:
            yield gallery.images[sample_idx[batch]]

    where = next(network.parameters()).device
    device = where if device is None else device
    features = torch.empty(len(sample_idx), network.neck.num_features, device=device)
    own = torch.cat([order[:0], *(batch for _, batch in rows)]).to(device)
    was_training = network.training
    network.eval()
    done = 0
    try:
        with (
            closing(load() if isinstance(gallery.images, torch.Tensor) else prefetch(load())) as loaded,
            torch.autocast(where.type, dtype=torch.bfloat16, enabled=where.type == "cuda"),
        ):
            for (modality, batch), pixels in zip(rows, loaded, strict=True):
                images = pixels.to(where).float()
                shown = torch.cat([images, images.flip(3)]) if network.mirrored else images
                shown = shown.contiguous(memory_format=torch.channels_last)
                embeddings = network(shown, None) if modality == VISIBLE else network(None, shown)
                features[batch.to(device)] = embeddings.view(-1, len(batch), embeddings.shape[1]).mean(0).to(device)
                done += len(batch)
                if progress is not None:
                    progress("embed", done, total)
    finally:
        network.train(was_training)
    if group is not None:
        features[order.to(device)] = all_gather_rows(features[own], group)
    return features


def _check_sample_idx(sample_idx: torch.Tensor, num_samples: int) -> None:
    if sample_idx.dtype != torch.int64 or sample_idx.dim() != 1:
        got = f"{sample_idx.dtype} {tuple(sample_idx.shape)}"
        raise ValueError(f"embed: sample_idx must be int64 [n], got {got}")
    for bound in (sample_idx.min(), sample_idx.max()) if len(sample_idx) else ():
        if not 0 <= int(bound) < num_samples:
            raise ValueError(f"embed: sample_idx must be in [0, N), got {int(bound)} with N={num_samples}")


def small_two_stream(
    *,
    num_channels: int = 1,
    width: int = 24,
    stem_stride: int = 1,
    grid: tuple[int, int] = (1, 1),
    embedding_dim: int = 128,
    mirrored: bool = True,
    seed: int = 0,
) -> TwoStreamNetwork:
    """A network of seven layers from random weights, for small images on a CPU.

    The stems start as copies of each other, as those of a pretrained network do, and part during training. They keep
    only the magnitude of their responses: an edge between two surfaces is in the same place in visible and infrared
    light, but which side is brighter often differs, so signed responses would tie the modalities together the wrong way
    round as easily.

    Args:
        num_channels: of the images.
        width: channels of the stems; the trunk has up to 4 times as many.
        stem_stride: pixels between the responses of a stem: 1, or 2 or 4 for larger images; 4 pools edges of 5 x 5.
        grid: rows and columns of cells that the pool keeps.
        embedding_dim: d.
        mirrored: of `TwoStreamNetwork`.
        seed: of the weights; the global random state is left alone.
    """
    rows, columns = grid
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = nn.Sequential(Standardize(), _edges(num_channels, width, stem_stride))
        trunk = nn.Sequential(
            _block(width, width),
            _block(width, 2 * width, stride=2),
            _block(2 * width, 2 * width),
            _block(2 * width, 4 * width, stride=2),
            _block(4 * width, 4 * width),
        )
        head = nn.Sequential(GeMPool(grid=grid), nn.Linear(4 * width * rows * columns, embedding_dim))
        network = TwoStreamNetwork([stem, copy.deepcopy(stem)], trunk, head, embedding_dim, mirrored=mirrored)
    return network.to(memory_format=torch.channels_last)  # the faster layout for convolutions on CPUs


class _Magnitude(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.abs()


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def _edges(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    if stride < POOLED_STRIDE:
        return nn.Sequential(_conv(channels_in, channels_out, stride), _Magnitude(), nn.BatchNorm2d(channels_out))
    # Pooled magnitudes of fine edges tell a texture, which a coarser grid of edges would miss.
    edges = nn.Conv2d(channels_in, channels_out, 5, stride // 2, padding=2, bias=False)
    return nn.Sequential(edges, _Magnitude(), nn.BatchNorm2d(channels_out), nn.MaxPool2d(2))


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    layers = _conv(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)
