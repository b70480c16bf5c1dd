"""The page that a run leaves behind, its charts and pictures, from records made by hand; and what TensorBoard gets."""

import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from dmic.charts import Series, Span, line_chart, stacked_bars
from dmic.config import Config, DataConfig, NetworkConfig, StageConfig, load_config, to_toml
from dmic.data import Dataset, Gallery, LabeledGallery, Protocol, Trial
from dmic.evaluate import evaluate_protocol
from dmic.models import embed
from dmic.report_page import write_report
from dmic.retrievals import draw_queries, retrievals
from dmic.run import BUILD, CONFIG, TENSORBOARD, Interrupted, RunFolder, build_network, run_training
from dmic.tensorboard import event_log, scalars

NAME = "tiny, infrared to visible"
VOID = {"meta", "br", "img"}


CLUSTERING = ("k1=6", "k2=3", "eps=0.7", "min_samples=2")
RUN = (
    "network.width=4", "network.embedding_dim=16", "data.num_crops=1", "data.train_share=0.3", "evaluate.every=2",
    "stage1.num_epochs=2", "stage2.num_epochs=1", "train.num_iterations=2",
    *(f"stage{s}.{kind}.{value}" for s in (1, 2) for kind in ("per_modality", "joint") for value in CLUSTERING),
)  # fmt: skip


def read_events(accumulator, folder):
    """What TensorBoard shows of a run: value by step, by tag; a step that is there twice is an error."""
    events = accumulator.EventAccumulator(str(folder / TENSORBOARD)).Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        scalars = events.Scalars(tag)
        found[tag] = {event.step: event.value for event in scalars}
        assert len(found[tag]) == len(scalars), tag
    return found


class Page(HTMLParser):
    """Headings and all text of a page; an element that is closed out of turn is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.text, self.attributes = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self.open:
            self.text += data


def tiny_dataset(*, test=True, identities=True, name=NAME, channels=1):
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(6).repeat(4)
    images = torch.randint(0, 256, (24, channels, 12, 8), dtype=torch.uint8, generator=generator)
    cameras = torch.arange(4).repeat_interleave(6)
    gallery = Gallery(images, cameras, cameras // 2)
    trial = Trial(torch.arange(12, 24), torch.arange(12))
    protocols = (Protocol(name, (trial,), ignored_cameras=((2, 0),)),) if test else ()
    labeled = LabeledGallery(gallery, ids) if test else None
    return Dataset("tiny", gallery, ids if identities else None, labeled, protocols)


def tiny_config(**data):
    stage = StageConfig(num_epochs=1)
    return Config(
        data=DataConfig(**data),
        network=NetworkConfig(width=4, embedding_dim=8),
        stage1=stage,
        stage2=replace(stage, num_epochs=2, joint_step="separate"),
    )


def clustering(clusters, **more):
    return {"clusters": clusters, "outliers": 3, "cameras_per_cluster": 1.5 if clusters else None, **more}


def epoch_record(number, stage, *, known, retrieval=()):
    record = {
        "epoch": number,
        "stage": stage,
        "seconds": {"embed": 1.0, "cluster": 0.25, "train": 2.5, "evaluate": 0.5},
        "loss": {"cluster_visible": 3.0, "instance_visible": 4.0, "shared_visible": 5.0},
        "visible": clustering(7),
        "infrared": clustering(0),
        "shared": clustering(5 if stage == 2 else 0, mixed_share=0.6 if stage == 2 else None),
        "learning_rate": 1e-3,
        "peak_bytes": 2**30,
    }
    if known:
        quality = {"visible": 0.8125, "infrared": None, "shared": 0.9}
        record["known"] = {name: {"purity": share, "splits": share and 1 / share} for name, share in quality.items()}
    if retrieval:
        record["retrieval"] = retrieval
    return record


def scores(dataset, scale=1.0):
    features = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    found = (
        [evaluate_protocol(features, dataset.test, p).as_record() for p in dataset.protocols] if dataset.test else []
    )
    for result in found:
        result["trials"][0]["cmc"]["1"] = None if math.isnan(scale) else 0.4321 * scale
    return found


def write(path, dataset, config=None, *, num_epochs=3, scale=1.0):
    config = config or tiny_config()
    folder = RunFolder(path)
    folder.path.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(to_toml(config))
    build = {"dmic": "0.1.0", "library": {"compiler": "c++ <12>", "cuda_architectures": []}, "device": "cpu"}
    (folder / BUILD).write_text(json.dumps(build))
    known = dataset.train_person_ids is not None
    first = {"epoch": 0} | ({"retrieval": scores(dataset, scale / 2)} if dataset.test else {})
    folder.log(first)
    for number in range(1, num_epochs + 1):
        folder.log(epoch_record(number, 1 if number == 1 else 2, known=known, retrieval=scores(dataset, scale)))
    channels = dataset.train.images.shape[1]
    network = build_network(config, channels).eval()
    written = write_report(folder, config, network, dataset)
    assert written == path / "report.html"
    text = written.read_text(encoding="utf-8")
    return text, Page(text)


SECTIONS = [
    "Scores",
    "Retrieval over training",
    "Clusters",
    "Clusters and true identities",
    "Losses",
    "Schedules",
    "Where the time went",
    "Retrieved images",
    "Settings and build",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"), tiny_dataset())


class TestPage:
    def test_it_has_every_section_and_is_well_formed(self, report):
        assert report[1].headings == SECTIONS

    def test_it_needs_nothing_but_itself(self, report):
        assert "script" not in report[0]
        assert "url(" not in report[0]
        assert "@import" not in report[0]
        for _, attribute, value in report[1].attributes:
            assert attribute not in ("href", "srcset"), value
            assert attribute != "src" or value.startswith("data:image/jpeg;base64,")
        assert not re.search(r"https?:", report[0])

    def test_its_numbers_are_those_of_the_records(self, report):
        text = report[1].text
        assert NAME in text
        assert "Rank-121.6 \u219243.2 %" in text
        assert "Scores are of the last epoch (3), not of the best one" in text
        for numbers in ("visible 7", "joint 5", "true identities 6", "mixed 60", "visible 81.2", "train 7.50 s, 59%"):
            assert numbers in text
        assert "Peak memory: 1.00 GiB" in text
        assert "num_epochs = 2" in text
        assert "c++ <12>" in text
        assert "cuda_architectures" not in text

    def test_places_of_the_scene_are_said_to_be_the_identities(self, report, tmp_path):
        assert "A place is an identity, a sensor band a camera" in report[1].text
        assert "A place is" not in write(tmp_path, tiny_dataset(), tiny_config(kind="manifest"))[1].text

    def test_protocols_share_an_axis(self, tmp_path, monkeypatch):
        low, high = (replace(tiny_dataset().protocols[0], name=name) for name in ("low", "high"))

        def two_scores(dataset, scale=1.0):
            records = [evaluate_protocol(torch.rand(24, 5), dataset.test, each).as_record() for each in (low, high)]
            for record, share in zip(records, (0.1, 0.9), strict=True):
                trial = record["trials"][0]
                trial["cmc"]["1"] = trial["mean_average_precision"] = share * scale
            return records

        monkeypatch.setattr(sys.modules[__name__], "scores", two_scores)
        text, _ = write(tmp_path, tiny_dataset())
        charts = re.findall(r"<figcaption>(?:low|high) .*?</figure>", text)
        assert [">100<" in chart for chart in charts] == [True, True]

    def test_the_schedules_are_those_of_the_clustering(self, report):
        stage = tiny_config().stage2
        assert f"joint {stage.joint.eps(1, 2):.3f}" in report[1].text
        assert f"joint {round(stage.joint.k2(1, 2))}" in report[1].text

    def test_there_is_no_joint_clustering_before_its_stage(self, report):
        chart = re.search(r"<figcaption>Clusters .*?</figure>", report[0])[0]
        assert "epoch 1: visible 7" in chart
        assert "epoch 1: joint" not in chart
        assert "epoch 2: joint 5" in chart

    def test_every_coordinate_is_finite(self, report):
        for number in re.findall(r' (?:d|x|y|cx|cy|width|height)="([^"]*)"', report[0]):
            assert not re.search("nan|inf|None", number), number

    def test_identities_are_said_to_be_used_for_curves_only(self, report):
        assert "Identities are used for these curves only, never for training." in report[1].text

    def test_queries_are_said_to_be_drawn_at_random(self, report):
        assert "drawn at random with a fixed seed" in report[1].text
        images = [value for tag, name, value in report[1].attributes if (tag, name) == ("img", "src")]
        assert len(images) == 6 * (1 + 2 * 6)
        assert "synthetic" not in report[1].text

    def test_without_identities_and_test_images_it_says_so(self, tmp_path):
        text, page = write(tmp_path, tiny_dataset(test=False, identities=False))
        assert page.headings == [
            name for name in SECTIONS if name not in ("Retrieval over training", "Retrieved images")
        ]
        assert "no test images with identities, so nothing was scored" in page.text
        assert "Nobody knows the identities of the training images" in page.text
        assert "true identities 6" not in page.text
        assert "data:image" not in text

    @pytest.mark.parametrize("num_epochs", [0, 1])
    def test_a_short_run_has_a_page(self, tmp_path, num_epochs):
        config = tiny_config()
        config = replace(config, stage1=replace(config.stage1, num_epochs=num_epochs))
        config = replace(config, stage2=replace(config.stage2, num_epochs=0))
        _, page = write(tmp_path, tiny_dataset(), config, num_epochs=num_epochs)
        assert page.headings == (SECTIONS if num_epochs else ["Scores", *SECTIONS[-2:]])

    def test_scores_that_are_not_numbers_are_dashes(self, tmp_path):
        text, page = write(tmp_path, tiny_dataset(), scale=math.nan)
        assert "Rank-1- \u2192- %" in page.text
        assert not re.search(r"\bnan\b", text)

    def test_names_are_text_and_not_markup(self, tmp_path):
        evil = '<script>alert("&")</script>'
        config = tiny_config(root=f"/{evil}")
        text, page = write(tmp_path, tiny_dataset(name=evil), config)
        assert "<script" not in text
        assert evil in page.text

    def test_synthetic_images_are_called_synthetic(self, tmp_path):
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "SYNTHETIC.txt").write_text("nobody")
        for root in (tmp_path / "tree", tmp_path / "tree" / "manifest.csv"):
            _, page = write(tmp_path / root.stem, tiny_dataset(), tiny_config(root=str(root)), num_epochs=1)
            assert "The images are synthetic." in page.text
            assert "Synthetic pedestrians in the layout of tiny" in page.text

    def test_initial_weights_that_are_gone_are_named(self, tmp_path):
        config = tiny_config()
        config = replace(config, network=replace(config.network, kind="resnet18", weights=str(tmp_path / "gone.pth")))
        dataset = tiny_dataset(channels=3)
        folder = tmp_path / "run"
        write(folder, dataset)
        network = build_network(tiny_config(), 3).eval()
        page = Page(write_report(RunFolder(folder), config, network, dataset).read_text())
        assert re.search("before training is not shown: .*gone.pth", page.text)
        assert "after training" in page.text

    def test_a_page_that_cannot_be_written_leaves_the_earlier_one(self, tmp_path, monkeypatch):
        before, _ = write(tmp_path, tiny_dataset(), num_epochs=1)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("dmic.checkpoint.os.fsync", full)
        folder = RunFolder(tmp_path)
        with pytest.raises(OSError, match=r"report\.html: could not be written"):
            write_report(folder, tiny_config(), build_network(tiny_config(), 1).eval(), tiny_dataset())
        assert (tmp_path / "report.html").read_text() == before


class TestCharts:
    def test_a_line_has_gaps_where_there_is_no_value(self):
        values = [1.0, 2.0, None, 4.0, math.nan, 6.0]
        chart = line_chart("title", "%", range(6), [Series("a", values)])
        assert len(re.findall('class="line s0" d="M[0-9]', chart)) == 1 + 3  # the legend's, and three runs
        assert chart.count("<circle") == 4
        assert ">a <b>6</b>" in chart

    def test_the_highest_value_and_the_reference_are_inside(self):
        chart = line_chart("title", "%", [1, 2], [Series("a", [0.0, 37.0])], reference=("true", 91.0))
        heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', chart)]
        assert heights[0] > heights[1] > 22
        assert ">100<" in chart

    def test_a_higher_value_is_drawn_higher_and_a_later_epoch_further_right(self):
        chart = line_chart("title", "%", [0, 5, 9], [Series("a", [1.0, 3.0, 2.0])], [Span("stage 1", 1, 9)])
        x, y = ([float(v) for v in re.findall(rf'{axis}="([\d.]+)"', chart)] for axis in ("cx", "cy"))
        assert x[0] < x[1] < x[2]
        assert y[0] > y[2] > y[1]
        assert "stage 1</text>" in chart

    def test_bars_stand_on_each_other(self):
        chart = stacked_bars("time", "s", [1, 2], [Series("a", [1.0, 2.0]), Series("b", [3.0, None], style=1)])
        bars = re.findall(r'x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart)
        (y, low), (y_above, high), (_, second), (_, none) = [(float(top), float(height)) for top, height in bars]
        assert (high, second, none) == pytest.approx((3 * low, 2 * low, 0.0), abs=0.3)
        assert y_above == pytest.approx(y - high, abs=0.2)
        assert "3 s, 50%" in chart

    def test_nothing_to_draw_is_no_chart(self):
        assert line_chart("title", "%", [1], [Series("a", [None])]) == ""
        assert stacked_bars("title", "s", [1], [Series("a", [None])]) == ""

    def test_a_series_of_another_length_is_named(self):
        with pytest.raises(ValueError, match="'a' must have 2 values, got 1"):
            line_chart("title", "%", [1, 2], [Series("a", [1.0])])


class TestRetrievals:
    def test_rank_1_over_all_queries_is_that_of_the_protocol(self):
        dataset = tiny_dataset()
        ids = torch.arange(24) % 12  # with one query per identity
        labeled = LabeledGallery(dataset.test.unlabeled, ids)
        network = build_network(tiny_config(), 1).eval()
        for rules in ({}, {"ignored_cameras": ((2, 0),)}, {"same_camera_ignored": True}):
            protocol = Protocol("all", dataset.protocols[0].trials, **rules)
            result = evaluate_protocol(embed(network, labeled.unlabeled), labeled, protocol).trials[0]
            found = retrievals(labeled, protocol, [network], num_queries=99, num_results=12)
            assert len(found) == result.num_queries
            first = [bool(ids[r.results[0][0]] == ids[r.query]) for r in found]
            assert sum(first) / len(first) == pytest.approx(result.cmc[1])

    def test_what_a_query_does_not_see_is_not_shown(self):
        dataset = tiny_dataset()
        network = build_network(tiny_config(), 1).eval()
        cameras = dataset.test.unlabeled.camera_ids
        found = retrievals(dataset.test, dataset.protocols[0], [network], num_queries=6, num_results=12)
        assert {int(cameras[r.query]) for r in found} == {2, 3}
        for retrieval in found:
            seen = {int(cameras[sample]) for sample in retrieval.results[0]}
            assert seen == ({1} if int(cameras[retrieval.query]) == 2 else {0, 1})

    def test_the_draw_is_fixed_and_depends_on_its_seed(self):
        dataset = tiny_dataset()
        draws = [draw_queries(dataset.test, dataset.protocols[0], num_queries=4, seed=seed) for seed in (0, 0, 1, 2)]
        assert draws[0] == draws[1]
        assert len({tuple(draw) for draw in draws}) == 3
        assert all(len(set(dataset.test.person_ids[draw].tolist())) == 4 for draw in draws)

    def test_a_query_without_a_match_is_not_drawn(self):
        dataset = tiny_dataset()
        labeled = LabeledGallery(dataset.test.unlabeled, torch.arange(24))
        assert draw_queries(labeled, dataset.protocols[0], num_queries=4, seed=0) == []


class TestTensorboard:
    def test_every_number_has_a_tag_and_gaps_have_none(self):
        dataset = tiny_dataset()
        record = epoch_record(2, 2, known=True, retrieval=scores(dataset))
        record["known"]["shared"]["purity"] = math.nan
        found = scalars(record)
        assert found["loss/cluster_visible"] == 3.0
        assert found["clusters/visible"] == 7.0
        assert found["purity/visible"] == 0.8125
        assert "purity/infrared" not in found
        assert "purity/shared" not in found
        assert found["mixed_share/shared"] == 0.6
        assert found["seconds/train"] == 2.5
        assert found["training/peak_bytes"] == 2**30
        mean = scores(dataset)[0]["mean_average_precision"]["mean"]
        assert found[f"retrieval, {NAME}/mAP"] == pytest.approx(100 * mean)
        assert scalars({"epoch": 0}) == {}

    def test_a_run_that_was_stopped_and_resumed_has_every_number_of_its_records_once(self, tmp_path):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        config = load_config("landsat", RUN)
        folder = RunFolder(tmp_path / "run")

        def stop(record):
            if record["epoch"] == 2:  # after it was logged, and before a checkpoint holds it
                raise KeyboardInterrupt

        with pytest.raises(Interrupted):
            run_training(config, folder, report=stop)
        first = read_events(accumulator, folder)
        assert first["training/learning_rate"].keys() == {1, 2}
        run_training(config, folder, resume=True)

        expected = {}
        for record in folder.records():
            for tag, value in scalars(record).items():
                expected.setdefault(tag, {})[record["epoch"]] = pytest.approx(value)
        found = read_events(accumulator, folder)
        assert found == expected
        assert found["training/learning_rate"].keys() == {1, 2, 3}
        assert found["seconds/train"][1] == first["seconds/train"][1]
        assert found["seconds/train"][2] != first["seconds/train"][2]
        assert len(found["retrieval, infrared to visible/mAP"]) == 3

    def test_nothing_happens_where_it_is_not_installed(self, tmp_path, monkeypatch):
        for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        event_log(tmp_path)({"epoch": 0, "learning_rate": 0.5})
        assert list(tmp_path.iterdir()) == []
