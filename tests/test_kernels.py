"""Which form a kernel runs in, and what the machine has for it."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from synthesis_kernels import backend
from synthesis_kernels.backend import (
    describe_forms,
    kernel_form,
    pick_form,
    repository_commit,
    resolve_device,
    resolve_precision,
)
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.native import find_compiler, library


@pytest.mark.skipif(
    sys.platform != "linux" or not find_compiler(), reason="no C++ compiler of a Linux here"
)
def test_the_native_kernels_compile():
    assert library() is not None, library.problem


def test_a_form_holds_inside_its_region_only():
    x = torch.zeros(1)
    automatic = pick_form(x)
    with kernel_form("reference"):
        assert pick_form(x) == "reference" and "reference, as asked" in describe_forms(x.device)
        with pytest.raises(ValueError), kernel_form("auto"):
            assert pick_form(x) == automatic
            raise ValueError
        assert pick_form(x) == "reference"
    assert pick_form(x) == automatic
    with pytest.raises(EchosetError, match="no kernel form 'cuda'"), kernel_form("cuda"):
        pass
    with kernel_form(
        "triton"
        if importlib.util.find_spec("triton") and not torch.cuda.is_available()
        else "reference"
    ):
        assert (
            pick_form(x, has=("reference", "native")) == "reference"
        )  # a kernel without the form asked for


@pytest.mark.parametrize(
    "told, threads",
    [("150000 100000", 1), ("200000 100000", 2), ("900000 100000", 3), ("max 100000", 3)],
)
def test_threads_are_no_more_than_a_container_may_use(tmp_path, monkeypatch, told, threads):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(3)
        (tmp_path / "cpu.max").write_text(told)
        backend.heed_quota(tmp_path / "none")
        backend.heed_quota(tmp_path / "cpu.max")
        assert torch.get_num_threads() == threads
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        backend.heed_quota(tmp_path / "cpu.max")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_triton_is_taken_only_where_its_driver_loads(monkeypatch):
    runtime = pytest.importorskip("triton.runtime", reason="triton is not installed")

    class Broken:
        @property
        def active(self):
            raise RuntimeError("Failed to find\n C compiler")

    monkeypatch.setattr(runtime, "driver", Broken())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend._driver_problem.cache_clear()
    try:
        expected = (
            "reference (plain torch), because triton can't run here: Failed to find C compiler"
        )
        assert describe_forms(torch.device("cuda")) == f"kernels: {expected}"
    finally:
        backend._driver_problem.cache_clear()


def test_results_do_without_git(monkeypatch):
    commit = repository_commit()
    assert commit is None or re.fullmatch("[0-9a-f]{7,40}(-dirty)?", commit)
    if commit:
        asked = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", ".", ":!configs/results"]
        assert commit.endswith("-dirty") == bool(subprocess.run(asked).returncode)
    monkeypatch.setenv("PATH", "/nowhere")
    assert repository_commit() is None


def test_a_device_asked_for_by_name_must_exist():
    if torch.cuda.is_available():
        assert resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(EchosetError, match="no CUDA device"):
            resolve_device("cuda")
    assert resolve_precision(torch.device("cpu"), "float32") is torch.float32
