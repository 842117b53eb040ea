"""TorchScript made into layers.

Its own modules take no hooks, so nothing could be matched at them. But a script is a graph of
operators: it is followed with two images, branch by branch as they take it, and what it did becomes
a graph of torch.fx. Where a branch depends on what is seen in the images, that can't be done.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from distill.models.kinds.layers import put_tensor, to_layers

MOST_NODES = 100_000
"""Steps of a script that are followed; a loop may have any number."""
NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
    "aten::floordiv": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__getitem__": operator.getitem,
}
"""What is done to sizes, and to lists of them; a trace does it as if they were tensors."""
AS_IT_IS = ("prim::NumToTensor", "aten::Int", "aten::ScalarImplicit", "prim::unchecked_cast")
"""What changes the type of a number, or what is known of it, and nothing else."""
PICKING = ("aten::__getitem__", "prim::TupleIndex")
BY_SIGHT = (
    "aten::Bool",
    "aten::Float",
    "aten::Int",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
)
"""What makes a number of what is in a tensor."""


class NotFollowedError(Exception):
    """A script does what a graph can't hold."""


class Value:
    """What a name in a script stands for: in the graph, and for the images that it is followed
    with.
    """

    def __init__(self, argument: Any, seen: Any) -> None:
        self.argument = argument
        self.seen = seen

    @classmethod
    def fixed(cls, value: Any) -> Value:
        """One that is the same for all images."""
        return cls(value, value)

    @property
    def is_fixed(self) -> bool:
        """Whether it is the same for all images."""
        found: list[fx.Node] = []
        fx.node.map_arg(self.argument, found.append)
        return not found


def script_to_layers(script: torch.jit.ScriptModule, images: Tensor, where: str) -> nn.Module:
    """The script's network as layers; `images` are some that it takes."""
    follower = _Follower(script)
    with torch.no_grad():
        answer = follower.follow(images)
        network = to_layers(follower.root, follower.graph, where)
        again = network(images)
        expected = script(images)
    try:
        for ours in (answer, again):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    except AssertionError as error:
        raise NotFollowedError("its graph computes something else") from error
    return network


class _Follower:
    """Goes through a script's graph."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self._values: dict[str, Value] = {}
        self._steps = 0
        self._parameters = {name for name, _ in script.named_parameters()}
        self._held: dict[str, fx.Node] = {}
        self._module: Any = script._c
        self._script: Any = script.inlined_graph

    def follow(self, images: Tensor) -> Any:
        """Write the graph down, and give the script's answer to the images."""
        own, first, *others = self._script.inputs()
        self._values[own.debugName()] = Value("", self._module)
        node = self.graph.placeholder("images")
        self._keep(first, Value(node, images))
        _, _, *described = self._module._get_method("forward").schema.arguments
        for name, argument in zip(others, described, strict=True):
            if not argument.has_default_value():
                raise NotFollowedError(f"it takes more than images: {argument.name}")
            self._keep(name, Value.fixed(argument.default_value))
        self._block(self._script.nodes())
        (answer,) = [self._value(each) for each in self._script.outputs()]
        self.graph.output(answer.argument)
        return answer.seen

    def _value(self, name: Any) -> Value:
        return self._values[name.debugName()]

    def _keep(self, name: Any, value: Value) -> None:
        if isinstance(value.seen, Tensor) and isinstance(value.argument, fx.Node):
            value.argument.meta["dimensions"] = value.seen.ndim
        self._values[name.debugName()] = value

    def _block(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            self._steps += 1
            if self._steps > MOST_NODES:
                raise NotFollowedError("it takes too many steps")
            self._step(node)

    def _step(self, node: Any) -> None:
        kind = node.kind()
        if kind == "prim::If":
            self._branch(node)
        elif kind == "prim::Loop":
            self._loop(node)
        elif kind not in ("aten::warn", "prim::Print"):
            inputs = [self._value(each) for each in node.inputs()]
            values = self._compute(node, kind, inputs)
            for name, value in zip(node.outputs(), values, strict=True):
                self._keep(name, value)

    def _compute(self, node: Any, kind: str, inputs: list[Value]) -> list[Value]:
        """What a step gives."""
        arguments = [each.argument for each in inputs]
        seen = [each.seen for each in inputs]
        if kind == "prim::Constant":
            return [self._constant(node)]
        if kind == "prim::Uninitialized":
            return [Value.fixed(None)]
        if kind == "prim::GetAttr":
            return [self._attribute(node, inputs[0])]
        if kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            gather = list if kind == "prim::ListConstruct" else tuple
            return [Value(gather(arguments), gather(seen))]
        if kind == "prim::DictConstruct":
            keys = seen[::2]
            pairs = (arguments[1::2], seen[1::2])
            return [Value(*(dict(zip(keys, values, strict=True)) for values in pairs))]
        if kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            return self._unpack(inputs[0])
        if kind in PICKING and isinstance(arguments[0], list | tuple):
            return [Value(arguments[0][seen[1]], seen[0][seen[1]])]
        if kind in ("prim::device", "prim::dtype"):
            given = (arguments[0], kind.removeprefix("prim::"))
            return [Value(self.graph.call_function(getattr, given), getattr(seen[0], given[1]))]
        return self._decide(kind, inputs) or self._call(node, kind, inputs)

    def _decide(self, kind: str, inputs: list[Value]) -> list[Value] | None:
        """What the images' shape decides; None where it is an operator's to say."""
        seen = [each.seen for each in inputs]
        if kind in BY_SIGHT and isinstance(seen[0], Tensor):
            raise NotFollowedError("it decides by what it sees")
        if kind in AS_IT_IS and not isinstance(seen[0], Tensor):
            return inputs
        if kind in ("aten::__is__", "aten::__isnot__"):
            same = seen[0] is seen[1]
            return [Value.fixed(same if kind == "aten::__is__" else not same)]
        if kind == "aten::__not__":
            return [Value.fixed(not seen[0])]
        if kind == "aten::len" and isinstance(seen[0], list | str):
            return [Value.fixed(len(seen[0]))]
        return None

    def _constant(self, node: Any) -> Value:
        """A number, a text, or a tensor that the script holds."""
        value = node.output().toIValue()
        if not isinstance(value, Tensor):
            return Value.fixed(value)
        return self._hold(f"constant_{len(self._held)}", value)

    def _attribute(self, node: Any, owner: Value) -> Value:
        """What a module holds: a tensor, a number, or another module."""
        name = f"{owner.argument}.{node.s('name')}".removeprefix(".")
        value = owner.seen.getattr(node.s("name"))
        if isinstance(value, Tensor):
            return self._hold(name, value)
        return Value(name if isinstance(value, torch._C.ScriptModule) else value, value)

    def _hold(self, name: str, tensor: Tensor) -> Value:
        if name not in self._held:
            if name in self._parameters:
                tensor = nn.Parameter(tensor.detach(), tensor.requires_grad)
            self._held[name] = self.graph.get_attr(put_tensor(self.root, name, tensor))
        return Value(self._held[name], tensor)

    def _unpack(self, packed: Value) -> list[Value]:
        if isinstance(packed.argument, list | tuple):
            return [Value(*pair) for pair in zip(packed.argument, packed.seen, strict=True)]
        values = []
        for place, seen in enumerate(packed.seen):
            item = self.graph.call_function(operator.getitem, (packed.argument, place))
            values.append(Value(item, seen))
        return values

    def _call(self, node: Any, kind: str, inputs: list[Value]) -> list[Value]:
        """An operator of torch's."""
        seen = [each.seen for each in inputs]
        function: Any = NUMBERS.get(kind)
        if function is not None and not isinstance(seen[0], Tensor):
            # A trace writes numbers beside sizes as tensors.
            inputs = [_as_number(each) for each in inputs]
            seen = [each.seen for each in inputs]
        if function is None or any(isinstance(each, Tensor) for each in seen):
            function = self._operator(node)
        else:
            inputs = inputs[:2]
            seen = seen[:2]
        given, named = _spread(function, seen)
        result = function(*given, **named)
        if all(each.is_fixed for each in inputs) and not isinstance(result, Tensor):
            return [Value.fixed(result)] if node.outputsSize() else []
        given, named = _spread(function, [each.argument for each in inputs])
        call = self.graph.call_function(function, given, named)
        if node.outputsSize() <= 1:
            return [Value(call, result)] * node.outputsSize()
        return self._unpack(Value(call, result))

    def _operator(self, node: Any) -> Any:
        schema = node.schema()
        space, _, name = schema.partition("(")[0].partition("::")
        if space not in ("aten", "torchvision", "quantized"):
            raise NotFollowedError(f"it has a step {node.kind()}")
        packet, _, overload = name.partition(".")
        return getattr(getattr(getattr(torch.ops, space), packet), overload or "default")

    def _branch(self, node: Any) -> None:
        """Take the branch that the images take; it may depend on their shape."""
        (condition,) = [self._value(each) for each in node.inputs()]
        if not isinstance(condition.seen, bool):
            raise NotFollowedError("it branches by no truth value")
        then, otherwise = node.blocks()
        block = then if condition.seen else otherwise
        self._block(block.nodes())
        for name, chosen in zip(node.outputs(), block.outputs(), strict=True):
            self._keep(name, self._value(chosen))

    def _loop(self, node: Any) -> None:
        """Write a loop's turns down one after the other."""
        most, condition, *carried = [self._value(each) for each in node.inputs()]
        (block,) = node.blocks()
        turn, *names = block.inputs()
        count = 0
        while condition.seen and count < most.seen:
            self._keep(turn, Value.fixed(count))
            for name, value in zip(names, carried, strict=True):
                self._keep(name, value)
            self._block(block.nodes())
            condition, *carried = [self._value(each) for each in block.outputs()]
            count += 1
        for name, value in zip(node.outputs(), carried, strict=True):
            self._keep(name, value)


def _as_number(value: Value) -> Value:
    """A tensor that is one number of the script's own, as that number."""
    if isinstance(value.seen, Tensor) and value.seen.ndim == 0:
        return Value.fixed(value.seen.item())
    return value


def _spread(function: Any, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Values in the order of an operator's schema, as it wants them: some by name alone."""
    schema = getattr(function, "_schema", None)
    if schema is None:
        return tuple(values), {}
    by_place = []
    by_name = {}
    for argument, value in zip(schema.arguments, values, strict=True):
        if argument.kwarg_only:
            by_name[argument.name] = value
        else:
            by_place.append(value)
    return tuple(by_place), by_name
