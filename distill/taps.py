"""What a network computes on the way: maps at the end of each stage, and the embedding its last
linear layer reads.

    with Taps(classifier, find_stages(classifier)) as taps:
        logits = classifier(images)
    taps.maps, taps.embedding

A stage is what runs at one resolution. `find_stages` runs two images and looks, so it needs no
knowledge of the family; where it guesses wrong, or a network has no maps, name the layers yourself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from distill.models import Classifier
from synthesis_kernels.errors import EchosetError

Hook = Callable[..., None]


@dataclass(frozen=True)
class Stages:
    """Where to listen in a network."""

    layers: tuple[str, ...]
    """Names within the classifier's network, in order of depth."""
    channels: tuple[int, ...]
    """Of each layer's maps."""
    sides: tuple[tuple[int, int], ...]
    """Of each layer's maps: height and width."""
    head: str | None
    """The last linear layer, whose input is the embedding; None: the last map's average is."""

    def last(self, count: int) -> Stages:
        """So many of them, the deepest."""
        kept = slice(len(self.layers) - count, None)
        return Stages(self.layers[kept], self.channels[kept], self.sides[kept], self.head)


def find_stages(classifier: Classifier, layers: tuple[str, ...] = (), maps: bool = True) -> Stages:
    """The last block of each stage, or the named `layers`, with what they give; without `maps` the
    embedding alone, if it can be had so.
    """
    shapes, head = _look(classifier)
    if head and not maps:
        return Stages((), (), (), head)
    if layers:
        _require_maps(classifier, layers, shapes)
        chosen = list(layers)
    else:
        units = set(_units(classifier.network, "", shapes))
        of_units = {name: shape for name, shape in shapes.items() if name in units}
        chosen = _last_of_each_stage(classifier.network, of_units)
    if not chosen:
        raise EchosetError(
            f"no layer of {classifier.spec.model} gives maps (B, C, H, W); use a loss on logits, "
            "such as hinton"
        )
    channels = tuple(shapes[name][1] for name in chosen)
    sides = tuple((shapes[name][2], shapes[name][3]) for name in chosen)
    return Stages(tuple(chosen), channels, sides, head)


def _require_maps(
    classifier: Classifier, layers: tuple[str, ...], shapes: dict[str, torch.Size]
) -> None:
    """Refuse a name that is no layer with maps."""
    for layer in layers:
        if layer not in shapes:
            parts = ", ".join(name for name, _ in classifier.network.named_children())
            raise EchosetError(
                f"{classifier.spec.model} has no layer '{layer}' that gives maps (B, C, H, W) "
                f"once a pass; its parts are {parts}"
            )


def _look(classifier: Classifier) -> tuple[dict[str, torch.Size], str | None]:
    """Shapes of the maps that layers give once a pass, in order of completion; and the last linear
    layer that gives one number a class.
    """
    spec = classifier.spec
    seen: dict[str, list[torch.Size]] = {}
    heads: list[str] = []

    def listen(name: str) -> Hook:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            if not isinstance(output, Tensor):
                return
            if output.ndim == 4:
                seen.setdefault(name, []).append(output.shape)
            if isinstance(module, nn.Linear) and output.shape == (2, spec.classes):
                heads.append(name)

        return hook

    training = classifier.training
    with ExitStack() as hooks, torch.no_grad():
        hooks.callback(classifier.train, training)
        for name, module in classifier.network.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(listen(name)).remove)
        answer = classifier.eval()(classifier.grey_images())
    once = {name: shapes[0] for name, shapes in seen.items() if len(shapes) == 1}
    if answer.ndim == 4:
        _drop_answers(once, classifier.network, spec.classes)
    return once, heads[-1] if heads else None


def _drop_answers(shapes: dict[str, torch.Size], network: nn.Module, classes: int) -> None:
    """Leave out the last layers of a network that answers with maps: they tell classes, and are no
    features. A BatchNorm is none of them, though there be as many channels as classes.
    """
    for name in reversed(list(shapes)):
        layer = network.get_submodule(name)
        has_own = next(layer.parameters(recurse=False), None) is not None
        is_answer = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or not has_own
        if shapes[name][1] != classes or not is_answer:
            return
        del shapes[name]


def _units(module: nn.Module, name: str, shapes: dict[str, torch.Size]) -> list[str]:
    """The parts of `module` that count as one block each: containers, and whatever spans several
    resolutions, are opened.
    """
    units = []
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        within = [shape for other, shape in shapes.items() if other.startswith(full + ".")]
        sides = {max(shape[2:]) for shape in within}
        # One pixel may be a squeeze inside a block, and a block may begin at the resolution it
        # reduces.
        spans_several = len(sides - {1, max(sides, default=0)}) > 1
        is_no_unit = full not in shapes and len(sides) > 0
        if isinstance(child, nn.Sequential) or spans_several or is_no_unit:
            units += _units(child, full, shapes)
        elif full in shapes:
            units.append(full)
    return units


def _last_of_each_stage(network: nn.Module, shapes: dict[str, torch.Size]) -> list[str]:
    """Of each run of equal resolution the last block, or the last layer where there is no block."""
    stages: list[list[str]] = []
    resolution: torch.Size | None = None
    for name, shape in shapes.items():
        if shape[2:] != resolution:
            resolution = shape[2:]
            stages.append([])
        stages[-1].append(name)
    ends = []
    for stage in stages:
        blocks = [name for name in stage if _has_children(network.get_submodule(name))]
        ends.append((blocks or stage)[-1])
    # A last run at one pixel is the pooled embedding, not a map, unless all is one pixel.
    larger = [name for name in ends if max(shapes[name][2:]) > 1]
    return larger or ends[-1:]


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


class Taps:
    """Listens to a network while the context is open; nothing stays behind in it."""

    def __init__(self, classifier: Classifier, stages: Stages) -> None:
        self.classifier = classifier
        self.stages = stages
        self._maps: dict[str, Tensor] = {}
        self._embedding: Tensor | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Taps:
        network = self.classifier.network
        for name in self.stages.layers:
            layer = network.get_submodule(name)
            self._handles.append(layer.register_forward_hook(self._keep(name)))
        if self.stages.head:
            head = network.get_submodule(self.stages.head)
            self._handles.append(head.register_forward_pre_hook(self._keep_embedding))
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _keep(self, name: str) -> Hook:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._maps[name] = output

        hook.only_listens = True  # type: ignore[attr-defined]  # see `zoo.blocks.Listener`
        return hook

    def _keep_embedding(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._embedding = inputs[0]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Taps:
        """The same of maps and an embedding that are changed."""
        found = Taps(self.classifier, self.stages)
        found._maps = {name: change(each) for name, each in self._maps.items()}
        if self._embedding is not None:
            found._embedding = change(self._embedding)
        return found

    @property
    def told_maps(self) -> list[Tensor]:  # of (B, C, H, W)
        """One map a stage, from the latest pass, as the network computed it."""
        return [self._maps[name] for name in self.stages.layers]

    @property
    def maps(self) -> list[Tensor]:  # of (B, C, H, W), float32
        """The same; in a network of another type a copy each time it is asked."""
        return [each.float() for each in self.told_maps]

    @property
    def embedding(self) -> Tensor:  # (B, D), float32
        """What the last linear layer read in the latest pass."""
        if self._embedding is None:
            return self.maps[-1].mean((2, 3))
        return self._embedding.float()
