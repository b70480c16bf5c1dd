"""A clustering over ranks that a slow network separates: bytes of each stage against the prediction, seconds, labels.

    python -m benchmarks.network --num-samples 20000 --ranks 2 4 --repeats 3      # as root

Every rank has a network namespace of its own, whose only way out is a TUN device. This process reads the packets of
all devices and hands them on when a link of the given rate and delay would have: each rank sends and receives at the
rate, nothing is lost. That needs no kernel module (netem is not everywhere). The kernel hands over TCP segments of up
to 64 KB, as it does to a network card. Runs over the loopback, without namespaces, are there to compare with.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import itertools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import dmic
from dmic import ops, process_group
from dmic.block_memory import Search, choose_block_rows

from . import measuring, traffic
from .scale import FILES, quality
from .sizes import generate_gallery

RESULTS = Path(__file__).parent / "results" / "network.json"
SUBNET = "10.213.0"  # of the namespaces, which nothing else sees
DEVICE = "rank-link"
PORT = 29500
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # linux/if_tun.h
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
HEADER = 10  # bytes of struct virtio_net_hdr, before every packet
QUEUE = 10_000  # packets that a device holds


@dataclass(frozen=True)
class Link:
    """Of every rank to a switch."""

    bits_per_second: float = float("inf")
    delay: float = 0.0  # seconds, one way

    def __str__(self) -> str:
        if self == Link():
            return "not shaped"
        return f"{self.bits_per_second / 1e9:g} Gbit/s, {1e3 * self.delay:g} ms"


class Switch:
    """Hands packets on between the devices of all ranks, at the rate and with the delay of their links."""

    def __init__(self, devices: list[int], link: Link):
        self.devices, self.link = devices, link
        self.sends_from = [0.0] * len(devices)  # when the link of a rank is free, each way
        self.arrives_from = [0.0] * len(devices)
        self.under_way: list[tuple[float, int, int, bytes]] = []
        self.number = itertools.count()
        self.poll = select.poll()
        for device in devices:
            self.poll.register(device, select.POLLIN)

    def accept(self, source: int, packet: bytes, now: float) -> None:
        target = packet[HEADER + 19] - 1  # the last byte of the address it goes to
        if packet[HEADER] >> 4 != 4 or not 0 <= target < len(self.devices):
            return  # not IPv4: a device that looks for its neighbours
        seconds = 8 * (len(packet) - HEADER) / self.link.bits_per_second
        sent = self.sends_from[source] = max(now, self.sends_from[source]) + seconds
        # A switch passes bits on as they come: receiving takes time of its own only where two send to one.
        arrives = self.arrives_from[target] = max(sent, self.arrives_from[target] + seconds)
        heapq.heappush(self.under_way, (arrives + self.link.delay, next(self.number), target, packet))

    def step(self, timeout: float) -> None:
        """Whatever is to be done now; returns after `timeout` seconds at the latest."""
        if self.under_way:
            timeout = min(timeout, max(0.0, self.under_way[0][0] - time.perf_counter()))
        readable = {device for device, _ in self.poll.poll(1e3 * timeout)}
        for source, device in enumerate(self.devices):
            if device in readable:
                self.accept(source, os.read(device, 1 << 17), time.perf_counter())
        while self.under_way and self.under_way[0][0] <= time.perf_counter():
            _, _, target, packet = heapq.heappop(self.under_way)
            os.write(self.devices[target], packet)


def ip(*arguments: str) -> None:
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")


def missing() -> str | None:
    """What keeps this machine from separating ranks, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the ip command is missing (iproute2)"
    try:
        with namespaces(1):
            return None
    except OSError as error:
        return f"no network namespace with a TUN device: {error}"


@contextmanager
def namespaces(ranks: int) -> Iterator[tuple[list[str], list[int]]]:
    """Names of so many namespaces and the files of their devices; both are gone afterwards, whatever happens."""
    with ExitStack() as stack:
        names, devices = [f"dmic-{os.getpid()}-{rank}" for rank in range(ranks)], []
        for rank, name in enumerate(names):
            device = os.open("/dev/net/tun", os.O_RDWR)
            stack.callback(os.close, device)  # and the network device is gone
            own = f"dmic{os.getpid()}-{rank}"[:15]
            flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", own.encode(), flags))
            fcntl.ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("link", "set", own, "netns", name, "name", DEVICE)
            ip("-n", name, "addr", "add", f"{SUBNET}.{rank + 1}/24", "dev", DEVICE)
            ip("-n", name, "link", "set", DEVICE, "txqueuelen", str(QUEUE), "up")
            ip("-n", name, "link", "set", "lo", "up")
            devices.append(device)
        yield names, devices


def on_the_wire() -> int:
    """Bytes that left this namespace so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == DEVICE:
            return int(numbers.split()[8])
    raise RuntimeError(f"there is no device {DEVICE}")


class Metered(traffic.Counted):
    """Reads the counter of the device between two phases, when all messages have arrived."""

    def __init__(self, group: process_group.Group):
        super().__init__()
        self.group, self.before, self.wire = group, on_the_wire(), {}

    def enter(self, phase: str) -> None:
        process_group.barrier(self.group)
        now = on_the_wire()
        self.wire[self.phase] = self.wire.get(self.phase, 0) + now - self.before
        self.before = now
        super().enter(phase)


def run_rank(folder: Path, out: Path, settings: dict) -> None:
    """What one rank does; the environment says which it is."""
    torch.set_num_threads(1)
    separate = settings.pop("separate")
    with process_group.started("cpu") as group:
        ids = {name: np.load(folder / f"{name}.npy") for name in ("camera_ids", "modality_ids")}
        process_group.barrier(group)
        counter = Metered(group) if separate else traffic.Counted()
        start = time.perf_counter()
        with traffic.counted(counter):
            found = dmic.pseudo_labels(folder / "features.npy", **ids, **settings, process_group=group)
            seconds = time.perf_counter() - start
            counter.enter("the end")
        labels = process_group.all_gather_rows(torch.as_tensor(found.labels), group)
        about = {"seconds": seconds, "stages": found.seconds, "sent": dict(counter.sent), "rounds": counter.rounds}
        about["wire"] = counter.wire if separate else None
        np.savez(out.with_name(f"{out.name}-{process_group.rank(group)}.npz"), labels=labels, about=json.dumps(about))


def run(folder: Path, ranks: int, link: Link | None, settings: dict) -> tuple[list[dict], np.ndarray]:
    """What each rank reports, and the labels."""
    settings = {**settings, "separate": link is not None}
    out = folder / "found"
    child = [sys.executable, "-m", "benchmarks.network", "--rank-of", str(folder), "--out", str(out)]
    child += ["--settings", json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
    with ExitStack() as stack:
        if link is None:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            prefixes, switch, address, device = [[]] * ranks, None, "127.0.0.1", "lo"
        else:
            names, devices = stack.enter_context(namespaces(ranks))
            prefixes = [["ip", "netns", "exec", name] for name in names]
            switch, address, device, port = Switch(devices, link), f"{SUBNET}.1", DEVICE, PORT
        environment |= {"MASTER_ADDR": address, "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": device}
        children = []
        for rank, prefix in enumerate(prefixes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(subprocess.Popen([*prefix, *child], env=environment | place, cwd=measuring.ROOT))
            stack.callback(children[-1].wait)
            stack.callback(children[-1].kill)
        while any(process.poll() is None for process in children):
            if switch:
                switch.step(0.05)
            else:
                time.sleep(0.05)
            if any(process.poll() for process in children):
                break
        if any(process.poll() != 0 for process in children):
            raise SystemExit(f"a rank of {ranks} over {link or 'the loopback'} has failed")
    reports, labels = [], None
    for rank in range(ranks):
        with np.load(f"{out}-{rank}.npz") as found:
            reports.append(json.loads(str(found["about"])))
            assert labels is None or np.array_equal(labels, found["labels"])
            labels = found["labels"]
    return reports, labels


def case_of(gallery: Any, ranks: int, settings: dict, rounds: int) -> traffic.Case:
    """As the ranks cut it, with what the data decides from the whole."""
    n, dim = gallery.features.shape
    search = Search(settings["k1"], settings["k2"], 0.6, 4)
    block_rows = choose_block_rows("network", n, -(-n // ranks), ranks, dim, search, settings["max_memory"])
    means = measured_means(gallery, search.k1, search.k2)
    return traffic.Case.even(n, ranks, block_rows, dim, k1=search.k1, k2=search.k2, rounds=rounds, **means)


def measured_means(gallery: Any, k1: int, k2: int) -> dict[str, float]:
    features, *ids = (torch.as_tensor(part) for part in (gallery.features, gallery.camera_ids, gallery.modality_ids))
    idx, _ = ops.knn_graph(features, k1)
    encoding = ops.k_reciprocal_encoding(features, idx, int(np.around(k1 / 2)))
    expanded = ops.invariant_expansion(encoding, idx, k2, *ids)
    lengths = {"encoding_length": encoding, "expanded_length": expanded}
    lengths["num_pairs"] = ops.jaccard_distance(expanded, 0.6)
    return {name: rows.nnz / len(features) for name, rows in lengths.items()}


def measure(
    folder: Path, gallery: Any, ranks: int, links: list[Link | None], settings: dict, want: np.ndarray, repeats: int
) -> list[dict]:
    rows = []
    for link in links:
        runs = [run(folder, ranks, link, settings) for _ in range(repeats)]
        took = [max(report["seconds"] for report in reports) for reports, _ in runs]
        reports, labels = runs[int(np.argmin(took))]
        case = case_of(gallery, ranks, settings, reports[0]["rounds"])
        shape = (
            None if link is None or link == Link() else {"bits_per_second": link.bits_per_second, "delay": link.delay}
        )
        row = {"num_samples": case.num_samples, "dim": case.dim, **settings, "ranks": ranks}
        row |= {"network": "loopback" if link is None else str(link), "link": shape, "block_rows": case.block_rows}
        row |= {name: getattr(case, name) for name in ("encoding_length", "expanded_length", "num_pairs", "rounds")}
        row |= {"seconds": min(took), "repeats": took}
        row["stages"] = {s: max(report["stages"][s] for report in reports) for s in traffic.STAGES}
        row["bytes"] = {
            stage: [
                {
                    "predicted": round(traffic.sent_bytes(case, rank)[stage]),
                    "counted": round(report["sent"][stage]),
                    "wire": report["wire"] and report["wire"][stage],
                }
                for rank, report in enumerate(reports)
            ]
            for stage in traffic.STAGES
        }
        equal = all(np.array_equal(found, want) for _, found in runs)
        row |= {"equal": equal, **quality(labels, gallery.person_ids)}
        rows.append(row)
    return rows


def show(rows: list[dict]) -> None:
    table = Table(
        "ranks", "network", "seconds", *traffic.STAGES, "MB of rank 0: predicted", "counted", "wire", "labels"
    )
    for row in rows:
        first = [ranks[0] for ranks in row["bytes"].values()]
        totals = [sum(part[kind] or 0 for part in first) for kind in ("predicted", "counted", "wire")]
        numbers = [f"{row['seconds']:.2f}", *(f"{row['stages'][stage]:.2f}" for stage in traffic.STAGES)]
        numbers += [f"{total / 1e6:.2f}" if total else "-" for total in totals]
        table.add_row(str(row["ranks"]), row["network"], *numbers, "equal" if row["equal"] else "WRONG")
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--images-per-identity", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--gbits", type=float, default=1.0, help="of a link, a second")
    parser.add_argument("--delay-ms", type=float, default=5.0, help="of a link, one way")
    parser.add_argument("--max-memory", type=int, default=1_000_000_000)
    parser.add_argument("--repeats", type=int, default=1, help="the fastest is kept")
    parser.add_argument("--k1", type=int, default=30)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        run_rank(options.rank_of, options.out, options.settings)
        return
    if (problem := missing()) is not None:
        raise SystemExit(f"benchmarks.network: {problem}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # namespaces are deleted on the way out
    torch.set_num_threads(1)
    about = {"command": f"python -m benchmarks.network {' '.join(sys.argv[1:])}".strip(), "commit": measuring.commit()}
    about |= {"machine": measuring.machine(), "versions": measuring.versions()}
    settings = {"k1": options.k1, "k2": options.k2, "max_memory": options.max_memory}
    gallery = generate_gallery(options.num_samples, options.dim, images_per_identity=options.images_per_identity)
    ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    want = np.asarray(dmic.pseudo_labels(gallery.features, **ids, k1=options.k1, k2=options.k2).labels)
    links = [None, Link(), Link(1e9 * options.gbits, 1e-3 * options.delay_ms)]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in FILES:
            np.save(Path(temporary) / f"{name}.npy", getattr(gallery, name))
        for ranks in options.ranks:
            rows += measure(Path(temporary), gallery, ranks, links, settings, want, options.repeats)
    show(rows)
    options.results.write_text(json.dumps({**about, "runs": rows}, indent=1) + "\n")
    if not all(row["equal"] for row in rows):
        raise SystemExit("labels differ")


if __name__ == "__main__":
    main()
