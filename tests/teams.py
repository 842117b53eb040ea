"""Functions run by several real processes that are a team."""

import io
import os
import socket
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn

from distill.runtime import Runtime
from distill.team import SOLO, team_of
from synthesis_kernels.backend import kernel_form

LONGEST = 300
"""Seconds that a team may take."""


class Dense(nn.Module):
    """A decision for each pixel."""

    def __init__(self, classes=3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, classes, 1)
        )

    def forward(self, x):
        return self.layers(x)


def in_team(work, world=2, seconds="180"):
    """What `work(team)` gives in each of so many processes, which are forked from this one."""
    port = str(_free_port())
    with TemporaryDirectory() as folder:
        children = []
        for rank in range(world):
            child = os.fork()
            if not child:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ["ECHOSET_TEAM_SECONDS"] = seconds
                _work(work, rank, world, Path(folder) / str(rank))
            children.append(child)
        statuses = [_wait(child) for child in children]
        assert statuses == [0] * world, statuses
        files = [Path(folder) / str(rank) for rank in range(world)]
        return [torch.load(io.BytesIO(file.read_bytes()), weights_only=False) for file in files]


def _work(work, rank, world, file):
    status = 1
    try:
        torch.set_num_threads(1)
        runtime = Runtime(device="cpu", precision="float32", quiet=True, rank=rank, world=world)
        with team_of(runtime) as team:
            torch.save(work(team), file)
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def _wait(child):
    began = time.monotonic()
    while time.monotonic() - began < LONGEST:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "too slow"


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def doubles():
    """Everything in float64, in plain torch: what differs then is no rounding."""
    usual = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch, kernel_form("reference"):
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr("distill.models.classifier._cast", lambda network: [])
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(usual)


def assert_same(one, other, within=1e-9):
    """Tensors alike to so small a part of their largest number. What is 0 but for rounding, as the
    gradient of a bias before a BatchNorm, is measured by a thousandth of the largest of all.
    """
    assert len(one) == len(other)
    largest = max(float(b.abs().max()) for b in other)
    for a, b in zip(one, other, strict=True):
        apart = float((a - b).abs().max())
        assert apart <= within * max(float(b.abs().max()), largest / 1000), apart


__all__ = ["SOLO", "assert_same", "doubles", "in_team"]
