"""Claims in tests: a store as torchrun keeps it, and processes that claim by it."""

import socket
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from distill import claims, gathering, sharing
from distill.claims import Claims
from distill.runtime import Runtime
from distill.sharing import Share

needs_processes = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="there is no /proc here"
)
OPEN = []
"""Claims that are to be closed."""


def wait_for(what, seconds=120):
    """What there is to wait for, once it is there."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return what()


def kept_store(monkeypatch):
    """A store as torchrun keeps it, and this process the second of two."""
    kept = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in place_of(1, kept).items():
        monkeypatch.setenv(name, value)
    for module in (claims, sharing, gathering):
        monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(claims, "BEAT", 0.05)
    yield kept
    while OPEN:
        OPEN.pop().close()


def place_of(rank, store):
    """What torchrun tells one of two processes."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def claims_of(store, rank, name="work"):
    """Claims as of a process of another machine."""
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: f"machine-{rank}")
        OPEN.append(Claims(dist.PrefixStore(name, store), rank, 2))
    return OPEN[-1]


def share_of(store, rank, jobs):
    return Share(Runtime(rank=rank, world=2, quiet=True), jobs, claims_of(store, rank))
