"""Two-stream ResNets against torchvision's, their weights files, GeM, and embedding from any kind of images."""

import copy
import socket
import threading
import urllib.error
from functools import cache

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from dmic.constants import INFRARED, VISIBLE
from dmic.data import Gallery
from dmic.data.augment_rgb import IMAGENET_MEAN, IMAGENET_STD
from dmic.models import GeMPool, ImageNetNormalize, NonLocalBlock, embed, resnet_two_stream, small_two_stream

SIZE = (64, 32)
BUILD = {18: torchvision.models.resnet18, 50: torchvision.models.resnet50}
DIMS = {18: 512, 50: 2048}


def pedestrians(n, seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, *size), generator=generator).to(torch.uint8)


@pytest.fixture(scope="module")
def torchvisions():
    """torchvision's networks by depth: random weights, and statistics that are not those of a new batch norm."""
    networks = {}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for depth, build in BUILD.items():
            networks[depth] = build().eval()
            for module in networks[depth].modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.running_mean, -0.1, 0.1)
                    nn.init.uniform_(module.running_var, 0.8, 1.2)
                    nn.init.uniform_(module.bias, -0.1, 0.1)
    return networks


@pytest.fixture(scope="module")
def files(torchvisions, tmp_path_factory):
    """Weights files of both depths, as torchvision publishes them."""
    folder = tmp_path_factory.mktemp("weights")
    for depth, network in torchvisions.items():
        torch.save(network.state_dict(), folder / f"resnet{depth}.pth")
    return {depth: folder / f"resnet{depth}.pth" for depth in BUILD}


@pytest.fixture(scope="module")
def evaluated(files):
    """Call it for a network in evaluation mode; tests share it and do not change it."""
    return cache(lambda depth, **options: resnet_two_stream(depth=depth, weights=files[depth], **options).eval())


@pytest.fixture
def resnet18(evaluated):
    return evaluated(18)


@pytest.fixture
def own_resnet18(resnet18):
    """A copy of it that a test may change."""
    return copy.deepcopy(resnet18)


def maps_of(network, images, modality):
    return network.trunk(network.stems[modality](images.float()))


def torchvision_maps(network, images):
    x = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(images.float() / 255)
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_both_streams_give_torchvisions_maps_at_stride_2(depth, torchvisions, evaluated):
    network = evaluated(depth, last_stride=2)
    images = pedestrians(2)
    expected = torchvision_maps(torchvisions[depth], images)
    assert expected.shape == (2, DIMS[depth], 2, 1)
    for modality in (VISIBLE, INFRARED):
        torch.testing.assert_close(maps_of(network, images, modality), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_a_last_stride_of_1_doubles_the_map_and_keeps_the_weights(depth, evaluated):
    dense, coarse = evaluated(depth), evaluated(depth, last_stride=2)
    images = pedestrians(2)
    assert maps_of(coarse, images, VISIBLE).shape == (2, DIMS[depth], 2, 1)
    assert maps_of(dense, images, VISIBLE).shape == (2, DIMS[depth], 4, 2)
    state = coarse.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())
    embeddings = dense(images.float(), images.float())
    assert embeddings.shape == (4, DIMS[depth])
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_non_local_blocks_start_as_the_identity(depth, evaluated):
    images = pedestrians(2).float()
    torch.testing.assert_close(evaluated(depth, non_local=True)(images, None), evaluated(depth)(images, None))


@torch.no_grad()
def test_non_local_blocks_start_as_the_identity_in_training_mode_too(files):
    plain, non_local = (resnet_two_stream(depth=18, weights=files[18], non_local=use) for use in (False, True))
    images = pedestrians(2).float()
    torch.testing.assert_close(non_local(images, images), plain(images, images), rtol=1e-4, atol=1e-5)


def test_non_local_blocks_follow_the_last_two_and_the_last_three_residual_blocks(evaluated):
    network = evaluated(50, non_local=True)
    where = {
        name: "".join("N" if isinstance(block, NonLocalBlock) else "r" for block in layer)
        for name, layer in network.trunk.named_children()
    }
    assert where == {"layer1": "rrr", "layer2": "rrrNrN", "layer3": "rrrrNrNrN", "layer4": "rrr"}
    assert [len(layer) for layer in evaluated(18, non_local=True).trunk] == [2, 4, 4, 2]


def test_a_non_local_block_is_the_sum_over_pairs_of_positions():
    block = NonLocalBlock(6).double().eval()
    nn.init.uniform_(block.norm.weight, 0.5, 1)
    maps = torch.rand(2, 6, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta, phi, g = (layer(maps).flatten(2) for layer in (block.theta, block.phi, block.g))
    attended = torch.zeros_like(theta)
    for n in range(2):
        for i in range(6):
            for j in range(6):
                attended[n, :, i] += theta[n, :, i] @ phi[n, :, j] * g[n, :, j] / 6
    torch.testing.assert_close(block(maps), maps + block.norm(block.output(attended.unflatten(2, (3, 2)))))


def test_a_non_local_block_learns_from_its_first_step():
    block = NonLocalBlock(6)
    optimizer = torch.optim.SGD(block.parameters(), lr=1.0)
    maps = torch.rand(4, 6, 3, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        (block(maps) ** 3).mean().backward()
        optimizer.step()
    # biases ahead of a batch norm or of a linear form in the other factor may cancel; weights may not
    assert all((layer.weight.grad != 0).any() for layer in (block.theta, block.phi, block.g, block.output, block.norm))


@pytest.mark.parametrize("modality", [VISIBLE, INFRARED])
def test_gradients_reach_the_stem_of_the_modality_and_the_trunk(modality, own_resnet18):
    network = own_resnet18.train()
    images = pedestrians(3).float()
    batch = (images, None) if modality == VISIBLE else (None, images)
    network(*batch)[:, :100].sum().backward()
    assert all((p.grad != 0).any() for p in network.stems[modality].parameters())
    assert all(p.grad is None for p in network.stems[1 - modality].parameters())
    assert all(p.grad is not None for p in network.trunk.parameters())


def test_the_bias_of_the_neck_is_frozen_at_zero_and_nothing_else(resnet18):
    assert torch.equal(resnet18.neck.bias, torch.zeros(512))
    frozen = [name for name, parameter in resnet18.named_parameters() if not parameter.requires_grad]
    assert frozen == ["neck.bias"]


def test_normalised_pixels_have_the_statistics_of_imagenet():
    mean, std = torch.tensor(IMAGENET_MEAN)[None, :, None, None], torch.tensor(IMAGENET_STD)[None, :, None, None]
    normalize = ImageNetNormalize()
    torch.testing.assert_close(normalize(mean), torch.zeros_like(mean))
    torch.testing.assert_close(normalize(mean + std), torch.ones_like(mean))
    assert normalize(pedestrians(1)).dtype == torch.float32
    assert not normalize.state_dict(), "constants do not belong into a checkpoint"


def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    first, again, other = (
        resnet_two_stream(depth=18, weights=None, non_local=True, seed=s).state_dict() for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["trunk.layer4.1.conv2.weight"], other["trunk.layer4.1.conv2.weight"])
    assert not torch.equal(first["trunk.layer3.1.g.weight"], other["trunk.layer3.1.g.weight"])


class TestWeights:
    def test_a_safetensors_file_gives_what_the_pth_file_gives(self, torchvisions, resnet18, tmp_path):
        state = {name: tensor for name, tensor in torchvisions[18].state_dict().items() if not name.startswith("fc.")}
        save_file(state, tmp_path / "resnet18.safetensors")
        other = resnet_two_stream(depth=18, weights=tmp_path / "resnet18.safetensors").state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in resnet18.state_dict().items())
        assert torch.equal(other["stems.0.conv1.weight"], state["conv1.weight"])
        assert torch.equal(other["stems.1.bn1.running_mean"], state["bn1.running_mean"])

    def test_a_classifier_of_any_size_is_ignored_and_batch_counts_may_be_missing(
        self, torchvisions, resnet18, tmp_path
    ):
        state = {
            name: tensor
            for name, tensor in torchvisions[18].state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        torch.save(state | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}, tmp_path / "old.pth")
        other = resnet_two_stream(depth=18, weights=tmp_path / "old.pth").state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in resnet18.state_dict().items())

    @pytest.mark.parametrize("depth", [18, 50])
    def test_the_weights_of_another_depth_are_named(self, depth, files):
        path = files[68 - depth]
        with pytest.raises(ValueError, match=rf"{path}: holds no weights of a torchvision ResNet-{depth}: ") as error:
            resnet_two_stream(depth=depth, weights=path)
        difference = {18: "has besides layer1.0.bn3.bias and", 50: "lacks layer1.0.bn3.bias and"}[depth]
        assert difference in str(error.value)
        assert "has other shapes for layer1.0.conv1.weight and" in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_missing_a_foreign_and_a_misshapen_tensor_are_named(self, torchvisions, tmp_path):
        state = dict(torchvisions[18].state_dict())
        del state["layer2.0.bn1.bias"]
        state["layer2.0.gate"] = torch.zeros(1)
        state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
        torch.save(state, tmp_path / "mixed.pth")
        wanted = "lacks layer2.0.bn1.bias, has besides layer2.0.gate, has other shapes for conv1.weight"
        with pytest.raises(ValueError, match=rf"mixed.pth: holds no weights of a torchvision ResNet-18: {wanted}$"):
            resnet_two_stream(depth=18, weights=tmp_path / "mixed.pth")

    def test_a_checkpoint_around_the_state_dict_is_named(self, torchvisions, tmp_path):
        torch.save({"epoch": 3, "state_dict": torchvisions[18].state_dict()}, tmp_path / "checkpoint.pth")
        with pytest.raises(
            ValueError, match=r"checkpoint\.pth: holds no state dict, tensors by name, only epoch and 1"
        ):
            resnet_two_stream(depth=18, weights=tmp_path / "checkpoint.pth")

    @pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors", "empty.pth", "cut.pth"])
    def test_what_cannot_be_read_is_named_in_one_line(self, name, files, tmp_path):
        whole = files[18].read_bytes()
        content = {"noise": b"no weights at all", "empty": b"", "cut": whole[: len(whole) // 2]}[name.split(".")[0]]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: not a readable file of weights \(.+\)$") as error:
            resnet_two_stream(depth=18, weights=tmp_path / name)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
    def test_a_missing_file_is_named(self, name, tmp_path):
        with pytest.raises(ValueError, match=rf"{name}: No such file or directory"):
            resnet_two_stream(depth=18, weights=tmp_path / name)

    def test_nothing_in_a_file_is_executed(self, tmp_path):
        class Attack:
            def __reduce__(self):
                return (open, (str(tmp_path / "written"), "w"))

        torch.save({"conv1.weight": Attack()}, tmp_path / "attack.pth")
        with pytest.raises(ValueError, match=r"attack\.pth: not a readable file of weights"):
            resnet_two_stream(depth=18, weights=tmp_path / "attack.pth")
        assert not (tmp_path / "written").exists()


class TestDownload:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        return tmp_path / "hub" / "checkpoints"

    @pytest.mark.parametrize(("depth", "name"), [(18, "resnet18-f37072fd.pth"), (50, "resnet50-0676ba61.pth")])
    def test_without_a_network_the_error_says_what_to_download_and_where_to_put_it(
        self, depth, name, folder, monkeypatch
    ):
        def no_network(*args, **kwargs):
            raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

        monkeypatch.setattr("torch.hub.urlopen", no_network)
        with pytest.raises(ValueError) as error:
            resnet_two_stream(depth=depth, weights="imagenet")
        message = str(error.value)
        assert f"cannot download https://download.pytorch.org/models/{name} (" in message
        assert "Temporary failure in name resolution" in message
        assert f"download it on another machine and copy it to {folder / name}, or set weights to the path" in message
        assert "\n" not in message
        assert not list(folder.glob("*")), "a partial download is left"

    def test_a_download_with_another_checksum_is_not_kept(self, folder, monkeypatch, tmp_path):
        (tmp_path / "served.pth").write_bytes(b"something else")
        served = (tmp_path / "served.pth").as_uri()
        opened = torch.hub.urlopen
        monkeypatch.setattr("torch.hub.urlopen", lambda *args, **kwargs: opened(served))
        with pytest.raises(ValueError, match=r"cannot download .*invalid hash value"):
            resnet_two_stream(depth=18, weights="imagenet")
        assert not list(folder.glob("*"))

    def test_a_file_in_the_cache_is_used_without_a_network(self, folder, files, resnet18, monkeypatch):
        monkeypatch.setattr("torch.hub.urlopen", None)
        folder.mkdir(parents=True)
        (folder / "resnet18-f37072fd.pth").write_bytes(files[18].read_bytes())
        network = resnet_two_stream(depth=18, weights="imagenet")
        assert torch.equal(network.trunk.layer4[1].conv2.weight, resnet18.trunk.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"depth": 34}, "depth must be 18 or 50, got 34"), ({"last_stride": 3}, "last_stride must be 1 or 2, got 3")],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=f"resnet_two_stream: {message}"):
        resnet_two_stream(**{"depth": 18, "weights": None} | argument)


class TestNumerics:
    def test_gem_of_bfloat16_maps_is_exact_to_float32(self):
        maps = (torch.rand(3, 5, 8, 4, generator=torch.Generator().manual_seed(0)) * 10).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pooled = GeMPool()(maps)
        assert pooled.dtype == torch.float32
        expected = maps.double().pow(3).mean((2, 3)).pow(1 / 3)
        torch.testing.assert_close(pooled.double(), expected, rtol=1e-5, atol=0)

    def test_the_gradient_of_gem_is_the_derivative(self):
        pool = GeMPool(p=3.0, grid=(2, 2)).double()
        maps = torch.rand(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
        parameters = maps.requires_grad_(), pool.p
        assert torch.autograd.gradcheck(lambda maps, p: torch.func.functional_call(pool, {"p": p}, (maps,)), parameters)

    @pytest.mark.parametrize("p", [1.0, 3.0, 6.5, 12.0])
    def test_the_gradient_of_gem_is_finite_where_a_channel_is_dead(self, p):
        pool = GeMPool(p=p)
        maps = torch.zeros(2, 3, 4, 2)
        maps[:, 0] = 5.0
        pooled = pool(maps.requires_grad_())
        pooled.sum().backward()
        assert torch.isfinite(pooled).all()
        assert torch.isfinite(maps.grad).all()
        assert torch.isfinite(pool.p.grad)
        torch.testing.assert_close(pooled[:, 0], torch.full((2,), 5.0))

    @pytest.mark.parametrize("kind", ["resnet18", "small"])
    def test_embeddings_are_float32_of_unit_norm_under_autocast(self, kind, resnet18):
        network = resnet18 if kind == "resnet18" else small_two_stream(width=4, embedding_dim=16).eval()
        images = pedestrians(4).float() if kind == "resnet18" else pedestrians(4)[:, :1].float()
        with torch.no_grad():
            expected = network(images, images)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                embeddings = network(images, images)
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(8))
        assert not torch.equal(embeddings, expected), "nothing ran in bfloat16"
        assert ((embeddings * expected).sum(1) > 0.999).all()

    def test_gradients_under_autocast_are_float32_and_finite(self, own_resnet18):
        network = own_resnet18.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings = network(*(pedestrians(2, seed, size=(32, 16)).float() for seed in (0, 1)))
        embeddings[:, :50].sum().backward()
        for parameter in network.parameters():
            if parameter.requires_grad:
                assert parameter.grad.dtype == torch.float32
                assert torch.isfinite(parameter.grad).all()


class Files:
    """Images that are decoded when they are asked for: remembers by which threads and in what amounts."""

    def __init__(self, pixels, unreadable=None):
        self.pixels, self.unreadable = pixels, unreadable
        self.shape, self.dtype = tuple(pixels.shape), torch.uint8
        self.asked, self.threads = [], set()

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, sample_idx):
        if self.unreadable is not None and (sample_idx == self.unreadable).any():
            raise ValueError(f"image {self.unreadable} is unreadable")
        self.asked.append(len(sample_idx))
        self.threads.add(threading.current_thread())
        return self.pixels[sample_idx]


class TestEmbed:
    MODALITIES = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0])

    def gallery(self, images):
        return Gallery(images, torch.arange(9), self.MODALITIES)

    def test_files_are_embedded_as_tensors_are_but_decoded_in_another_thread(self, resnet18):
        pixels = pedestrians(9)
        files = Files(pixels)
        features = embed(resnet18, self.gallery(files), batch_size=2)
        assert torch.equal(features, embed(resnet18, self.gallery(pixels), batch_size=2))
        assert files.asked == [2, 2, 1, 2, 2]
        assert threading.current_thread() not in files.threads
        assert not any(thread.is_alive() for thread in files.threads)

    def test_features_are_means_over_an_image_and_its_mirror_image(self, resnet18):
        pixels = pedestrians(9)
        features = embed(resnet18, self.gallery(pixels))
        assert features.dtype == torch.float32
        with torch.no_grad():
            for i, modality in enumerate(self.MODALITIES):
                pair = torch.stack([pixels[i], pixels[i].flip(2)]).float()
                own = resnet18(pair, None) if modality == VISIBLE else resnet18(None, pair)
                torch.testing.assert_close(features[i], own.mean(0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("make", [Files, lambda pixels: pixels])
    def test_chosen_samples_come_in_the_order_asked_for(self, make, resnet18):
        pixels = pedestrians(9)
        sample_idx = torch.tensor([7, 2, 2, 0, 4])
        chosen = embed(resnet18, self.gallery(make(pixels)), sample_idx=sample_idx, batch_size=2)
        torch.testing.assert_close(chosen, embed(resnet18, self.gallery(pixels))[sample_idx], rtol=1e-4, atol=1e-5)

    def test_no_samples_give_no_features(self, resnet18):
        files = Files(pedestrians(9))
        nothing = embed(resnet18, self.gallery(files), sample_idx=torch.empty(0, dtype=torch.int64))
        assert nothing.shape == (0, 512)
        assert not files.asked

    def test_progress_counts_to_the_end_from_the_calling_thread(self, resnet18):
        calls = []
        embed(
            resnet18,
            self.gallery(Files(pedestrians(9))),
            batch_size=3,
            progress=lambda *call: calls.append((*call, threading.current_thread())),
        )
        here = threading.current_thread()
        assert calls == [("embed", done, 9, here) for done in (3, 5, 8, 9)]

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("source", ["images", "progress"])
    def test_an_error_propagates_and_leaves_neither_a_mode_nor_a_thread_behind(self, source, training, own_resnet18):
        network = own_resnet18.train(training)
        images = Files(pedestrians(9), unreadable=3 if source == "images" else None)

        def stop(stage, done, total):
            raise ValueError("image 3 is unreadable")

        with pytest.raises(ValueError, match="image 3 is unreadable"):
            embed(network, self.gallery(images), batch_size=1, progress=stop if source == "progress" else None)
        assert network.training == training
        assert not any(thread.is_alive() for thread in images.threads)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"sample_idx": torch.tensor([0, 9])}, r"sample_idx must be in \[0, N\), got 9 with N=9"),
            ({"sample_idx": torch.tensor([-1, 2])}, r"sample_idx must be in \[0, N\), got -1 with N=9"),
            (
                {"sample_idx": torch.zeros(9, dtype=torch.bool)},
                r"sample_idx must be int64 \[n\], got torch.bool \(9,\)",
            ),
            ({"sample_idx": torch.tensor([[1]])}, r"sample_idx must be int64 \[n\], got torch.int64 \(1, 1\)"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments, message, resnet18):
        with pytest.raises(ValueError, match=f"embed: {message}"):
            embed(resnet18, self.gallery(pedestrians(9)), **arguments)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_on_a_gpu_features_are_close_and_come_back_where_asked(self, own_resnet18):
        network = own_resnet18
        gallery = self.gallery(Files(pedestrians(9)))
        expected = embed(network, gallery)
        network.cuda()
        for device in ("cpu", "cuda"):
            features = embed(network, gallery, device=device)
            assert features.device.type == device
            assert features.dtype == torch.float32
            assert (torch.cosine_similarity(features.cpu(), expected) > 0.999).all()
