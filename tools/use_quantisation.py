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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from uses import Record, accuracy, draw, load_split, use_parser
from verbs import plain_endings

from distill import Classifier, TransferSet
from distill.models.programs import save_program
from inversion import TeacherOptions, load_teacher
from synthesis_kernels.backend import kernel_form

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


def by_onnxruntime(teacher: Classifier, images: Tensor, bits: int) -> Answer:
    """Static quantisation of onnxruntime: the range of each layer is what the images reach."""
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert bits == 8
    with TemporaryDirectory() as folder:
        program, folded, quantised = (Path(folder) / f"{name}.onnx" for name in "pfq")
        save_program(teacher, program)
        quant_pre_process(program, folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            quantised,
            Reader(images),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        session = onnxruntime.InferenceSession(quantised, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"images": pixels.numpy()})[0])


def by_torch(teacher: Classifier, images: Tensor, bits: int) -> Answer:
    """PT2E, as torchao has it: the range of each layer is chosen from a histogram."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    pixels = images.float() / 255
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(teacher, (pixels[:2],), dynamic_shapes=shapes).module()
    quantiser = X86InductorQuantizer().set_global(recipe_of(bits))
    prepared = prepare_pt2e(program, quantiser)
    for batch in pixels.split(BATCH):
        prepared(batch)
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


CASES: dict[str, tuple[Callable[[Classifier, Tensor, int], Answer], int]] = {
    "onnxruntime, 8 bits": (by_onnxruntime, 8),
    "torch, 8 bits": (by_torch, 8),
    "torch, 4 bits": (by_torch, 4),
}
"""How a network is quantised, and to how many bits."""


def run(given: Any) -> None:
    """Measure one network in every case, by every kind of images, and unquantised."""
    teacher = load_teacher(TeacherOptions(given.teacher)).eval().requires_grad_(False)
    made = TransferSet.load(given.set)
    train = load_split(given.data, "train", teacher)
    test = load_split(given.data, "test", teacher)
    record = Record(given.out, {given.data: "DATA", given.set: "SET"})

    def measure(case: str, kind: str, seed: int, build: Callable[[], Answer]) -> None:
        who = {"network": given.teacher, "case": case, "images": kind, "seed": seed}
        record.measure({**who, "set_size": given.images}, lambda: accuracy(build(), test))

    with kernel_form("reference"), torch.no_grad():
        measure("not quantised", "none", 0, lambda: teacher)
        for case in given.cases:
            quantise, bits = CASES[case]
            for seed in given.seeds:
                for kind in given.kinds:
                    images = draw(kind, given.images, seed, teacher, made, train)
                    measure(case, kind, seed, lambda: quantise(teacher, images, bits))  # noqa: B023


if __name__ == "__main__":
    parser = use_parser(__doc__)
    parser.set_defaults(images=256)
    parser.add_argument("--teacher", default="cifar10-small", help="the network to quantise")
    parser.add_argument("--set", required=True, help="a transfer set that was made from it")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    logging.disable(logging.WARNING)  # of the quantisers, about what does not matter here
    with plain_endings():
        run(parser.parse_args())
