"""The protocols of a gallery that comes without any of its own: each modality searches the other."""

from __future__ import annotations

from ..constants import INFRARED, VISIBLE
from .gallery import LabeledGallery
from .protocol import Protocol, Trial


def cross_modality_protocols(labeled: LabeledGallery) -> tuple[Protocol, ...]:
    """ "infrared to visible" and "visible to infrared": every image of one modality searches all of the other.

    One trial each; nothing is removed; CMC ranks images.

    Raises:
        ValueError: no image of one of the modalities.
    """
    modality_ids = labeled.unlabeled.modality_ids
    infrared, visible = ((modality_ids == modality).nonzero().flatten() for modality in (INFRARED, VISIBLE))
    if not len(infrared) or not len(visible):
        got = f"{len(infrared)} infrared and {len(visible)} visible"
        raise ValueError(f"cross_modality_protocols: images of both modalities are needed, got {got}")
    return (
        Protocol("infrared to visible", (Trial(infrared, visible),)),
        Protocol("visible to infrared", (Trial(visible, infrared),)),
    )
