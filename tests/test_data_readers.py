"""Readers of the published data sets and of manifests: who is where, and which galleries are drawn."""

import builtins
import logging
import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image

from dmic.constants import INFRARED, VISIBLE
from dmic.data import (
    ImageFiles,
    Samples,
    detect_dataset,
    open_dataset,
    read_llcm,
    read_manifest,
    read_regdb,
    read_sysu_mm01,
)
from dmic.data.samples import random_gallery

SIZE = {"height": 16, "width": 8}
IMAGE_BYTES = 3 * 16 * 8


@pytest.fixture(scope="module")
def sysu_root(tmp_path_factory):
    return trees.sysu_mm01(tmp_path_factory.mktemp("sysu") / "SYSU-MM01")


@pytest.fixture(scope="module")
def regdb_root(tmp_path_factory):
    return trees.regdb(tmp_path_factory.mktemp("regdb") / "RegDB")


@pytest.fixture(scope="module")
def llcm_root(tmp_path_factory):
    return trees.llcm(tmp_path_factory.mktemp("llcm") / "LLCM")


def paths_of(labeled, sample_idx):
    return [labeled.unlabeled.images.paths[sample] for sample in sample_idx.tolist()]


def relative(root, paths):
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]


# The two functions below follow METHOD.md, section 6, word by word and share nothing with the package.


def sysu_gallery_by_the_book(root, test_ids, cameras, shots, trial):
    """Trial t seeds random.seed(t), ids sorted, cameras in the order given, random.choice(sorted files)."""
    random.seed(trial)
    chosen = []
    for person in sorted(test_ids):
        for camera in cameras:
            folder = os.path.join(root, "cam" + str(camera), str(person).zfill(4))
            if os.path.isdir(folder):
                names = sorted(os.listdir(folder))
                picked = [random.choice(names)] if shots == 1 else random.sample(names, min(shots, len(names)))
                chosen.extend(f"cam{camera}/{str(person).zfill(4)}/{name}" for name in picked)
    return chosen


def llcm_gallery_by_the_book(root, test_ids, folder, cameras, trial):
    random.seed(trial)
    chosen = []
    for person in sorted(test_ids):
        for camera in cameras:
            place = os.path.join(root, folder, f"cam{camera}", str(person).zfill(4))
            if os.path.isdir(place):
                chosen.append(f"{folder}/cam{camera}/{person:04d}/{random.choice(sorted(os.listdir(place)))}")
    return chosen


class TestSysuMm01:
    TEST_IDS = (2, 30, 100)

    @pytest.fixture
    def dataset(self, sysu_root):
        return read_sysu_mm01(sysu_root, **SIZE)

    def test_training_is_every_image_of_the_train_and_val_ids(self, dataset, sysu_root):
        images = relative(sysu_root, dataset.train.images.paths)
        expected = {
            str(path.relative_to(sysu_root)) for p in (3, 7, 11) for path in sysu_root.glob(f"cam*/{p:04d}/*.jpg")
        }
        assert len(images) == len(expected)
        assert set(images) == expected
        for image, person, camera, modality in zip(
            images, dataset.train_person_ids, dataset.train.camera_ids, dataset.train.modality_ids, strict=True
        ):
            assert image.startswith(f"cam{camera + 1}/{person:04d}/")
            assert modality == (INFRARED if camera + 1 in (3, 6) else VISIBLE)

    def test_pixels_are_those_of_the_file(self, dataset, sysu_root):
        found = dataset.train.images[torch.tensor([5])][0]
        with Image.open(dataset.train.images.paths[5]) as image:
            expected = np.array(image.convert("RGB").resize((8, 16), Image.Resampling.BICUBIC))
        assert np.array_equal(found.permute(1, 2, 0), expected)

    def test_there_are_four_named_protocols_of_ten_trials_with_the_rule_of_the_shared_room(self, dataset):
        assert [protocol.name for protocol in dataset.protocols] == [
            "SYSU-MM01, all search, single shot",
            "SYSU-MM01, all search, multi shot",
            "SYSU-MM01, indoor search, single shot",
            "SYSU-MM01, indoor search, multi shot",
        ]
        for protocol in dataset.protocols:
            assert len(protocol.trials) == 10
            assert protocol.ignored_cameras == ((2, 1),)
            assert protocol.unique_ids
            assert not protocol.same_camera_ignored

    def test_queries_are_all_infrared_test_images(self, dataset, sysu_root):
        expected = [
            str(path.relative_to(sysu_root))
            for person in self.TEST_IDS
            for camera in (3, 6)
            for path in sorted(sysu_root.glob(f"cam{camera}/{person:04d}/*.jpg"))
        ]
        assert expected
        for protocol in dataset.protocols:
            for trial in protocol.trials:
                assert relative(sysu_root, paths_of(dataset.test, trial.query_idx)) == expected

    def test_galleries_are_drawn_by_the_book(self, dataset, sysu_root):
        settings = {"all": (1, 2, 4, 5), "indoor": (1, 2)}, {"single": 1, "multi": 10}
        combinations = [(cameras, shots) for cameras in settings[0].values() for shots in settings[1].values()]
        seen = set()
        for protocol, (cameras, shots) in zip(dataset.protocols, combinations, strict=True):
            for number, trial in enumerate(protocol.trials):
                drawn = relative(sysu_root, paths_of(dataset.test, trial.gallery_idx))
                assert drawn == sysu_gallery_by_the_book(sysu_root, self.TEST_IDS, cameras, shots, number)
                seen.add(tuple(drawn))
        assert len(seen) == 40, "no two trials are the same draw"

    def test_the_tree_has_what_the_draws_must_cope_with(self):
        counts = [trees.count_of(person, camera) for person in self.TEST_IDS for camera in (1, 2, 4, 5)]
        assert {0, 1} <= {min(count, 1) for count in counts}, "a person that a camera has not seen"
        assert any(0 < count < 10 for count in counts)
        assert any(count > 10 for count in counts)

    def test_files_that_are_no_images_are_not_drawn(self, tmp_path):
        root = trees.sysu_mm01(tmp_path / "sysu", test=(2, 30))
        before = [p.trials[3].gallery_idx.tolist() for p in read_sysu_mm01(root, **SIZE).protocols]
        (root / "cam1" / "0002" / "0000.txt").touch()
        (root / "cam1" / "0002" / "Thumbs.db").touch()
        (root / "cam1" / "0002" / ".hidden.jpg").touch()
        for path in (root / "cam1" / "0002").glob("*1.jpg"):
            path.rename(path.with_suffix(".JPG"))
        assert [p.trials[3].gallery_idx.tolist() for p in read_sysu_mm01(root, **SIZE).protocols] == before

    def test_the_cache_serves_training_first_and_never_holds_more_than_it_may(self, sysu_root):
        num_train = len(read_sysu_mm01(sysu_root, **SIZE).train)
        for cache_bytes, train_bytes, test_bytes in (
            (0, 0, 0),
            (5 * IMAGE_BYTES, 5 * IMAGE_BYTES, 0),
            ((num_train + 2) * IMAGE_BYTES, num_train * IMAGE_BYTES, 2 * IMAGE_BYTES),
        ):
            dataset = read_sysu_mm01(sysu_root, **SIZE, cache_bytes=cache_bytes)
            assert dataset.train.images.max_cached_bytes == train_bytes
            assert dataset.test.unlabeled.images.max_cached_bytes == test_bytes

    @pytest.mark.parametrize("missing", ["exp/test_id.txt", "cam4"])
    def test_what_is_missing_is_named_with_the_layout(self, tmp_path, missing):
        root = trees.sysu_mm01(tmp_path / "sysu", train=(3,), val=(), test=(2,), count=lambda *_: 1)
        (root / "exp" / "val_id.txt").write_text("3")
        path = root / missing
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(ValueError) as caught:
            read_sysu_mm01(root, **SIZE)
        assert str(caught.value).startswith("SYSU-MM01: ")
        assert f"{path}: is missing, expected exp/{{train,val,test}}_id.txt and cam1..cam6/" in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("2,x,30", r"test_id\.txt:1: ids must be integers from 0, got 'x'"),
            ("2,-1", r"test_id\.txt:1: ids must be integers from 0, got '-1'"),
            ("2,²", r"test_id\.txt:1: ids must be integers from 0, got '²'"),
            ("2,30,2", r"test_id\.txt:1: id 2 is listed twice"),
            ("2,3", r"test_id\.txt: id 3 is also in .*train_id\.txt"),
            ("\n", r"test_id\.txt: is empty"),
        ],
    )
    def test_a_bad_list_is_an_error_with_its_line(self, tmp_path, content, message):
        root = trees.sysu_mm01(tmp_path / "sysu", train=(3,), val=(7,), test=(2,), count=lambda *_: 1)
        (root / "exp" / "test_id.txt").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_sysu_mm01(root, **SIZE)

    def test_a_list_may_start_with_a_byte_order_mark_but_must_be_text(self, tmp_path):
        root = trees.sysu_mm01(tmp_path / "sysu", train=(3,), val=(7,), test=(2,), count=lambda *_: 1)
        (root / "exp" / "test_id.txt").write_text("2,,\n\n", encoding="utf-8-sig")
        assert set(read_sysu_mm01(root, **SIZE).test.person_ids.tolist()) == {2}
        (root / "exp" / "test_id.txt").write_bytes(b"2\xff")
        with pytest.raises(ValueError, match=r"test_id\.txt: cannot be read \("):
            read_sysu_mm01(root, **SIZE)

    def test_a_split_without_one_modality_is_an_error(self, tmp_path):
        root = trees.sysu_mm01(
            tmp_path / "sysu", train=(3,), val=(7,), test=(2,), count=lambda p, c: not (p == 2 and c in (3, 6))
        )
        with pytest.raises(ValueError, match=r"^SYSU-MM01: .*has no infrared test image$"):
            read_sysu_mm01(root, **SIZE)

    def test_unreadable_images_are_left_out_only_if_asked_and_then_named(self, tmp_path, caplog):
        root = trees.sysu_mm01(tmp_path / "sysu", count=lambda *_: 2)
        bad = [root / "cam1" / "0003" / "0001.jpg", root / "cam2" / "0030" / "0002.jpg"]
        trees.truncate(bad[0])
        bad[1].write_bytes(b"")
        asked_for_nothing = read_sysu_mm01(root, **SIZE)
        position = asked_for_nothing.train.images.paths.index(str(bad[0]))
        with pytest.raises(ValueError, match="skip_unreadable"):
            asked_for_nothing.train.images[torch.tensor([position])]

        with caplog.at_level(logging.WARNING, "dmic.data"):
            dataset = read_sysu_mm01(root, **SIZE, skip_unreadable=True)
        assert len(caplog.messages) == 2
        assert all(str(path) in message for path, message in zip(bad, caplog.messages, strict=True))
        assert len(dataset.train) == len(asked_for_nothing.train) - 1
        assert len(dataset.train_person_ids) == len(dataset.train)
        assert len(dataset.test.person_ids) == len(asked_for_nothing.test.person_ids) - 1
        dataset.train.images[torch.arange(len(dataset.train))]
        dataset.test.unlabeled.images[torch.arange(len(dataset.test.person_ids))]
        assert dataset.protocols[0].name == "SYSU-MM01, all search, single shot, 1 unreadable left out"


class TestRegDb:
    def test_a_trial_is_what_its_lists_name(self, regdb_root):
        for number in (1, 10):
            dataset = read_regdb(regdb_root, trial=number, **SIZE)
            for split, gallery, person_ids in (
                ("train", dataset.train, dataset.train_person_ids),
                ("test", dataset.test.unlabeled, dataset.test.person_ids),
            ):
                expected = [
                    (*line.split(), str(modality))
                    for modality, word in ((VISIBLE, "visible"), (INFRARED, "thermal"))
                    for line in (regdb_root / "idx" / f"{split}_{word}_{number}.txt").read_text().splitlines()
                ]
                columns = relative(regdb_root, gallery.images.paths), person_ids, gallery.modality_ids
                assert [(p, str(int(i)), str(int(m))) for p, i, m in zip(*columns, strict=True)] == expected
                assert not gallery.camera_ids.any()

    def test_each_direction_searches_the_whole_of_the_other_modality(self, regdb_root):
        dataset = read_regdb(regdb_root, trial=2, **SIZE)
        assert dataset.name == "RegDB, trial 2"
        names = ["RegDB, trial 2, visible to infrared", "RegDB, trial 2, infrared to visible"]
        assert [protocol.name for protocol in dataset.protocols] == names
        modality_ids = dataset.test.unlabeled.modality_ids
        for protocol, query_modality in zip(dataset.protocols, (VISIBLE, INFRARED), strict=True):
            (trial,) = protocol.trials
            assert trial.query_idx.tolist() == (modality_ids == query_modality).nonzero().flatten().tolist()
            assert trial.gallery_idx.tolist() == (modality_ids != query_modality).nonzero().flatten().tolist()
            rules = protocol.ignored_cameras, protocol.same_camera_ignored, protocol.unique_ids
            assert rules == ((), False, False)

    def test_only_the_lists_of_the_trial_are_needed(self, tmp_path):
        root = trees.regdb(tmp_path / "regdb", trials=(4,))
        read_regdb(root, trial=4, **SIZE)
        with pytest.raises(ValueError, match=r"train_visible_5\.txt: is missing, expected idx/"):
            read_regdb(root, trial=5, **SIZE)

    @pytest.mark.parametrize("trial", [0, 11])
    def test_a_trial_that_does_not_exist_is_an_error(self, regdb_root, trial):
        with pytest.raises(ValueError, match=rf"^read_regdb: trial must be in 1\.\.10, got {trial}$"):
            read_regdb(regdb_root, trial=trial, **SIZE)

    def test_bad_lines_and_images_that_do_not_exist_are_named_with_file_and_line(self, tmp_path):
        root = trees.regdb(tmp_path / "regdb", trials=(1,))
        path = root / "idx" / "train_visible_1.txt"
        first, *others = path.read_text().splitlines()
        spaced = root / "Visible" / "a b.bmp"
        trees.write_image(spaced)
        odd = [first, "Visible/9/x.bmp 0", "nonsense", "Visible/9/y.bmp ²", "7", "Visible/a b.bmp 0"]
        path.write_text("\n".join([first, *odd, *others]), encoding="utf-8")
        with pytest.raises(ValueError) as caught:
            read_regdb(root, trial=1, **SIZE)
        message = str(caught.value)
        assert f"{path}:2: {first.split()[0]} is listed twice" in message
        assert f"{root}/Visible/9/x.bmp: does not exist, listed in {path}:3" in message
        for line, text in ((4, "nonsense"), (5, "Visible/9/y.bmp ²"), (6, "7")):
            assert f"{path}:{line}: must be `relative/path label`, got '{text}'" in message
        assert message.count(str(root)) == 6

    def test_a_person_in_training_and_test_is_an_error_whatever_the_labels(self, tmp_path):
        root = trees.regdb(tmp_path / "regdb", trials=(1,), images=1)
        train, test = (
            root / "idx" / f"{split}_{word}_1.txt" for split, word in (("train", "visible"), ("test", "thermal"))
        )
        image = train.read_text().split()[0].replace("Visible", "Thermal").replace("_v_", "_t_")
        test.write_text(test.read_text() + f"{image} 2\n")
        person = image.split("/")[1]
        with pytest.raises(ValueError, match=rf"person {person} is also for training, in .*train_visible_1\.txt:1"):
            read_regdb(root, trial=1, **SIZE)


class TestLlcm:
    TEST_IDS = (2, 3, 60)

    @pytest.fixture
    def dataset(self, llcm_root):
        return read_llcm(llcm_root, **SIZE)

    def test_training_is_what_the_lists_name_with_cameras_from_the_file_names(self, dataset, llcm_root):
        lines = [line for w in ("vis", "nir") for line in (llcm_root / f"idx/train_{w}.txt").read_text().splitlines()]
        assert relative(llcm_root, dataset.train.images.paths) == [line.split()[0] for line in lines]
        assert dataset.train_person_ids.tolist() == [int(line.split()[1]) for line in lines]
        assert [f"_c{camera + 1:02d}_" in line for camera, line in zip(dataset.train.camera_ids, lines, strict=True)]
        assert dataset.train.camera_ids.tolist() == [int(line.split("_c")[1][:2]) - 1 for line in lines]
        assert dataset.train.modality_ids.tolist() == [int("nir/" in line) for line in lines]
        assert len(set(dataset.train.camera_ids.tolist())) == 9

    def test_galleries_are_drawn_by_the_book_and_queries_are_all_of_the_other_modality(self, dataset, llcm_root):
        names = ["LLCM, visible to infrared", "LLCM, infrared to visible"]
        assert [protocol.name for protocol in dataset.protocols] == names
        sides = {"test_vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "test_nir": (1, 2, 4, 5, 6, 7, 8, 9)}
        for protocol, query, gallery in zip(
            dataset.protocols, ("test_vis", "test_nir"), ("test_nir", "test_vis"), strict=True
        ):
            assert protocol.same_camera_ignored
            assert protocol.unique_ids
            assert not protocol.ignored_cameras
            assert len(protocol.trials) == 10
            for number, trial in enumerate(protocol.trials):
                drawn = relative(llcm_root, paths_of(dataset.test, trial.gallery_idx))
                assert drawn == llcm_gallery_by_the_book(llcm_root, self.TEST_IDS, gallery, sides[gallery], number)
                queries = set(relative(llcm_root, paths_of(dataset.test, trial.query_idx)))
                assert queries == {str(p.relative_to(llcm_root)) for p in (llcm_root / query).glob("cam*/*/*.jpg")}

    def test_test_rows_know_their_camera_and_person(self, dataset, llcm_root):
        labeled = dataset.test
        for path, person, camera, modality in zip(
            relative(llcm_root, labeled.unlabeled.images.paths),
            labeled.person_ids.tolist(),
            labeled.unlabeled.camera_ids.tolist(),
            labeled.unlabeled.modality_ids.tolist(),
            strict=True,
        ):
            assert path.startswith(f"test_{('vis', 'nir')[modality]}/cam{camera + 1}/{person:04d}/")

    @pytest.mark.parametrize("name", ["0001_s1_f1_vis.jpg", "0001_c10_s1_f1_vis.jpg", "0001_c00_s1_f1_vis.jpg"])
    def test_a_training_image_without_a_camera_in_its_name_is_an_error(self, tmp_path, name):
        root = trees.llcm(tmp_path / "llcm")
        trees.write_image(root / "vis" / "0001" / name)
        with (root / "idx" / "train_vis.txt").open("a") as file:
            file.write(f"vis/0001/{name} 0\n")
        with pytest.raises(ValueError, match=r"train_vis\.txt:\d+: the name of .* must hold its camera, 1 to 9"):
            read_llcm(root, **SIZE)

    def test_a_camera_is_missed_in_either_modality(self, tmp_path):
        root = trees.llcm(tmp_path / "llcm")
        folder = root / "test_nir" / "cam4"
        for image in folder.rglob("*.jpg"):
            image.unlink()
        with pytest.raises(ValueError, match=f"^LLCM: {folder}: has no image of a listed id$"):
            read_llcm(root, **SIZE)

    def test_a_person_that_trains_and_is_tested_is_an_error(self, tmp_path):
        root = trees.llcm(tmp_path / "llcm")
        (root / "idx" / "test_id.txt").write_text("2,3,60,5")
        with pytest.raises(ValueError, match=r"train_vis\.txt:\d+: id 5 trains and is also in idx/test_id\.txt"):
            read_llcm(root, **SIZE)


class TestManifest:
    @pytest.fixture
    def rows(self, tmp_path):
        return trees.manifest_rows(tmp_path)

    def test_a_table_with_splits_and_identities_has_two_protocols(self, tmp_path, rows):
        dataset = read_manifest(trees.write_csv(tmp_path / "mine.csv", rows), **SIZE)
        assert relative(tmp_path, dataset.train.images.paths) == [row["path"] for row in rows[:4]]
        assert dataset.train.camera_ids.tolist() == [1, 0, 1, 0], "9 sorts before 10"
        assert dataset.train.modality_ids.tolist() == [0, 1, 0, 1]
        assert dataset.train_person_ids.tolist() == [0, 0, 1, 1]
        assert dataset.test.person_ids.tolist() == [2, 2, 3, 3]
        names = ["mine.csv, visible to infrared", "mine.csv, infrared to visible"]
        assert [protocol.name for protocol in dataset.protocols] == names
        assert dataset.protocols[1].trials[0].query_idx.tolist() == [1, 3]
        assert dataset.protocols[1].trials[0].gallery_idx.tolist() == [0, 2]
        assert isinstance(dataset.train.images, ImageFiles)

    def test_without_identities_and_splits_everything_trains_and_nothing_is_known(self, tmp_path, rows):
        rows = [{key: row[key] for key in ("path", "modality", "camera")} for row in rows]
        for row, camera in zip(rows, ["b", "a", "10", "9"] * 2, strict=True):
            row["camera"] = camera
            row["modality"] = {"visible": "0", "infrared": "Infrared"}[row["modality"]]
        dataset = read_manifest(trees.write_csv(tmp_path / "mine.csv", rows), **SIZE)
        assert len(dataset.train) == 8
        assert dataset.train.camera_ids.tolist() == [3, 2, 0, 1] * 2, "texts sort as texts"
        assert dataset.train.modality_ids.tolist() == [0, 1] * 4
        assert (dataset.train_person_ids, dataset.test, dataset.protocols) == (None, None, ())

    def test_a_manifest_may_be_named_by_its_folder_and_paths_are_relative_to_it(self, tmp_path, rows, monkeypatch):
        trees.write_csv(tmp_path / "manifest.csv", rows)
        monkeypatch.chdir("/")
        dataset = read_manifest(tmp_path, **SIZE)
        assert dataset.train.images[torch.arange(4)].shape == (4, 3, 16, 8)

    def test_every_bad_row_is_an_error_with_line_and_value(self, tmp_path, rows):
        rows[0]["modality"] = "thermal"
        rows[1]["camera"] = " "
        rows[2]["path"] = "images/none.png"
        rows[3]["split"] = "val"
        rows[5]["path"] = rows[4]["path"]
        rows[6]["identity"] = ""
        path = trees.write_csv(tmp_path / "mine.csv", rows)
        with pytest.raises(ValueError) as caught:
            read_manifest(path, **SIZE)
        message = str(caught.value)
        for expected in (
            f"{path}:2: modality must be one of visible, infrared, 0, 1, got 'thermal'",
            f"{path}:3: camera is empty",
            f"{path}:4: path does not exist, got 'images/none.png'",
            f"{path}:5: split must be train or test, got 'val'",
            f"{path}:7: path is listed twice, got {rows[4]['path']!r}, first in {path}:6",
            f"{path}:8: identity is empty, test images need one",
        ):
            assert expected in message
        assert message.count(str(path)) == 7

    @pytest.mark.parametrize(
        ("number", "end"), [(10, ", got 'none9.png'"), (13, "; and 3 more, `dmic data check` lists all")]
    )
    def test_only_the_first_ten_problems_are_shown(self, tmp_path, rows, number, end):
        rows = [{**rows[0], "path": f"none{image}.png"} for image in range(number)]
        with pytest.raises(ValueError) as caught:
            read_manifest(trees.write_csv(tmp_path / "mine.csv", rows), **SIZE)
        assert str(caught.value).count("does not exist") == 10
        assert str(caught.value).endswith(end)

    def test_some_known_training_identities_are_an_error_for_the_others(self, tmp_path, rows):
        rows[1]["identity"] = ""
        with pytest.raises(ValueError, match=r"mine\.csv:3: identity is empty, other training images have one$"):
            read_manifest(trees.write_csv(tmp_path / "mine.csv", rows), **SIZE)

    def test_test_images_without_any_identity_are_one_error(self, tmp_path, rows):
        rows = [{name: value for name, value in row.items() if name != "identity"} for row in rows]
        with pytest.raises(ValueError, match=r"mine\.csv: identity is empty, test images need one$"):
            read_manifest(trees.write_csv(tmp_path / "mine.csv", rows), **SIZE)

    @pytest.mark.parametrize(
        ("broken", "missing"),
        [
            ({"split": "train", "modality": "infrared"}, "infrared training"),
            ({"split": "test", "modality": "visible"}, "visible test"),
            ({"split": "test"}, "visible test"),
        ],
    )
    def test_a_modality_of_which_nothing_can_be_read_is_an_error(self, tmp_path, rows, broken, missing):
        path = trees.write_csv(tmp_path / "mine.csv", rows[:-1])
        names = [protocol.name for protocol in read_manifest(path, **SIZE, skip_unreadable=True).protocols]
        assert names == ["mine.csv, visible to infrared", "mine.csv, infrared to visible"]
        for row in rows:
            if broken.items() <= row.items():
                trees.truncate(tmp_path / row["path"])
        with pytest.raises(ValueError, match=f"mine.csv: has no {missing} image"):
            read_manifest(path, **SIZE, skip_unreadable=True)

    def test_an_identity_for_training_and_test_is_an_error(self, tmp_path, rows):
        rows[5]["identity"] = rows[7]["identity"] = "bob"
        with pytest.raises(ValueError, match=r"mine\.csv:7: identity bob is for training and for test$"):
            read_manifest(trees.write_csv(tmp_path / "mine.csv", rows), **SIZE)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", r"has no rows, expected columns path, modality, camera"),
            ("path,modality\na.png,0\n", r"has no column 'camera', got 'modality', 'path'$"),
            ("path,modality,camera,identiy\na.png,0,1,2\n", r"has a column 'identiy', did you mean 'identity'\?"),
            ("path,modality,camera,IDENTITY\na.png,0,1,2\n", r"has a column 'IDENTITY', did you mean 'identity'\?"),
            ("path,modality,camera\na,b.png,0,1\n", r"mine\.csv:2: has more values than columns, from '1' on"),
            ('path,modality,camera\n"a.png,0,1\n', r"cannot be read \("),
            ("path,modality,camera\n\xff", r"cannot be read \("),
        ],
    )
    def test_a_bad_table_is_an_error(self, tmp_path, content, message):
        (tmp_path / "mine.csv").write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=message):
            read_manifest(tmp_path / "mine.csv", **SIZE)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("none.csv", "does not exist"),
            ("none.txt", r"must be one of \.csv, \.parquet, got '\.txt'"),
            (".", r"must hold one of manifest\.csv, manifest\.parquet, found 0"),
        ],
    )
    def test_a_manifest_that_is_not_there_is_an_error(self, tmp_path, name, message):
        with pytest.raises(ValueError, match=f"^read_manifest: .*{message}"):
            read_manifest(tmp_path / name, **SIZE)

    def test_a_byte_order_mark_and_spaces_after_commas_are_accepted(self, tmp_path, rows):
        lines = ["path, modality, camera", *(f"{row['path']}, {row['modality']}, {row['camera']}" for row in rows)]
        (tmp_path / "mine.csv").write_text("\n".join(lines), encoding="utf-8-sig")
        assert len(read_manifest(tmp_path / "mine.csv", **SIZE).train) == 8

    def test_case_and_columns_of_other_names_do_not_matter(self, tmp_path, rows):
        for row in rows:
            row["split"] = {"train": "", "test": " Test "}[row["split"]]
            row["modality"] = row["modality"].upper()
            row["splits"] = row["note"] = "a note, of two\nlines"
        dataset = read_manifest(trees.write_csv(tmp_path / "MINE.CSV", rows), **SIZE)
        assert (len(dataset.train), len(dataset.test.unlabeled)) == (4, 4)

    def test_a_file_is_itself_by_any_path(self, tmp_path, rows):
        rows[1]["path"] = f"./images/../{rows[0]['path']}"
        with pytest.raises(
            ValueError, match=r"mine\.csv:3: path is listed twice, got '\./images/.*, first in .*csv:2$"
        ):
            read_manifest(trees.write_csv(tmp_path / "mine.csv", rows), **SIZE)

    def test_a_folder_with_two_manifests_is_an_error(self, tmp_path, rows):
        trees.write_csv(tmp_path / "manifest.csv", rows)
        (tmp_path / "manifest.parquet").touch()
        with pytest.raises(ValueError, match=r"must hold one of manifest\.csv, manifest\.parquet, found 2"):
            read_manifest(tmp_path, **SIZE)

    def test_cameras_that_are_written_differently_are_different(self, tmp_path, rows):
        for row, camera in zip(rows, ["02", "2", "010", "10"] * 2, strict=True):
            row["camera"] = camera
        found = read_manifest(trees.write_csv(tmp_path / "mine.csv", rows), **SIZE)
        assert found.train.camera_ids.tolist() == [0, 1, 2, 3]

    def test_parquet_is_read_like_csv(self, tmp_path, rows):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = [{**row, "camera": float(row["camera"]), "identity": hash_of(row["identity"])} for row in rows]
        for row in table:
            row["modality"] = {"visible": 0, "infrared": 1}[row["modality"]]
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "mine.parquet", row_group_size=3)
        csv, found = (
            read_manifest(path, **SIZE)
            for path in (trees.write_csv(tmp_path / "mine.csv", rows), tmp_path / "mine.parquet")
        )
        assert found.train.images.paths == csv.train.images.paths
        for name in ("camera_ids", "modality_ids"):
            assert torch.equal(getattr(found.train, name), getattr(csv.train, name))
        assert torch.equal(found.train_person_ids, csv.train_person_ids)
        assert torch.equal(found.test.person_ids, csv.test.person_ids)
        table[5]["modality"] = None
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "mine.parquet", row_group_size=3)
        with pytest.raises(ValueError, match=r"mine\.parquet:6: modality is empty"):
            read_manifest(tmp_path / "mine.parquet", **SIZE)
        table[5] |= {"modality": 1, "camera": float("nan")}
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "mine.parquet")
        with pytest.raises(ValueError, match=r"mine\.parquet:6: camera is empty$"):
            read_manifest(tmp_path / "mine.parquet", **SIZE)
        (tmp_path / "mine.parquet").write_bytes(b"not a table")
        with pytest.raises(ValueError, match=r"mine\.parquet: cannot be read \("):
            read_manifest(tmp_path / "mine.parquet", **SIZE)

    def test_parquet_without_its_package_says_what_to_install(self, tmp_path, monkeypatch):
        (tmp_path / "mine.parquet").touch()
        original = builtins.__import__

        def without_pyarrow(name, *args, **kwargs):
            if name.partition(".")[0] == "pyarrow":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_pyarrow)
        with pytest.raises(ValueError, match=r"mine\.parquet: reading Parquet needs pyarrow: pip install pyarrow"):
            read_manifest(tmp_path / "mine.parquet", **SIZE)


def hash_of(identity: str) -> int:
    """A number that sorts like the text."""
    return int.from_bytes(identity.encode().ljust(3), "big")


class TestKinds:
    def test_the_kind_is_detected_and_opened(self, sysu_root, regdb_root, llcm_root, tmp_path):
        mine = trees.write_csv(tmp_path / "manifest.csv", trees.manifest_rows(tmp_path))
        for root, kind, settings in (
            (sysu_root, "sysu_mm01", {}),
            (regdb_root, "regdb", {"trial": 3}),
            (llcm_root, "llcm", {}),
            (mine, "manifest", {}),
            (tmp_path, "manifest", {}),
        ):
            assert detect_dataset(root) == kind
            dataset = open_dataset(kind, root, **SIZE, **settings)
            assert len(dataset.protocols) == (4 if kind == "sysu_mm01" else 2)
            assert dataset.train.images.shape[1:] == (3, 16, 8)

    def test_a_damaged_tree_is_still_recognised(self, tmp_path):
        for kind, mark in (("sysu_mm01", "cam3"), ("regdb", "Thermal"), ("llcm", "test_vis")):
            (tmp_path / kind / mark).mkdir(parents=True)
            assert detect_dataset(tmp_path / kind) == kind

    def test_an_unknown_kind_names_the_known_ones(self):
        with pytest.raises(ValueError, match=r"kind must be one of sysu_mm01, regdb, llcm, manifest, got 'market'"):
            open_dataset("market", ".", **SIZE)

    def test_a_folder_that_may_not_be_read_is_said_to_be_one(self, tmp_path, monkeypatch):
        (tmp_path / "cam1").mkdir()
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
        for name, call in (("detect_dataset", detect_dataset), ("open_dataset", partial(open_dataset, "llcm", **SIZE))):
            with pytest.raises(ValueError, match=f"^{name}: there is no permission to read {tmp_path}$"):
                call(tmp_path)

    def test_what_cannot_be_detected_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="none does not exist"):
            detect_dataset(tmp_path / "none")
        with pytest.raises(ValueError, match="holds no known data set"):
            detect_dataset(tmp_path)
        (tmp_path / "note.txt").touch()
        with pytest.raises(ValueError, match=r"must be a folder or a manifest"):
            detect_dataset(tmp_path / "note.txt")
        (tmp_path / "cam1").mkdir()
        (tmp_path / "test_nir").mkdir()
        with pytest.raises(ValueError, match="looks like sysu_mm01 and llcm, name the kind \\(--kind\\)"):
            detect_dataset(tmp_path)


class TestSamples:
    SAMPLES = Samples.from_rows([("a", 5, 0, VISIBLE), ("b", 5, 2, INFRARED), ("c", 6, 0, VISIBLE)])

    def test_rows_are_selected_by_position_or_mask(self):
        picked = self.SAMPLES.select(torch.tensor([2, 0]))
        assert (picked.paths, picked.person_ids.tolist(), picked.camera_ids.tolist()) == (("c", "a"), [6, 5], [0, 0])
        masked = self.SAMPLES.select(self.SAMPLES.modality_ids == INFRARED)
        assert (masked.paths, masked.modality_ids.tolist()) == (("b",), [INFRARED])
        assert self.SAMPLES.without_identities().select(torch.tensor([1])).person_ids is None
        assert Samples.from_rows([]).camera_ids.dtype == torch.int64

    def test_unknown_persons_cannot_become_a_labeled_gallery(self):
        assert self.SAMPLES.labeled_gallery(**SIZE).person_ids.tolist() == [5, 5, 6]
        assert len(self.SAMPLES.without_identities().gallery(**SIZE)) == 3
        with pytest.raises(ValueError, match="labeled_gallery needs person_ids"):
            self.SAMPLES.without_identities().labeled_gallery(**SIZE)

    def test_galleries_of_either_kind_decode_as_they_are_told(self):
        for wrong in ({"num_workers": 0}, {"cache_bytes": -1}):
            for gallery in (self.SAMPLES.gallery, self.SAMPLES.labeled_gallery):
                with pytest.raises(ValueError, match=rf"ImageFiles: {next(iter(wrong))} must be at least"):
                    gallery(**SIZE, **wrong)

    def test_persons_are_drawn_in_ascending_order_wherever_their_rows_are(self):
        rows = [(f"{person}{shot}", person, 0, VISIBLE) for person in range(5) for shot in range(7)]
        turned = sorted(rows, key=lambda row: -row[1])
        for num_shots in (1, 3):
            draws = []
            for samples in map(Samples.from_rows, (rows, turned)):
                drawn = random_gallery(samples, modality=VISIBLE, camera_ids=(0,), num_shots=num_shots, seed=3)
                draws.append([samples.paths[position] for position in drawn.tolist()])
            assert draws[0] == draws[1]
            assert len(draws[0]) == 5 * num_shots
        assert random_gallery(samples, modality=INFRARED, camera_ids=(0,), num_shots=1, seed=3).dtype == torch.int64

    def test_the_global_random_state_is_left_alone(self):
        state = random.getstate()
        random_gallery(self.SAMPLES, modality=VISIBLE, camera_ids=(0,), num_shots=1, seed=3)
        assert random.getstate() == state
