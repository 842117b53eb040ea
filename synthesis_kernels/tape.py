"""A step on a CPU as a list of operations, run again without the Python that made it.

Around the kernels of an eager step stand modules, autograd and the making of views, and each of
them finds the caches full of other things: of a small student's step that is a sixth. `Replayed`
listens to two steps, to torch's operations and to the native kernels; where both were the same,
operation by operation, on the same memory, it runs the list beside a third step; and where that
gave the same bits, alone from then on. Memory that a step asks for stays for the next one.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from synthesis_kernels import native
from synthesis_kernels.backend import asked_form
from synthesis_kernels.step import Function

aten = torch.ops.aten
MEMORY = (
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)
"""Operations that ask for memory and do nothing with it."""


class Replayed:
    """A step that is replayed from its fifth call on, where it can be. Of what a call returns, the
    next one may overwrite the memory.

    The function may depend on its inputs and on tensors that it changes in place, and on nothing
    else that changes: what else it reads are constants then.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.calls = 0
        self.tape: Tape | None = None
        self.problem: str | None = None
        """Why there is no tape, once that is known."""
        self._recording: Recording | None = None
        self._is_checked = False

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.tape is not None and self.tape.takes(inputs):
            return self.tape(*inputs) if self._is_checked else self._check(self.tape, inputs)
        # The first call is different: optimisers make their state then.
        if self.calls == 1 or self.tape is not None or self.problem is not None:
            return self.function(*inputs)
        return self._listen(inputs)

    def _listen(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A step that is recorded; the second time, decide."""
        recording = Recording(inputs)
        found = recording.run(self.function, inputs)
        before = self._recording
        self._recording = None
        if recording.problem is not None:
            self.problem = recording.problem
        elif before is None:
            self._recording = recording
        elif before != recording:
            self.problem = "two steps were not the same operations"
        else:
            self.tape = Tape(recording)
        return found

    def _check(self, tape: Tape, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A step by both ways from the same state. The eager one stands, and decides."""
        state = _State([*tape.changed, *inputs], tape.generators)
        replayed = [tensor.clone() for tensor in tape(*inputs)]
        after = state.values()
        state.put_back()
        found = self.function(*inputs)
        self._is_checked = True
        if not _same_bits([*replayed, *after], [*found, *state.values()]):
            # Sums in another order, say: the engine adds gradients up in place only where nobody
            # looks on.
            self.tape = None
            self.problem = "a replay does not give the same bits"
        return found


class _State:
    """What a step changes, as it is before it."""

    def __init__(self, tensors: list[Tensor], generators: list[torch.Generator]) -> None:
        self.tensors = tensors
        self.generators = [torch.default_generator, *generators]
        self.before = self.values()

    def values(self) -> list[Tensor]:
        """As they are now."""
        drawn = [generator.get_state() for generator in self.generators]
        return [*(tensor.detach().clone() for tensor in self.tensors), *drawn]

    @torch.no_grad()
    def put_back(self) -> None:
        """As they were."""
        count = len(self.tensors)
        for tensor, value in zip(self.tensors, self.before[:count], strict=True):
            tensor.copy_(value)
        for generator, value in zip(self.generators, self.before[count:], strict=True):
            generator.set_state(value)


def _same_bits(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors are equal, those that are no numbers, too."""
    return all(
        one.shape == other.shape
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        for one, other in zip(some, others, strict=True)
    )


@dataclass(frozen=True)
class Place:
    """A tensor by its memory: the number of that memory in a recording, and where in it."""

    memory: int
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Address:
    """What a native kernel takes of a tensor."""

    place: Place


@dataclass
class Operation:
    """One of torch, or a native kernel; tensors are places. Of its result, what it made anew."""

    function: Callable[..., Any]
    arguments: Any
    keywords: dict[str, Any] = field(default_factory=dict)
    result: Any = None

    def places(self) -> Iterator[Place]:
        """All that it reads and writes."""
        for leaf in tree_leaves((self.arguments, self.keywords, self.result)):
            if isinstance(leaf, (Place, Address)):
                yield leaf.place if isinstance(leaf, Address) else leaf


class Recording(TorchDispatchMode):
    """What a step did, and with which memory. Two are equal if one can stand for the other."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.problem: str | None = None
        self.given: dict[int, UntypedStorage] = {}
        """Memory that was there before, and no input's."""
        self.tensors: dict[Place, Tensor] = {}
        """Tensors there, as operations of torch took them."""
        self.sizes: list[int] = []
        """Bytes of each memory."""
        self.asked: dict[int, int] = {}
        """Memory that an operation only asked for, and the number of that operation."""
        # The address of memory is used again; that of its owner is not, while it is watched.
        self._owners: dict[int, int] = {}
        self._thread = threading.get_ident()
        self._watched: list[StorageWeakRef] = []
        self.inputs = list(map(self._place_made, inputs))
        self.outputs: list[Place] = []
        self.conditions = conditions()
        if len({place.memory for place in self.inputs}) < len(inputs):
            self._refuse("two inputs share memory")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Recording)
            and self.operations == other.operations
            and self.inputs == other.inputs
            and self.outputs == other.outputs
            and self.conditions == other.conditions
            and self.given.keys() == other.given.keys()
            and all(self.given[key]._cdata == other.given[key]._cdata for key in self.given)
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
        if function.namespace == "profiler":  # what optimisers tell it
            return function(*arguments, **(keywords or {}))
        given, named = tree_map_only(Tensor, self._operand, (arguments, keywords or {}))
        if torch.Tag.inplace_view in function.tags:
            self._refuse(f"{function} turns a tensor that others have about")
        if _size_depends(function, arguments):
            self._refuse(f"{function} gives as much as the numbers say")
        out = function(*arguments, **(keywords or {}))
        if any(not isinstance(leaf, Tensor) for leaf in tree_leaves(out) if leaf is not None):
            self._refuse(f"{function} tells Python a number")
        known = len(self.sizes)
        result = tree_map_only(Tensor, self._place_made, out)
        is_new = len(self.sizes) > known
        if is_new and function in MEMORY:
            self.asked[known] = len(self.operations)
        if is_new or function._schema.is_mutable:
            fresh = tree_map_only(Place, lambda at: at if at.memory >= known else None, result)
            self.operations.append(Operation(function, given, named, fresh))
        return out

    def _hear(self, kernel: Any, name: str, arguments: tuple[native.Argument, ...]) -> None:
        """Take down a native kernel of this thread."""
        if threading.get_ident() != self._thread:
            return
        told: list[Any] = []
        for value in arguments:
            tensor = value.tensor if isinstance(value, native.Memory) else value
            told.append(Address(self._place(tensor)) if isinstance(tensor, Tensor) else tensor)
        self.operations.append(Operation(kernel, (*told, self.conditions[0])))

    def _operand(self, tensor: Tensor) -> Place:
        place = self._place(tensor)
        if place.memory in self.given:
            self.tensors.setdefault(place, tensor)
        return place

    def _place_made(self, tensor: Tensor) -> Place:
        return self._place(tensor, new=True)

    def _place(self, tensor: Tensor, new: bool = False) -> Place:
        """Where it is; memory that nobody knew is `new`, or was there before the step."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
            self._refuse(f"there is a {type(tensor).__name__} of layout {tensor.layout}")
            return Place(-1, tensor.dtype, 0, (), ())
        if tensor.device.type != "cpu" or tensor.is_conj() or tensor.is_neg():
            self._refuse("there is a tensor that is not as it lies in a CPU's memory")
        storage = tensor.untyped_storage()
        memory = self._owners.get(storage._cdata)
        if memory is None:
            memory = self._owners[storage._cdata] = len(self.sizes)
            self.sizes.append(storage.nbytes())
            self._watched.append(StorageWeakRef(storage))
            if not new:
                self.given[memory] = storage
        if storage.nbytes() != self.sizes[memory]:
            self._refuse("a tensor has grown")
        return Place(
            memory,
            tensor.dtype,
            int(tensor.storage_offset()),
            tuple(tensor.shape),
            tuple(tensor.stride()),
        )

    def _refuse(self, why: str) -> None:
        self.problem = self.problem or why


def _size_depends(function: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether the size of an operation's result depends on numbers in its tensors."""
    if torch.Tag.dynamic_output_shape not in function.tags:
        return False
    if function is not aten.index.Tensor:
        return True
    indices = [index for index in arguments[1] if index is not None]
    return any(index.dtype in (torch.bool, torch.uint8) for index in indices)


def conditions() -> tuple[int, str]:
    """What a step's operations depend on beside its inputs: the threads, and the kernels' form."""
    return torch.get_num_threads(), asked_form()


class Slot(int):
    """The number of a tensor among those that a run finds."""


class AddressOf(int):
    """The address of a tensor, by its slot."""


class Tape:
    """A recording that can be run."""

    def __init__(self, recording: Recording) -> None:
        self.inputs = recording.inputs
        self.conditions = recording.conditions
        self._operations = recording.operations
        self._last = self._last_uses(recording.outputs)
        self._given = recording.given
        self._fixed = recording.given | self._rooms(recording)
        # Detached, they still count their changes together with the tensors themselves.
        self._tensors = {place: one.detach() for place, one in recording.tensors.items()}
        self._slots: dict[Place, Slot] = {}
        self._whole: dict[int, Place] = {}
        """Memory that each run has anew, and the tensor that brought it."""
        for place in self.inputs:
            self._new_slot(place)
        self.steps: list[Step] = []
        asked = set(recording.asked.values())
        for number, operation in enumerate(self._operations):
            if number not in asked:
                self._add(operation, number)
        self.outputs = [self._find(place) for place in recording.outputs]
        self.changed = self._find_changed()
        """Numbers that were there before a step, and that it may change."""
        leaves = tree_leaves([(each.arguments, each.keywords) for each in self._operations])
        self.generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]

    def _find_changed(self) -> list[Tensor]:
        """All but the bytes of images, and what is only chosen from, which may be large: a
        BatchNorm does not tell that it changes its running statistics, nor a native kernel what it
        writes.
        """
        found: dict[int, Tensor] = {}
        for operation in self._operations:
            if operation.function is aten.index.Tensor:
                continue
            for place in operation.places():
                if place.memory in self._given and place.dtype is not torch.uint8:
                    found[place.memory] = _bytes_of(self._given[place.memory])
        return list(found.values())

    def takes(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether it runs on these, and here."""
        alike = all(
            tensor.dtype is place.dtype
            and tensor.shape == place.size
            and tensor.stride() == place.stride
            and tensor.storage_offset() == place.offset
            and tensor.device.type == "cpu"
            for tensor, place in zip(inputs, self.inputs, strict=True)
        )
        return alike and conditions() == self.conditions

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: list[Any] = [*inputs, *[None] * (len(self._slots) - len(inputs))]
        for step in self.steps:
            step(found)
        return tuple(found[at] if isinstance(at, Slot) else at for at in self.outputs)

    def _last_uses(self, outputs: list[Place]) -> dict[int, int]:
        """The last operation that needs a memory, by its number."""
        last: dict[int, int] = {}
        for number, operation in enumerate(self._operations):
            last |= {place.memory: number for place in operation.places()}
        return last | {place.memory: len(self._operations) for place in outputs}

    def _rooms(self, recording: Recording) -> dict[int, UntypedStorage]:
        """Memory for what is asked for; what is done with serves the next that is as large."""
        begins = {number: memory for memory, number in recording.asked.items()}
        ends: dict[int, list[int]] = defaultdict(list)
        for memory in recording.asked:
            ends[self._last[memory]].append(memory)
        free: dict[int, list[UntypedStorage]] = defaultdict(list)
        rooms: dict[int, UntypedStorage] = {}
        for number in range(len(self._operations)):
            if number in begins:
                memory = begins[number]
                size = recording.sizes[memory]
                rooms[memory] = free[size].pop() if free[size] else UntypedStorage(size)
            for memory in ends[number]:
                free[recording.sizes[memory]].append(rooms[memory])
        return rooms

    def _add(self, operation: Operation, number: int) -> None:
        """Make a step of it."""
        given = (operation.arguments, operation.keywords)
        arguments, keywords = tree_map(self._value, given)
        result = tree_map_only(Place, self._new_slot, operation.result)
        gone = [
            slot
            for place, slot in self._slots.items()
            if self._last.get(place.memory) == number and slot >= len(self.inputs)
        ]
        self.steps.append(Step(operation.function, arguments, keywords, result, gone))

    def _value(self, value: Any) -> Any:
        """An argument: a number as it is, a tensor that stays or its address, or a slot."""
        if isinstance(value, Place):
            return self._find(value)
        if not isinstance(value, Address):
            return value
        place = value.place
        if place.memory in self._fixed:
            return self._fixed[place.memory].data_ptr() + place.offset * place.dtype.itemsize
        return AddressOf(self._find(place))

    def _find(self, place: Place) -> Any:
        """The tensor, or its slot."""
        if place in self._tensors:
            return self._tensors[place]
        if place.memory in self._fixed:
            tensor = _tensor_in(self._fixed[place.memory], place)
            self._tensors[place] = tensor
            return tensor
        if place not in self._slots:
            # Another look at what some operation gave.
            whole = self._slots[self._whole[place.memory]]
            self.steps.append(Step(_look, (whole, place), {}, self._new_slot(place), []))
        return self._slots[place]

    def _new_slot(self, place: Place) -> Slot:
        self._whole.setdefault(place.memory, place)
        return self._slots.setdefault(place, Slot(len(self._slots)))


class Step:
    """An operation, ready to run."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Any,
        keywords: Any,
        result: Any,
        gone: list[Slot],
    ) -> None:
        """After it, the slots in `gone` are not needed."""
        self.function = function
        self.arguments = arguments
        self.keywords = keywords
        self.waits = any(isinstance(leaf, WAITING) for leaf in tree_leaves((arguments, keywords)))
        self.result = result if tree_leaves(result) else None
        self.gone = gone

    def __call__(self, found: list[Any]) -> None:
        arguments, keywords = self.arguments, self.keywords
        if self.waits:
            arguments, keywords = _filled((arguments, keywords), found)
        out = self.function(*arguments, **keywords)
        if self.result is not None:
            _keep(self.result, out, found)
        for slot in self.gone:
            found[slot] = None


WAITING = (Slot, AddressOf)
"""What a step has in place of what a run finds."""


def _filled(tree: Any, found: list[Any]) -> Any:
    """The same, with what was found."""
    kind = type(tree)
    if kind is Slot:
        return found[tree]
    if kind is AddressOf:
        return found[tree].data_ptr()
    if kind is tuple or kind is list:
        return kind([_filled(each, found) for each in tree])
    if kind is dict:
        return {name: _filled(each, found) for name, each in tree.items()}
    return tree


def _keep(result: Any, out: Any, found: list[Any]) -> None:
    """Note what an operation gave in its slots."""
    if isinstance(result, Slot):
        found[result] = out
    elif result is not None:
        for slot, each in zip(result, out, strict=True):
            _keep(slot, each, found)


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _tensor_in(storage: UntypedStorage, place: Place) -> Tensor:
    empty = torch.empty(0, dtype=place.dtype)
    return empty.set_(storage, place.offset, place.size, place.stride)


def _look(whole: Tensor, place: Place) -> Tensor:
    return _tensor_in(whole.untyped_storage(), place)
