"""A loop's state put back from a file, whoever wrote that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from synthesis_kernels.errors import EchosetError, reason_of


class HasState(Protocol):
    """What keeps its whole state in one mapping."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


MADE_IN_STEPS = "optimiser.state"
"""What is empty before the first step, and then a mapping for each parameter."""


def restore(target: HasState, saved: dict[str, Any], path: Path) -> None:
    """Put back what the file held, if it is of the kinds and shapes that the target has now."""
    with blaming_state(path):
        _require_plain(saved, "state")
        _require_alike(saved, target.state_dict(), "state")
        target.load_state_dict(saved)


@contextmanager
def blaming_state(path: Path) -> Iterator[None]:
    """Name the file whose state can't be put back."""
    try:
        yield
    except EchosetError:
        raise
    except Exception as error:  # of whichever part of the state does not fit
        raise EchosetError(
            f"{path} does not hold the state of this job ({reason_of(error):.200}); delete it to "
            "start this job again"
        ) from error


def _require_plain(saved: Any, where: str) -> None:
    """Refuse, by a ValueError, tensors that are no plain numbers, wherever they are."""
    parts: Any = ()
    if isinstance(saved, Mapping):
        parts = saved.items()
    elif isinstance(saved, list | tuple):
        parts = enumerate(saved)
    elif isinstance(saved, Tensor) and (saved.is_meta or saved.layout is not torch.strided):
        raise ValueError(f"{where} is no tensor of numbers")
    for name, part in parts:
        _require_plain(part, f"{where}.{name}")


def _require_alike(saved: Any, own: Any, where: str) -> None:
    """Refuse, by a ValueError, other keys, kinds and shapes. What is empty now may hold more."""
    if own is None:
        return
    if isinstance(own, Tensor):
        _require_tensor(saved, own, where)
    elif isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or (own and saved.keys() != own.keys()):
            raise ValueError(f"{where} has other parts")
        if where.endswith(MADE_IN_STEPS) and not all(
            isinstance(one, Mapping) for one in saved.values()
        ):
            raise ValueError(f"{where} has other parts")
        for key, value in own.items():
            _require_alike(saved[key], value, f"{where}.{key}")
    elif isinstance(own, list | tuple):
        if not isinstance(saved, list | tuple) or (own and len(saved) != len(own)):
            raise ValueError(f"{where} has other parts")
        for number, value in enumerate(own):
            _require_alike(saved[number], value, f"{where}.{number}")
    elif isinstance(own, bool | str):
        if type(saved) is not type(own):
            raise ValueError(f"{where} is {saved!r:.40}")
    elif isinstance(own, int | float) and type(saved) not in (int, float):
        raise ValueError(f"{where} is no number, but {saved!r:.40}")


def _require_tensor(saved: Any, own: Tensor, where: str) -> None:
    if not isinstance(saved, Tensor):
        raise ValueError(f"{where} is no tensor of numbers")
    if saved.shape != own.shape or saved.dtype is not own.dtype:
        raise ValueError(
            f"{where} is {saved.dtype} {tuple(saved.shape)}, not {own.dtype} {tuple(own.shape)}"
        )
