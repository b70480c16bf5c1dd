"""Networks with one stem per modality and a shared trunk."""

from .two_stream import GeMPool, Standardize, TwoStreamNetwork, embed, small_two_stream

__all__ = ["GeMPool", "Standardize", "TwoStreamNetwork", "embed", "small_two_stream"]
