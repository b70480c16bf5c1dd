"""Galleries, the samplers that draw batches from them, and the views of an image that training sees."""

from .check import check_dataset
from .gallery import Dataset, Gallery, Images, LabeledGallery
from .image_files import ImageFiles
from .kinds import detect_dataset, open_dataset
from .landsat import landsat_bands, landsat_dataset, landsat_galleries
from .listing import samples_in_folder, samples_in_manifest
from .llcm import read_llcm
from .manifest import read_manifest
from .protocol import Protocol, Trial
from .regdb import read_regdb
from .sampler import CameraCrossingSampler
from .samples import Samples
from .sysu_mm01 import read_sysu_mm01
from .tree import Problem

__all__ = [
    "CameraCrossingSampler",
    "Dataset",
    "Gallery",
    "ImageFiles",
    "Images",
    "LabeledGallery",
    "Problem",
    "Protocol",
    "Samples",
    "Trial",
    "check_dataset",
    "detect_dataset",
    "landsat_bands",
    "landsat_dataset",
    "landsat_galleries",
    "open_dataset",
    "read_llcm",
    "read_manifest",
    "read_regdb",
    "read_sysu_mm01",
    "samples_in_folder",
    "samples_in_manifest",
]
