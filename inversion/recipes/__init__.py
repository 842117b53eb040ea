"""How a set is made by training a generator: one file a recipe, and one line in `RECIPES`.

A recipe is a class with what `Recipe` names. The driver (`inversion/driver.py`) plans the
shards, calls `step` until the recipe is done, and writes what `shard` gives.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from synthesis_kernels.errors import EchosetError, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from distill.models import Classifier
    from distill.runtime import Machine, Runtime
    from inversion.inspection import TeacherNeed
    from inversion.jobs import ShardJob
    from inversion.options import SynthesisOptions
    from inversion.parts.abreast import Abreast
    from inversion.parts.own import Own
    from inversion.parts.progress import StepResult

RECIPES = {
    "ssd-kd": "inversion.recipes.ssdkd:SSDKD",
    "fast-datafree": "inversion.recipes.fast_datafree:FastDatafree",
    "adversarial": "inversion.recipes.adversarial:Adversarial",
    "attention": "inversion.recipes.attention:Attention",
}
"""Every recipe's name and its class, which is imported when it is asked for."""


class Recipe(Protocol):
    """One shard in the making: its options, its whole state, its steps, and what comes out."""

    needs: TeacherNeed
    """What it needs of a teacher; where that is BatchNorm, a teacher without it is refused."""
    abreast: type[Abreast] | None
    """What makes several shards abreast (`synthesis.abreast`); None where each is made alone."""
    together: bool
    """Whether several processes can share its steps (`synthesis.parallel`)."""
    call: int
    """Steps made so far."""
    seconds: float
    """Seconds these steps took."""

    @classmethod
    def settle(cls, options: SynthesisOptions, teacher: Classifier) -> SynthesisOptions:
        """The options with everything spelled out that the recipe or the teacher decides."""

    @classmethod
    def check(cls, teacher: Classifier, options: SynthesisOptions, runtime: Runtime) -> None:
        """Refuse, before any work, what this recipe can't do."""

    def __init__(
        self,
        teacher: Classifier,
        job: ShardJob,
        options: SynthesisOptions,
        machine: Machine,
        own: Own,
    ) -> None:
        """`own` is what a user brings along from Python: terms of the loss, a generator, an
        adversary.
        """

    @property
    def done(self) -> bool:
        """Whether the shard is finished."""

    @property
    def planned(self) -> int:
        """How many steps there will be, as far as one can tell now."""

    def notice(self) -> str | None:
        """What the user should know before the first step."""

    def step(self) -> StepResult:
        """One turn of everything: a batch is made, kept, and learnt from."""

    def shard(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The finished shard's tensors, and what is noted beside them."""

    def leave(self, folder: Path) -> None:
        """Write what is kept beside the set."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on to the same bytes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


def find_recipe(name: str) -> type[Recipe]:
    """The recipe of this name."""
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise EchosetError(f"no recipe '{name}'; there are {known}{suggest(name, RECIPES)}")
    module, _, attribute = RECIPES[name].partition(":")
    return getattr(import_module(module), attribute)
