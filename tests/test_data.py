"""The embedded gallery, its views, and the sampler."""

import numpy as np
import pytest
import torch

from dmic.constants import NOISE
from dmic.data import CameraCrossingSampler, Gallery, LabeledGallery, landsat_galleries
from dmic.data.augment import MAX_SHIFT, bent_view, plain_view, toned_view
from dmic.data.landsat import CROP, TILE, landsat_bands, textured_places


class TestLandsat:
    def test_the_scene_has_three_visible_and_three_infrared_bands(self):
        bands, modality, names = landsat_bands()
        assert (bands.shape, bands.dtype) == ((6, 352, 349), np.uint8)
        assert modality.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(names) == 6

    def test_the_sea_is_left_out(self):
        bands, _, _ = landsat_bands()
        places = textured_places(bands)
        assert 170 < len(places) < 14 * 14
        flat = bands.copy()
        flat[3, :TILE, :TILE] = 9  # the first tile, flat in one band
        assert set(places) - set(textured_places(flat)) <= {0}
        assert 0 not in textured_places(flat)

    def test_training_and_test_places_are_disjoint_and_every_place_has_all_crops(self):
        train, test = landsat_galleries(num_crops=2)
        places = [set(g.person_ids.tolist()) for g in (train, test)]
        assert not places[0] & places[1]
        assert len(places[0]) == pytest.approx(2 * len(places[1]), abs=2)
        for gallery in (train, test):
            pairs = torch.stack([gallery.person_ids, gallery.unlabeled.camera_ids])
            _, counts = pairs.unique(dim=1, return_counts=True)
            assert (counts == 2).all()
            assert len(counts) == 6 * len(gallery.person_ids.unique())
            assert gallery.unlabeled.images.shape[1:] == (1, CROP, CROP)
            assert torch.equal(gallery.unlabeled.modality_ids, (gallery.unlabeled.camera_ids >= 3).long())

    def test_a_seed_gives_the_same_galleries_and_another_gives_others(self):
        first, again, other = (landsat_galleries(num_crops=1, seed=s)[0] for s in (1, 1, 2))
        assert torch.equal(first.unlabeled.images, again.unlabeled.images)
        assert torch.equal(first.person_ids, again.person_ids)
        assert not torch.equal(first.person_ids, other.person_ids)

    def test_a_position_says_nothing_about_an_identity(self):
        train, _ = landsat_galleries(num_crops=2)
        same = (train.person_ids[1:] == train.person_ids[:-1]).double().mean()
        assert same < 0.05

    @pytest.mark.parametrize("arguments", [{"num_crops": 0}, {"train_share": 0.0}, {"train_share": 1.0}])
    def test_bad_arguments_are_named(self, arguments):
        ((name, value),) = arguments.items()
        with pytest.raises(ValueError, match=f"^landsat_galleries: {name} .*got {value}"):
            landsat_galleries(**arguments)


class TestGallery:
    IMAGES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)

    @pytest.mark.parametrize(
        ("images", "cameras", "modalities", "message"),
        [
            (IMAGES.float(), [0, 1], [0, 1], "images must be uint8"),
            (IMAGES[0], [0, 1], [0, 1], r"got torch.uint8 \(1, 4, 4\)"),
            (IMAGES, [0], [0, 1], r"camera_ids must be int64 \[N\], got torch.int64 \(1,\) with N=2"),
            (IMAGES, [0, -1], [0, 1], "camera_ids must not be negative, got -1"),
            (IMAGES, [0, 1], [0, 2], "modality_ids must be 0 or 1, got 2"),
        ],
    )
    def test_bad_arrays_are_named(self, images, cameras, modalities, message):
        with pytest.raises(ValueError, match=message):
            Gallery(images, torch.tensor(cameras), torch.tensor(modalities))

    def test_identities_are_kept_apart_from_what_training_sees(self):
        unlabeled = Gallery(self.IMAGES, torch.tensor([0, 1]), torch.tensor([0, 1]))
        assert not hasattr(unlabeled, "person_ids")
        with pytest.raises(ValueError, match="person_ids must be int64"):
            LabeledGallery(unlabeled, torch.tensor([1]))


class TestViews:
    IMAGES = torch.randint(0, 256, (64, 1, 20, 20), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    @pytest.mark.parametrize("view", [plain_view, toned_view, bent_view])
    def test_views_keep_the_shape_and_depend_on_the_generator_alone(self, view):
        first, again, other = (view(self.IMAGES, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert (first.shape, first.dtype) == (self.IMAGES.shape, torch.float32)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("mirrored", [True, False])
    def test_a_plain_view_is_a_shifted_crop_or_its_mirror_image(self, mirrored):
        views = plain_view(self.IMAGES, torch.Generator().manual_seed(0), mirrored=mirrored)
        inner = slice(MAX_SHIFT, -MAX_SHIFT)
        num_mirrored, shifts = 0, set()
        for view, image in zip(views[:, 0], self.IMAGES[:, 0].float(), strict=True):
            found = set()
            for flipped in (False, True):
                source = image.flip(1) if flipped else image
                for y in range(-MAX_SHIFT, MAX_SHIFT + 1):
                    for x in range(-MAX_SHIFT, MAX_SHIFT + 1):
                        moved = source.roll((-y, -x), (0, 1))
                        if torch.equal(moved[inner, inner], view[inner, inner]):
                            found.add(flipped)
                            shifts |= {("y", y), ("x", x)}
            assert found, "no shift explains the view"
            num_mirrored += found == {True}
        assert 15 < num_mirrored < 49 if mirrored else num_mirrored == 0  # 64 fair coins
        assert len(shifts) == 2 * (2 * MAX_SHIFT + 1), "some shifts never occur"

    @pytest.mark.parametrize("mirrored", [True, False])
    def test_a_tone_curve_keeps_the_order_of_grey_levels_and_the_largest_difference_from_the_mean(self, mirrored):
        generator = torch.Generator().manual_seed(0)
        state = generator.get_state()
        plain = plain_view(self.IMAGES, generator, mirrored=mirrored)
        toned = toned_view(self.IMAGES, generator.set_state(state), mirrored=mirrored)
        num_stretched = 0
        for before, after in zip(plain.flatten(1), toned.flatten(1), strict=True):
            assert (after[before.argsort()].diff() >= -1e-3).all()
            before = (before - before.mean()).abs()
            torch.testing.assert_close(after.abs().max(), before.max())
            num_stretched += bool(after.abs().mean() > before.mean())
        assert 15 < num_stretched < 49  # 64 fair coins

    @pytest.mark.parametrize("mirrored", [True, False])
    def test_a_bent_curve_is_a_function_of_the_grey_level_that_rises_and_falls(self, mirrored):
        images = self.IMAGES // 16 * 16  # 16 levels, each in many pixels
        generator = torch.Generator().manual_seed(0)
        state = generator.get_state()
        plain = plain_view(images, generator, mirrored=mirrored)
        bent = bent_view(images, generator.set_state(state), mirrored=mirrored)
        num_bent = 0
        for before, after in zip(plain.flatten(1), bent.flatten(1), strict=True):
            levels, level = before.unique(return_inverse=True)
            curve = torch.zeros(len(levels)).index_copy(0, level, after)
            assert torch.allclose(curve[level], after, atol=1e-3)
            num_bent += bool((curve.diff() > 1).any() and (curve.diff() < -1).any())
        assert num_bent > 20, "most curves, but for those of a small share"
        changes = (bent - plain).abs().mean((1, 2, 3))
        assert changes.min() < 2 < 20 < changes.max(), "shares from none to all"
        assert torch.allclose(plain.mean((1, 2, 3)), bent.mean((1, 2, 3)), atol=1e-2)

    def test_a_flat_crop_stays_flat(self):
        flat = torch.full((8, 1, 6, 6), 7, dtype=torch.uint8)
        assert torch.allclose(bent_view(flat, torch.Generator().manual_seed(0)), flat.float(), atol=1e-4)


class TestSampler:
    LABELS = torch.tensor([0] * 6 + [1] * 3 + [2] * 9 + [NOISE] * 4)
    CAMERAS = torch.tensor([0, 0, 0, 1, 1, 2, 4, 4, 4, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2, 3])

    def sampler(self, num_classes=2, num_samples=4, seed=0):
        return CameraCrossingSampler(
            self.LABELS,
            self.CAMERAS,
            num_classes=num_classes,
            num_samples=num_samples,
            seed=seed,
        )

    def test_a_batch_holds_p_clusters_of_k_samples_without_outliers(self):
        sampler = self.sampler()
        for number in range(50):
            labels = self.LABELS[sampler.batch(number)].view(2, 4)
            assert (labels == labels[:, :1]).all()
            assert (labels != NOISE).all()
            assert labels[0, 0] != labels[1, 0]

    def test_other_samples_come_from_other_cameras_than_the_anchors(self):
        sampler = self.sampler(num_classes=3)
        for number in range(50):
            for sample_idx in sampler.batch(number).view(3, 4):
                cameras = self.CAMERAS[sample_idx]
                if self.LABELS[sample_idx[0]] == 1:
                    assert (cameras == 4).all(), "a cluster with one camera has no other"
                else:
                    assert (cameras[1:] != cameras[0]).all()

    def test_samples_repeat_only_if_there_are_too_few(self):
        sampler = self.sampler(num_classes=3)
        for number in range(50):
            for sample_idx in sampler.batch(number).view(3, 4):
                anchor, others = sample_idx[0], sample_idx[1:]
                labels, cameras = self.LABELS, self.CAMERAS
                elsewhere = (labels == labels[anchor]) & (cameras != cameras[anchor])
                if elsewhere.sum() >= 3:
                    assert len(others.unique()) == 3

    def test_every_cluster_comes_up_equally_often(self):
        sampler = self.sampler(num_classes=1)
        seen = torch.stack([self.LABELS[sampler.batch(number)[0]] for number in range(300)]).bincount()
        assert seen.tolist() == [100, 100, 100]

    def test_batches_of_a_turn_share_no_cluster_and_every_turn_has_another_order(self):
        labels, turns = torch.arange(35) % 7, set()
        sampler = CameraCrossingSampler(labels, self.CAMERAS[:1].expand(35), num_classes=2, num_samples=3, seed=0)
        for turn in range(20):
            drawn = [labels[sampler.batch(3 * turn + place)].view(2, 3)[:, 0].tolist() for place in range(3)]
            turns.add(order := tuple(c for batch in drawn for c in batch))
            assert len(set(order)) == 6
        assert len(turns) > 15

    def test_every_sample_of_a_cluster_is_an_anchor_equally_often(self):
        num_draws = 1800
        sampler = self.sampler(num_classes=3)
        anchors = torch.cat([sampler.batch(number).view(3, 4)[:, 0] for number in range(num_draws)])
        for c, size in enumerate((6, 3, 9)):
            share = anchors[self.LABELS[anchors] == c].bincount(minlength=22)[c == self.LABELS] / num_draws
            assert (share - 1 / size).abs().max() < 5 * (1 / size * (1 - 1 / size) / num_draws) ** 0.5  # deviations

    def test_all_samples_of_other_cameras_join_an_anchor_equally_often(self):
        cameras, labels = torch.tensor([0] * 3 + [1] * 5), torch.zeros(8, dtype=torch.int64)
        sampler = CameraCrossingSampler(labels, cameras, num_classes=1, num_samples=3, seed=0)
        batches = torch.stack([sampler.batch(number) for number in range(600)])
        others = batches[batches[:, 0] < 3, 1:].flatten().bincount(minlength=8)[3:] / 600
        assert others.tolist() == pytest.approx([3 / 8 * 2 / 5] * 5, abs=0.06)

    def test_a_batch_depends_on_its_number_and_the_seed_alone(self):
        forwards = [self.sampler().batch(number) for number in range(9)]
        sampler = self.sampler()
        backwards = [sampler.batch(number) for number in reversed(range(9))]
        assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
        assert any(not torch.equal(a, self.sampler(seed=1).batch(i)) for i, a in enumerate(forwards))

    def test_fewer_clusters_than_p_make_a_smaller_batch(self):
        assert len(self.sampler(num_classes=8).batch(0)) == 3 * 4

    def test_no_cluster_at_all_is_an_error(self):
        with pytest.raises(ValueError, match="labels must hold a cluster, got outliers only"):
            CameraCrossingSampler(torch.full((5,), NOISE), torch.zeros(5), num_classes=1, num_samples=1, seed=0)

    @pytest.mark.parametrize(("name", "value"), [("num_classes", 0), ("num_samples", 0)])
    def test_bad_sizes_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            self.sampler(**{name: value})
