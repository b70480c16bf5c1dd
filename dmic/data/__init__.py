"""Galleries, the samplers that draw batches from them, and the views of an image that training sees."""

from .gallery import Gallery, LabeledGallery
from .landsat import landsat_bands, landsat_galleries
from .sampler import CameraCrossingSampler

__all__ = ["CameraCrossingSampler", "Gallery", "LabeledGallery", "landsat_bands", "landsat_galleries"]
