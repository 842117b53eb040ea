"""A graph of operators made into layers: what was a BatchNorm, a convolution or a linear layer
before it was exported or scripted is one again, under its old name.

So everything works on such a network that looks for layers: BatchNorm's statistics are found, and
layers can be heard and joined.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from synthesis_kernels.errors import EchosetError

aten = torch.ops.aten
BATCH_NORMS = (
    aten.batch_norm.default,
    aten.cudnn_batch_norm.default,
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit_no_training.default,
)
BY_DIMENSIONS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
CONVOLUTIONS = (aten.conv2d.default, aten.convolution.default, aten._convolution.default)
FRESH = (*BATCH_NORMS, *CONVOLUTIONS, aten.linear.default, operator.add, torch.relu)
"""What gives new memory, so that what comes next may as well write to memory of its own."""
IN_PLACE = (aten.relu_.default, aten.add_.Tensor)
PLAIN: dict[Any, Callable[..., Any]] = {
    aten.relu.default: torch.relu,
    aten.relu_.default: torch.relu,
    aten.add.Tensor: operator.add,
    aten.add_.Tensor: operator.add,
}
"""Operators, and functions that do the same, by which a ReLU and a sum are known."""


def put_tensor(root: nn.Module, name: str, tensor: Tensor) -> str:
    """Hold a tensor under a name with dots; gives the name that a graph asks for."""
    folder, _, last = name.rpartition(".")
    owner = _folder(root, folder)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(last, tensor)
    else:
        owner.register_buffer(last, tensor)
    return name


def _folder(root: nn.Module, name: str) -> nn.Module:
    """The module of this name, made where there is none."""
    owner = root
    for part in name.split(".") if name else ():
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    return owner


def to_layers(root: nn.Module, graph: fx.Graph, where: str) -> fx.GraphModule:
    """The network whose tensors `root` holds and whose operators are in the graph. The nodes that
    give tensors have their number of dimensions as `meta["dimensions"]`. `where` names the network
    for messages.
    """
    network = fx.GraphModule(root, graph)
    graph = network.graph
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "call_function":
            _replace(node, network, where)
    _follow_images(graph)
    graph.eliminate_dead_code()
    graph.lint()
    network.recompile()
    return network


def _replace(node: fx.Node, root: nn.Module, where: str) -> None:
    """Put a layer or a plain function in the place of an operator, where there is one."""
    if node.target in BATCH_NORMS:
        _put_batch_norm(node, root, where)
    elif node.target in CONVOLUTIONS:
        _put_convolution(node, root)
    elif node.target is aten.linear.default:
        _put_linear(node, root)
    elif node.target is aten._assert_tensor_metadata.default:
        node.graph.erase_node(node)
    elif node.target in PLAIN and _is_plain(node):
        node.args = node.args[:2]
        node.kwargs = {}
        node.target = PLAIN[node.target]


def _arguments(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by the names of its operator, its defaults with them."""
    named: dict[str, Any] = {}
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if place < len(node.args):
            named[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            named[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    return named


def _is_plain(node: fx.Node) -> bool:
    """Whether a ReLU or a sum is no more than that, and nobody sees whether it writes in place."""
    given = _arguments(node)
    if given.get("alpha", 1) != 1:
        return False
    if node.target not in IN_PLACE:
        return True
    before = node.args[0]
    return isinstance(before, fx.Node) and len(before.users) == 1 and _is_fresh(before)


def _is_fresh(node: fx.Node) -> bool:
    return node.op == "call_module" or node.target in FRESH


def _put_batch_norm(node: fx.Node, root: nn.Module, where: str) -> None:
    given = _arguments(node)
    mean = _tensor(given["running_mean"], root)
    variance = _tensor(given["running_var"], root)
    if mean is None or variance is None:  # of each batch alone, at any time
        return
    if given.get("training"):
        raise EchosetError(
            f"{where} was made of a network in training mode, and its BatchNorm would follow each "
            "batch: call model.eval() before you export or script it"
        )
    if _is_computed(given, root):
        return
    # All but the first are of the batch, which an evaluation does not ask for.
    if any(user.target is operator.getitem and user.args[1] != 0 for user in node.users):
        return
    kind = BY_DIMENSIONS[given["input"].meta["dimensions"]]
    layer = kind(len(mean), eps=given["eps" if "eps" in given else "epsilon"], device="meta")
    layer.running_mean = mean
    layer.running_var = variance
    layer.num_batches_tracked = torch.tensor(0)
    _give(layer, given, root)
    _put(node, given["input"], layer, root, given["running_mean"])


def _put_convolution(node: fx.Node, root: nn.Module) -> None:
    given = _arguments(node)
    weight = _tensor(given["weight"], root)
    if weight is None or weight.ndim != 4 or given.get("transposed") or _is_computed(given, root):
        return
    shape: Any = (weight.shape[1] * given["groups"], weight.shape[0], tuple(weight.shape[2:]))
    settings: dict[str, Any] = {
        name: tuple(given[name]) * (2 if len(given[name]) == 1 else 1)
        for name in ("stride", "padding", "dilation")
    }
    settings |= {"groups": given["groups"], "device": "meta"}
    layer = nn.Conv2d(*shape, **settings)
    _give(layer, given, root)
    _put(node, given["input"], layer, root, given["weight"])


def _put_linear(node: fx.Node, root: nn.Module) -> None:
    given = _arguments(node)
    weight = _tensor(given["weight"], root)
    if weight is None or weight.ndim != 2 or _is_computed(given, root):
        return
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    _give(layer, given, root)
    _put(node, given["input"], layer, root, given["weight"])


def _tensor(node: object, root: nn.Module) -> Tensor | None:
    """What `root` holds at a node; None where it is computed on the way."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    folder, _, last = str(node.target).rpartition(".")
    return getattr(root.get_submodule(folder), last)


def _is_computed(given: Mapping[str, Any], root: nn.Module) -> bool:
    """Whether a weight or bias is given that no layer could hold."""
    both = [given.get(name) for name in ("weight", "bias")]
    return any(each is not None and _tensor(each, root) is None for each in both)


def _give(layer: nn.Module, given: Mapping[str, Any], root: nn.Module) -> None:
    """A layer's weight and bias: those of its operator."""
    for name in ("weight", "bias"):
        tensor = _tensor(given.get(name), root)
        if tensor is not None and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        layer.register_parameter(name, tensor)


def _put(
    node: fx.Node, images: fx.Node, layer: nn.Module, root: nn.Module, tensor: fx.Node
) -> None:
    """Let a layer do what the operator did, under the name that its tensors had, one of which is
    `tensor`.
    """
    name = str(tensor.target).rpartition(".")[0] or node.name
    held = _folder(root, name)
    if type(held) is nn.Module and not _is_all_of(layer, held):
        name = f"{name}.{node.name}"
    elif type(held) is not nn.Module and repr(held) != repr(layer):
        name = f"{name}_{node.name}"
    folder, _, last = name.rpartition(".")
    owner = _folder(root, folder)
    if type(owner._modules.get(last, held)) is nn.Module or last not in owner._modules:
        owner.add_module(last, layer.eval())
    with node.graph.inserting_before(node):
        new = node.graph.call_module(name, (images,))
    new.meta.update(node.meta)
    for user in list(node.users):
        if user.target is operator.getitem and node.target is not aten.batch_norm.default:
            user.replace_all_uses_with(new)
            node.graph.erase_node(user)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _is_all_of(layer: nn.Module, held: nn.Module) -> bool:
    """Whether a layer has all that was held under its name."""
    own = layer.state_dict().keys()
    return not held._modules and held.state_dict().keys() <= own


def _follow_images(graph: fx.Graph) -> None:
    """Put a device that was noted when the graph was made where the images are, and not there."""
    images = next(node for node in graph.nodes if node.op == "placeholder")
    place: list[fx.Node] = []

    def follow(argument: object) -> object:
        if not isinstance(argument, torch.device):
            return argument
        if not place:
            with graph.inserting_after(images):
                place.append(graph.call_function(getattr, (images, "device")))
        return place[0]

    for node in list(graph.nodes):
        if node.op == "call_function":
            node.args = tuple(follow(argument) for argument in node.args)
            node.kwargs = {name: follow(argument) for name, argument in node.kwargs.items()}
