"""`check_dataset` finds every planted fault, with its path, and nothing in a sound tree but counts."""

import shutil

import pytest
import trees

from dmic.data import Problem, check_dataset, open_dataset
from dmic.data.check import KNOWN_COUNTS
from dmic.data.kinds import READERS
from dmic.data.tree import ERROR

SIZE = {"height": 16, "width": 8}
BUILDERS = {"sysu_mm01": trees.sysu_mm01, "regdb": trees.regdb, "llcm": trees.llcm}


def write_manifest(root):
    root.mkdir()
    trees.write_csv(root / "manifest.csv", trees.manifest_rows(root))
    return root


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound tree of every kind; every person is seen in both modalities."""
    folder = tmp_path_factory.mktemp("sound")
    roots = {kind: build(folder / kind) for kind, build in BUILDERS.items() if kind != "sysu_mm01"}
    roots["sysu_mm01"] = trees.sysu_mm01(folder / "sysu_mm01", count=lambda *_: 2)
    roots["manifest"] = write_manifest(folder / "manifest")
    return roots


@pytest.fixture
def copied(sound, tmp_path):
    """copied(kind): a copy of the sound tree to break."""

    def copy(kind):
        return shutil.copytree(sound[kind], tmp_path / kind)

    return copy


def found(kind, root, severity=ERROR):
    return {(problem.path, problem.message) for problem in check_dataset(kind, root) if problem.severity == severity}


def paths(kind, root, severity=ERROR):
    return {path for path, _ in found(kind, root, severity)}


@pytest.mark.parametrize("kind", READERS)
def test_a_sound_tree_has_no_errors_and_no_notes_and_can_be_opened(sound, kind):
    problems = check_dataset(kind, sound[kind])
    assert {problem.severity for problem in problems} <= {"count"}
    assert bool(problems) == (kind in KNOWN_COUNTS), "a tiny tree differs from the published counts"
    open_dataset(kind, sound[kind], **SIZE, **({"trial": 1} if kind == "regdb" else {}))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "sysu_mm01",
            [
                "has 3 training ids, the published data set has 395",
                "has 24 visible training images, the published data set has 22,258",
                "has 12 infrared training images, the published data set has 11,909",
                "has 3 test ids, the published data set has 96",
                "has 12 queries, the published data set has 3,803",
                "has 12 gallery images of all search, single shot, the published data set has 301",
            ],
        ),
        (
            "regdb",
            [
                f"has {count} trial {trial} {what}, the published data set has {known}"
                for trial in range(1, 11)
                for split in ("training", "test")
                for what, count, known in (
                    (f"{split} ids", 3, "206"),
                    (f"visible {split} images", 6, "2,060"),
                    (f"thermal {split} images", 6, "2,060"),
                )
            ],
        ),
    ],
)
def test_differences_from_the_published_counts_are_of_their_own_severity(sound, kind, expected):
    counts = [problem for problem in check_dataset(kind, sound[kind]) if problem.severity == "count"]
    assert [problem.message for problem in counts] == expected
    assert {problem.path for problem in counts} == {str(sound[kind])}


def test_llcm_counts_ids_and_images(sound):
    root = sound["llcm"]
    images = len(list(root.rglob("*.jpg")))
    assert found("llcm", root, "count") == {
        (str(root), "has 6 ids, the published data set has 1,064"),
        (str(root), f"has {images} images, the published data set has 46,767"),
    }


class TestImages:
    @pytest.fixture
    def listed(self, copied):
        """Kind to root and two listed images, one for training and one for test."""

        def make(kind):
            root = copied(kind)
            dataset = open_dataset(kind, root, **SIZE, **({"trial": 1} if kind == "regdb" else {}))
            return root, dataset.train.images.paths[1], dataset.test.unlabeled.images.paths[-1]

        return make

    @pytest.mark.parametrize("kind", READERS)
    def test_unreadable_images_are_errors_with_their_paths(self, listed, kind):
        root, train_image, test_image = listed(kind)
        with open(train_image, "wb"):
            pass
        with open(test_image, "wb") as file:
            file.write(b"no image")
        assert found(kind, root) == {(train_image, "is empty"), (test_image, "is not an image")}

    @pytest.mark.parametrize("kind", READERS)
    def test_the_same_file_in_training_and_test_is_an_error(self, listed, kind):
        root, train_image, test_image = listed(kind)
        shutil.copy(train_image, test_image)
        errors = found(kind, root)
        assert (test_image, f"has the same content as the training image {train_image}") in errors
        assert {path for path, _ in errors} <= {test_image, train_image}, "RegDB: their roles change with the trial"

    def test_two_unreadable_files_are_not_taken_for_equal(self, listed):
        root, *images = listed("manifest")
        for path in images:
            with open(path, "wb"):
                pass
        assert {message for _, message in found("manifest", root)} == {"is empty"}


class TestSysuMm01:
    def test_every_missing_list_and_camera_is_found_at_once(self, copied):
        root = copied("sysu_mm01")
        missing = [root / "exp" / "val_id.txt", root / "exp" / "train_id.txt", root / "cam2", root / "cam6"]
        for path in missing:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        errors = found("sysu_mm01", root)
        layout = "expected exp/{train,val,test}_id.txt and cam1..cam6/<4-digit id>/<image>"
        for path in missing:
            assert (str(path), f"is missing, {layout}") in errors
        assert (str(root), "has no visible training image") in errors
        assert (str(root), "has no infrared training image") in errors
        assert len(errors) == 6

    def test_a_camera_without_an_image_of_a_listed_id_is_an_error(self, copied):
        root = copied("sysu_mm01")
        shutil.rmtree(root / "cam5")
        trees.write_image(root / "cam5" / "0999" / "0001.jpg")
        assert found("sysu_mm01", root) == {(str(root / "cam5"), "has no image of a listed id")}

    def test_ids_in_training_and_test_are_errors(self, copied):
        root = copied("sysu_mm01")
        (root / "exp" / "train_id.txt").write_text("3,11,2")
        errors = found("sysu_mm01", root)
        expected = f"id 2 is also in {root / 'exp' / 'train_id.txt'}"
        assert (str(root / "exp" / "test_id.txt"), expected) in errors

    def test_listed_ids_without_images_are_counts_and_of_one_modality_notes(self, copied):
        root = copied("sysu_mm01")
        (root / "exp" / "val_id.txt").write_text("7,8")
        for camera in (3, 6):
            shutil.rmtree(root / f"cam{camera}" / "0030")
        (root / "cam1" / "0003" / "Thumbs.db").touch()
        lists = root / "exp"
        assert (str(lists / "val_id.txt"), "id 8 is listed but has no image") in found("sysu_mm01", root, "count")
        assert found("sysu_mm01", root, "note") == {
            (str(lists / "test_id.txt"), "id 30 has no infrared image"),
            (str(root / "cam1" / "0003" / "Thumbs.db"), "is not an image file and is ignored"),
        }
        assert not found("sysu_mm01", root)


class TestRegDb:
    def test_all_trials_are_checked_and_a_missing_image_is_reported_once(self, copied):
        root = copied("regdb")
        (root / "idx" / "test_thermal_10.txt").unlink()
        image = next((root / "Visible" / "3").iterdir())
        image.unlink()
        listed = found("regdb", root)
        errors = dict(listed)
        assert len(errors) == len(listed), "ten trials list it, one problem names it"
        assert errors.keys() == {str(root / "idx" / "test_thermal_10.txt"), str(image), str(root)}
        assert errors[str(root)] == "has no infrared trial 10 test image"
        assert errors[str(image)].startswith(f"does not exist, listed in {root / 'idx'}")

    def test_a_person_of_one_modality_is_a_note_of_its_trial(self, copied):
        root = copied("regdb")
        path = root / "idx" / "train_thermal_4.txt"
        path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.endswith(" 1")))
        assert found("regdb", root, "note") == {(str(root / "idx" / "train_*_4.txt"), "id 1 has no infrared image")}

    def test_persons_in_training_and_test_are_errors(self, copied):
        root = copied("regdb")
        train = (root / "idx" / "train_visible_7.txt").read_text().splitlines()
        test = root / "idx" / "test_visible_7.txt"
        test.write_text(test.read_text() + train[0] + "\n")
        line = len(test.read_text().splitlines())
        person = train[0].split("/")[1]
        message = f"person {person} is also for training, in {root / 'idx' / 'train_visible_7.txt'}:1"
        assert (f"{test}:{line}", message) in found("regdb", root)


class TestLlcm:
    def test_missing_cameras_lists_and_images_are_errors(self, copied):
        root = copied("llcm")
        shutil.rmtree(root / "test_nir" / "cam4")
        (root / "idx" / "train_nir.txt").unlink()
        image = next((root / "vis" / "0001").iterdir())
        image.unlink()
        assert paths("llcm", root) == {
            str(root / "test_nir" / "cam4"),
            str(root / "idx" / "train_nir.txt"),
            str(image),
            str(root),
        }


class TestManifest:
    def test_all_bad_rows_are_listed_not_only_ten(self, tmp_path):
        rows = trees.manifest_rows(tmp_path)
        rows += [{**rows[0], "path": f"none{number}.png"} for number in range(25)]
        path = trees.write_csv(tmp_path / "manifest.csv", rows)
        assert paths("manifest", tmp_path) == {f"{path}:{line}" for line in range(10, 35)}

    def test_identities_of_one_modality_are_notes(self, tmp_path):
        rows = trees.manifest_rows(tmp_path)
        path = trees.write_csv(tmp_path / "manifest.csv", rows[:3] + rows[4:])
        assert found("manifest", path, "note") == {(str(path), "id bob has no infrared image")}

    def test_a_table_without_a_column_is_one_error_not_also_one_without_images(self, tmp_path):
        rows = [{key: row[key] for key in ("path", "modality")} for row in trees.manifest_rows(tmp_path)]
        path = trees.write_csv(tmp_path / "manifest.csv", rows)
        assert found("manifest", path) == {(str(path), "has no column 'camera', got 'modality', 'path'")}

    def test_a_gallery_without_identities_is_sound(self, tmp_path):
        rows = [{key: row[key] for key in ("path", "modality", "camera")} for row in trees.manifest_rows(tmp_path)]
        assert check_dataset("manifest", trees.write_csv(tmp_path / "mine.csv", rows)) == []


def test_errors_come_first_and_read_as_path_and_message(sound):
    problems = check_dataset("sysu_mm01", sound["regdb"])
    severities = [problem.severity for problem in problems]
    order = ["error", "count", "note"]
    assert severities == sorted(severities, key=order.index)
    assert severities[0] == "error"
    assert str(Problem("error", "exp/test_id.txt", "is missing")) == "exp/test_id.txt: is missing"


def test_progress_reaches_the_number_of_images_and_can_stop_the_check(sound):
    calls = []
    check_dataset("manifest", sound["manifest"], progress=lambda *call: calls.append(call), num_workers=2)
    assert calls[-1] == ("decoding", 8, 8)

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_dataset("manifest", sound["manifest"], progress=stop)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match=r"^check_dataset: kind must be one of sysu_mm01, .*, got 'market'$"):
        check_dataset("market", ".")
