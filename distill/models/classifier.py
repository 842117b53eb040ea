"""A network together with what it expects of an image: the one form in which the project handles
teachers and students.

A `Classifier` takes images in [0, 1] and normalises them itself, so nothing else needs to know
about means. Saved, it is one safetensors file whose metadata rebuilds it: `save_classifier(student,
path)`, then `load_classifier(path)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from distill.models.contract import check_normaliser
from distill.models.description import hash_tensors
from distill.models.modes import device_of, evaluating, modes_kept
from distill.models.outputs import pick, say_task, to_logits
from distill.models.settling import Output, find_output, say_refusal
from distill.models.weights import require_tensors
from distill.names import known_names
from distill.options import OutputForm
from distill.sizes import Size, settle_size, sides
from distill.tasks import USUAL, Task, find_task
from synthesis_kernels.backend import kernel_form, say_once
from synthesis_kernels.errors import EchosetError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class ModelSpec:
    """How to build the network, and what images it takes."""

    model: str
    """A zoo name, a torchvision name or an import path."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor."""
    channels: int = 1
    size: Size = 28
    """Side of the square input in pixels, or its height and width."""
    classes: int = 10
    task: str = USUAL
    """What a decision is: a name in `distill.tasks`."""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    output: str | None = None
    """Where the logits lie in an answer of several tensors: a key, an attribute or a place; dots
    lead further in. None: the answer is a tensor, or the obvious one is found.
    """
    output_form: OutputForm | None = None
    """What the numbers there are. None: logits, or what they are found to be."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Anything worth keeping with the weights: recipe, seed, accuracy."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", settle_size(self.size))
        forms = get_args(OutputForm)
        if self.output_form is not None and self.output_form not in forms:
            raise EchosetError(
                f"output_form must be one of {', '.join(forms)}, got {self.output_form!r}"
            )

    @property
    def height(self) -> int:
        """Of the input, in pixels."""
        return sides(self.size)[0]

    @property
    def width(self) -> int:
        """Of the input, in pixels."""
        return sides(self.size)[1]

    @property
    def side(self) -> int:
        """The shorter side, of which a shift or a square is said to be a part."""
        return min(sides(self.size))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W)."""
        return (self.channels, *sides(self.size))


OUTPUT = ("output", "output_form")
"""What the spec says of a network's answers that are no plain logits."""
OF_THE_NETWORK = ("model", "arguments", "notes", *OUTPUT)
CONTRACT = tuple(one.name for one in fields(ModelSpec) if one.name not in OF_THE_NETWORK)
"""What the spec says of images and logits, and not of the network itself."""


class Classifier(nn.Module):
    """`network` behind its normaliser."""

    mean: Tensor
    std: Tensor
    named: Mapping[str, Any] | None = None
    """The options that it was loaded by, where it was; a set keeps them, to know its teacher."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        check_normaliser(spec.mean, spec.std, spec.channels)
        require_tensors(network)
        self.network = network
        self.spec = spec
        self.found: Output | None = None
        """What of its answers are the logits, once that was looked at."""
        self._cast = _cast(network)
        self.unused: tuple[str, ...] = ()
        """BatchNorm layers that take no part in an evaluation, once that was looked at."""
        self.pooled: tuple[str, ...] = ()
        """BatchNorm layers of a network that answers with maps whose input is one place an image,
        once that was looked at: too few numbers to have moments.
        """
        place = device_of(network)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(spec, name), device=place).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    # (B, C, H, W) in [0, 1] -> (B, K, *places)
    def forward(self, images: Tensor) -> Tensor:
        return self.ask((images - self.mean) / self.std)

    # (B, C, H, W) normalised -> (B, K, *places)
    def ask(self, images: Tensor) -> Tensor:
        """Logits for images as the network itself takes them."""
        answer = self.network(images)
        if self.spec.output is not None:
            answer = pick(answer, self.spec.output)
        shape = self.answer_shape
        if shape[1:] == self.spec.shape[1:]:  # a decision a pixel, of images of any size
            shape = (shape[0], *images.shape[2:])
        return to_logits(answer, self.spec.output_form, shape)

    # (B, C, H, W) in [0, 1], on any device -> whatever the network answers
    def raw_answer(self, images: Tensor) -> Any:
        """What the network itself answers, before the logits are picked out of it."""
        images = images.to(self.mean.device)
        return self.network((images - self.mean) / self.std)

    def grey_images(self, count: int = 2) -> Tensor:  # (count, C, H, W)
        """Images to try the network on."""
        return torch.full((count, *self.spec.shape), 0.5, device=self.mean.device)

    @property
    def task(self) -> Task:
        """What its decisions are."""
        return find_task(self.spec.task)

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Shape of the logits for one image: (K, *places)."""
        return (self.spec.classes, *self.task.places(self.spec))

    @property
    def parameters_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def settle(self) -> None:
        """Find out, once, what of the answers are the logits and in which form, from a few
        different images; the spec keeps it. A network that does not take them is left as it is:
        `check_forward` says why.
        """
        if self.found:
            return
        with self._evaluating(), kernel_form("reference"):
            found = find_output(self.raw_answer, self.spec, self.answer_shape)
        if found is None:
            return
        self.found = found
        self.spec = replace(self.spec, output=found.output, output_form=found.form)
        for remark in self.remarks:
            say_once(f"{self.spec.model}: {remark}")

    @property
    def remarks(self) -> list[str]:
        """What was done to the network, or to its answers, that its user should know."""
        return self._cast + (self.found.remarks() if self.found else [])

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with evaluating(self), torch.no_grad():
            yield

    def check_forward(self) -> None:
        """A few grey images through the network: the cheapest way to learn that channels, size or
        classes are wrong. Before that, its answers are settled.
        """
        spec = self.spec
        self.settle()
        try:
            with self._evaluating():
                self(self.grey_images(3))
                logits = self(self.grey_images())
        except EchosetError:
            raise
        except Exception as error:  # whatever the network raises
            with self._evaluating():
                refusal = say_refusal(self.raw_answer, spec.shape, error)
            raise EchosetError(f"{spec.model} {refusal}") from error
        expected = (2, *self.answer_shape)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            answer = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            doubt = say_task([logits], expected) if isinstance(logits, Tensor) else ""
            remedy = f": {doubt}" if doubt else ""
            raise EchosetError(
                f"{spec.model} answers {answer} to two images, expected {expected}{remedy}"
            )
        if not torch.isfinite(logits).all():
            raise EchosetError(
                f"the answer of {spec.model} to a grey image is not finite; the checkpoint is "
                "damaged"
            )

    @property
    def contract(self) -> dict[str, Any]:
        """What the network takes and gives: the part of the spec a transfer set repeats."""
        spec = self.spec
        values = {name: getattr(spec, name) for name in CONTRACT}
        values |= {"mean": list(spec.mean), "std": list(spec.std)}
        if not isinstance(spec.size, int):
            values["size"] = list(spec.size)
        if spec.output is not None:
            values["output"] = spec.output
        if spec.output_form not in (None, "logits"):
            values["output_form"] = spec.output_form
        return values

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, where its notes have them."""
        return known_names(self.spec.notes.get("class_names"), self.spec.classes)

    @property
    def input(self) -> dict[str, Any]:
        """The contract, and the classes' names where they are known: what a transfer set says."""
        names = self.class_names
        return {**self.contract, "class_names": list(names)} if names else self.contract

    def weight_hash(self) -> str:
        """SHA-256 over names, shapes and bytes of the network's state, the same on any device."""
        return hash_tensors(self.network.state_dict())


def _cast(network: nn.Module) -> list[str]:
    """Turn a network's numbers to float32; gives a remark where there were others."""
    types = {tensor.dtype for tensor in (*network.parameters(), *network.buffers())}
    others = {each for each in types if each.is_floating_point} - {torch.float32}
    if not others:
        return []
    network.float()
    names = sorted(str(each).removeprefix("torch.") for each in others)
    return [f"its {' and '.join(names)} weights are cast to float32"]


def on_device(network: Network, device: torch.device) -> Network:
    """The network itself, moved to the device, its convolutions with the channels last."""
    # torch's stubs know no memory_format beside a device.
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def as_found(classifier: Classifier | None) -> Iterator[None]:
    """Afterwards the classifier, which may be a user's own, is on the device where it was, and
    trained or frozen as it was.
    """
    if classifier is None:
        yield
        return
    home = classifier.mean.device
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    try:
        with modes_kept(classifier):
            yield
    finally:
        classifier.to(home)
        for parameter in trained:
            parameter.requires_grad_(True)


def spec_of(
    contract: Mapping[str, Any], model: str = "", arguments: Mapping[str, Any] | None = None
) -> ModelSpec:
    """The spec of a network that takes and gives what the contract says; its classes have the names
    that stand there.
    """
    values = {name: contract[name] for name in CONTRACT if name in contract}
    values |= {"mean": tuple(contract["mean"]), "std": tuple(contract["std"])}
    if contract.get("class_names"):
        values["notes"] = {"class_names": list(contract["class_names"])}
    return ModelSpec(model, dict(arguments or {}), **values)
