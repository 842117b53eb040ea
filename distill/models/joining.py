"""3×3 convolutions of a frozen network, together with the BatchNorm before them and the sum behind
them.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from distill.models.fusing import Fusible, give_total, is_sum
from distill.models.zoo.blocks import is_heard
from synthesis_kernels.conv3x3 import can_add, has_layer, is_followed, pays, runs
from synthesis_kernels.frozen_conv3x3 import Norm, Packed, frozen_conv3x3
from synthesis_kernels.native import unwatched


class Tap(Fusible):
    """What is asked of a frozen BatchNorm that a convolution takes in."""

    def norm(self) -> Norm:
        """The layer, for this pass."""
        raise NotImplementedError

    def give_token(self, token: Tensor) -> None:
        """Take what stands for the moments of its input."""
        raise NotImplementedError


class Joined(nn.Module):
    """A convolution, the frozen BatchNorm that alone is before it, and a sum alone behind it."""

    def __init__(self, convolution: nn.Conv2d, tap: Tap | None) -> None:
        super().__init__()
        self.convolution = convolution
        self.tap = tap
        self.packed = Packed()
        self.keeps_total = False
        self.total: Tensor | None = None
        """The input once more, for those who need it beside, until they take it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weight = self.convolution.weight
        bias = self.convolution.bias
        if is_heard(self.convolution) or not self._runs(x, weight, bias, residual):
            self._keep(x)
            y = self.convolution(x if self.tap is None else self.tap(x))
            return y if residual is None else y + residual
        norm = None if self.tap is None else self.tap.norm()
        y, token, total = frozen_conv3x3(x, weight, bias, norm, residual, self.packed)
        self._keep(total)
        if self.tap is not None and token is not None:
            self.tap.give_token(token)
        return y

    def _keep(self, x: Tensor) -> None:
        if self.keeps_total:
            self.total = x

    @staticmethod
    @unwatched
    def _runs(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> bool:
        precision = torch.float32
        if torch.is_autocast_enabled("cpu"):
            precision = torch.get_autocast_dtype("cpu")
        return (
            x.dtype is precision
            and not is_followed()
            and runs(x, weight, bias)
            and pays(x, weight)
            and (residual is None or can_add(residual, x, weight))
        )


def join_convolutions(graph: fx.Graph, network: nn.Module, precision: torch.dtype) -> None:
    """Join every convolution for which there is a kernel with what is before and behind it."""
    for node in list(graph.nodes):
        layer = network.get_submodule(node.target) if node.op == "call_module" else None
        if layer is not None and has_layer(layer, precision):
            _join(node, layer, network)


def _join(node: fx.Node, layer: nn.Conv2d, network: nn.Module) -> None:
    before = _tap_before(node, network)
    tail = _sum_behind(node)
    if before is None and tail is None:
        return
    (x,) = node.all_input_nodes
    tap: Tap | None = None
    if before is not None:
        tap = _tap_at(before, network)
        (x,) = before.all_input_nodes
    joined = Joined(layer, tap)
    name = f"joined_{node.name}"
    setattr(network, name, joined)
    graph = node.graph
    last = tail or node
    residual = [each for each in last.all_input_nodes if each is not node] if tail else []
    with graph.inserting_before(last):
        new = graph.call_module(name, (x, *residual))
    last.replace_all_uses_with(new)
    for old in (tail, node, before):
        if old is not None:
            graph.erase_node(old)
    _give_input(x, new, joined, network)


def _tap_before(node: fx.Node, network: nn.Module) -> fx.Node | None:
    """The BatchNorm that a convolution alone takes in."""
    (before,) = node.all_input_nodes
    if before.op != "call_module" or len(before.users) > 1 or len(before.all_input_nodes) > 1:
        return None
    return before if _tap_at(before, network) is not None else None


def _tap_at(node: fx.Node, network: nn.Module) -> Tap | None:
    layer = network.get_submodule(str(node.target))
    return layer if isinstance(layer, Tap) and layer.fuses else None


def _sum_behind(node: fx.Node) -> fx.Node | None:
    """The sum that alone takes in a convolution."""
    if len(node.users) > 1:
        return None
    (user,) = node.users or (None,)
    return user if user is not None and is_sum(user) else None


def _give_input(x: fx.Node, node: fx.Node, joined: Joined, network: nn.Module) -> None:
    """Let those that come later have the input by way of the convolution: what they say of it is
    then added in its kernel.
    """
    order = {each: place for place, each in enumerate(node.graph.nodes)}
    others = [user for user in x.users if user is not node]
    if others and all(order[user] > order[node] for user in others):
        joined.keeps_total = True
        give_total(node, joined, network, lambda total: _replace_in(others, x, total))


def _replace_in(users: list[fx.Node], old: fx.Node, new: fx.Node) -> None:
    for user in users:
        user.replace_input_with(old, new)
