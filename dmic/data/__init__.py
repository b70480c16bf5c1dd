"""Galleries, the samplers that draw batches from them, and the views of an image that training sees."""

from .gallery import Dataset, Gallery, Images, LabeledGallery
from .landsat import landsat_bands, landsat_galleries
from .protocol import Protocol, Trial
from .sampler import CameraCrossingSampler

__all__ = [
    "CameraCrossingSampler",
    "Dataset",
    "Gallery",
    "Images",
    "LabeledGallery",
    "Protocol",
    "Trial",
    "landsat_bands",
    "landsat_galleries",
]
