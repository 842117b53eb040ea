"""What this machine has: the device, whether bfloat16 pays on it, and which form of a kernel can
run.

Every kernel has up to three forms: `reference` (its definition in plain torch, anywhere), `native`
(C++ for the CPU, compiled on first use and cached) and `triton` (for CUDA; on a CPU only under
TRITON_INTERPRET=1, to test it).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from synthesis_kernels.errors import EchosetError

Form = Literal["auto", "reference", "native", "triton"]

_asked: Form = "auto"
_said: set[str] = set()


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA where there is one; a device asked for by name must exist.

    On CUDA, cuDNN is set to deterministic kernels without TF32: a seed shall fix the result, and
    the teacher's stored answers are float32 ones.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EchosetError(
            "device 'cuda' was asked for, but torch sees no CUDA device here; use --device cpu or "
            "auto"
        )
    if name.startswith("cuda"):
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def resolve_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """`auto` takes bfloat16 only where the processor multiplies it natively; emulated, it is slower
    than float32.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def forward_pass(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager:
    """The region a forward pass runs in: autocast to bfloat16, or none; in float32 on a CPU,
    Winograd's convolutions.
    """
    cast = torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16)
    if device.type != "cpu" or precision is not torch.float32 or torch.compiler.is_compiling():
        return cast
    from synthesis_kernels.conv3x3 import WinogradConvolutions, has_float32

    return _both(cast, WinogradConvolutions()) if has_float32() else cast


@contextlib.contextmanager
def _both(
    first: contextlib.AbstractContextManager, second: contextlib.AbstractContextManager
) -> Iterator[None]:
    with first, second:
        yield


def describe_device(device: torch.device) -> str:
    """For manifests and result files: what the figures were measured on."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = ""
    try:
        with open("/proc/cpuinfo") as file:
            model = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")),
                "",
            )
    except OSError:
        pass
    name = model or platform.processor() or platform.machine()
    return f"cpu: {name}, {torch.get_num_threads()} threads"


def keep_freed_memory() -> None:
    """Ask the C library to keep what is freed: each step frees and takes the same megabytes, and
    fresh pages cost time.

    The peak stays what it was. Does nothing where the C library has no such switch.
    """
    trim_threshold, mmap_threshold = (
        -1,
        -3,
    )  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (32 MB is its largest)
    with contextlib.suppress(OSError, AttributeError, TypeError):  # the last on Windows
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 32 << 20)
        library.mallopt(trim_threshold, (1 << 31) - 1)


def heed_quota(told: Path = Path("/sys/fs/cgroup/cpu.max")) -> None:
    """No more threads than the container may use cores, which torch doesn't see: those beyond would
    only wait for each other.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    with contextlib.suppress(OSError, ValueError):  # none is told, or "max"
        quota, period = told.read_text().split()
        torch.set_num_threads(max(1, min(torch.get_num_threads(), int(quota) // int(period))))


def say_once(message: str) -> None:
    """One line on standard error, the first time only."""
    if message not in _said:
        _said.add(message)
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def kernel_form(form: Form) -> Iterator[None]:
    """Inside, kernels run in this form instead of the one picked automatically; one that can't run
    here raises.
    """
    global _asked
    if form not in get_args(Form):
        raise EchosetError(f"no kernel form '{form}'; there are {', '.join(get_args(Form))}")
    before, _asked = _asked, form
    try:
        yield
    finally:
        _asked = before


def asked_form() -> Form:
    """What `kernel_form` asked for, or auto."""
    return _asked


def pick_form(x: Tensor, has: tuple[Form, ...] = ("reference", "native", "triton")) -> Form:
    """The form a kernel runs in for this tensor: what `kernel_form` asked for, else the fastest
    that runs here.

    `has` names the forms a kernel comes in; asked for another one, it takes its reference.
    """
    if _asked != "auto":
        problem = _why_not(_asked, x.device.type)
        if problem:
            raise EchosetError(f"kernels were asked for in their {_asked} form, but {problem}")
        return _asked if _asked in has else "reference"
    form: Form = "triton" if x.is_cuda else "native"
    return form if form in has and not _why_not(form, x.device.type) else "reference"


def describe_forms(device: torch.device) -> str:
    """Which form the kernels take on this device, and why not the fast one where that is so."""
    fast: Form = "triton" if device.type == "cuda" else "native"
    form = fast if _asked == "auto" else _asked
    problem = _why_not(form, device.type)
    if _asked != "auto":
        if problem:
            raise EchosetError(f"kernels were asked for in their {_asked} form, but {problem}")
        return f"kernels: {form}, as asked"
    if problem:
        return f"kernels: reference (plain torch), because {problem}"
    return f"kernels: {form}, the fastest form for {'CUDA' if form == 'triton' else 'a CPU'}"


def name_form(device: torch.device) -> str:
    """The form alone, which results depend on, and not why it was taken."""
    return (
        describe_forms(device)
        .partition(",")[0]
        .removeprefix("kernels: ")
        .removesuffix(" (plain torch)")
    )


def free_cycles(device: torch.device) -> None:
    """Captured steps and frozen networks know their owners: what they hold on a device is freed by
    the collector alone.
    """
    if device.type == "cuda":
        gc.collect()


@contextlib.contextmanager
def random_apart(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's own random numbers on the CPU and this device follow from the seed; after it
    they are as they were.
    """
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def repository_commit() -> str | None:
    """The commit of the repository that this code is run from, for results to name, with "-dirty"
    where tracked files, but for results, differ from it; None where there is none, or no git.
    """
    root = Path(__file__).resolve().parent.parent
    try:
        asked = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "--short", "HEAD"]
        found = subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")
        if Path(found[0]) != root:
            return None
        changed = [
            "git",
            "-C",
            str(root),
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ".",
            ":!configs/results",
        ]
        return found[1] + (
            "-dirty"
            if subprocess.run(changed, capture_output=True, text=True).stdout.strip()
            else ""
        )
    except OSError:
        return None


def _why_not(form: Form, device: str) -> str | None:
    if form == "native":
        if device != "cpu":
            return f"that is for CPU tensors, and these are on {device}"
        from synthesis_kernels.native import library

        return None if library() else f"it can't be compiled here: {library.problem}"
    if form == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed (pip install triton)"
        if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return (
                "triton needs a CUDA device (TRITON_INTERPRET=1 runs it on the CPU, slowly, for "
                "tests)"
            )
        if device == "cuda" and torch.cuda.is_available():
            return _driver_problem()
    return None


@functools.cache
def _driver_problem() -> str | None:
    """Triton compiles a part of itself on first use, with a C compiler and Python's headers."""
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # whatever a compiler or a driver says
        return f"triton can't run here: {' '.join(str(error).split())[:300]}"
    return None
