"""Compiles and loads `native.cpp`, the kernels' CPU forms: about a second once per machine, then a
cached file.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def cache_folder() -> Path:
    """Where compiled code is kept between runs: ECHOSET_CACHE, else the user's cache folder;
    without one that can be written to, a folder of this process's own.
    """
    if given := os.environ.get("ECHOSET_CACHE"):
        return Path(given)
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echoset"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # no home at all
        return _own_folder()
    return folder if os.access(folder, os.W_OK) else _own_folder()


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="echoset-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def find_compiler() -> str | None:
    """CXX, else g++, clang++ or c++."""
    return (
        os.environ.get("CXX")
        or shutil.which("g++")
        or shutil.which("clang++")
        or shutil.which("c++")
    )


class _Library:
    """Loads once, and remembers why it could not."""

    problem: str | None = None
    _loaded: ctypes.CDLL | None = None

    def __call__(self) -> ctypes.CDLL | None:
        if self._loaded is None and self.problem is None:
            try:
                self._loaded = ctypes.CDLL(str(_build()))
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                detail = getattr(error, "stderr", None) or str(error)
                self.problem = " ".join(detail.split())[:300]
        return self._loaded


library = _Library()


def call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float) -> None:
    """Run a function of the library on tensors (by address), integers and floats; the number of
    threads is added.
    """
    function = getattr(library(), f"{name}_{DTYPES[dtype]}")
    function(*map(_as_c, arguments), ctypes.c_int(torch.get_num_threads()))


def as_rows(x: Tensor) -> Tensor:  # (B, C, *) -> (B, *, C)
    """As the kernels read it; no copy where channels are last in memory already."""
    return x.movedim(1, -1).contiguous()


def as_channels(rows: Tensor) -> Tensor:  # (B, *, C) -> (B, C, *)
    """The same memory; no view to autograd, which would forbid changing what a function of ours
    gives in place.
    """
    return rows.movedim(-1, 1).detach()


def _as_c(value: Tensor | int | float) -> Any:
    if isinstance(value, Tensor):
        if not value.is_contiguous():
            raise ValueError(
                f"a native kernel was given a tensor of strides {value.stride()}; it reads "
                "contiguous ones"
            )
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


def _build() -> Path:
    compiler = find_compiler()
    if compiler is None:
        raise OSError("no C++ compiler found (install g++, or set CXX)")
    openmp, words = _torch_openmp(), [compiler] if shutil.which(compiler) else shlex.split(compiler)
    said = {"capture_output": True, "text": True, "errors": "replace", "check": True}
    version = subprocess.run([*words, "--version"], **said).stdout
    # -march=native: the file belongs to this processor. The OpenMP runtime is linked by name, so
    # its path matters too.
    key = "\n".join(
        [
            SOURCE.read_text("utf-8"),
            version,
            *words[1:],
            *FLAGS,
            *openmp,
            platform.machine(),
            _processor_flags(),
        ]
    )
    target = cache_folder() / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            subprocess.run(
                [*words, *FLAGS, str(SOURCE), "-o", str(made), *openmp], timeout=300, **said
            )
            os.replace(
                made, target
            )  # several processes may build at once; the last one wins, all are the same
    return target


def _torch_openmp() -> list[str]:
    """The OpenMP runtime torch has loaded: a second one beside it would fight it for the cores."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return sorted(path for path in paths if re.match(r"lib(g|i)?omp[-.\d]", Path(path).name))[:1]


def _processor_flags() -> str:
    try:
        return next(
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        return platform.processor()
