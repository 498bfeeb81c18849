"""What every test stands on: no network, one thread, deterministic arithmetic, and fixtures for
what may be absent.
"""

import gc
import ipaddress
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before torch, numpy and the model libraries are imported: they read these once.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
for _name in (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["EMLENS_STRICT_TABLES"] = "1"  # a table that breaks its declaration is an error

import jaxtyping
import numpy as np
import pytest
import torch


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]  # sendto takes data and flags first
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(str(address[0])):
            raise RuntimeError(
                f"a test tried to reach {address[0]}; tests connect to nothing but loopback"
            )
        return original(self, *arguments)

    return call


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Any connection but to loopback raises, and so does looking up a name."""
    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *arguments: Any, **named: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        if text is not None and not _is_loopback(str(text)):
            raise RuntimeError(
                f"a test tried to look up {text}; tests connect to nothing but loopback"
            )
        return look_up(host, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Global generators start alike in every test, so the order of tests cannot matter."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


_modules_at_freeze = 0


@pytest.fixture(scope="module", autouse=True)
def _imported_code_is_not_searched() -> None:
    """Full garbage collections skip what imports left behind.

    Accelerate collects after every training run; with all of torch and transformers to search,
    that took half the time of a short run.
    """
    global _modules_at_freeze
    if len(sys.modules) > _modules_at_freeze + 50:
        gc.collect()
        gc.freeze()
        _modules_at_freeze = len(sys.modules)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the shape checker off, so that a test sees the error a user sees."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def released_data() -> Path:
    """Files released with the papers, named by EMLENS_RELEASED_DATA."""
    named = os.environ.get("EMLENS_RELEASED_DATA")
    if not named:
        pytest.skip("EMLENS_RELEASED_DATA is not set: it names the folder of released result files")
    path = Path(named)
    if not path.is_dir():
        pytest.fail(f"EMLENS_RELEASED_DATA={named} is not a directory")
    return path


@pytest.fixture(scope="session")
def real_models() -> Path:
    """Folder of the real models that were fetched, named by EMLENS_REAL_MODELS."""
    folder = os.environ.get("EMLENS_REAL_MODELS")
    if not folder:
        pytest.skip("EMLENS_REAL_MODELS is not set: it names the folder of fetched real models")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"EMLENS_REAL_MODELS={folder} is not a directory")
    return path


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A headless Chromium: the system's, or the one playwright installed for itself.

    Of one module, since an event loop of playwright's runs until it is closed: no test beside it
    could start its own.
    """
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: it drives the browser"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    with api.sync_playwright() as driver:
        executable = found or driver.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip(f"no browser here: none of {', '.join(names)} is on the path")
        launched = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
