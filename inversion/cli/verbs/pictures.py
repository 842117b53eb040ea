"""Images to compare two networks on, where nobody has labelled test images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from distill.data.images import Images
from distill.evaluation import predict
from distill.models import as_found
from distill.tasks.places import decide
from inversion.sources.stream import open_sources

if TYPE_CHECKING:
    from torch import Tensor

    from distill.models import Classifier
    from distill.runtime import Runtime

DRAWN_FOR_IT = ("shaders", "leaves")
"""Sources of the pictures, a block of each."""


def held_out_pictures(teacher: Classifier, runtime: Runtime) -> tuple[Images, Tensor]:
    """Procedural pictures that no set of this seed has, labelled by the teacher's decisions, and
    its logits.
    """
    device = runtime.resolve_device()
    spec = teacher.spec
    # Another seed: pictures beside the set are drawn by this one.
    seed = runtime.seed + 1
    sources = open_sources(DRAWN_FOR_IT, spec.channels, spec.size, seed, device, runtime.quiet)
    images = torch.cat([source.block(0) for source in sources])  # (N, C, H, W) uint8
    with as_found(teacher):
        title = "asking the teacher"
        logits = predict(teacher, images, device, title=title, quiet=runtime.quiet)
    name = f"{len(images):,} procedural pictures held out"
    return Images(images.cpu(), decide(logits).cpu(), name), logits
