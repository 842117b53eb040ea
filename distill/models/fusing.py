"""Layers that take over what stands around them: the ReLU behind, and the sum in front."""

from __future__ import annotations

import linecache
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import graph_module

from distill.models.zoo.blocks import is_heard

_loader = getattr(graph_module, "_loader", None)
"""Torch's own, and private: where it keeps the text of the code that it generates."""


class Fusible(nn.Module):
    """A layer that may add two inputs, and may end in a ReLU."""

    relu: bool = False
    """Whether a ReLU follows, which is then done here."""
    keeps_total: bool = False
    """Whether others need the sum of two inputs."""
    total: Tensor | None = None
    """That sum, until it is taken."""

    @property
    def fuses(self) -> bool:
        """Whether it can."""
        raise NotImplementedError


class Ear(nn.Module):
    """Hears what a layer gives, and keeps it until it is taken."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer
        """Its name in the network."""
        self.heard: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.heard = x
        return x

    def listen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A layer's forward hook, where no graph has this."""
        self.heard = output

    def take(self) -> Tensor:
        """What was heard in the latest pass."""
        heard = self.heard
        self.heard = None
        assert heard is not None, f"{self.layer} took no part in the pass"
        return heard


def fuse(
    network: nn.Module,
    join: Callable[[fx.Graph, nn.Module], None] = lambda graph, network: None,
    ears: Sequence[Ear] = (),
) -> nn.Module:
    """The network with every ReLU that alone follows a fusible layer moved into the layer; then
    with what `join` does to its graph; then with every sum before such a layer moved into it.
    Unchanged where it can't be traced. The `ears` hear their layers either way.
    """
    wrapped = _OneInput(network, ears)
    graph = _trace(wrapped, {network.get_submodule(ear.layer): ear for ear in ears})
    if graph is None:
        for ear in ears:
            network.get_submodule(ear.layer).register_forward_hook(ear.listen)
        return network
    _fuse(graph, wrapped, join)
    fused = fx.GraphModule(wrapped, graph)
    _forget_source(fused)
    return fused


def _forget_source(network: fx.GraphModule) -> None:
    """Let go of the text of a network's code, which torch keeps for ever, for tracebacks alone."""
    name = network.forward.__code__.co_filename
    getattr(_loader, "eval_cache", {}).pop(name, None)
    linecache.cache.pop(name, None)


def _trace(wrapped: nn.Module, ears: Mapping[nn.Module, Ear]) -> fx.Graph | None:
    """Its graph; none where it can't be had, or where a fusible layer runs twice: a ReLU may be
    behind one of the two. Ears listen beside, and stand in nobody's way.
    """
    try:
        graph = _Tracer(ears).trace(wrapped)
    except Exception:  # whatever a module's own Python does when no tensor comes through it
        return None
    for node in graph.nodes:
        if isinstance(_layer_at(node, wrapped), Ear):
            (heard,) = node.all_input_nodes
            node.replace_all_uses_with(heard)
    layers = [_layer_at(node, wrapped) for node in graph.nodes]
    fusible = [layer for layer in layers if isinstance(layer, Fusible) and layer.fuses]
    return graph if len(set(fusible)) == len(fusible) else None


def _layer_at(node: fx.Node, network: nn.Module) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _fuse(graph: fx.Graph, wrapped: nn.Module, join: Callable[[fx.Graph, nn.Module], None]) -> None:
    layers: dict[fx.Node, Fusible] = {}
    for node in graph.nodes:
        module = _layer_at(node, wrapped)
        if isinstance(module, Fusible) and module.fuses:
            layers[node] = module
    for node, layer in layers.items():
        users = list(node.users)
        if len(users) == 1 and _is_relu(users[0], wrapped):
            layer.relu = True
            users[0].replace_all_uses_with(node)
            graph.erase_node(users[0])
    join(graph, wrapped)
    left = set(graph.nodes)
    for node, layer in layers.items():
        if node not in left:
            continue
        (before,) = node.all_input_nodes
        if is_sum(before) and len(layers.keys() & before.users.keys()) == 1:
            _move_sum(before, node, layer, wrapped)


def _move_sum(total: fx.Node, node: fx.Node, layer: Fusible, network: nn.Module) -> None:
    """Let the layer add, and give the sum to those who need it beside the layer."""
    graph = node.graph
    with graph.inserting_after(total):
        fused = graph.call_module(str(node.target), total.args)
    node.replace_all_uses_with(fused)
    graph.erase_node(node)
    if total.users:
        layer.keeps_total = True
        give_total(fused, layer, network, total.replace_all_uses_with)
    graph.erase_node(total)


def give_total(
    node: fx.Node, layer: KeepsTotal, network: nn.Module, give: Callable[[fx.Node], object]
) -> None:
    """Give a new node, which takes the total that the layer at this one keeps."""
    name = f"total_of_{node.name}"
    setattr(network, name, _Total(layer))
    with node.graph.inserting_after(node):
        give(node.graph.call_module(name))


class KeepsTotal(Protocol):
    """A layer with something for those who come after it."""

    total: Tensor | None


class _Total(nn.Module):
    """The sum that a layer has just added up."""

    def __init__(self, layer: KeepsTotal) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that it is no submodule

    def forward(self) -> Tensor | None:
        total = self._layer[0].total
        self._layer[0].total = None
        return total


class _OneInput(nn.Module):
    """The network with its images alone: fx would make a proxy of every optional argument, too,
    which is then not None.
    """

    def __init__(self, network: nn.Module, ears: Sequence[Ear]) -> None:
        super().__init__()
        self.network = network
        self.ears = nn.ModuleList(ears)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class _Tracer(fx.Tracer):
    def __init__(self, ears: Mapping[nn.Module, Ear]) -> None:
        super().__init__()
        self.of_layers = ears

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Fusible | Ear) or super().is_leaf_module(module, name)

    def call_module(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        out = super().call_module(module, forward, args, kwargs)
        ear = self.of_layers.get(module)
        return out if ear is None else super().call_module(ear, ear.forward, (out,), {})


def _is_relu(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        return type(layer) is nn.ReLU and not is_heard(layer)
    if node.op == "call_function":
        return node.target in (F.relu, torch.relu, torch.relu_)
    return node.op == "call_method" and node.target in ("relu", "relu_")


def is_sum(node: fx.Node) -> bool:
    """Whether it adds two results, and no more."""
    if node.kwargs or len(node.args) != 2 or len(node.all_input_nodes) != 2:
        return False
    if node.op == "call_function":
        return node.target in (operator.add, torch.add)
    return node.op == "call_method" and node.target == "add"
