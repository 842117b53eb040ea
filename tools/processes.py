"""Calls in fresh processes of one thread each, so that neither the load of the machine nor what ran
before changes what they compute.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

Call = tuple[Callable[..., Any], *tuple[Any, ...]]
"""A function and its arguments."""


def in_processes(calls: Sequence[Call]) -> list[Any]:
    """What the calls return; each has a fresh process with one thread."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(calls), mp_context=spawn) as pool:
        return list(pool.map(on_one_thread, calls))


def on_one_thread(call: Call) -> Any:
    """Make the call with one thread."""
    function, *arguments = call
    torch.set_num_threads(1)
    return function(*arguments)
