"""What may be said of a network's images and answers, by whoever wrote a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from distill.names import known_names
from distill.options import OutputForm
from distill.sizes import MOST
from distill.tasks import TASKS, USUAL
from synthesis_kernels.errors import EchosetError

LIMITS = {"channels": (1, 1024), "size": (1, MOST), "classes": (2, 1_000_000)}
"""Least and most of what an input may have."""
LARGEST = 1e6
"""Of a mean or deviation of pixels."""


def check_contract(contract: Mapping[str, Any], where: str) -> None:
    """Refuse what can't be an input of a network, as a file from elsewhere may say anything;
    `where` names it for the message.
    """
    for key, limits in LIMITS.items():
        value = contract.get(key)
        numbers = [value]
        if key == "size" and isinstance(value, list | tuple) and len(value) == 2:
            numbers = [*value]
        if not all(_lies_within(limits, number) for number in numbers):
            demand = f"a whole number from {limits[0]} to {limits[1]:,}"
            if key == "size":
                demand += ", or two of them, height and width"
            raise EchosetError(f"{where}: {key} must be {demand}, got {value!r:.40}")
    task = contract.get("task", USUAL)  # files from before there were tasks have none
    if not isinstance(task, str) or task not in TASKS:
        known = ", ".join(TASKS)
        raise EchosetError(f"{where}: task must be one of {known}, got {task!r:.40}")
    for key in ("mean", "std"):
        values = contract.get(key)
        if not isinstance(values, list | tuple) or not all(map(_is_number, values)):
            raise EchosetError(f"{where}: {key} must be a list of numbers, got {values!r:.40}")
    check_normaliser(contract["mean"], contract["std"], contract["channels"], f"{where}: ")
    _check_output(contract, where)
    names = contract.get("class_names")
    if names is not None and known_names(names, contract["classes"]) is None:
        raise EchosetError(
            f"{where}: class_names must be {contract['classes']:,} names, got {names!r:.40}"
        )


def differing(one: Mapping[str, Any], other: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """The keys in which two contracts differ. One mean or deviation is one for each channel."""
    return [key for key in keys if _spelt_out(one, key) != _spelt_out(other, key)]


def _spelt_out(contract: Mapping[str, Any], key: str) -> Any:
    value = contract.get(key)
    if value is not None and key in ("mean", "std"):
        return list(value) * contract["channels"] if len(value) == 1 else list(value)
    return value


def _lies_within(limits: tuple[int, int], value: object) -> bool:
    """Whether a value is a whole number within these."""
    return type(value) is int and limits[0] <= value <= limits[1]


def _is_number(value: object) -> bool:
    """Of a size that pixels of any unit have; no truth value, and neither infinite nor none."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST  # type: ignore[operator]


def _check_output(contract: Mapping[str, Any], where: str) -> None:
    output = contract.get("output")
    if not isinstance(output, str | None):
        raise EchosetError(f"{where}: output must be a name, got {output!r:.40}")
    form = contract.get("output_form")
    if form is not None and form not in get_args(OutputForm):
        known = ", ".join(get_args(OutputForm))
        raise EchosetError(f"{where}: output_form must be one of {known}, got {form!r:.40}")


def check_normaliser(
    mean: Sequence[float], std: Sequence[float], channels: int, where: str = ""
) -> None:
    """Refuse means and deviations that are not one a channel, or one for all."""
    for name, given in (("mean", mean), ("std", std)):
        if len(given) not in (1, channels):
            raise EchosetError(
                f"{where}{name} has {len(given)} values, but the input has {channels} channels"
            )
    if min(std) <= 0:
        raise EchosetError(f"{where}every std must be positive, got {list(std)}")
