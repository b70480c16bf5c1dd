"""One run in one folder: from a configuration to a trained network, with everything that is needed to go on later.

A folder holds config.toml (every setting), build.json (what computed it), metrics.jsonl (one record per epoch),
checkpoint.safetensors (the last moment that was saved) and, once training has ended, weights.safetensors.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from . import process_group
from ._version import __version__
from .checkpoint import atomic_write, load_checkpoint, remove_leftovers, save_checkpoint
from .config import ClusterConfig, Config, StageConfig, differences, load_config, read_toml, to_toml
from .constants import INFRARED, VISIBLE
from .data import Dataset, Gallery, landsat_dataset, open_dataset
from .data.augment import bent_view, plain_view, toned_view
from .data.augment_rgb import exchanged_view, infrared_view, visible_view
from .data.image_files import read_bytes
from .evaluate import ProtocolResult, evaluate_protocol, purity, splits, used_samples
from .memory import ClusterMemory, InstanceMemory
from .models import TwoStreamNetwork, embed, resnet_two_stream, small_two_stream
from .out_of_memory import is_out_of_memory
from .process_group import Group, Watch
from .ranking import Rerank
from .schedules import neighborhood_size
from .tensorboard import event_log
from .train import Batches, EpochLabels, Hooks, Objective, Record, Stage, TrainingState, make_optimizer, train

CONFIG, BUILD, METRICS, CHECKPOINT, WEIGHTS = (
    "config.toml",
    "build.json",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "weights.safetensors",
)
# Where data lies and how fast it is read changes no result, so a run may go on with other values.
FREE_SETTINGS = {"data.root": "", "data.cache_bytes": 0, "data.num_workers": 0, "train.checkpoint_seconds": 0.0}
TENSORBOARD = "tensorboard"  # a folder, where that package is installed
Progress = Callable[[str, int, int], None]


# -------------------------------------------------------------------------------- from settings to what they stand for


def build_dataset(config: Config) -> Dataset:
    """The data set that a configuration names; ValueError or OSError if it is not there or damaged."""
    data = config.data
    if data.kind == "landsat":
        return landsat_dataset(
            num_crops=data.num_crops, train_share=data.train_share, validation=data.validation, seed=data.split_seed
        )
    if not data.root:
        raise ValueError(f"config: data.root must say where {data.kind} is; on the command line: --data PATH")
    settings = {"trial": data.trial} if data.kind == "regdb" else {}
    return open_dataset(
        data.kind,
        Path(data.root),
        height=data.height,
        width=data.width,
        cache_bytes=data.cache_bytes,
        num_workers=data.num_workers,
        skip_unreadable=data.skip_unreadable,
        **settings,
    )


def build_network(config: Config, num_channels: int) -> TwoStreamNetwork:
    """The network that a configuration names, with the weights that it starts from."""
    network, seed = config.network, config.train.seed
    known = {"imagenet": "imagenet", "random": None}
    weights = known[network.weights] if network.weights in known else Path(network.weights)
    if network.kind == "small":
        built = small_two_stream(
            num_channels=num_channels,
            width=network.width,
            stem_stride=network.stem_stride,
            grid=(network.grid_height, network.grid_width),
            embedding_dim=network.embedding_dim,
            mirrored=config.data.mirrored or num_channels != 1,  # views of colour images always are
            seed=seed,
        )
        return load_weights(built, weights) if isinstance(weights, Path) else built
    depths = {"resnet18": 18, "resnet50": 50}
    if network.kind not in depths:
        raise ValueError(f"config: network.kind must be one of small, {', '.join(depths)}, got {network.kind!r}")
    if num_channels != 3:
        raise ValueError(f"config: {network.kind} takes images of 3 channels, the data set has {num_channels}")
    return resnet_two_stream(depth=depths[network.kind], weights=weights, non_local=network.non_local, seed=seed)


def build_blank(config: Config, num_channels: int) -> TwoStreamNetwork:
    """The network that a configuration names, for weights that are about to replace its own: it reads no file."""
    return build_network(replace(config, network=replace(config.network, weights="random")), num_channels)


def build_stages(config: Config) -> tuple[Stage, ...]:
    """The stages that have epochs."""
    return tuple(_stage(stage, config) for stage in (config.stage1, config.stage2) if stage.num_epochs)


def _stage(stage: StageConfig, config: Config) -> Stage:
    return Stage(
        num_epochs=stage.num_epochs,
        per_modality=lambda epoch: cluster_settings(stage.per_modality, epoch, stage.num_epochs),
        joint=lambda epoch: cluster_settings(stage.joint, epoch, stage.num_epochs),
        learning_rate=lambda epoch: stage.learning_rate(epoch, stage.num_epochs),
        objective=Objective(joint=stage.joint_step, **asdict(config.objective)),
    )


def cluster_settings(cluster: ClusterConfig, epoch: int, num_epochs: int) -> dict[str, Any]:
    """What `dmic.train.cluster` is called with in one epoch of a stage."""
    k1 = max(1, round(cluster.k1(epoch, num_epochs)))
    return {
        "k1": k1,
        "k2": neighborhood_size(cluster.k2(epoch, num_epochs), k1),
        "eps": min(max(cluster.eps(epoch, num_epochs), 0.0), 1.0),
        "min_samples": cluster.min_samples,
        "expansion": cluster.expansion,
    }


def build_batches(config: Config, num_channels: int) -> Batches:
    """Batches whose views suit single-band crops or colour images."""
    views = {VISIBLE: (visible_view, exchanged_view), INFRARED: (infrared_view,)}
    if num_channels == 1:
        toned = {"monotone": toned_view, "bent": bent_view}[config.data.tone_curves]
        plain, toned = (partial(view, mirrored=config.data.mirrored) for view in (plain_view, toned))
        views = {VISIBLE: (plain, toned), INFRARED: (plain,)}
    settings = config.train
    return Batches(settings.num_iterations, settings.num_classes, settings.num_samples, views, settings.accumulate)


# ------------------------------------------------------------------------------------------------------ the run folder


class RunFolder:
    """The folder of one run, held by one process at a time: rank 0, where there are several."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def check(self, config: Config, *, resume: bool) -> None:
        """Raise ValueError unless the folder is fit for this run; changes nothing."""
        if resume and not (self / CONFIG).exists():
            raise ValueError(f"{self.path}: there is no run to resume, {CONFIG} is missing")
        if resume and (changed := differences(_fixed(read_toml(self / CONFIG)), _fixed(config))):
            raise ValueError(f"{self.path}: holds a run with other settings ({'; '.join(changed)})")
        if not resume and any((self / name).exists() for name in (CONFIG, METRICS, CHECKPOINT, WEIGHTS)):
            raise ValueError(f"{self.path}: holds a run already; continue it with --resume, or choose another --out")

    @contextmanager
    def held(self, config: Config, *, resume: bool) -> Iterator[None]:
        """Create the folder, or take it up if `resume`, and keep other processes out; errors say how to continue.

        Raises:
            ValueError: the folder holds another run or none to resume, is held by another process, or is not writable.
            Interrupted, OSError, MemoryError: from the block, with the command that continues the run.
        """
        self.check(config, resume=resume)
        with self._locked():
            self.check(config, resume=resume)  # another process may have been at work in between
            remove_leftovers(self.path)
            if not resume:
                with atomic_write(self / CONFIG) as file:
                    file.write(to_toml(config).encode())
            with self.resumable():
                yield

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Errors from the block say how to continue; all that ranks other than 0 do with the folder."""
        how = f"continue with: dmic train --resume --out {shlex.quote(str(self.path))}"
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(how) from None
        except OSError as error:
            raise OSError(f"{error}; once that is mended, {how}") from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(f"{error or 'out of memory'}; with more memory, {how}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self / ".lock").open("w")
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written to ({error.strerror}); choose another --out") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path}: another process is at work on this run") from None
            yield

    def log(self, record: Record) -> None:
        """Append a record to the metrics, and see it on the disk; NaN has no place in JSON and becomes null."""
        try:
            with (self / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(without_nan(record)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(f"{self / METRICS}: could not be written ({error.strerror})") from error

    def records(self) -> list[Record]:
        """The records so far; a line that a killed process did not finish is left out.

        Raises:
            ValueError: another line is not a record.
        """
        if not (self / METRICS).exists():
            return []
        records = []
        for number, line in enumerate((self / METRICS).read_text(encoding="utf-8").splitlines(keepends=True), 1):
            if line.endswith("\n"):
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{self / METRICS}:{number}: not a record ({error}); delete the line") from None
        return records

    def forget_after(self, epoch: int) -> None:
        """Drop the records of epochs after `epoch`; they will be trained again."""
        kept = [record for record in self.records() if record["epoch"] <= epoch]
        with atomic_write(self / METRICS) as file:
            file.write("".join(json.dumps(record) + "\n" for record in kept).encode())

    def save(self, state: TrainingState, gallery: Gallery) -> None:
        """Write the checkpoint; an earlier one stays until the new one is whole.

        Raises:
            ValueError: the weights are not finite: an earlier checkpoint is worth more.
            OSError: it cannot be written.
        """
        tensors, packed = pack_state(state)
        if not all(bool(tensor.isfinite().all()) for name, tensor in tensors.items() if name.startswith("network.")):
            raise ValueError(
                f"{self.path}: the weights are no longer finite in epoch {state.record['epoch']}; "
                "lower the learning rate or lengthen the warm-up, and start again"
            )
        save_checkpoint(self / CHECKPOINT, tensors, packed | {"gallery": _fingerprint(gallery)})

    def restore(self, network: TwoStreamNetwork, gallery: Gallery, group: Group = None) -> TrainingState:
        """The state that was saved last, around `network`, whose weights are overwritten; rank 0 reads it for all.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to another network or gallery.
        """
        path = self / CHECKPOINT
        saved = load_checkpoint(path) if process_group.rank(group) == 0 else None
        tensors, packed = process_group.broadcast_state(saved, group)
        if packed.get("gallery") != _fingerprint(gallery):
            raise ValueError(f"{path}: was trained on other images than these ({len(gallery)}), see data.root")
        try:
            return unpack_state(network, tensors, packed)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path}: does not hold the state of this network ({error})") from None


def _fingerprint(gallery: Gallery) -> str:
    """Which cameras and modalities a gallery has, image by image: labels and memories fit no other one."""
    return _digest(gallery.camera_ids.contiguous().numpy(), gallery.modality_ids.contiguous().numpy())


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _fixed(config: Config) -> Config:
    """The configuration with the settings that do not matter for results at one value."""
    data = {key.partition(".")[2]: value for key, value in FREE_SETTINGS.items() if key.startswith("data.")}
    training = {key.partition(".")[2]: value for key, value in FREE_SETTINGS.items() if key.startswith("train.")}
    return replace(config, data=replace(config.data, **data), train=replace(config.train, **training))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def without_nan(value: Any) -> Any:
    """The same record with None for every NaN and infinity."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


# -------------------------------------------------------------------------------------------- state to and from a file


def pack_state(state: TrainingState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by name, and the rest as JSON."""
    tensors = {f"network.{name}": tensor for name, tensor in state.network.state_dict().items()}
    packed: dict[str, Any] = {name: getattr(state, name) for name in ("stage", "epoch", "iteration", "record")}
    if state.optimizer is not None:
        for index, values in state.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        packed["weight_decay"] = state.optimizer.param_groups[0]["weight_decay"]
    if state.labels is not None:
        tensors |= {f"labels.{name}": getattr(state.labels, name) for name in ("visible", "infrared", "shared")}
    packed["memories"] = {name: memory.momentum for name, memory in state.memories.items()}
    for name, memory in state.memories.items():
        tensors |= {f"memory.{name}.{part}": tensor for part, tensor in memory.tensors().items()}
    return tensors, packed


def unpack_state(network: TwoStreamNetwork, tensors: dict[str, torch.Tensor], packed: dict[str, Any]) -> TrainingState:
    """The state that was packed, around a network of the same shape on any device; its weights are overwritten."""
    device = next(network.parameters()).device
    parts: dict[str, dict[str, torch.Tensor]] = {"network": {}, "optimizer": {}, "labels": {}, "memory": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    network.load_state_dict(parts["network"])
    state = TrainingState(network, **{name: packed[name] for name in ("stage", "epoch", "iteration", "record")})
    if "weight_decay" in packed:
        state.optimizer = make_optimizer(network, packed["weight_decay"])
        _fill_optimizer(state.optimizer, parts["optimizer"])
    if parts["labels"]:
        state.labels = EpochLabels(**{name: tensor.to(device) for name, tensor in parts["labels"].items()})
    for name, momentum in packed["memories"].items():
        start = f"{name}."
        saved = {key.removeprefix(start): t.to(device) for key, t in parts["memory"].items() if key.startswith(start)}
        kind = ClusterMemory if name.startswith("cluster_") else InstanceMemory
        state.memories[name] = kind(**saved, momentum=momentum)
    return state


def _fill_optimizer(optimizer: torch.optim.Adam, saved: dict[str, torch.Tensor]) -> None:
    """Adam's moments, in the memory layout of their parameters: another layout could round sums differently."""
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        values = {name.partition(".")[2]: value for name, value in saved.items() if name.startswith(f"{index}.")}
        for name, value in values.items():
            if value.dim():
                value = torch.empty_like(parameter).copy_(value)
            optimizer.state[parameter][name] = value


# ------------------------------------------------------------------------------------------------------------ training


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and its folder can be resumed; the message says how."""


class StopRequest:
    """Ctrl-C and SIGTERM ask for a stop at the next moment at which nothing is lost; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Only the main thread can listen to signals; elsewhere nothing is changed."""
        try:
            earlier = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            earlier = {}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def run_training(
    config: Config,
    folder: RunFolder,
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    report: Callable[[Record], None] = lambda record: None,
    progress: Progress | None = None,
    group: Group = None,
) -> tuple[TwoStreamNetwork, Dataset]:
    """Train as the configuration says, in its folder; what is interrupted or killed goes on with `resume`.

    Args:
        config: every setting.
        folder: new, or that of the same configuration with `resume`.
        resume: continue from the checkpoint; from the start if none was written yet.
        device: where the network is.
        report: called with every record as it is logged.
        progress: called as progress(phase, done, total).
        group: ranks that train together; rank 0 alone writes to the folder and reads from it. Any number of them can
            continue a run.

    Returns:
        The trained network in evaluation mode, and the data set.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state is saved, except by a second one.
        ValueError: the folder is not fit for this run, the ranks differ, or see `dmic.train.train`.
        OSError: a file cannot be read or written; another rank was lost: says which, and in which phase.
        MemoryError: of the machine or the GPU.
        Whatever is raised, the last checkpoint is whole.
    """
    watch = Watch(group)
    with watch.guard():
        return _run_training(watch, config, folder, resume, device, report, progress)


def _run_training(watch, config, folder, resume, device, report, progress) -> tuple[TwoStreamNetwork, Dataset]:
    group = watch.group
    is_main = process_group.rank(group) == 0
    if is_main:
        folder.check(config, resume=resume)  # before a large data set is opened
    agree_on_settings(config, group)
    dataset = build_dataset(config)
    agree_on_images("training images", dataset.train, group)
    agree_on_images("test images", dataset.test and dataset.test.unlabeled, group)
    num_channels = dataset.train.images.shape[1]
    saved = process_group.any_rank(is_main and resume and (folder / CHECKPOINT).exists(), group)
    with process_group.first_on_its_machine(group):
        network = (build_blank if saved else build_network)(config, num_channels).to(device)
    if not saved:  # else rank 0 sends them
        agree_on_weights(network, group)
    stages = build_stages(config)
    stop = StopRequest()
    holds = folder.held(config, resume=resume) if is_main else folder.resumable()
    with holds, watch.guard(), stop.listening():
        state = folder.restore(network, dataset.train, group) if saved else TrainingState(network)
        if is_main:
            folder.forget_after(sum(stage.num_epochs for stage in stages[: state.stage]) + state.epoch if saved else -1)
            with atomic_write(folder / BUILD) as file:
                file.write((json.dumps(describe_build(device, group), indent=1) + "\n").encode())
            tensorboard = event_log(folder / TENSORBOARD)
        last_saved = time.monotonic()

        def save(state: TrainingState) -> None:
            nonlocal last_saved
            if is_main:
                folder.save(state, dataset.train)
                last_saved = time.monotonic()

        def after_iteration(state: TrainingState) -> None:
            if time.monotonic() - last_saved >= config.train.checkpoint_seconds:
                save(state)
            if process_group.any_rank(stop.asked, group):
                save(state)
                process_group.barrier(group)  # torchrun ends the others as soon as one has left
                raise Interrupted

        def advance(phase: str, done: int, total: int) -> None:
            # Ranks that train stop together, after an iteration; elsewhere rank 0 leaves, and the others find it gone.
            if stop.asked and is_main and (group is None or phase != "train"):
                if not state.is_new:
                    save(state)
                raise Interrupted
            if progress:
                progress(phase, done, total)

        def log(record: Record) -> None:
            if is_main:
                folder.log(record)
                tensorboard(record)
                report(record)

        def evaluate(epoch: int) -> Record:
            is_last = epoch == config.num_epochs
            if dataset.test is None or (epoch % config.evaluate.every and not is_last):
                return {}
            features = embed_test(network, dataset, advance, group)
            rerank = config.evaluate.rerank and is_last
            results = score(features, dataset, rerank=rerank, group=group)
            return {"retrieval": [result.as_record() for result in results]}

        hooks = Hooks(
            evaluate=evaluate,
            inspect=lambda labels: known_quality(labels, dataset.train_person_ids),
            log=log,
            after_epoch=save,
            after_iteration=after_iteration,
            progress=advance,
            enter=watch.enter,
        )
        train(
            state,
            dataset.train,
            stages,
            build_batches(config, num_channels),
            weight_decay=config.train.weight_decay,
            warmup=config.train.warmup,
            seed=config.train.seed,
            hooks=hooks,
            ranks=group,
        )
        if is_main:
            weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
            with atomic_write(folder / WEIGHTS) as file:
                file.write(save_weights(weights))
    return network, dataset


def agree_on_settings(config: Config, group: Group) -> None:
    """Raise ValueError on every rank, as all of these do, unless all have the settings and the dmic of rank 0."""
    process_group.agree("settings", {"version of dmic": __version__, **_flat(asdict(_fixed(config)))}, group)


def agree_on_images(what: str, gallery: Gallery | None, group: Group) -> None:
    """Unless all have the same images: as many, of the same names and ids, and some of them byte for byte."""
    if group is None:
        return
    process_group.agree(what, {} if gallery is None else _image_marks(gallery), group)


def _image_marks(gallery: Gallery) -> Record:
    from .distributed import marked  # loads the compiled ops

    some, names = marked(len(gallery)), None
    if (paths := getattr(gallery.images, "paths", None)) is None:
        content = [gallery.images[torch.tensor(some, dtype=torch.int64)].reshape(-1).numpy()]
    else:
        content = [_content(paths[sample]) for sample in some]
        full = [os.path.abspath(path) for path in paths]
        folder = os.path.commonpath(full) if full else ""  # may lie elsewhere on every machine
        names = _digest(*(os.path.relpath(path, folder).encode() + b"\n" for path in full))
    return {
        "number of images": len(gallery),
        "names": names,
        "camera_ids": _digest(gallery.camera_ids.contiguous().numpy()),
        "modality_ids": _digest(gallery.modality_ids.contiguous().numpy()),
        "content, by a few images": _digest(*content),
    }


def _content(path: str) -> bytes:
    try:
        return read_bytes(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def agree_on_weights(network: TwoStreamNetwork, group: Group) -> None:
    """Unless all have a network with the same bits, which they may have read from files of their own."""
    if group is None:
        return
    tensors = (tensor.cpu().contiguous().reshape(-1) for tensor in network.state_dict().values())
    weights = _digest(*(tensor.view(torch.uint8).numpy() for tensor in tensors))
    process_group.agree("network", {"weights": weights}, group)


def save_weights(weights: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file of a network's weights."""
    return save(weights, metadata={"dmic": __version__})


def load_run(folder: Path, settings: tuple[str, ...] = ()) -> tuple[Config, TwoStreamNetwork]:
    """The configuration of a finished run, and its trained network on the CPU.

    Raises:
        ValueError: the folder holds no finished run, or weights that do not fit its configuration.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            advice = "; the run has not ended, `dmic train --resume` continues it" if name == WEIGHTS else ""
            raise ValueError(f"{folder}: not a finished run, {name} is missing{advice}")
    config = load_config(str(folder / CONFIG), settings)
    network = build_blank(config, 1 if config.data.kind == "landsat" else 3)
    return config, load_weights(network, folder / WEIGHTS).eval()


def load_weights(network: TwoStreamNetwork, path: Path) -> TwoStreamNetwork:
    """The network with the weights of a safetensors file; ValueError if they are not those of such a network."""
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{path}: does not hold the weights of this network ({error})") from None
    return network


def embed_test(
    network: TwoStreamNetwork, dataset: Dataset, progress: Progress | None = None, group: Group = None
) -> torch.Tensor:
    """Features float32 [N, d] by position in the test gallery; zero where no trial of a protocol looks."""
    rows = used_samples(dataset.protocols)
    found = embed(network, dataset.test.unlabeled, sample_idx=rows, progress=progress, group=group)
    return found.new_zeros(len(dataset.test.unlabeled), found.shape[1]).index_copy_(0, rows.to(found.device), found)


def score(
    features: torch.Tensor, dataset: Dataset, *, rerank: bool = False, group: Group = None
) -> list[ProtocolResult]:
    """The result of every protocol, and with `rerank` of every protocol once more, re-ranked."""
    ways = (None, Rerank()) if rerank else (None,)
    return [
        evaluate_protocol(features, dataset.test, protocol, rerank=way, group=group)
        for way in ways
        for protocol in dataset.protocols
    ]


def known_quality(labels: EpochLabels, person_ids: torch.Tensor | None) -> Record:
    """Purity and splits of every clustering, from the identities that training does not have; {} where nobody has."""
    if person_ids is None:
        return {}
    known = {}
    for name in ("visible", "infrared", "shared"):
        found = getattr(labels, name).cpu()
        known[name] = {"purity": purity(found, person_ids), "splits": splits(found, person_ids)}
    return {"known": known}


def describe_build(device: str | torch.device, group: Group = None) -> Record:
    """What computes a run: versions, the compiled library, the machine's shape. Nothing that names a machine."""
    from . import build_info

    device = torch.device(device)
    return {
        "dmic": __version__,
        "library": build_info(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": process_group.size(group),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "command": " ".join(["dmic", *sys.argv[1:]]) if sys.argv[0].endswith(("dmic", "__main__.py")) else "",
    }
