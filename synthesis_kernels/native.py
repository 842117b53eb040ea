"""Compiles and loads the kernels' CPU forms in `cpp/`: seconds once per machine, then a cached
file.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from synthesis_kernels.kept import Kept, cache_folder

SOURCES = Path(__file__).with_name("cpp")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def find_compiler() -> str | None:
    """CXX, else g++, clang++ or c++."""
    chosen = os.environ.get("CXX")
    return chosen or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")


class _Library:
    """Loads once, and remembers why it could not."""

    problem: str | None = None
    _loaded: ctypes.CDLL | None = None

    def __call__(self) -> ctypes.CDLL | None:
        if self._loaded is None and self.problem is None:
            try:
                self._loaded = _load()
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                detail = getattr(error, "stderr", None) or str(error)
                self.problem = " ".join(detail.split())[:300]
        return self._loaded


library = _Library()


def has(name: str) -> bool:
    """Whether there is a library here with this function, which some processors lack."""
    loaded = library()
    return loaded is not None and hasattr(loaded, name)


Given = ParamSpec("Given")
Found = TypeVar("Found")


def unwatched(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """The function, into which no mode looks: the one that puts our convolutions in the library's
    place would see every type and size that it asks for.
    """

    @functools.wraps(function)
    def alone(*arguments: Given.args, **named: Given.kwargs) -> Found:
        with torch._C.DisableTorchFunction():
            return function(*arguments, **named)

    return alone


class Function(torch.autograd.Function):
    """One whose body is `unwatched`."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return super().apply(*arguments)


class Memory:
    """A tensor that need not be contiguous: its function is told its strides."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


Argument = Tensor | Memory | int | float | None
listeners: list[Callable[[Any, str, tuple[Argument, ...]], None]] = []
"""Told of every call, by its function, its name and its arguments: the dispatcher does not see
them. Of a step that is replayed (`tape.py`) nobody is told.
"""


def call(name: str, dtype: torch.dtype, *arguments: Argument) -> int:
    """Run a function of the library on tensors (by address, None is none), integers and floats; the
    number of threads is added. What it gives means something where the function returns a number.
    """
    function = getattr(library(), f"{name}_{DTYPES[dtype]}")
    # Types are told once: to make a C object of every number takes longer than many a kernel.
    if function.argtypes is None:
        function.argtypes = [*map(_type_of, arguments), ctypes.c_int]
    result: int = function(*map(_as_c, arguments), torch.get_num_threads())
    for listen in listeners:
        listen(function, name, arguments)
    return result


def as_rows(x: Tensor) -> Tensor:  # (B, C, *) -> (B, *, C)
    """As the kernels read it; no copy where channels are last in memory already."""
    return x.movedim(1, -1).contiguous()


def as_channels(rows: Tensor) -> Tensor:  # (B, *, C) -> (B, C, *)
    """The same memory; no view to autograd, which would forbid changing what a function of ours
    gives in place.
    """
    return rows.movedim(-1, 1).detach()


def channel_sums(rows: Tensor) -> Tensor:  # (*, C) -> (C,) float32, or float64 of float64
    """The sum of every channel."""
    channels = rows.shape[-1]
    wide = torch.float64 if rows.dtype is torch.float64 else torch.float32
    sums = rows.new_zeros(torch.get_num_threads(), channels, dtype=wide)
    call("channel_sums", rows.dtype, rows, sums, rows.numel() // channels, channels)
    return sums[0]


def _type_of(value: Argument) -> type[ctypes.c_void_p | ctypes.c_float | ctypes.c_int64]:
    if isinstance(value, float):
        return ctypes.c_float
    return ctypes.c_int64 if isinstance(value, int) else ctypes.c_void_p


def _as_c(value: Argument) -> int | float | None:
    """A number as it is, and a tensor's address."""
    if isinstance(value, Tensor):
        if not value.is_contiguous():
            raise ValueError(
                f"a native kernel was given a tensor of strides {value.stride()}; it reads "
                "contiguous ones"
            )
        return value.data_ptr()
    return value.tensor.data_ptr() if isinstance(value, Memory) else value


def _load() -> ctypes.CDLL:
    """The compiled library, compiled now unless an earlier run left it."""
    compiler = find_compiler()
    if compiler is None:
        raise OSError("no C++ compiler found (install g++, or set CXX)")
    words = [compiler] if shutil.which(compiler) else shlex.split(compiler)
    openmp = _torch_openmp()
    version = _run([*words, "--version"])
    # -march=native: the file belongs to this processor. The OpenMP runtime is linked by name, so
    # its path matters too.
    machine = [platform.machine(), _processor_flags()]
    files = [path for kind in ("*.h", "*.cpp") for path in sorted(SOURCES.glob(kind))]
    code = [path.read_text("utf-8") for path in files]
    key = "\n".join([*code, version, *words[1:], *FLAGS, *openmp, *machine])
    name = f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    kept = Kept(cache_folder(), name)
    found = kept.load()
    if found is not None:
        return found
    units = [path for path in files if path.suffix == ".cpp"]
    print("compiling the kernels for this processor: some twenty seconds, once", file=sys.stderr)
    return kept.make(lambda made: _compile(words, units, made, openmp))


def _compile(words: list[str], units: list[Path], made: Path, openmp: list[str]) -> None:
    """Compile and link the units."""
    objects = [str(made.with_name(f"{unit.stem}.o")) for unit in units]
    compiled = [
        [*words, *FLAGS, "-c", str(unit), "-o", out]
        for unit, out in zip(units, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as team:
        list(team.map(_run, compiled))
    _run([*words, *FLAGS, *objects, "-o", str(made), *openmp])


def _run(command: list[str]) -> str:
    """What a command prints; it raises where the command fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=300
    )
    return done.stdout


def _torch_openmp() -> list[str]:
    """The OpenMP runtime torch has loaded: a second one beside it would fight it for the cores."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    mapped = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    runtimes = [path for path in mapped if re.match(r"lib(g|i)?omp[-.\d]", Path(path).name)]
    return sorted(runtimes)[:1]


def _processor_flags() -> str:
    """The processor's instructions by name, as Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("flags", "Features")):
            return line
    return platform.processor()
