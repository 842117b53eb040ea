"""Images on which the heads of a vision transformer agree, after MimiQ (Choi et al. 2024).

A network with BatchNorm keeps statistics that images can be brought to. A vision transformer keeps
none; but on real images the heads of one of its layers look alike (`parts/attention_heads.py`):

    L_G = −adversary · |z_S − z_T| + classes · CE(T(x), y)
          + heads · mean(1 − SSIM²) + variation · TV + spread · likeness

The first two terms are those of the recipe `adversarial`, of which this is all the rest as well:
generator, student, buffer. The last one is that of `ssd-kd`: without it all images of a class
become one picture. MimiQ has neither, and changes pixels.
"""

from __future__ import annotations

from torch import Tensor

from distill.models import Classifier
from distill.runtime import Runtime
from inversion.inspection import TeacherNeed
from inversion.options import SynthesisOptions
from inversion.parts.attention_heads import has_heads, head_difference, with_heads
from inversion.parts.contest import Contest
from inversion.parts.terms import likeness
from synthesis_kernels.errors import EchosetError


class Attention(Contest):
    """The adversary, the wanted class, and how alike the attention heads of a layer are. The
    student learns from fresh batches.

    One shard in the making (see `inversion.recipes.Recipe`).
    """

    needs: TeacherNeed = "attention"

    @classmethod
    def check(cls, teacher: Classifier, options: SynthesisOptions, runtime: Runtime) -> None:
        """Refuse a teacher without attention, and what any contest refuses."""
        super().check(teacher, options, runtime)
        if not has_heads(teacher, teacher.grey_images()):
            raise EchosetError(
                f"teacher '{teacher.spec.model}' has no attention layer with two heads or more, "
                "and recipe attention compares heads. Use --synthesis.recipe adversarial, for "
                "which answers alone will do, or no generator: echoset collect shaders"
            )

    def _ask_teacher(
        self, images: Tensor, wanted: Tensor
    ) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        goal = self.options.objective
        priors = {
            "variation": (total_variation(images), goal.variation),
            "alike": (likeness(images, wanted), goal.spread),
        }
        if not goal.heads:
            return self.frozen(images), priors
        answers, maps = with_heads(self.frozen, images)
        return answers, priors | {"heads": (head_difference(maps), goal.heads)}


def total_variation(images: Tensor) -> Tensor:  # (B, C, H, W) -> ()
    """Mean absolute difference of neighbouring pixels, down and across."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
