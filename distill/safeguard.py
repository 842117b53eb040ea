"""A student's last good state, to which a training goes back from an update that broke it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.loop import Interrupted
from distill.models import Classifier
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.loop import Loop
    from distill.update import StudentState

LOWER = 0.25
"""What the learning rate is multiplied by when an update has broken the student."""
MOST_BREAKS = 5
"""Times in a row that a student may break; then its training ends."""
REMEDY = "lower the learning rate of the distillation, or the weights of its losses"


class Safeguard:
    """Keeps a student's state while it is good, and puts it back when the student has broken.

    A look costs one wait for the device, so a training looks at intervals. What it has done since
    the last good look is then done anew, at a lower rate.
    """

    def __init__(self, state: StudentState) -> None:
        self.state = state
        self.breaks = 0
        """Since the student was last found good."""
        self._broken_at = 0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        """Each tensor, by its id, and its good values."""
        self.keep()

    @torch.no_grad()
    def is_whole(self, *figures: Tensor) -> bool:
        """Whether all that a step changes, and these figures, are finite numbers."""
        tensors = [*self._tensors(), *figures]
        numbers = [one for one in tensors if one.is_floating_point() and one.numel()]
        largest = torch._foreach_norm(numbers, math.inf)
        here = [size.to(self.state.agreement.device, torch.float32) for size in largest]
        return bool(torch.stack(here).isfinite().all())

    def keep(self) -> None:
        """Remember this state as a good one."""
        self.breaks = 0
        self._step = self.state.step
        self._random = self.state.random_state()
        self._kept = {}  # the memory of the last copies goes before there are new ones
        self._kept = {id(one): (one, one.detach().clone()) for one in self._tensors()}

    @torch.no_grad()
    def go_back(self) -> None:
        """Give everything the values it had in the last good state, where it is in memory."""
        state = self.state
        for tensor in self._tensors():
            if id(tensor) in self._kept:
                tensor.copy_(self._kept[id(tensor)][1])
            else:  # the optimiser's since its first step, before which there is nothing
                tensor.zero_()
        state.step = self._step
        state.restore_random(self._random)

    def mend(self, loop: Loop) -> bool:
        """Go back from a broken student, and learn at a lower rate from there; tells whether that
        is worth another try.
        """
        state = self.state
        self.breaks += 1
        self._broken_at = state.step
        self.go_back()
        state.scale *= LOWER
        if self.breaks >= MOST_BREAKS:
            return False
        loop.note("broken", step=self._broken_at, back_to=state.step, scale=state.scale)
        loop.say(
            f"an update broke the student by step {self._broken_at}; it goes on from step "
            f"{state.step} at {state.scale:.2g} of its learning rate"
        )
        return True

    def error(self, file: Path | None) -> EchosetError:
        """What is told of a student that broke at every rate tried; its last good state may be
        kept in a file.
        """
        state = self.state
        message = (
            f"the student is not finite by step {self._broken_at}, {MOST_BREAKS} times in a row, "
            f"the last time at {state.scale / LOWER:.2g} of its learning rate; {REMEDY}"
        )
        if file is not None:
            message += (
                f". {file} keeps it as it was at step {state.step}: the same command goes on from "
                "there at a lower rate still, or at the learning rate that is given with it"
            )
        return EchosetError(message)

    def split(self, loop: Loop, batch: int) -> None:
        """Go back from a step that had too little memory, and learn in smaller parts."""
        state = self.state
        self.go_back()
        state.parts *= 2
        loop.note("split", step=state.step, parts=state.parts)
        loop.say(
            f"out of memory: from step {state.step} on each batch of {batch} is learnt in "
            f"{state.parts} parts, whose gradients are added up. BatchNorm, and losses that "
            "compare images, see a part at a time. To have it so from the start: "
            f"--distillation.batch {batch // state.parts}"
        )

    def _tensors(self) -> list[Tensor]:
        """All that a step changes, and what follows it."""
        state = self.state
        tensors = [*state.tensors(), state.agreement]
        if state.average:
            tensors += [*state.average.parameters(), *state.average.buffers()]
        return tensors


@contextmanager
def weights_back_on_failure(student: Classifier, kept: bool) -> Iterator[None]:
    """A student that failed gets the weights back that it came with. So does a stopped one whose
    state is `kept`: by its weights the same call, made again, finds what was saved. Otherwise a
    stopped student is all there is, and stays as it is.
    """
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    try:
        yield
    except (EchosetError, Interrupted, KeyboardInterrupt) as error:
        if kept or isinstance(error, EchosetError):
            student.load_state_dict(weights)
        raise
