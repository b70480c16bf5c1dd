"""Named sizes and realistic generated features for every benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

SIZES = {
    "smoke": 512,
    "2k": 2048,
    "4k": 4096,
    "regdb": 4120,  # both modalities of RegDB's training set
    "8k": 8192,
    "market": 12936,  # Market-1501's training set
    "16k": 16384,
    "sysu": 34167,  # both modalities of SYSU-MM01's training set
    "msmt": 126441,  # all images of MSMT17
    "500k": 500_000,  # none: how time grows
}
DIM = 2048  # channels of a ResNet-50 embedding
K1, K2, EPS, MIN_SAMPLES = 40, 32, 0.6, 4  # the joint clustering of SYSU-MM01
CAMERA_MODALITY = np.array([0, 0, 1, 0, 0, 1])  # SYSU-MM01, from 0: visible 0, 1, 3, 4; infrared 2, 5

# Noise added to a unit identity direction, in the same unit: from a trained network to one at epoch 0.
DIFFICULTY = {"easy": 0.4, "hard": 1.0, "noise": 3.0}


@dataclass(frozen=True)
class Gallery:
    features: np.ndarray  # float32 [N, d]
    camera_ids: np.ndarray  # int64 [N], 0 to 5
    modality_ids: np.ndarray  # int64 [N], 0 visible, 1 infrared
    person_ids: np.ndarray  # int64 [N]


def generate_gallery(
    num_samples: int,
    dim: int = DIM,
    difficulty: str = "easy",
    unit_norm: bool = False,
    images_per_identity: int = 30,
    latent_dim: int = 96,
    seed: int = 0,
) -> Gallery:
    """A gallery as a re-ID network embeds it; the same arguments give the same gallery.

    An identity is a random direction in a latent space whose spectrum falls like that of real embeddings; cameras and
    modalities shift it. An image and its mirror image are two noisy views of that point; each is L2-normalised, and the
    feature is their average, so norms are below 1 (the published pipelines do not normalise again; `unit_norm` does).
    """
    rng = np.random.default_rng(seed)
    num_identities = max(1, num_samples // images_per_identity)
    person_ids = rng.integers(num_identities, size=num_samples)
    camera_ids = rng.integers(len(CAMERA_MODALITY), size=num_samples)
    modality_ids = CAMERA_MODALITY[camera_ids]

    spectrum = (1 + np.arange(latent_dim)) ** -0.25
    spectrum /= np.linalg.norm(spectrum)

    def points(count: int) -> np.ndarray:  # about unit length
        return rng.standard_normal((count, latent_dim)) * spectrum

    centres = points(num_identities)[person_ids]
    centres += 0.3 * points(2)[modality_ids] + 0.25 * points(len(CAMERA_MODALITY))[camera_ids]
    centres += DIFFICULTY[difficulty] * points(num_samples)
    basis = np.linalg.qr(rng.standard_normal((dim, min(dim, latent_dim))))[0].T
    features = np.empty((num_samples, dim), np.float32)
    for start in range(0, num_samples, 1024):  # a bounded float64 working set, whatever the number of samples
        rows = slice(start, min(start + 1024, num_samples))
        views = [
            (centres[rows] + 0.35 * points(rows.stop - rows.start))[:, : len(basis)] @ basis
            + 0.3 / np.sqrt(dim) * rng.standard_normal((rows.stop - rows.start, dim))
            for _ in range(2)
        ]
        mean = sum(view / np.linalg.norm(view, axis=1, keepdims=True) for view in views) / 2
        features[rows] = mean / np.linalg.norm(mean, axis=1, keepdims=True) if unit_norm else mean
    return Gallery(features, camera_ids, modality_ids, person_ids)


@dataclass(frozen=True)
class DeviceGallery:
    features: torch.Tensor  # float32 [N, d]
    camera_ids: torch.Tensor  # int64 [N], 0 to 5
    modality_ids: torch.Tensor  # int64 [N], 0 visible, 1 infrared


def generate_gallery_on(
    device: torch.device,
    num_samples: int,
    dim: int = DIM,
    difficulty: str = "easy",
    images_per_identity: int = 30,
    latent_dim: int = 96,
    seed: int = 0,
) -> DeviceGallery:
    """A gallery of the same kind, drawn on the device itself; its numbers depend on the kind of device."""
    random = torch.Generator(device).manual_seed(seed)
    num_identities = max(1, num_samples // images_per_identity)

    def choices(count: int) -> torch.Tensor:
        return torch.randint(count, (num_samples,), generator=random, device=device)

    def points(count: int) -> torch.Tensor:  # about unit length
        return torch.randn(count, latent_dim, generator=random, device=device) * spectrum

    spectrum = (1 + torch.arange(latent_dim, device=device)) ** -0.25
    spectrum /= spectrum.norm()
    person_ids, camera_ids = choices(num_identities), choices(len(CAMERA_MODALITY))
    modality_ids = torch.from_numpy(CAMERA_MODALITY).to(device)[camera_ids]
    centres = points(num_identities)[person_ids]
    centres += 0.3 * points(2)[modality_ids] + 0.25 * points(len(CAMERA_MODALITY))[camera_ids]
    centres += DIFFICULTY[difficulty] * points(num_samples)
    basis = torch.linalg.qr(torch.randn(dim, min(dim, latent_dim), generator=random, device=device)).Q.T
    features = torch.zeros(num_samples, dim, device=device)
    for rows, out in zip(centres.split(8192), features.split(8192), strict=True):
        for _ in range(2):  # an image and its mirror image
            view = (rows + 0.35 * points(len(rows)))[:, : len(basis)] @ basis
            view += 0.3 / dim**0.5 * torch.randn(len(rows), dim, generator=random, device=device)
            out += view / view.norm(dim=1, keepdim=True) / 2
    return DeviceGallery(features, camera_ids, modality_ids)
