"""A step on a CPU as a list of operations, run again without the Python that made it.

Around the kernels of an eager step stand modules, autograd and the making of views, and each of
them finds the caches full of other things: of a small student's step that is a sixth. `Replayed`
listens to two steps (`recording.py`). Where both were the same, operation by operation, on the same
memory, it runs the list beside a third step; and where that gave the same bits, alone from then on.
Memory that a step asks for stays for the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from synthesis_kernels.recording import Address, Operation, Place, Recording, aten, conditions
from synthesis_kernels.step import Function


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
        state = _State([*tape.changed(), *inputs], tape.generators())
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
        self._memories = recording.memories
        self._outputs = recording.outputs
        self._ends = self._find_ends()
        self._rooms = self._make_rooms()
        # Detached, they still count their changes together with the tensors themselves.
        self._tensors = {place: one.detach() for place, one in recording.tensors.items()}
        self._slots: dict[Place, Slot] = {}
        self._whole: dict[int, Place] = {}
        """Memory that each run has anew, and the tensor that brought it."""
        for place in self.inputs:
            self._new_slot(place)
        self.steps: list[Step] = []
        asked = {memory.asked_by for memory in self._memories}
        for number, operation in enumerate(self._operations):
            if number not in asked:
                self._add(operation, number)
        self.outputs = [self._find(place) for place in self._outputs]

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

    def changed(self) -> list[Tensor]:
        """Memory that was there before, as bytes, as far as a step may change it: all but images,
        and what is only chosen from, which may be large. A BatchNorm does not tell that it changes
        its running statistics, nor does a native kernel.
        """
        numbers = {
            place.memory
            for operation in self._operations
            if operation.function is not aten.index.Tensor
            for place in operation.places()
            if place.dtype is not torch.uint8
        }
        given = [self._memories[number].given for number in sorted(numbers)]
        return [_bytes_of(storage) for storage in given if storage is not None]

    def generators(self) -> list[torch.Generator]:
        """Those that operations draw from, beside torch's own."""
        leaves = tree_leaves([(each.arguments, each.keywords) for each in self._operations])
        return [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]

    def _find_ends(self) -> dict[int, list[int]]:
        """Memories by the last operation that needs them; what is given back has none."""
        last: dict[int, int] = {}
        for number, operation in enumerate(self._operations):
            last |= {place.memory: number for place in operation.places()}
        for place in self._outputs:
            last.pop(place.memory, None)
        ends: dict[int, list[int]] = defaultdict(list)
        for memory, number in last.items():
            ends[number].append(memory)
        return ends

    def _make_rooms(self) -> dict[int, UntypedStorage]:
        """For what operations ask for; one that is free again serves the next that is as large."""
        asking = {memory.asked_by: number for number, memory in enumerate(self._memories)}
        free: dict[int, list[UntypedStorage]] = defaultdict(list)
        rooms: dict[int, UntypedStorage] = {}
        for number in range(len(self._operations)):
            if number in asking:
                memory = asking[number]
                size = self._memories[memory].size
                rooms[memory] = free[size].pop() if free[size] else UntypedStorage(size)
            for memory in self._ends[number]:
                if memory in rooms:
                    free[self._memories[memory].size].append(rooms[memory])
        return rooms

    def _stays(self, memory: int) -> UntypedStorage | None:
        """Memory that is the same for every run."""
        return self._rooms.get(memory, self._memories[memory].given)

    def _add(self, operation: Operation, number: int) -> None:
        """Make a step of it."""
        given = (operation.arguments, operation.keywords)
        arguments, keywords = tree_map(self._value, given)
        result = tree_map_only(Place, self._new_slot, operation.result)
        ended = set(self._ends[number]) - {place.memory for place in self.inputs}
        gone = [slot for place, slot in self._slots.items() if place.memory in ended]
        self.steps.append(Step(operation.function, arguments, keywords, result, gone))

    def _value(self, value: Any) -> Any:
        """An argument: a number as it is, a tensor that stays or its address, or a slot."""
        if not isinstance(value, Place):
            return value
        if not isinstance(value, Address):
            return self._find(value)
        storage = self._stays(value.memory)
        if storage is not None:
            return storage.data_ptr() + value.offset * value.dtype.itemsize
        return AddressOf(self._find(Place(**vars(value))))

    def _find(self, place: Place) -> Any:
        """The tensor, or its slot."""
        if place in self._tensors:
            return self._tensors[place]
        storage = self._stays(place.memory)
        if storage is not None:
            self._tensors[place] = _tensor_in(storage, place)
            return self._tensors[place]
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
