"""Synthetic pedestrians: the tree, what an image depends on, and that infrared is not grey-scale colour."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmic.data import pedestrians
from dmic.data.check import check_dataset
from dmic.data.pedestrian_draws import CAMERAS, Difficulty, draw_identity, draw_shot
from dmic.data.pedestrian_painting import Canvas, paint_body
from dmic.data.pedestrians import contact_sheet, draw_pedestrian, write_pedestrians

SMALL = {"height": 32, "width": 16}
FEW = {"num_identities": 7, "images_per_camera": 3, "num_test_identities": 2, **SMALL}
INFRARED_CAMERAS = {3, 6}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def ids(root: Path, split: str) -> list[int]:
    lines = (root / "exp" / f"{split}_id.txt").read_text().splitlines()
    assert len(lines) == 1
    return [int(number) for number in lines[0].split(",")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pedestrians") / "tree"
    write_pedestrians(root, **FEW)
    return root


class TestTree:
    def test_layout_is_that_of_sysu_mm01(self, tree):
        assert sorted(path.name for path in tree.iterdir()) == [
            *("SYNTHETIC.txt", "cam1", "cam2", "cam3", "cam4", "cam5", "cam6", "exp")
        ]
        for camera in range(1, 7):
            for folder in (tree / f"cam{camera}").iterdir():
                assert folder.name in {f"{number:04d}" for number in range(1, 8)}
                names = sorted(path.name for path in folder.iterdir())
                assert names == [f"{number:04d}.jpg" for number in range(1, len(names) + 1)]

    def test_the_reader_of_sysu_mm01_finds_nothing_but_other_counts(self, tree):
        assert {problem.severity for problem in check_dataset("sysu_mm01", tree)} == {"count"}

    def test_splits_are_disjoint_and_hold_every_identity(self, tree):
        splits = [ids(tree, split) for split in ("train", "val", "test")]
        assert [len(split) for split in splits] == [4, 1, 2]
        assert sorted(number for split in splits for number in split) == list(range(1, 8))

    def test_every_identity_is_in_both_modalities_and_not_all_are_in_every_camera(self):
        for share in (0.0, 0.3):
            seen = [set(pedestrians._count_images(0, identity, 4, share)) for identity in range(1, 100)]
            assert all(cameras & INFRARED_CAMERAS and cameras - INFRARED_CAMERAS for cameras in seen)
            assert len({frozenset(cameras) for cameras in seen}) >= 8
        assert pedestrians._count_images(0, 1, 4, 1.0).keys() == CAMERAS.keys()

    def test_every_camera_has_training_and_test_images_however_few_it_sees(self, tmp_path):
        root = tmp_path / "tree"
        write_pedestrians(root, **{**FEW, "images_per_camera": 1}, camera_share=0.0)
        for camera in range(1, 7):
            seen = {int(folder.name) for folder in (root / f"cam{camera}").iterdir()}
            assert seen & set(ids(root, "test"))
            assert seen & set(ids(root, "train"))

    def test_numbers_of_images_spread_by_a_quarter_around_the_mean(self):
        numbers = [n for i in range(200) for n in pedestrians._count_images(0, i, 8, 1.0).values()]
        assert set(numbers) == {6, 7, 8, 9, 10}
        assert np.mean(numbers) == pytest.approx(8, abs=0.2)

    def test_files_are_the_drawn_images_and_their_number_is_returned(self, tmp_path):
        root = tmp_path / "tree"
        count = write_pedestrians(root, num_identities=3, images_per_camera=1, height=128, width=64, seed=5)
        files = sorted(root.glob("cam*/*/*.jpg"))
        assert len(files) == count
        for path in files[:3]:
            with Image.open(path) as image:
                stored = np.asarray(image).astype(int)
            camera, identity, number = int(path.parts[-3][-1]), int(path.parts[-2]), int(path.stem)
            drawn = draw_pedestrian(identity, camera, number, seed=5).astype(int)
            other = draw_pedestrian(identity, camera, number + 1, seed=5).astype(int)
            assert abs(stored - drawn).mean() < 8 < abs(stored - other).mean()

    def test_the_notice_says_that_no_person_is_shown_and_how_to_make_the_same(self, tmp_path):
        tree, hard = tmp_path / "tree", Difficulty(occlusion=1.0)
        write_pedestrians(tree, **{**FEW, "num_identities": 5}, camera_share=0.5, seed=3, difficulty=hard)
        notice = (tree / "SYNTHETIC.txt").read_text()
        assert "synthetic" in notice
        assert "No person is shown" in notice
        call = notice[notice.index("write_pedestrians(") : notice.index("and dmic")]
        names = {"write_pedestrians": write_pedestrians, "Difficulty": Difficulty, "root": tmp_path / "again"}
        eval(compile(call.strip(), "SYNTHETIC.txt", "eval"), names)
        assert contents(tmp_path / "again") == contents(tree)

    def test_other_processes_write_the_same_bytes(self, tree, tmp_path):
        write_pedestrians(tmp_path / "workers", **FEW, num_workers=1)
        assert contents(tmp_path / "workers") == contents(tree)

    def test_another_seed_writes_other_images(self, tree, tmp_path):
        write_pedestrians(tmp_path / "other", **FEW, seed=1)
        ours, theirs = contents(tree), contents(tmp_path / "other")
        same = [name for name in ours.keys() & theirs.keys() if name.endswith(".jpg") and ours[name] == theirs[name]]
        assert same == []


class TestInterruption:
    def test_progress_counts_images_and_the_tree_appears_only_after_the_last(self, tmp_path):
        root, calls = tmp_path / "tree", []

        def progress(stage, done, total):
            assert not root.exists()
            calls.append((stage, done, total))

        count = write_pedestrians(root, **FEW, progress=progress)
        assert root.is_dir()
        assert {(stage, total) for stage, _, total in calls} == {("drawing", count)}
        done = [done for _, done, _ in calls]
        assert done == sorted(set(done))
        assert done[-1] == count

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_whatever_stops_the_work_leaves_nothing(self, tmp_path, error):
        def stop(stage, done, total):
            raise error

        with pytest.raises(error):
            write_pedestrians(tmp_path / "tree", **FEW, progress=stop)
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_named_with_the_folder_and_leaves_nothing(self, tmp_path, monkeypatch):
        def save(image, path, *_, **__):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", save)
        reason = r"tree: could not be written \(No space left on device\); nothing of it is left$"
        with pytest.raises(OSError, match=reason):
            write_pedestrians(tmp_path / "tree", **FEW)
        assert list(tmp_path.iterdir()) == []

    def test_an_empty_folder_is_used_and_missing_parents_are_made(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for root in (tmp_path / "empty", tmp_path / "some" / "where"):
            write_pedestrians(root, **{**FEW, "num_identities": 4, "images_per_camera": 1})
            assert (root / "cam6").is_dir()
            assert [path.name for path in root.parent.iterdir() if path.name.startswith(".")] == []

    def test_what_is_there_is_never_touched(self, tmp_path):
        folder, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        file.write_text("mine")
        link.symlink_to(tmp_path / "nowhere")
        before = contents(tmp_path)
        for root in (folder, file, link):
            with pytest.raises(ValueError, match=f"^write_pedestrians: root must .* empty folder, got '{root}'"):
                write_pedestrians(root, **FEW)
        assert contents(tmp_path) == before
        assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "link"}


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("num_identities", 2), ("num_identities", 10_000), ("images_per_camera", 0), ("images_per_camera", 8000)),
            *(("num_test_identities", 0), ("num_test_identities", 6), ("camera_share", -0.1), ("camera_share", 1.1)),
            *(("camera_share", math.nan), ("height", 31), ("width", 15), ("seed", -1), ("num_workers", -1)),
        ],
    )
    def test_bad_arguments_are_named_before_anything_is_written(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"^write_pedestrians: {name} must .*, got {value}$"):
            write_pedestrians(tmp_path / "tree", **{**FEW, name: value})
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((-1, 1, 0), "identity must not be negative, got -1"),
            ((0, 7, 0), r"camera must be in \[1, 6\], got 7"),
            ((0, 0, 0), r"camera must be in \[1, 6\], got 0"),
            ((0, 1, -2), "image must not be negative, got -2"),
        ],
    )
    def test_an_image_that_cannot_be_is_named(self, arguments, message):
        with pytest.raises(ValueError, match=f"^draw_pedestrian: {message}"):
            draw_pedestrian(*arguments)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("pose", -1.0), ("framing", math.inf), ("light", math.nan), ("occlusion", 1.5), ("diversity", -0.5)],
    )
    def test_bad_difficulties_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"^Difficulty: {name} must be .*, got {value}"):
            Difficulty(**{name: value})


class TestImages:
    def test_an_image_does_not_depend_on_what_was_drawn_before(self):
        wanted = [(identity, camera, 3) for identity in (0, 12) for camera in CAMERAS]
        first = [draw_pedestrian(*which, **SMALL) for which in wanted]
        pedestrians._scene.cache_clear()
        pedestrians._identity.cache_clear()
        again = [draw_pedestrian(*which, **SMALL) for which in reversed(wanted)][::-1]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    @pytest.mark.parametrize("size", [(32, 16), (61, 47), (144, 72)])
    def test_size_type_and_channels(self, size):
        for camera in CAMERAS:
            image = draw_pedestrian(1, camera, 0, height=size[0], width=size[1])
            assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
            grey = np.ptp(image, axis=2).max() == 0
            assert grey == (camera in INFRARED_CAMERAS)
            assert image.std() > 10

    @pytest.mark.parametrize("camera", [1, 6])
    def test_images_of_an_identity_are_closer_than_those_of_two(self, camera):
        images = np.stack([[draw_pedestrian(i, camera, 2 * k, **SMALL) for k in range(2)] for i in range(30)])
        images = images.reshape(30, 2, -1).astype(float)
        images -= images.mean(-1, keepdims=True)
        images /= np.linalg.norm(images, axis=-1, keepdims=True)
        similarity = images[:, 0] @ images[:, 1].T
        own = np.diag(similarity)
        assert own.mean() > similarity[~np.eye(30, dtype=bool)].mean() + 0.1
        found = (similarity.argmax(1) == np.arange(30)).mean()
        assert 0.3 < found < 1.0  # chance is 0.03; and not the same picture again

    def test_an_identity_wears_the_same_clothes_in_every_visible_camera_and_others_wear_others(self):
        def torso_colours(camera):
            images = [draw_pedestrian(identity, camera, 0, **SMALL)[10:15, 6:10] for identity in range(60)]
            red, _, blue = np.stack(images).mean((1, 2)).T
            return red - blue

        colours = {camera: torso_colours(camera) for camera in CAMERAS.keys() - INFRARED_CAMERAS}
        for camera in colours:
            assert np.corrcoef(colours[1], colours[camera])[0, 1] > 0.6

    def test_colours_do_not_find_people_in_infrared(self):
        @cache
        def signature(identity, camera):
            image = draw_pedestrian(identity, camera, 0, **SMALL).mean(2).ravel()
            return (image - image.mean()) / image.std()

        found = [
            max(range(40), key=lambda other: signature(query, 3) @ signature(other, 1)) == query for query in range(40)
        ]
        assert np.mean(found) < 0.15

    def test_infrared_brightness_of_clothes_is_no_function_of_visible_brightness(self):
        def torso(person, shot, camera):
            pixels = np.full((48, 24, 1 if camera.infrared else 3), 0.5, np.float32)
            canvas = Canvas(pixels, camera, np.zeros((48, 24), np.float32))
            paint_body(canvas, person, shot)
            return float(pixels[14:20, 10:14].mean())

        infrared = CAMERAS[3]
        visible = replace(infrared, infrared=False, light=(1.0, 1.0, 1.0))
        rows = []
        for identity in range(80):
            person = draw_identity(np.random.default_rng(identity))
            walk, rng = np.random.default_rng(1), np.random.default_rng(identity)
            shot = replace(draw_shot(walk, rng, infrared, Difficulty(framing=0.0)), yaw=math.pi)
            turned = replace(shot, phase=shot.phase + 1, yaw=math.pi + 0.4)
            rows.append((torso(person, shot, visible), torso(person, turned, visible), torso(person, shot, infrared)))
        correlation = np.corrcoef(np.array(rows).T)
        assert correlation[0, 1] > 0.8  # the measure does see the clothes
        assert abs(correlation[0, 2]) < 0.3

    def test_printed_patterns_fade_in_infrared_and_woven_ones_do_not(self):
        people = [draw_identity(np.random.default_rng(seed)) for seed in range(300)]
        uppers = [person.upper for person in people if person.upper.pattern != "plain"]
        contrast = np.array([abs(upper.infrared - upper.accent_infrared) for upper in uppers])
        visible = np.array([np.abs(np.subtract(upper.visible, upper.accent_visible)).max() for upper in uppers])
        assert np.median(visible) > 0.3
        assert 0.4 < (contrast < 0.1).mean() < 0.75
        assert (contrast > 0.25).mean() > 0.15

    def test_cameras_2_and_3_see_the_same_room(self):
        def edges(camera):
            view = CAMERAS[camera]
            scene = pedestrians._scene(0, view.scene, view.infrared, 64, 32).mean(2)
            return np.abs(np.diff(scene[:44], axis=1)).ravel()  # above the floor

        assert np.corrcoef(edges(2), edges(3))[0, 1] > 0.3
        assert abs(np.corrcoef(edges(1), edges(3))[0, 1]) < 0.2


class TestDifficulty:
    STILL = Difficulty(pose=0.0, framing=0.0, light=0.0, occlusion=0.0)

    def test_without_variation_images_of_a_walk_differ_by_relief_and_noise(self):
        def spread(difficulty):
            pairs = [[draw_pedestrian(i, 1, k, difficulty=difficulty).astype(float) for k in (0, 2)] for i in range(6)]
            return np.mean([np.abs(a - b).mean() for a, b in pairs])

        still = spread(self.STILL)
        assert still < 8
        for name in ("pose", "framing", "light"):
            assert spread(replace(self.STILL, **{name: 1.0})) > 1.2 * still

    def test_occlusion_is_the_share_of_images_in_which_a_part_is_hidden(self):
        hidden = []
        for image in range(60):
            seen, maybe = (
                draw_pedestrian(0, 4, image, **SMALL, difficulty=replace(self.STILL, occlusion=share))
                for share in (0.0, 0.5)
            )
            hidden.append(not np.array_equal(seen, maybe))
        assert 0.3 < np.mean(hidden) < 0.7

    def test_without_diversity_clothes_have_one_colour_and_one_reflectance(self):
        for seed in range(20):
            person = draw_identity(np.random.default_rng(seed), diversity=0.0)
            for material in (person.upper, person.lower, person.shoes, person.bag_material):
                assert material.visible == material.accent_visible == (0.35,) * 3
                assert material.infrared == material.accent_infrared == 0.5


def test_a_contact_sheet_has_a_row_for_each_identity_and_says_what_it_is(monkeypatch):
    drawn = []
    draw = pedestrians.ImageDraw.Draw

    def watched(sheet):
        text = draw(sheet)
        write = text.text
        text.text = lambda place, words, *how: (drawn.append(words), write(place, words, *how))
        return text

    monkeypatch.setattr(pedestrians.ImageDraw, "Draw", watched)
    sheet = contact_sheet(num_identities=2, images_per_camera=2, **SMALL)
    assert "synthetic pedestrians" in drawn[0]
    assert drawn[1:] == ["1 visible", "2 visible", "3 infrared", "4 visible", "5 visible", "6 infrared"]
    assert sheet.width >= 6 * 2 * SMALL["width"]
    taller = contact_sheet(num_identities=3, images_per_camera=2, **SMALL)
    assert taller.height - sheet.height >= SMALL["height"]
    with pytest.raises(ValueError, match=r"^contact_sheet: num_identities must be at least 1, got 0$"):
        contact_sheet(num_identities=0)
