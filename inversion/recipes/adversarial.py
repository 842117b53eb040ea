"""Adversarial images alone, after DFAD (Fang et al. 2019) and ZSKT (Micaelli and Storkey 2019).

The generator looks for images on which teacher and student differ; the student learns to agree.
Nothing of the teacher is looked at but its answers, so it needs no BatchNorm. The whole image
prior is the generator's last layer: tanh, then each channel brought to the mean and deviation that
the teacher's normaliser expects.

    L_S = mean |z_S − z_T|        L_G = −adversary · L_S + classes · CE(T(x), y)

The second term of L_G is ours: it asks for the classes the set still lacks, so that the finished
set can be balanced. With `objective.classes` 0 and `objective.adversary` 1 the recipe is as
published.
"""

from __future__ import annotations

from inversion.parts.contest import Contest


class Adversarial(Contest):
    """The adversary, and the wanted class. The student learns from fresh batches.

    DFAD's losses, and the class asked for.
    """
