"""What a step on a CPU does, operation by operation, and with which memory: what `tape.py` runs
again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from synthesis_kernels import native
from synthesis_kernels.backend import asked_form
from synthesis_kernels.step import Function

aten = torch.ops.aten
REQUESTS = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
}
"""Operations that ask for memory and do nothing with it."""


@dataclass
class Memory:
    """What tensors lie in."""

    size: int
    """In bytes."""
    watch: StorageWeakRef
    """The address of memory is used again; that of its owner is not, while it is watched."""
    given: UntypedStorage | None = None
    """The memory itself, if it was there before the step and is no input's."""
    asked_by: int | None = None
    """The number of the operation that asked for it, if that did nothing else."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Memory):
            return NotImplemented
        return self.size == other.size and self._owner == other._owner

    __hash__ = None  # type: ignore[assignment]

    @property
    def _owner(self) -> int | None:
        return None if self.given is None else self.given._cdata


@dataclass(frozen=True)
class Place:
    """A tensor by its memory: the number of that memory in a recording, and where in it."""

    memory: int
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Address(Place):
    """A tensor of which a native kernel takes the address."""


@dataclass
class Operation:
    """One of torch, or a native kernel; tensors are places. Of its result, what it made anew."""

    function: Callable[..., Any]
    arguments: Any
    keywords: dict[str, Any]
    result: Any

    def places(self) -> Iterator[Place]:
        """All that it reads and writes."""
        leaves = tree_leaves((self.arguments, self.keywords, self.result))
        return (leaf for leaf in leaves if isinstance(leaf, Place))


class Recording(TorchDispatchMode):
    """A step that was listened to. Two that are equal can stand for one another."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.memories: list[Memory] = []
        self.tensors: dict[Place, Tensor] = {}
        """In memory that is given: tensors as operations of torch took them."""
        self.problem: str | None = None
        """Why it can't be run again, if it can't."""
        self.conditions = conditions()
        self._numbers: dict[int, int] = {}
        """Of memories, by the addresses of their owners."""
        self._thread = threading.get_ident()
        self.inputs = [self._place(tensor, made=True) for tensor in inputs]
        self.outputs: list[Place] = []
        if len(self.memories) < len(inputs):
            self._refuse("two inputs share memory")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recording):
            return NotImplemented
        return (
            self.operations == other.operations
            and self.memories == other.memories
            and self.inputs == other.inputs
            and self.outputs == other.outputs
            and self.conditions == other.conditions
        )

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to step around torch's compiler, torch would import it, which takes two seconds."""
        return False

    def run(self, function: Function, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the function gives, while it is listened to."""
        native.listeners.append(self._hear)
        try:
            with self:
                found = function(*inputs)
        finally:
            native.listeners.remove(self._hear)
        self.outputs = [self._place(tensor) for tensor in found]
        return found

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        keywords = keywords or {}
        if function.namespace == "profiler":  # what optimisers tell it
            return function(*arguments, **keywords)
        self._refuse_unsteady(function, arguments)
        given, named = tree_map_only(Tensor, self._operand, (arguments, keywords))
        out = function(*arguments, **keywords)
        self._refuse_numbers(function, out)
        known = len(self.memories)
        result = tree_map_only(Tensor, lambda tensor: self._place(tensor, made=True), out)
        made = len(self.memories) > known
        if made and function.overloadpacket in REQUESTS:
            self.memories[known].asked_by = len(self.operations)
        if made or function._schema.is_mutable:  # and no view
            new = tree_map_only(Place, lambda at: at if at.memory >= known else None, result)
            self.operations.append(Operation(function, given, named, new))
        return out

    def _hear(self, kernel: Any, name: str, arguments: tuple[native.Argument, ...]) -> None:
        """Take down a native kernel of this thread."""
        if threading.get_ident() != self._thread:
            return
        told: list[Any] = []
        for value in arguments:
            tensor = value.tensor if isinstance(value, native.Memory) else value
            if isinstance(tensor, Tensor):
                told.append(Address(**vars(self._place(tensor))))
            else:
                told.append(tensor)
        threads, _ = self.conditions
        self.operations.append(Operation(kernel, (*told, threads), {}, None))

    def _operand(self, tensor: Tensor) -> Place:
        """Where it is; of memory that is given, the tensor is noted."""
        place = self._place(tensor)
        if self.memories[place.memory].given is not None:
            self.tensors.setdefault(place, tensor)
        return place

    def _place(self, tensor: Tensor, made: bool = False) -> Place:
        """Where it is; memory that nobody knew was `made` now, or was there before the step."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
            self._refuse(f"there is a {type(tensor).__name__} of layout {tensor.layout}")
            tensor = torch.empty(0)
        if tensor.device.type != "cpu" or tensor.is_conj() or tensor.is_neg():
            self._refuse("there is a tensor that is not as it lies in a CPU's memory")
        storage = tensor.untyped_storage()
        number = self._numbers.setdefault(storage._cdata, len(self.memories))
        if number == len(self.memories):
            given = None if made else storage
            self.memories.append(Memory(storage.nbytes(), StorageWeakRef(storage), given))
        if storage.nbytes() != self.memories[number].size:
            self._refuse("a tensor has grown")
        offset = int(tensor.storage_offset())
        return Place(number, tensor.dtype, offset, tuple(tensor.shape), tensor.stride())

    def _refuse_unsteady(self, function: Any, arguments: tuple[Any, ...]) -> None:
        """Refuse an operation whose tensors are not always of the same size and strides."""
        if torch.Tag.inplace_view in function.tags:
            self._refuse(f"{function} turns a tensor about")
        if torch.Tag.dynamic_output_shape not in function.tags:
            return
        if function is aten.index.Tensor and not any(map(_is_mask, arguments[1])):
            return  # torch says so of every choice by a tensor
        self._refuse(f"{function} gives as much as the numbers say")

    def _refuse_numbers(self, function: Any, out: Any) -> None:
        """Refuse what Python may decide by."""
        if any(not isinstance(leaf, Tensor) for leaf in tree_leaves(out) if leaf is not None):
            self._refuse(f"{function} tells Python a number")

    def _refuse(self, why: str) -> None:
        self.problem = self.problem or why


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def conditions() -> tuple[int, str]:
    """What a step's operations depend on beside its inputs: the threads, and the kernels' form."""
    return torch.get_num_threads(), asked_form()
