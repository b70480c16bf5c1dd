"""The two-stream network and its embedding."""

import pytest
import torch

from dmic.constants import INFRARED, VISIBLE
from dmic.data import Gallery
from dmic.models import embed, small_two_stream
from dmic.models.two_stream import GeMPool, Standardize


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 20, 20), generator=generator).to(torch.uint8)


def test_embeddings_have_unit_norm_and_visible_comes_first():
    network = small_two_stream(width=4, embedding_dim=16).eval()
    visible, infrared = images(3).float(), images(2, seed=1).float()
    both = network(visible, infrared)
    assert both.shape == (5, 16)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(both[:3], network(visible, None))
    torch.testing.assert_close(both[3:], network(None, infrared))


def test_each_modality_has_its_own_stem_and_the_trunk_is_shared():
    network = small_two_stream(width=4, embedding_dim=16)
    network(images(8).float(), None).sum().backward()
    assert all(p.grad is None for p in network.stems[INFRARED].parameters())
    assert all(p.grad is not None for p in network.stems[VISIBLE].parameters())
    assert all(p.grad is not None for p in network.trunk.parameters())


def test_the_bias_of_the_neck_stays_zero():
    network = small_two_stream(width=4, embedding_dim=16)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(images(8).float(), images(8).float())[:, 0].sum().backward()
    optimizer.step()
    assert torch.equal(network.neck.bias, torch.zeros(16))


def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    first, again, other = (small_two_stream(width=4, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_features_are_means_over_an_image_and_its_mirror_image_and_not_normalised_again():
    gallery = Gallery(images(5), torch.arange(5), torch.tensor([0, 1, 0, 0, 1]))
    network = small_two_stream(width=4, embedding_dim=16).eval()
    features = embed(network, gallery)
    with torch.no_grad():
        for i in range(5):
            pair = torch.stack([gallery.images[i].float(), gallery.images[i].float().flip(2)])
            own = network(pair, None) if gallery.modality_ids[i] == VISIBLE else network(None, pair)
            torch.testing.assert_close(features[i], own.mean(0), rtol=1e-4, atol=1e-5)
    assert (features.norm(dim=1) < 1).all()


def test_features_are_of_the_image_alone_where_a_mirror_image_shows_something_else():
    gallery = Gallery(images(5), torch.arange(5), torch.tensor([0, 1, 0, 0, 1]))
    network = small_two_stream(width=4, embedding_dim=16, mirrored=False).eval()
    visible = gallery.modality_ids == VISIBLE
    with torch.no_grad():
        own = network(gallery.images[visible].float(), gallery.images[~visible].float())
    features = embed(network, gallery, batch_size=2)
    torch.testing.assert_close(torch.cat([features[visible], features[~visible]]), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_embedding_changes_neither_the_mode_nor_the_statistics(training):
    network = small_two_stream(width=4, embedding_dim=16).train(training)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    embed(network, Gallery(images(4), torch.arange(4), torch.tensor([0, 0, 1, 1])))
    assert network.training == training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_gem_is_the_mean_for_p_1_and_nearly_the_maximum_for_a_large_p():
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.testing.assert_close(GeMPool(p=1.0)(maps), maps.mean((2, 3)))
    torch.testing.assert_close(GeMPool(p=200.0)(maps.double()), maps.double().amax((2, 3)), rtol=0.02, atol=0)
    cells = GeMPool(p=1.0, grid=(2, 2))(maps).view(2, 3, 2, 2)
    torch.testing.assert_close(cells[:, :, 0, 1], maps[:, :, :2, 2:].mean((2, 3)))


def test_standardised_images_have_zero_mean_and_forget_gain_and_offset():
    x = images(4).float()
    standard = Standardize(floor=0.0)(x)
    torch.testing.assert_close(standard.mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(Standardize(floor=0.0)(3 * x + 20), standard, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(Standardize()(torch.full((1, 1, 4, 4), 7.0))).all()
