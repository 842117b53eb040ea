"""SSD-KD: a teacher in, a balanced transfer set out (Small Scale Data-Free Knowledge Distillation,
CVPR 2024).

The generator is trained against the teacher's BatchNorm statistics, the class asked for and the
adversarial student, weighted by φ (`parts/inner.py`, `parts/terms.py`). The buffer has a quota for
each class and is refreshed in part (`parts/buffer.py`). The adversarial student draws from it by
the priority δ or a learned policy (`parts/sampling.py`, `parts/policy.py`).
"""

from __future__ import annotations

from distill.models import Classifier
from distill.runtime import Runtime
from inversion.jobs import plan
from inversion.options import SynthesisOptions
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.matching import Matching
from inversion.parts.policy import check_policy
from synthesis_kernels.errors import EchosetError


class SSDKD(Matching):
    """BatchNorm statistics, and by φ the wanted class and the adversary. The student draws by
    priority δ from a buffer that is balanced by class. The usual recipe.

    As published, with the defaults that this project measured.
    """

    @classmethod
    def check(cls, teacher: Classifier, options: SynthesisOptions, runtime: Runtime) -> None:
        """Refuse a policy that has nothing to learn from, and what `Matching` refuses."""
        check_policy(options.replay)
        if options.replay.sampling == "policy":
            _check_held_out(options, teacher.spec.classes)
        super().check(teacher, options, runtime)


def _check_held_out(options: SynthesisOptions, classes: int) -> None:
    """A policy learns from held-out images: every job needs some."""
    for job in plan(options, classes):
        slots = [sum(job.quotas)] if options.replay.keep_all else job.quotas
        if ReplayBuffer(slots, (1, 1, 1), options.held_out).is_held_out.any():
            continue
        raise EchosetError(
            "replay.sampling policy learns from held-out images, and held_out "
            f"{options.held_out:g} of {sum(job.quotas)} images is none; raise held_out, or images "
            "to two a class at least"
        )
