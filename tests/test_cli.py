import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import assert_same_bits
from safetensors.numpy import save_file

import dmic
from dmic import cli, doctor
from dmic.block_memory import Search, block_memory, expected_memory, format_bytes
from dmic.commands import cluster as cluster_command
from dmic.progress import show_progress

ROOT = Path(dmic.__file__).resolve().parents[1]
SETTINGS = ["--k1", "15", "--k2", "4", "--eps", "0.55"]


@pytest.fixture
def files(gallery, tmp_path, monkeypatch):
    """The gallery in every format, in the current folder."""
    monkeypatch.chdir(tmp_path)
    arrays = {f: getattr(gallery, f) for f in ("features", "camera_ids", "modality_ids")}
    np.savez("gallery.npz", **arrays)
    np.savez_compressed("small.npz", **arrays)
    save_file(arrays, "gallery.safetensors")
    np.save("features.npy", gallery.features)
    np.save("cameras.npy", gallery.camera_ids)
    np.save("modalities.npy", gallery.modality_ids)
    return tmp_path


@pytest.fixture
def run(capfd):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as exit:
            code = exit.code
        return code, *capfd.readouterr()

    return run


def dmic_process(*arguments, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "dmic", *map(str, arguments)]
    pipe = subprocess.PIPE
    # A test run in the background of a shell hands down that Ctrl-C is ignored.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, **options)


@pytest.mark.parametrize("name", ["gallery.npz", "small.npz", "gallery.safetensors", "features.npy"])
def test_cluster_writes_labels_and_settings(files, gallery, run, name):
    ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    more = ["--camera-ids", "cameras.npy", "--modality-ids", "modalities.npy"] if name == "features.npy" else []
    code, out, err = run("cluster", name, *SETTINGS, "--min-samples", 3, *more, "-o", "labels.npz")
    assert (code, err) == (0, "")
    want = dmic.pseudo_labels(gallery.features, k1=15, k2=4, eps=0.55, min_samples=3, **ids)
    with np.load("labels.npz", allow_pickle=False) as written:
        assert_same_bits(written["labels"], want.labels)
        assert_same_bits(written["core_mask"], want.core_mask)
        settings = {name: written[name].item() for name in written.files if name not in ("labels", "core_mask")}
    assert settings == {"k1": 15, "k2": 4, "eps": 0.55, "min_samples": 3, "dmic_version": dmic.__version__}
    assert "300 samples x 33 features (float32)" in out
    assert "memory beyond the features: about " in out
    assert "wrote labels.npz" in out


def test_what_blocks_need_is_stated_before_the_work(files, run):
    code, out, err = run("cluster", "gallery.npz", *SETTINGS, "--resume", "stages", "-o", "labels.npz")
    assert (code, err) == (0, "")
    case = 300, 300, 1, 33, Search(15, 4, 0.55, 4), 1024
    most = format_bytes(max(block_memory(*case).values()))
    about = format_bytes(expected_memory(*case).peak_bytes)
    stated = rf"memory beyond the features: about {about} \(in \w+\), at most {most} \(in \w+\), in blocks of 1024 rows"
    assert re.search(stated, out)
    code, out, err = run("cluster", "features.npy", *SETTINGS, "--max-memory", 10**5, "-o", "too-little.npz")
    assert code == 2
    assert "max_memory allows 100 kB; raise it" in err


def test_what_blocks_need_of_a_gpu_is_stated_as_such(files, run, monkeypatch):
    result = dmic.PseudoLabels(torch.zeros(300, dtype=torch.int64), torch.ones(300, dtype=torch.bool), 1, 0, {})
    asked = []
    monkeypatch.setattr("dmic.commands.common.device", lambda _: "cuda:0")
    monkeypatch.setattr("dmic.commands.cluster.pseudo_labels", lambda *_, **given: asked.append(given) or result)
    code, out, err = run("cluster", "features.npy", *SETTINGS, "--resume", "stages", "-o", "labels.npz")
    assert (code, err) == (0, "")
    case = 300, 300, 1, 33, Search(15, 4, 0.55, 4), 1024
    most = format_bytes(max(block_memory(*case, device="cuda").values()))
    about = format_bytes(expected_memory(*case, "cuda").peak_bytes)
    stated = rf"about {about} \(in \w+\), at most {most} \(in \w+\), in blocks of 1024 rows"
    assert re.search(rf"^GPU memory beyond the features: {stated}$", out, re.MULTILINE)
    assert asked[0]["device"] == "cuda:0"
    code, _, err = run("cluster", "features.npy", *SETTINGS, "--max-memory", "300MB", "-o", "labels.npz")
    assert code == 2
    assert "of GPU memory is needed in" in err


def test_cluster_without_ids_is_the_classic_pipeline(files, gallery, run):
    assert run("cluster", "features.npy", *SETTINGS, "-o", "labels.npz")[0] == 0
    want = dmic.pseudo_labels(gallery.features, k1=15, k2=4, eps=0.55)
    assert_same_bits(np.load("labels.npz")["labels"], want.labels)
    with_ids = dmic.pseudo_labels(gallery.features, k1=15, k2=4, eps=0.55, camera_ids=gallery.camera_ids)
    assert not np.array_equal(want.labels, with_ids.labels)


def test_the_table_describes_the_clusters(files, run):
    code, out, _ = run("cluster", "gallery.npz", *SETTINGS, "-o", "labels.npz")
    labels = np.load("labels.npz")["labels"]
    sizes = np.bincount(labels[labels >= 0])
    cells = {row[0].strip(): row[1].strip() for row in (line.split("│")[1:3] for line in out.splitlines()) if row}
    assert code == 0
    assert cells["clusters"] == str(len(sizes))
    assert cells["outliers"].split()[0] == str((labels < 0).sum())
    assert cells["cluster size"] == f"{sizes.min()} to {sizes.max()}, median {np.median(sizes):g}"
    assert int(cells["8 to 15 samples"]) == ((sizes >= 8) & (sizes < 16)).sum()
    assert {"cameras per cluster", "modalities per cluster", "knn_graph", "dbscan"} <= set(cells)


def test_ids_per_cluster_are_counted():
    labels, ids = np.array([0, 0, 0, 1, 1, 1, -1, 2]), np.array([5, 5, 7, 1, 2, 3, 9, 4])
    result = dmic.PseudoLabels(labels, labels >= 0, 3, 1, {"knn_graph": 0.5})
    assert dict(cluster_command.summarize(result, {"camera_ids": ids, "modality_ids": None})) == {
        "clusters": "3",
        "outliers": "1 (12.5 %)",
        "cluster size": "1 to 3, median 3",
        "  1 sample": "1",
        "  2 to 3 samples": "2",
        "cameras per cluster": "2.00 on average (clusters with 1: 1, with 2: 1, with 3: 1)",
        "knn_graph": "0.50 s",
    }


def test_keys_that_are_not_used_are_named(files, gallery, run):
    np.savez("more.npz", features=gallery.features, camera_id=gallery.camera_ids, person_ids=gallery.camera_ids)
    code, out, _ = run("cluster", "more.npz", *SETTINGS, "-o", "labels.npz")
    assert code == 0
    assert "not used: camera_id, person_ids (known keys are features, camera_ids, modality_ids)" in out


def test_an_empty_gallery_is_fine(files, run):
    np.save("empty.npy", np.zeros((0, 8), np.float32))
    assert run("cluster", "empty.npy", "-o", "labels.npz")[0] == 0
    assert np.load("labels.npz")["labels"].shape == (0,)


def test_half_precision_in_safetensors(files, gallery, run):
    from safetensors.torch import save_file

    save_file({"features": torch.from_numpy(gallery.features).bfloat16()}, "half.safetensors")
    code, out, _ = run("cluster", "half.safetensors", *SETTINGS, "-o", "labels.npz")
    assert code == 0
    assert "(bfloat16)" in out


@pytest.mark.parametrize("name", ["features.npy", "gallery.safetensors"])
def test_features_stay_in_the_file(files, name):
    """Memory-mapped: the tensor's memory lies in a mapping of the file."""
    features = cluster_command.load_gallery(Path(name)).features
    mappings = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]
    ranges = [[int(bound, 16) for bound in fields[0].split("-")] for fields in mappings]
    assert any(low <= features.data_ptr() < high for low, high in ranges)


def make_bad_files(features):
    np.save("flat.npy", features[0])
    np.save("nan.npy", np.where(np.arange(features.size).reshape(features.shape) == 7, np.nan, features))
    np.save("text.npy", np.array([["a"]]))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    np.savez("objects.npz", features=np.array([{}]))
    np.savez("no_features.npz", feats=features)
    np.savez("nothing.npz")
    np.savez("minus.npz", features=features, camera_ids=np.arange(300) - 1)
    np.savez("short.npz", features=features, camera_ids=np.arange(299))
    np.savez("named.npz", features=features, camera_ids=np.array(["left", "right"] * 150))
    np.savez("real.npz", features=features, modality_ids=np.zeros(300))
    save_file({"feats": features}, "no_features.safetensors")
    for name in ("text.npz", "broken.npy", "broken.safetensors", "features.csv"):
        Path(name).write_text("these are no numbers")
    Path("zero.npy").touch()
    Path("half.npz").write_bytes(Path("gallery.npz").read_bytes()[:5000])
    Path("half.npy").write_bytes(Path("features.npy").read_bytes()[:5000])
    with zipfile.ZipFile("member.npz", "w") as archive:
        archive.writestr("features", b"no array")
    Path("folder.npz").mkdir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.npy", "none.npy: No such file or directory"),
        ("none.npz", "none.npz: No such file or directory"),
        ("none.safetensors", "none.safetensors: No such file or directory"),
        ("folder.npz", "folder.npz: Is a directory"),
        ("features.csv", "features.csv: the extension must be one of .npy, .npz, .safetensors, got .csv"),
        ("features", "features: the extension must be one of .npy, .npz, .safetensors, got none"),
        ("broken.npy", "broken.npy: not a readable .npy file ("),
        ("half.npy", "half.npy: not a readable .npy file ("),
        ("zero.npy", "zero.npy: not a readable .npy file ("),
        ("text.npz", "text.npz: not a readable .npz file ("),
        ("half.npz", "half.npz: not a readable .npz file ("),
        ("member.npz", "member.npz: not a readable .npz file (features is not an array)"),
        ("broken.safetensors", "broken.safetensors: not a readable .safetensors file ("),
        ("objects.npy", "objects.npy: not a readable .npy file ("),
        ("objects.npz", "objects.npz: not a readable .npz file (Object arrays cannot be "),
        ("no_features.npz", "no_features.npz: there is no key 'features', only feats"),
        ("no_features.safetensors", "no_features.safetensors: there is no key 'features', only feats"),
        ("nothing.npz", "nothing.npz: there is no key 'features', only an empty file"),
        ("flat.npy", "flat.npy: features must have shape [N, d], got (33,)"),
        ("text.npy", "text.npy: features must hold real numbers, got dtype <U1"),
        ("named.npz", "named.npz: camera_ids must hold integers (numpy.unique(ids, return_inverse=True)[1] "),
        ("nan.npy", "nan.npy: features must be finite, got nan in row 0"),
        ("minus.npz", "camera_ids must be in [0, 2**63), got -1"),
        ("short.npz", "camera_ids must have shape [N], got (299,) with N=300"),
        ("real.npz", "modality_ids must be integers, got float64"),
        ("gallery.npz --camera-ids cameras.npy", "gallery.npz: holds camera_ids already, leave out --camera-ids"),
        ("features.npy --camera-ids ids.txt", "ids.txt: the extension must be .npy, got .txt"),
        ("features.npy --modality-ids none.npy", "none.npy: No such file or directory"),
        ("gallery.npz --k1 301", "k1 must be in [1, N], got k1=301 with N=300"),
        ("gallery.npz --k1 0", "k1 must be in [1, N], got k1=0"),
        ("gallery.npz --k2 31", "k2 must be in [1, k1], got k2=31 with k1=30"),
        ("gallery.npz --eps 1.5", "eps must be in [0, 1], got 1.5"),
        ("gallery.npz --eps nan", "eps must be in [0, 1], got nan"),
        ("gallery.npz --min-samples 0", "min_samples must be at least 1, got 0"),
        ("gallery.npz --k1 many", "argument --k1: invalid int value: 'many'"),
        ("gallery.npz --device cuda:99", "--device cuda:99: there "),
        ("gallery.npz --max-memory 4QB", "argument --max-memory: must be a size such as 4GB or 512MiB, got '4QB'"),
        ("gallery.npz --max-memory 9kB", "about "),
        ("gallery.npz --timeout 0", "argument --timeout: must be minutes in (0, 1000000], got '0'"),
        ("gallery.npz --timeout nan", "argument --timeout: must be minutes in (0, 1000000], got 'nan'"),
        ("gallery.npz --timeout 1e30", "argument --timeout: must be minutes in (0, 1000000], got '1e30'"),
        ("gallery.npz --timeout soon", "argument --timeout: must be minutes in (0, 1000000], got 'soon'"),
        ("gallery.npz --resume zero.npy", "zero.npy: cannot be written to (File exists); choose another folder"),
        ("gallery.npz --cluster", "unrecognized arguments: --cluster"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_exit_code_2_and_no_output(files, gallery, run, arguments, message):
    make_bad_files(gallery.features)
    before = sorted(os.listdir())
    code, _, err = run("cluster", *arguments.split(), "-o", "labels.npz")
    assert code == 2
    assert err.startswith((f"dmic cluster: error: {message}", f"dmic: error: {message}"))
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "allow_pickle=True" not in err
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("labels.npy", "labels.npy: the extension of the output must be .npz, got .npy"),
        ("no/labels.npz", "no/labels.npz: there is no folder no"),
        ("gallery.npz", "gallery.npz: is what this command reads; choose another output"),
        ("folder.npz", "folder.npz: is a folder"),
    ],
)
def test_a_bad_output_is_found_before_any_work(files, run, out, message):
    Path("folder.npz").mkdir()
    before = Path("gallery.npz").read_bytes()
    assert run("cluster", "gallery.npz", "-o", out) == (2, "", f"dmic cluster: error: {message}\n")
    assert Path("gallery.npz").read_bytes() == before


def test_folders_without_permission_are_found_before_any_work(files, run, monkeypatch):
    Path("locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    problem = "locked/labels.npz: there is no permission to write to the folder locked"
    assert run("cluster", "gallery.npz", "-o", "locked/labels.npz") == (2, "", f"dmic cluster: error: {problem}\n")
    code, out, err = run("cluster", "gallery.npz", "--resume", "locked", "-o", "labels.npz")
    assert (code, "knn_graph" in out) == (2, False)
    assert err == "dmic cluster: error: locked: cannot be written to (Permission denied); choose another folder\n"


def test_modalities_are_any_number_in_any_numbering_and_counted_before_the_work(files, gallery, run):
    ids, names = np.arange(300) % 3, np.array([7, 0, 900])
    np.save("three.npy", ids)
    np.save("renamed.npy", names[ids].astype(np.uint16))
    np.save("one.npy", np.full(300, 5))
    arguments = ["cluster", "features.npy", *SETTINGS, "--camera-ids", "cameras.npy"]
    labels = {}
    for name, counted in {"three": "3 modalities", "renamed": "3 modalities", "one": "1 modality", "": ""}.items():
        given = ["--modality-ids", f"{name}.npy"] if name else []
        code, out, err = run(*arguments, *given, "-o", "labels.npz")
        assert (code, err) == (0, "")
        cameras = len(np.unique(gallery.camera_ids))
        line = f"300 samples x 33 features (float32), {cameras} cameras{', ' * bool(name)}{counted}"
        assert out.splitlines()[0] == line
        labels[name] = np.load("labels.npz")["labels"]
    assert_same_bits(labels["three"], labels["renamed"])
    assert_same_bits(labels["one"], labels[""])
    assert not np.array_equal(labels["three"], labels["one"])


def test_readers_of_the_old_file_are_not_disturbed(files, run):
    Path("labels.npz").write_text("old")
    with open("labels.npz") as reader:
        assert run("cluster", "gallery.npz", *SETTINGS, "-o", "labels.npz")[0] == 0
        assert reader.read() == "old"
    assert len(np.load("labels.npz")["labels"]) == 300


def test_a_failed_write_leaves_the_old_file(files, run, monkeypatch):
    Path("labels.npz").write_text("old")

    def savez(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    before = sorted(os.listdir())
    code, _, err = run("cluster", "gallery.npz", *SETTINGS, "-o", "labels.npz")
    reason = "labels.npz: could not be written (No space left on device); the earlier file is untouched"
    assert (code, err) == (2, f"dmic cluster: error: {reason}\n")
    assert Path("labels.npz").read_text() == "old"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("text", "count"),
    [("123", 123), ("4GB", 4 * 10**9), ("4G", 4 * 10**9), ("1.5 GiB", 3 << 29), ("512mb", 512 * 10**6), ("2kiB", 2048)],
)
def test_sizes_are_decimal_or_binary(text, count):
    assert cluster_command.parse_bytes(text) == count


def test_a_missing_or_unknown_command_is_one_line(run):
    for arguments, message in (([], "name a COMMAND: demo, cluster, "), (["clutser"], "invalid choice")):
        code, _, err = run(*arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_the_module_is_the_command(files, gallery):
    process = dmic_process("cluster", "gallery.npz", *SETTINGS, "-o", "labels.npz")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert re.search(r"^dbscan: 100 %, \d+ s$", out, re.MULTILINE), "without a terminal, progress is plain lines"
    assert "\x1b" not in out
    assert len(np.load("labels.npz")["labels"]) == 300
    process = dmic_process("cluster", "none.npz", "-o", "labels.npz")
    assert process.communicate(timeout=60) == ("", "dmic cluster: error: none.npz: No such file or directory\n")
    assert process.returncode == 2


def test_a_terminal_gets_a_bar_for_each_stage(monkeypatch, capfd):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with show_progress() as report:
        for stage in ("knn_graph", "dbscan"):
            report(stage, 0, 10)
            report(stage, 10, 10)
    last = capfd.readouterr().out.split("knn_graph")[-1]
    assert last.count("100%") == 2
    assert "dbscan" in last


def test_version():
    process = dmic_process("--version")
    assert process.communicate(timeout=60) == (f"dmic {dmic.__version__}\n", "")
    assert process.returncode == 0


def test_control_c_ends_within_a_second_in_one_line(tmp_path):
    features = np.random.default_rng(0).standard_normal((30_000, 512), dtype=np.float32)  # seconds of searching
    np.save(tmp_path / "features.npy", features)
    process = dmic_process("cluster", "features.npy", "-o", "labels.npz", cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("knn_graph"):
            break
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "dmic: interrupted\n"
    assert time.monotonic() - start < 1.0  # the interpreter then needs a moment to unload torch
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 130
    assert os.listdir(tmp_path) == ["features.npy"]


def test_an_interrupted_job_says_what_goes_on_from_its_stages(files, run, monkeypatch):
    def interrupt(*_, **given):
        given["progress"]("knn_graph", 0, 10)
        raise KeyboardInterrupt

    monkeypatch.setattr("dmic.commands.cluster.pseudo_labels", interrupt)
    for more, hint in (([], ""), (["--resume", "st"], "; the same command goes on from what is in st")):
        code, out, err = run("cluster", "features.npy", *SETTINGS, *more, "-o", "labels.npz")
        assert (code, err) == (130, f"dmic: interrupted{hint}\n")
        assert out.splitlines()[-1] == "knn_graph: 0 %, 0 s", "a stage is named when it starts, not after a quarter"


def test_importing_dmic_stays_light():
    """Neither training, nor torchvision, nor the compiled library: `dmic doctor` must run without it."""
    code = (
        "import sys, dmic; "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in {'torchvision', 'rich', 'scipy'})); "
        "print(sorted(m for m in sys.modules if m.startswith('dmic.')))"
    )
    options = {"capture_output": True, "text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    out = subprocess.run([sys.executable, "-c", code], check=True, **options).stdout
    names = "_arrays _version block_memory constants csr directions feature_rows out_of_memory "
    names += "process_group pseudo_labels read_ahead"
    modules = [f"dmic.{name}" for name in names.split()]
    assert out == f"[]\n{modules}\n"


class TestDoctor:
    def test_this_installation_works(self, run):
        code, out, err = run("doctor")
        assert (code, err) == (0, "")
        for subject in ("dmic", "Python", "torch", "torchvision", "numpy", "compiled library", "SIMD", "CUDA kernels"):
            assert any(line[4:].startswith(f"{subject} ") for line in out.splitlines()), subject
        assert dmic.__version__ in out
        assert torch.__version__ in out
        assert dmic.build_info()["simd_used"] in out
        assert "clustering on the CPU  works (" in out

    def test_whatever_is_missing_comes_with_advice(self):
        for finding in doctor.diagnose():
            assert finding.ok == (not finding.advice)

    @pytest.mark.parametrize("nvcc", [None, "cuda/bin/nvcc"])
    def test_nvcc_is_asked_for_only_where_it_is_missing(self, monkeypatch, nvcc):
        monkeypatch.setattr(doctor, "_nvcc", lambda: nvcc)
        finding = {found.subject: found for found in doctor._kernels({"simd_used": "avx2"})}["CUDA kernels"]
        assert ("install the CUDA toolkit" in finding.advice) == (nvcc is None)
        assert doctor.REBUILD in finding.advice

    @pytest.fixture
    def no_library(self, monkeypatch):
        """As if `dmic._C` had never been built."""
        for module in ("dmic._native", "dmic.ops", "dmic._C"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setitem(sys.modules, "dmic._C", None)
        monkeypatch.delattr(dmic, "_native", raising=False)
        monkeypatch.delattr(dmic, "ops", raising=False)
        monkeypatch.delattr(dmic, "_C", raising=False)
        for op in ("build_info", "knn_graph", "dbscan"):
            monkeypatch.delitem(vars(dmic), op, raising=False)

    def test_a_missing_library_is_broken_and_says_how_to_build_it(self, run, no_library):
        code, out, _ = run("doctor")
        assert code == 1
        assert "!!  compiled library       does not load (" in out
        assert "-> build it: pip install --no-build-isolation ." in out
        assert "!!  clustering on the CPU  failed (" in out

    def test_clustering_without_the_library_is_one_line(self, files, run, no_library):
        code, _, err = run("cluster", "gallery.npz", *SETTINGS, "-o", "labels.npz")
        assert code == 1
        assert err.startswith("dmic cluster: error: dmic: the compiled library is missing")
        assert err.endswith("; `dmic doctor` says more\n")
        assert err.count("\n") == 1
        assert not Path("labels.npz").exists()

    def test_wrong_labels_are_noticed(self, run, monkeypatch):
        module = sys.modules["dmic.pseudo_labels"]
        right = module.pseudo_labels
        wrong = lambda *args, **kwargs: replace(result := right(*args, **kwargs), labels=result.labels * 0)  # noqa: E731
        monkeypatch.setattr(module, "pseudo_labels", wrong)
        code, out, _ = run("doctor")
        assert code == 1
        assert "!!  clustering on the CPU  wrong labels [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]" in out

    def test_a_gpu_that_does_not_work_is_no_reason_to_do_without_the_cpu(self, run, monkeypatch):
        if torch.cuda.is_available() or not dmic.build_info()["cuda"]:
            pytest.skip("there is a GPU, or no kernel for one")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(doctor, "_gpu", lambda _: doctor.Finding("GPU", "1 x made up"))
        code, out, _ = run("doctor")
        assert code == 0
        assert "clustering on the CPU  works (" in out
        assert "--  clustering on the GPU  failed (" in out
        assert "-> rebuild the library: pip install" in out

    def test_an_old_torch_is_named(self, monkeypatch):
        monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
        findings = {finding.subject: finding for finding in doctor.diagnose()}
        assert findings["torch"].found.startswith("2.9.1+cpu (")
        assert findings["torch"].advice == "the library needs torch 2.11 or later: pip install -U torch"
        assert not doctor.cpu_works(list(findings.values()))

    def test_a_broken_torchvision_does_not_stop_clustering(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision", None)
        code, out, _ = run("doctor")
        assert code == 0
        assert "--  torchvision            does not load (" in out
