"""What this machine has: its device, whether bfloat16 pays on it, and which form of a kernel runs.

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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from synthesis_kernels.choices import Form
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.terminal import plain

# Names of glibc's settings, for its mallopt, and the largest threshold that it takes: 32 MB.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_MMAP_THRESHOLD = 32 << 20

_asked: Form = "auto"
_said: set[str] = set()


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA where there is one; a device asked for by name must exist.

    On CUDA, cuDNN is set to deterministic kernels without TF32: a seed shall fix the result, and
    the teacher's stored answers are float32 ones.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not name.startswith("cuda"):
        return torch.device(name)
    if not torch.cuda.is_available():
        raise EchosetError(
            "device 'cuda' was asked for, but torch sees no CUDA device here; use --device cpu or "
            "auto"
        )
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def resolve_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """`auto` takes bfloat16 where the processor multiplies it natively: emulated, it is slower than
    float32.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def forward_pass(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """The region that a forward pass runs in: autocast to bfloat16, or none; on a CPU with
    Winograd's convolutions.
    """
    cast = torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16)
    if device.type != "cpu" or torch.compiler.is_compiling():
        return cast
    from synthesis_kernels.conv3x3 import WinogradConvolutions, has

    if not has(precision):
        return cast
    return _both(cast, WinogradConvolutions())


@contextlib.contextmanager
def _both(
    first: AbstractContextManager[object], second: AbstractContextManager[object]
) -> Iterator[None]:
    with first, second:
        yield


def describe_device(device: torch.device) -> str:
    """For manifests and result files: what the figures were measured on."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    name = _processor_name() or platform.processor() or platform.machine()
    return f"cpu: {name}, {torch.get_num_threads()} threads"


def _processor_name() -> str:
    """What Linux calls the processor; empty where it does not say."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def keep_freed_memory() -> None:
    """Ask the C library to keep what is freed: each step frees and takes the same megabytes, and
    fresh pages cost time.

    The peak stays what it was. Does nothing where the C library has no such switch.
    """
    # Windows raises the TypeError.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def heed_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> None:
    """Take no more threads than the container may use cores, which torch does not see: those beyond
    would only wait for each other.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    # There may be no such file, and a quota of "max" is no number.
    with contextlib.suppress(OSError, ValueError):
        quota, period = file.read_text().split()
        cores = int(quota) // int(period)
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores)))


def say_once(message: str) -> None:
    """One line on standard error, the first time only."""
    if message not in _said:
        _said.add(message)
        print(plain(message), file=sys.stderr, flush=True)


@contextlib.contextmanager
def kernel_form(form: Form) -> Iterator[None]:
    """Inside, kernels run in this form instead of the one picked automatically; one that can't run
    here raises.
    """
    global _asked
    if form not in get_args(Form):
        raise EchosetError(f"no kernel form '{form}'; there are {', '.join(get_args(Form))}")
    before = _asked
    _asked = form
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
        _require(_asked, x.device.type)
        return _asked if _asked in has else "reference"
    form = _fast_form(x.device.type)
    if form in has and not _why_not(form, x.device.type):
        return form
    return "reference"


def describe_forms(device: torch.device) -> str:
    """Which form the kernels take on this device, and why not the fast one where that is so."""
    if _asked != "auto":
        _require(_asked, device.type)
        return f"kernels: {_asked}, as asked"
    form = _fast_form(device.type)
    problem = _why_not(form, device.type)
    if problem:
        return f"kernels: reference (plain torch), because {problem}"
    kind = "CUDA" if form == "triton" else "a CPU"
    return f"kernels: {form}, the fastest form for {kind}"


def name_form(device: torch.device) -> str:
    """The form alone, which results depend on, and not why it was taken."""
    sentence = describe_forms(device).partition(",")[0]
    return sentence.removeprefix("kernels: ").removesuffix(" (plain torch)")


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
        answer = _git(root, "rev-parse", "--show-toplevel", "--short", "HEAD").split("\n")
        if Path(answer[0]) != root:
            return None
        others = [".", ":!configs/results"]
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *others)
    except OSError:
        return None
    commit = answer[1]
    return f"{commit}-dirty" if changed.strip() else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout


def _fast_form(device: str) -> Form:
    return "triton" if device == "cuda" else "native"


def _require(form: Form, device: str) -> None:
    """Refuse a form that was asked for and can't run."""
    problem = _why_not(form, device)
    if problem:
        raise EchosetError(f"kernels were asked for in their {form} form, but {problem}")


def _why_not(form: Form, device: str) -> str | None:
    """What keeps a form from running on this device, or None."""
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
