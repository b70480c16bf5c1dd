"""Shared by all tests. This file also puts `generators`, `oracles` and `compare` on the import path."""

import os

import absent
import generators
import pytest
import torch

# bfloat16 convolutions of tiny images with AMX read memory that nobody wrote, and are NaN after tests that left NaN
# there (torch 2.14.1). The package computes in bfloat16 on GPUs alone; tests of autocast do on the CPU.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

placeholders = absent.Plugin(absent.absent())  # before other conftest files are imported


def pytest_configure(config):
    if placeholders.packages:
        config.pluginmanager.register(placeholders)


@pytest.fixture(scope="session")
def gallery() -> generators.Gallery:
    """300 samples of about 25 identities by six cameras of two modalities; 33 features."""
    return generators.gallery(300, 33)


@pytest.fixture
def threads():
    """Call it to set torch's number of threads; the test leaves no trace."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
