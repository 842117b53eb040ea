"""The limit that a step is measured against: what the machine does at best, and what a step asks of
it.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from inversion.bench.replays import Work
from inversion.bench.timing import Bench, precision_name
from synthesis_kernels import native
from synthesis_kernels.recording import REQUESTS


def ceilings(bench: Bench) -> dict[str, float]:
    """What the machine does at best: large matrix products (GFLOP/s, in float32 and in the
    precision measured) and a large copy (GB/s). Processors without bfloat16 are not asked for it:
    such a product takes them half a minute.
    """
    limits = {}
    for precision in dict.fromkeys([torch.float32, bench.precision]):
        limits[f"{precision_name(precision)}_gflops"] = matrix_rate(bench, precision)
    limits["copy_gb_per_s"] = copy_rate(bench)
    return limits


def matrix_rate(bench: Bench, precision: torch.dtype) -> float:
    """GFLOP/s of a large matrix product."""
    side = 8192 if bench.device.type == "cuda" else 2048
    a = torch.randn(side, side, device=bench.device).to(precision)
    b = torch.randn(side, side, device=bench.device).to(precision)
    out = torch.empty_like(a)
    works = bench.on_device(lambda: {"product": lambda: torch.mm(a, b, out=out)}, 3 * a.nbytes)
    times = bench.compare(**works)
    return 2 * side**3 / times["product"]["least_ms"] / 1e6


def copy_rate(bench: Bench) -> float:
    """GB/s that a large copy reads and writes."""
    source = torch.empty(64 << 20, device=bench.device)
    target = torch.empty_like(source)
    works = bench.on_device(lambda: {"copy": lambda: target.copy_(source)}, 2 * source.nbytes)
    times = bench.compare(**works)
    return 2 * source.numel() * 4 / times["copy"]["least_ms"] / 1e6


def count(step: Work) -> dict[str, float]:
    """What a step asks for: operations, multiply-adds, and bytes read and written. It is run three
    times, eagerly: there every operation shows itself.
    """
    step()
    with Multiplications() as flops:
        step()
    with Traffic() as traffic:
        step()
    return {
        "operations": traffic.operations,
        "gmac": flops.get_total_flops() / 2e9,
        "gigabytes": traffic.bytes / 1e9,
    }


class Multiplications(FlopCounterMode):
    """Counts floating-point operations, those of our convolutions among them: as many as any other
    form would do. Winograd's do a quarter to 9/16 of it, so the share of the limit can pass one.
    """

    def __init__(self) -> None:
        super().__init__(display=False)
        self.native = 0

    def __enter__(self) -> Self:
        native.listeners.append(self._hear)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        native.listeners.remove(self._hear)
        super().__exit__(*error)

    def get_total_flops(self) -> int:
        """Of the library's operations and of ours."""
        return super().get_total_flops() + self.native

    def _hear(self, kernel: Any, name: str, arguments: tuple[native.Argument, ...]) -> None:
        for prefix, taps in TAPS.items():
            if name.startswith(prefix):
                # After the tensors come batch, height, width, inputs and outputs.
                numbers = [each for each in arguments if type(each) is int][:5]
                if prefix.startswith("strided"):
                    numbers[1:3] = [-(-side // 2) for side in numbers[1:3]]
                self.native += 2 * taps * math.prod(numbers)


TAPS = {
    "conv3x3": 9,
    "narrow_conv3x3": 9,
    "norm_conv3x3": 9,
    "norm_conv3x3_backward": 9,  # once more: it makes both gradients
    "strided_conv1x1": 1,
    "strided_conv3x3": 9,
    "strided_pair": 10,  # 3×3 and 1×1, of as many outputs each
    "upsample_conv": 16,
}
"""Multiplications of a pixel for each pair of channels, by the beginning of a kernel's name."""


class Traffic(TorchDispatchMode):
    """Counts operations, and the bytes that they read and write. A view is none, and moves
    nothing; nor is asking for memory. On a GPU, where a small kernel takes as long as any other,
    their number is the time of a step. Calls of native kernels count as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations = 0

    def __enter__(self) -> Self:
        native.listeners.append(self._hear)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        native.listeners.remove(self._hear)
        super().__exit__(*error)

    def _hear(self, kernel: Any, name: str, arguments: tuple[native.Argument, ...]) -> None:
        self.operations += 1
        self.bytes += sum(_bytes_by_place(arguments).values())

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        out = function(*arguments, **(keywords or {}))
        read = _bytes_by_place((arguments, keywords))
        written = _bytes_by_place(out)
        is_view = written.keys() <= read.keys() and not function._schema.is_mutable
        if not is_view and function.overloadpacket not in REQUESTS:
            self.operations += 1
            self.bytes += sum(read.values()) + sum(written.values())
        return out


def _bytes_by_place(tree: Any) -> dict[int, int]:
    """The size of every tensor in the tree, by where it lies in memory."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
