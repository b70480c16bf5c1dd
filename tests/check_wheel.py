"""Does an installed wheel load and cluster here? For `make wheel-check`: needs torch, numpy and dmic, nothing else.

    python tests/check_wheel.py

With a GPU the labels of both devices are compared; without one, what a call on a GPU says is checked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import dmic
from dmic import doctor

CHECKOUT = Path(__file__).resolve().parents[1]


def gallery(num_identities: int = 30, copies: int = 8, dim: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Features far apart between identities and close within them, so that the labels are known."""
    rng = np.random.default_rng(0)
    person_ids = np.repeat(np.arange(num_identities), copies)
    features = np.eye(num_identities, dim)[person_ids] + 0.02 * rng.standard_normal((len(person_ids), dim))
    return features.astype(np.float32), person_ids


def main() -> None:
    assert CHECKOUT not in Path(dmic.__file__).resolve().parents[:2], "this is the checkout, not an installed wheel"
    info = dmic.build_info()
    features, person_ids = gallery()
    labels = dmic.pseudo_labels(features, k1=8, k2=3, eps=0.5).labels
    assert np.array_equal(labels, person_ids), "wrong labels"
    for finding in doctor.diagnose():
        print(f"{'ok' if finding.ok else '--'}  {finding.subject}: {finding.found}")
        assert finding.ok or not finding.essential, finding
    assert info["cuda"], "the wheel has no CUDA kernels"
    if torch.cuda.is_available():
        on_gpu = dmic.pseudo_labels(torch.from_numpy(features).cuda(), k1=8, k2=3, eps=0.5).labels
        assert np.array_equal(on_gpu.cpu().numpy(), labels), "other labels on the GPU"
        print("labels on the GPU are equal")
    else:
        try:
            torch.from_numpy(features).cuda()
        except (AssertionError, RuntimeError) as error:  # no CUDA in this torch, or no driver
            print(f"without a GPU: {str(error).splitlines()[0]}")
        else:
            sys.exit("torch found no GPU, and yet it put a tensor there")
    print(f"dmic {dmic.__version__} works with torch {torch.__version__} on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
