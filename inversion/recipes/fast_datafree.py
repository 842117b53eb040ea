"""Fast-Datafree (Fang et al., AAAI 2022): a meta-learned generator whose every image is kept.

It is what SSD-KD descends from: batches are matched as in `parts/inner.py`, but nothing is
weighted by φ, no class has a quota, the pool only grows, and the student draws from it evenly.
"""

from __future__ import annotations

from dataclasses import replace

from distill.models import Classifier
from inversion.options import SynthesisOptions
from inversion.parts.matching import Matching


class FastDatafree(Matching):
    """BatchNorm statistics, the wanted class and the adversary. The student draws evenly from all
    images ever made, of which none is given up.

    Fast-Datafree's formulation over the options that `ssd-kd` has.
    """

    @classmethod
    def settle(cls, options: SynthesisOptions, teacher: Classifier) -> SynthesisOptions:
        """Set what makes the recipe: no φ, no likeness term, no quotas, uniform draws."""
        objective = replace(options.objective, phi=False, spread=0.0)
        replay = replace(
            options.replay,
            keep_all=True,
            balanced_targets=False,
            replace_all=False,
            sampling="uniform",
        )
        options = replace(options, objective=objective, replay=replay)
        return super().settle(options, teacher)
