"""Quantise a network with a set for calibration, beside real images, shaders and noise.

    python tools/use_quantisation.py --teacher cifar10-small --set runs/set --data cifar10.npz \
        --out configs/results/uses-quantisation.json

Cases: whole numbers of 8 bits by onnxruntime and by torch (torchao's pt2e), and of 4 bits by torch.
Weights have a scale for each channel, activations one for each layer. Real images for calibration
are of the training part; the test part judges. Needs onnx, onnxscript, onnxruntime and torchao.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from uses import Record, accuracy, draw, load_split, spread_over, use_parser
from verbs import plain_endings

from distill import Classifier, TransferSet
from distill.models.programs import save_program
from inversion import TeacherOptions, load_teacher
from synthesis_kernels.backend import keep_freed_memory, kernel_form

Answer = Callable[[Tensor], Tensor]
"""What a network answers to images in [0, 1]."""
BATCH = 64
"""Images that calibrate together."""


class Reader:
    """Images as onnxruntime asks for them."""

    def __init__(self, images: Tensor) -> None:  # (N, C, H, W) uint8
        self.batches: Iterator[Tensor] = iter(images.split(BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": (batch.float() / 255).numpy()}


class Programs(NamedTuple):
    """A network as the quantisers take it."""

    onnx: Path
    """An ONNX file, each BatchNorm folded into the convolution before it."""
    exported: torch.export.ExportedProgram
    """A program of torch.export."""


def write_programs(teacher: Classifier, folder: Path) -> Programs:
    """The network as an ONNX file and as a program of torch."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    save_program(teacher, folder / "network.onnx")
    save_program(teacher, folder / "network.pt2")
    quant_pre_process(folder / "network.onnx", folder / "folded.onnx", skip_symbolic_shape=True)
    return Programs(folder / "folded.onnx", torch.export.load(folder / "network.pt2"))


def by_onnxruntime(programs: Programs, images: Tensor, bits: int) -> Answer:
    """Static quantisation of onnxruntime: the range of each layer is what the images reach."""
    import onnxruntime
    from onnxruntime import quantization

    assert bits == 8
    quantised = programs.onnx.with_name("quantised.onnx")
    quantization.quantize_static(
        programs.onnx,
        quantised,
        Reader(images),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    session = onnxruntime.InferenceSession(quantised, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"images": pixels.numpy()})[0])


def by_torch(programs: Programs, images: Tensor, bits: int) -> Answer:
    """PT2E, as torchao has it: the range of each layer is chosen from a histogram."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    quantiser = X86InductorQuantizer().set_global(recipe_of(bits))
    prepared = prepare_pt2e(programs.exported.module(), quantiser)
    for batch in images.split(BATCH):
        prepared(batch.float() / 255)
    return convert_pt2e(prepared)


def recipe_of(bits: int) -> Any:
    """The quantiser's usual recipe, with numbers of so many bits."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    usual = copy.deepcopy(x86.get_default_x86_inductor_quantization_config())
    steps = 2**bits
    activation = _with_range(usual.input_activation, 0, steps - 1)
    weight = _with_range(usual.weight, -steps // 2, steps // 2 - 1)
    return x86.QuantizationConfig(activation, activation, weight, usual.bias, False)


def _with_range(spec: Any, least: int, most: int) -> Any:
    values = dict(vars(spec)) | {"quant_min": least, "quant_max": most}
    return type(spec)(**values)


CASES: dict[str, tuple[Callable[[Programs, Tensor, int], Answer], int]] = {
    "onnxruntime, 8 bits": (by_onnxruntime, 8),
    "torch, 8 bits": (by_torch, 8),
    "torch, 4 bits": (by_torch, 4),
}
"""How a network is quantised, and to how many bits."""


def run(given: Any, folder: Path) -> None:
    """Measure one network in every case, by every kind of images, and unquantised."""
    teacher = load_teacher(TeacherOptions(given.teacher)).eval().requires_grad_(False)
    made = TransferSet.load(given.set)
    train = load_split(given.data, "train", teacher)
    test = spread_over(load_split(given.data, "test", teacher), given.test)
    record = Record(given.out, {given.data: "DATA", given.set: "SET"})
    who = {"network": Path(given.teacher).stem, "set_size": given.images, "test_images": len(test)}
    whole = {"case": "not quantised", "images": "none", "seed": 0}
    record.measure({**who, **whole}, lambda: accuracy(teacher, test))
    programs = write_programs(teacher, folder)

    def measure(case: str, seed: int, kind: str) -> float:
        quantise, bits = CASES[case]
        images = draw(kind, given.images, seed, teacher, made, train)
        return accuracy(quantise(programs, images, bits), test)

    for case, seed, kind in product(given.cases, given.seeds, given.kinds):
        row = {**who, "case": case, "images": kind, "seed": seed}
        record.measure(row, partial(measure, case, seed, kind))


if __name__ == "__main__":
    parser = use_parser(__doc__)
    parser.set_defaults(images=256)
    parser.add_argument("--teacher", default="cifar10-small", help="the network to quantise")
    parser.add_argument("--set", required=True, help="a transfer set that was made from it")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    logging.disable(logging.WARNING)  # of the quantisers, about what does not matter here
    keep_freed_memory()
    with plain_endings(), TemporaryDirectory() as folder, kernel_form("reference"), torch.no_grad():
        run(parser.parse_args(), Path(folder))
