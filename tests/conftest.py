"""What every test stands on: one thread, no network, runs in a folder of their own, the toy plugin installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


def pytest_configure(config):
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Only local sockets: the suite must not need, or silently use, the network."""
    real = socket.socket.connect

    def connect(self, address):
        local = self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise AssertionError(f"a test tried to connect to {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def runs(tmp_path_factory, monkeypatch):
    """A fresh runs folder per test."""
    folder = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("CAMBRIAN_RUNS", str(folder))
    return folder


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory):
    """A folder into which pip installed the toy plugin package."""
    work = tmp_path_factory.mktemp("plugin")
    shutil.copytree(HERE / "plugin", work / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
               "--disable-pip-version-check", "--target", str(work / "site"), str(work / "source")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return work / "site"


@pytest.fixture
def toy(plugin_folder, monkeypatch):
    """The toy system, registered through its entry point; gives its module."""
    import importlib

    from cambrian.engine import registry

    monkeypatch.syspath_prepend(str(plugin_folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(plugin_folder), os.environ.get("PYTHONPATH", "")]))
    registry.cards.cache_clear()
    yield importlib.import_module("cambrian_toy")
    registry.cards.cache_clear()


@pytest.fixture
def real_data():
    """The folder of real data; the test is skipped where `CAMBRIAN_DATA` is unset."""
    home = os.environ.get("CAMBRIAN_DATA")
    if not home:
        pytest.skip("needs real data: set CAMBRIAN_DATA")
    return Path(home)
