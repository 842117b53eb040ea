"""What a network computes on the way: maps at the end of each stage, and the embedding its last
linear layer reads.

    with Taps(classifier, find_stages(classifier)) as taps:
        logits = classifier(images)
    taps.maps, taps.embedding

A stage is what runs at one resolution. `find_stages` runs two images and looks, so it needs no
knowledge of the family; where it guesses wrong, or a network has no maps, name the layers yourself.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from distill.models import Classifier
from synthesis_kernels.errors import EchosetError


@dataclass(frozen=True)
class Stages:
    """Where to listen in a network."""

    layers: tuple[str, ...]
    """Names within the classifier's network, in order of depth."""
    channels: tuple[int, ...]
    sides: tuple[int, ...]
    head: str | None
    """The last linear layer, whose input is the embedding; None: the last map's average is."""


def find_stages(classifier: Classifier, layers: tuple[str, ...] = (), maps: bool = True) -> Stages:
    """The last block of each stage, or the named `layers`, with what they give; without `maps` the
    embedding alone, if it can be had so.
    """
    found, head = _look(classifier, layers)
    if head and not maps:
        return Stages((), (), (), head)
    if layers:
        for name in layers:
            if name not in found:
                known = ", ".join(
                    n for n, m in classifier.network.named_modules() if n and "." not in n
                )
                raise EchosetError(
                    f"{classifier.spec.model} has no layer '{name}' that gives maps (B, C, H, W) "
                    f"once a pass; its parts are {known}"
                )
        chosen = list(layers)
    else:
        chosen = _last_of_each_stage(classifier.network, found)
    if not chosen:
        raise EchosetError(
            f"no layer of {classifier.spec.model} gives maps (B, C, H, W); use a loss on logits, "
            "such as hinton"
        )
    shapes = [found[name] for name in chosen]
    return Stages(tuple(chosen), tuple(s[1] for s in shapes), tuple(s[2] for s in shapes), head)


def _look(
    classifier: Classifier, wanted: tuple[str, ...]
) -> tuple[dict[str, torch.Size], str | None]:
    """Shapes of all units' maps in order of completion, units being blocks rather than what they
    are made of.
    """
    network, spec = classifier.network, classifier.spec
    seen: dict[str, list[torch.Size]] = {}
    linear: list[str] = []

    def listen(name: str):  # noqa: ANN202
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                seen.setdefault(name, []).append(output.shape)
            if (
                isinstance(module, nn.Linear)
                and isinstance(output, Tensor)
                and tuple(output.shape) == (2, spec.classes)
            ):
                linear.append(name)

        return hook

    handles = [
        module.register_forward_hook(listen(name))
        for name, module in network.named_modules()
        if name
    ]
    training = classifier.training
    try:
        with torch.no_grad():
            device = next(classifier.buffers()).device
            classifier.eval()(
                torch.full((2, spec.channels, spec.size, spec.size), 0.5, device=device)
            )
    finally:
        classifier.train(training)
        for handle in handles:
            handle.remove()
    once = {name: shapes[0] for name, shapes in seen.items() if len(shapes) == 1}
    units = set(wanted) or set(_units(network, "", once))
    return {name: shape for name, shape in once.items() if name in units}, linear[
        -1
    ] if linear else None


def _units(module: nn.Module, name: str, shapes: dict[str, torch.Size]) -> list[str]:
    """The parts of `module` that count as one block each: containers, and whatever spans several
    resolutions, are opened.
    """
    units = []
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        inside = {shape[2] for other, shape in shapes.items() if other.startswith(full + ".")}
        # One pixel may be a squeeze inside a block, and a block may begin at the resolution it
        # reduces.
        spans = len({s for s in inside if s > 1} - {max(inside, default=0)}) > 1
        if isinstance(child, nn.Sequential) or spans or (full not in shapes and inside):
            units += _units(child, full, shapes)
        elif full in shapes:
            units.append(full)
    return units


def _last_of_each_stage(network: nn.Module, shapes: dict[str, torch.Size]) -> list[str]:
    """Of each run of equal resolution the last block, or the last layer where there is no block."""
    stages: list[list[str]] = []
    for name, shape in shapes.items():
        if stages and shapes[stages[-1][-1]][2:] == shape[2:]:
            stages[-1].append(name)
        else:
            stages.append([name])
    blocks = [
        [n for n in stage if any(True for _ in network.get_submodule(n).children())] or stage
        for stage in stages
    ]
    # A last run at one pixel is the pooled embedding, not a map, unless all is one pixel.
    ends = [stage[-1] for stage in blocks]
    return [name for name in ends if shapes[name][2] > 1 or shapes[name][3] > 1] or ends[-1:]


class Taps:
    """Listens to a network while the context is open; nothing stays behind in it."""

    def __init__(self, classifier: Classifier, stages: Stages) -> None:
        self.classifier, self.stages = classifier, stages
        self._maps: dict[str, Tensor] = {}
        self._embedding: Tensor | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Taps:
        network = self.classifier.network
        for name in self.stages.layers:
            self._handles.append(
                network.get_submodule(name).register_forward_hook(self._keep(name))
            )
        if self.stages.head:
            self._handles.append(
                network.get_submodule(self.stages.head).register_forward_pre_hook(
                    self._keep_embedding
                )
            )
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _keep(self, name: str):  # noqa: ANN202
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._maps[name] = output

        return hook

    def _keep_embedding(self, module: nn.Module, inputs: tuple) -> None:
        self._embedding = inputs[0]

    @property
    def maps(self) -> list[Tensor]:  # of (B, C, H, W), float32
        """One map a stage, from the latest pass."""
        return [self._maps[name].float() for name in self.stages.layers]

    @property
    def embedding(self) -> Tensor:  # (B, D), float32
        """What the last linear layer read in the latest pass."""
        return self.maps[-1].mean((2, 3)) if self._embedding is None else self._embedding.float()
