"""Networks with one stem per modality and a shared trunk."""

from .batch_norm import SharedBatchNorm, share_statistics
from .resnet import ImageNetNormalize, NonLocalBlock, resnet_two_stream
from .two_stream import GeMPool, Standardize, TwoStreamNetwork, embed, small_two_stream

__all__ = [
    "GeMPool",
    "ImageNetNormalize",
    "NonLocalBlock",
    "SharedBatchNorm",
    "Standardize",
    "TwoStreamNetwork",
    "embed",
    "resnet_two_stream",
    "share_statistics",
    "small_two_stream",
]
