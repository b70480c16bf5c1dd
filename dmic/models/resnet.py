"""Two-stream ResNets from torchvision's weights."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ..data.augment_rgb import IMAGENET_MEAN, IMAGENET_STD
from .two_stream import GeMPool, TwoStreamNetwork

if TYPE_CHECKING:
    from torchvision.models import ResNet, WeightsEnum

NON_LOCAL_BLOCKS = {"layer2": 2, "layer3": 3}  # after the last residual blocks of a layer, as many as it has at most


class ImageNetNormalize(nn.Module):
    """Pixels [n, 3, H, W] in grey levels 0..255, RGB, to zero mean and unit variance per channel over ImageNet."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


class NonLocalBlock(nn.Module):
    """x + BN(W(theta(x) (phi(x)^T g(x)) / N)) over the N positions of a map, [n, C, h, w] to the same.

    The dot-product block of Wang et al. (CVPR 2018) with C / 2 channels inside, as AGW uses it (Ye et al., TPAMI 2022;
    its published code has one channel inside). The weight of the batch norm starts at 0, so the block at the identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.output = nn.Conv2d(inner, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        theta, phi, g = (layer(maps).flatten(2) for layer in (self.theta, self.phi, self.g))
        pairs = g @ phi.transpose(1, 2) / g.shape[2]  # [n, inner, inner] instead of N x N
        attended = (pairs @ theta).unflatten(2, maps.shape[2:])
        return maps + self.norm(self.output(attended))


def resnet_two_stream(
    *,
    depth: Literal[18, 50],
    weights: Path | Literal["imagenet"] | None,
    non_local: bool = False,
    last_stride: int = 1,
    seed: int = 0,
) -> TwoStreamNetwork:
    """A ResNet whose first convolution and batch norm exist once per modality, with GeM instead of average pooling.

    The network of AGW (Ye et al., TPAMI 2022) and of the unsupervised methods after it: stems of normalisation, conv1,
    bn1, ReLU and max pooling, equal at first; layer1 to layer4 shared; GeM with p = 3 and no projection. Takes RGB
    pixels [n, 3, H, W] in grey levels 0..255. Embeddings have 2048 (depth 50) or 512 (depth 18) dimensions.

    Args:
        depth: 50 or 18.
        weights: a file with the state dict of torchvision's resnet50 or resnet18, without regard to `fc.*`:
            .safetensors, or else torchvision's own .pth, of which only tensors are unpickled; "imagenet" for
            torchvision's IMAGENET1K_V1, downloaded once into torch's cache; None for random weights.
        non_local: insert non-local blocks after each of the last 2 residual blocks of layer2 and the last 3 of layer3.
        last_stride: stride of layer4: 1 (maps of H / 16) or 2 (H / 32, as in torchvision).
        seed: of random weights, those of non-local blocks included; the global random state is left alone.

    Raises:
        ValueError: an argument is out of range, or the weights cannot be read, downloaded or belong to another network.
    """
    import torchvision.models as zoo  # here, because the other networks do without

    architectures = {18: (zoo.resnet18, zoo.ResNet18_Weights), 50: (zoo.resnet50, zoo.ResNet50_Weights)}
    if depth not in architectures:
        raise ValueError(f"resnet_two_stream: depth must be 18 or 50, got {depth}")
    if last_stride not in (1, 2):
        raise ValueError(f"resnet_two_stream: last_stride must be 1 or 2, got {last_stride}")
    build, published = architectures[depth]
    if weights is not None:
        path = _download(published.IMAGENET1K_V1) if weights == "imagenet" else Path(weights)
        state = _read_state_dict(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        resnet = build()
        if weights is not None:
            _load_weights(resnet, state, f"{path}: holds no weights of a torchvision ResNet-{depth}")
        for conv in resnet.layer4[0].modules():
            if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
                conv.stride = (last_stride, last_stride)
        if non_local:
            for name, count in NON_LOCAL_BLOCKS.items():
                setattr(resnet, name, _with_non_local(getattr(resnet, name), count))
    layers = OrderedDict((name, getattr(resnet, name)) for name in ("layer1", "layer2", "layer3", "layer4"))
    stem = nn.Sequential(
        OrderedDict(
            normalize=ImageNetNormalize(), conv1=resnet.conv1, bn1=resnet.bn1, relu=resnet.relu, maxpool=resnet.maxpool
        )
    )
    network = TwoStreamNetwork(
        [stem, copy.deepcopy(stem)], nn.Sequential(layers), GeMPool(), embedding_dim=resnet.fc.in_features
    )
    return network.to(memory_format=torch.channels_last)


def _with_non_local(layer: nn.Sequential, count: int) -> nn.Sequential:
    """The residual blocks of a layer with a non-local block after each of its last `count`."""
    blocks: list[nn.Module] = []
    for position, block in enumerate(layer):
        blocks.append(block)
        if position >= len(layer) - count:
            channels = [conv.out_channels for conv in block.children() if isinstance(conv, nn.Conv2d)][-1]
            blocks.append(NonLocalBlock(channels))
    return nn.Sequential(*blocks)


def _download(weights: WeightsEnum) -> Path:
    """Where torchvision keeps these weights; they are downloaded if they are not there."""
    name = weights.url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = name.removesuffix(".pth").rsplit("-", 1)[-1]
        torch.hub.download_url_to_file(weights.url, str(path), checksum, progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: the checksum is another
        raise ValueError(
            f"resnet_two_stream: cannot download {weights.url} ({_one_line(error)}); download it on another machine "
            f"and copy it to {path}, or set weights to the path of the file"
        ) from error
    return path


def _load_weights(resnet: ResNet, state: dict[str, torch.Tensor], complaint: str) -> None:
    """Copy a state dict into `resnet`, but for its classifier `fc`; a ValueError says what is different."""
    found = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    expected = {name: tensor for name, tensor in resnet.state_dict().items() if not name.startswith("fc.")}
    # Files of old torch versions have no num_batches_tracked, which only serves batch norms without momentum.
    missing = [name for name in expected.keys() - found.keys() if not name.endswith(".num_batches_tracked")]
    differences = {
        "lacks": missing,
        "has besides": found.keys() - expected.keys(),
        "has other shapes for": [
            name for name in expected.keys() & found.keys() if found[name].shape != expected[name].shape
        ],
    }
    if any(differences.values()):
        described = ", ".join(f"{verb} {_listed(names)}" for verb, names in differences.items() if names)
        raise ValueError(f"{complaint}: {described}")
    resnet.load_state_dict(found, strict=False)


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a readable file of weights ({_one_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        keys = f", only {_listed(map(str, state))}" if isinstance(state, dict) and state else ""
        raise ValueError(f"{path}: holds no state dict, tensors by name{keys}")
    return state


def _listed(names: Iterable[str]) -> str:
    """The first of the names, and how many more there are."""
    names = sorted(names)
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
