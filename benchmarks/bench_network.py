"""That the runs of benchmarks/network.py work and leave nothing behind; measures nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from . import measuring, network, traffic

MISSING = network.missing()
SMALL = ("--num-samples", "600", "--dim", "32", "--k1", "10", "--gbits", "0.1", "--delay-ms", "2")
separate = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def namespaces_of(process: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(f"dmic-{process}-")]


def packet_to(rank: int, nbytes: int) -> bytes:
    header = bytearray(network.HEADER + nbytes)
    header[network.HEADER] = 0x45
    header[network.HEADER + 19] = rank + 1
    return bytes(header)


def test_a_switch_keeps_rate_and_delay():
    files = [os.pipe() for _ in range(3)]
    try:
        switch = network.Switch([read for read, _ in files], network.Link(8e6, 0.5))  # a megabyte a second
        switch.accept(0, packet_to(2, 1000), now=10.0)
        switch.accept(0, packet_to(1, 3000), now=10.0)  # waits for the first to leave
        switch.accept(1, packet_to(2, 1000), now=10.0)  # arrives after the first
        switch.accept(1, packet_to(0, 1000), now=20.0)
        due = sorted((round(due, 6), target) for due, _, target, _ in switch.under_way)
        assert due == [(10.501, 2), (10.502, 2), (10.504, 1), (20.501, 0)]
        switch.accept(1, b"\0" * network.HEADER + b"\x60" + bytes(60), now=20.0)  # IPv6
        assert len(switch.under_way) == 4
    finally:
        for pipe in files:
            for file in pipe:
                os.close(file)


@separate
def test_separate_ranks_agree_and_send_what_is_counted(tmp_path, monkeypatch):
    results = tmp_path / "network.json"
    monkeypatch.setattr(sys, "argv", ["network", *SMALL, "--ranks", "2", "--results", str(results)])
    network.main()
    together, separate, slow = json.loads(results.read_text())["runs"]
    assert together["equal"]
    assert separate["equal"]
    assert slow["equal"]
    assert slow["clusters"] > 10
    for run in (separate, slow):
        for stage in traffic.STAGES:
            for rank in run["bytes"][stage]:
                assert rank["counted"] <= rank["wire"] <= 1.2 * rank["counted"] + 20_000, (stage, rank)
    assert namespaces_of(os.getpid()) == []
    messages = 2 + 4  # of the join, one after the other: a swap of lengths and one of rows, four exchanges of pairs
    assert slow["stages"]["jaccard_distance"] > messages * 0.002


@separate
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_run_that_is_stopped(tmp_path, by):
    command = [sys.executable, "-m", "benchmarks.network", *SMALL, "--results", str(tmp_path / "network.json")]
    process = subprocess.Popen(command, cwd=measuring.ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(namespaces_of(process.pid)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(by)
        assert process.wait(30) != 0
        assert namespaces_of(process.pid) == []
    finally:
        process.kill()
