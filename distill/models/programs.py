"""A network as a program that needs nothing of this project: an ONNX file, or one of torch.export.

The normaliser is inside: a program takes images in [0, 1], as many as there are, and gives logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.files import write_atomically
from distill.models.classifier import Classifier
from distill.models.modes import evaluating
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError, reason_of

TOLERANCE = 1e-4
"""How far a program's logits may be from the network's, in parts of the largest one above 1."""
BATCHES = (2, 1, 5)
"""Sizes of the batches that are compared; the first one is the example."""
BATCH = torch.export.Dim.DYNAMIC
Answer = Callable[[Tensor], Tensor]
"""What a program answers to images."""


class Compared(NamedTuple):
    """How a written program compares with the network."""

    runtime: str | None
    """What ran it; None where nothing here can."""
    gap: float | None
    """Largest difference of a logit, in parts of the largest one above 1."""


def check_ending(path: str) -> None:
    """Refuse a file whose name says no known form."""
    if Path(path).suffix not in FORMS:
        known = " or ".join(FORMS)
        raise EchosetError(f"--out is the file to write and should end in {known}, got {path}")


def save_program(classifier: Classifier, path: str | Path) -> Compared:
    """Write the network as a program in the form that the file's ending says, and compare their
    answers. A program that answers otherwise is not kept.
    """
    path = Path(path)
    check_ending(str(path))
    form = FORMS[path.suffix]
    classifier = classifier.cpu()
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        with evaluating(classifier), torch.no_grad(), kernel_form("reference"):
            form.require()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    form.write(classifier, temporary)
            except Exception as error:  # whatever a network makes the tracer raise
                raise EchosetError(
                    f"{classifier.spec.model} can't be written as {path.suffix}: {reason_of(error)}"
                ) from error
            compared = _compare(classifier, form, temporary)
        write_atomically(path, temporary.read_bytes())
    return compared


def _compare(classifier: Classifier, form: Form, path: Path) -> Compared:
    """The largest gap over batches of several sizes; too large a one is refused."""
    opened = form.open(path)
    if opened is None:
        return Compared(None, None)
    runtime, answer = opened
    gap = 0.0
    for batch in BATCHES:
        images = _make_images(classifier, batch)
        expected = classifier(images)
        given = answer(images)
        if given.shape != expected.shape:
            raise EchosetError(
                f"under {runtime} the program answers {tuple(given.shape)} to {batch} images, "
                f"expected {tuple(expected.shape)}; it was not kept"
            )
        largest = max(1.0, expected.abs().max().item())
        gap = max(gap, (given - expected).abs().max().item() / largest)
    if not gap <= TOLERANCE:
        raise EchosetError(
            f"under {runtime} the program's logits differ by {gap:.1e} from the network's, and "
            f"{TOLERANCE:g} is allowed; it was not kept"
        )
    return Compared(runtime, gap)


def _make_images(classifier: Classifier, batch: int) -> Tensor:  # (B, C, H, W) in [0, 1]
    """The same random images at every call."""
    spec = classifier.spec
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, *spec.shape, generator=generator)


def _needs_nothing() -> None:
    """A form that torch writes by itself."""


def _write_exported(classifier: Classifier, path: Path) -> None:
    torch.export.save(_trace(classifier), str(path))


def _trace(classifier: Classifier) -> Any:
    images = _make_images(classifier, BATCHES[0])
    program = torch.export.export(classifier, (images,), dynamic_shapes=({0: BATCH},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def _open_exported(path: Path) -> tuple[str, Answer]:
    return f"torch {torch.__version__}", torch.export.load(str(path)).module()


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EchosetError(
            f"an .onnx file needs onnx and onnxscript: pip install 'echoset[onnx]' ({error}); or "
            "write a .pt2 file, which needs nothing more"
        ) from error


def _write_onnx(classifier: Classifier, path: Path) -> None:
    with redirect_stdout(StringIO()):  # the exporter tells of its passes
        torch.onnx.export(
            _trace(classifier),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        ).save(str(path), external_data=False)  # type: ignore[union-attr]


def _open_onnx(path: Path) -> tuple[str, Answer] | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return f"onnxruntime {onnxruntime.__version__}", answer


class Form(NamedTuple):
    """A form of program."""

    require: Callable[[], None]
    """Refuses to begin where a package is missing."""
    write: Callable[[Classifier, Path], None]
    open: Callable[[Path], tuple[str, Answer] | None]
    """The name of what runs a program, and its answers; None where it is missing."""


FORMS = {
    ".onnx": Form(_require_onnx, _write_onnx, _open_onnx),
    ".pt2": Form(_needs_nothing, _write_exported, _open_exported),
}
"""The forms of programs, by the endings of their files."""
