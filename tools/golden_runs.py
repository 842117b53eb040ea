"""The tiny runs that `tools/golden.py` hashes. What a rebuild renames is renamed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from golden_parts import (
    ALIKE,
    DEMO,
    SHORT,
    collect_set,
    demo_set,
    learn,
    make_set,
    make_student,
)
from hashing import Thing, read_tensors
from processes import in_processes
from tiny import TINY

from distill import (
    DistillOptions,
    StudyOptions,
    TransferSet,
    ViewOptions,
    load_images,
    run_study,
)
from inversion import (
    MNIST_SLICE,
    CollectOptions,
    ScoreOptions,
    load_teacher,
    open_source,
    score,
)
from inversion.options import ReplayOptions, TeacherViewOptions
from inversion.sources import DRAWN
from synthesis_kernels.backend import kernel_form

PASTED = ViewOptions(mixup=0.3, cutmix=0.3, flip=True, cutout=0.2)
"""Views of two images, made of whole pixels and turned ones."""
JUDGED = (
    "accuracy",
    "top5",
    "per_class",
    "ece",
    "entropy",
    "images",
    "agreement",
    "steps",
    "set_size",
)
"""Figures of a study's cell."""
ATTACKED = (
    "magnitude_similarity",
    "angle_similarity",
    "boundary_pairs",
    "transfer",
    "transfer_teacher",
)
"""Figures of a study's cell that its attacks give."""
SCORED = (
    "images",
    "classes",
    "counts",
    "raw_counts",
    "margins",
    "readouts",
    "values",
    "overall",
    "decisions",
)
"""Figures of a scorecard."""


def demo(folder: Path) -> list[Thing]:
    """The demo's own path: a set, and the student that learns from it."""
    made = make_set(folder / "set", DEMO)
    return [*made, *make_student(folder / "student", folder / "set", DistillOptions(steps=20))]


def float32(folder: Path) -> list[Thing]:
    """The same parts in float32, which has kernels of its own on a CPU."""
    made = make_set(folder / "set", TINY, precision="float32")
    return [*made, *make_student(folder / "student", folder / "set", SHORT, precision="float32")]


def reference(folder: Path) -> list[Thing]:
    """The same parts with every kernel in plain torch."""
    with kernel_form("reference"):
        made = make_set(folder / "set", TINY)
        return [*made, *make_student(folder / "student", folder / "set", SHORT)]


def hints(folder: Path) -> list[Thing]:
    """Both students learn by hints; the adversarial one from stored views of two images."""
    adversary = replace(TINY.adversary, hints=1.0, views_per_image=2, keep=True)
    made = make_set(folder / "set", replace(TINY, adversary=adversary, views=PASTED))
    options = replace(SHORT, loss={"hinton": 1.0, "hints": None}, views_per_image=2)
    return [*made, *make_student(folder / "student", folder / "set", options)]


def replace_all(folder: Path) -> list[Thing]:
    """A buffer that is replaced as a whole, stored views, and an adversarial student that waits."""
    adversary = replace(TINY.adversary, views_per_image=2, begins=1)
    replay = ReplayOptions(replace_all=True)
    return make_set(folder, replace(TINY, calls=12, adversary=adversary, replay=replay))


def keep_all(folder: Path) -> list[Thing]:
    """A growing pool, drawn from evenly."""
    replay = ReplayOptions(keep_all=True, balanced_targets=False, sampling="uniform")
    return make_set(folder, replace(TINY, replay=replay))


def policy(folder: Path) -> list[Thing]:
    """Draws by a policy that learns."""
    return make_set(folder, replace(TINY, replay=ReplayOptions(sampling="policy")))


def plain(folder: Path) -> list[Thing]:
    """A generator that keeps what it learns, colour images, and losses as they were published."""
    generator = replace(TINY.generator, learning="plain", blocks=1, smooth=1.0, conditioning=1.0)
    views = TeacherViewOptions(shift=0.1, flip=True, cutout=0.2)
    objective = replace(
        TINY.objective, bn=5.0, bn_relative=False, phi=False, spread=0.0, views=views
    )
    return make_set(
        folder, replace(TINY, generator=generator, objective=objective), "cifar10-small"
    )


def two_shards(folder: Path) -> list[Thing]:
    """Two shards, by two processes at once."""
    in_processes([(make_shard, folder, rank) for rank in range(2)])
    return read_tensors(folder)


def adversarial(folder: Path) -> list[Thing]:
    """The recipe that looks at nothing but answers."""
    return make_set(folder, replace(TINY, recipe="adversarial"))


def make_shard(folder: Path, rank: int) -> None:
    """One process's part of two shards."""
    make_set(folder, replace(TINY, shard_images=15), rank=rank, world=2)


def drawn_blocks(folder: Path) -> list[Thing]:
    """The first images of every source."""
    sources = [open_source(name, channels=3, size=16) for name in DRAWN]
    return [{source.address: source.block(0)} for source in sources]


def collected(folder: Path) -> list[Thing]:
    """Two shards from four sources, half exposed; short classes are pushed over the boundary."""
    sources = ("noise", "leaves", "fractals", "shaders")
    options = CollectOptions(images=600, shard_images=400, expose=0.5, draws=0.8, short=("push",))
    return collect_set(folder, sources, options)


def blended(folder: Path) -> list[Thing]:
    """One source, exposed by choice; short classes are filled by draws, views and blends."""
    options = CollectOptions(images=400, draws=0.1, short=("draw", "augment", "mixup"))
    return collect_set(folder, ("noise",), options)


def hinton(folder: Path) -> list[Thing]:
    """KL with every kind of view, and the average of the weights."""
    views = replace(PASTED, erase=0.3, operations=2)
    return learn(folder, {"hinton": 1.0}, ema=0.9, views=views)


def patience(folder: Path) -> list[Thing]:
    """Held-out images choose the student; SGD, and labels beside the teacher's answers."""
    loss: dict[str, float | None] = {"hinton": 0.9, "labels": 0.1}
    return learn(folder, loss, steps=150, patience=1, optimiser="sgd", labels="data", batch=16)


def features(folder: Path) -> list[Thing]:
    """Maps of features: fitnet and at."""
    return learn(folder, {"fitnet": None, "at": None}, views=replace(PASTED, rotate=0.0, scale=0.0))


def only_hints(folder: Path) -> list[Thing]:
    """Hints alone, asked for at every step, with softened labels and AdamW."""
    return learn(
        folder, {"hints": None}, views_per_image=0, label_temperature=2.0, optimiser="adamw"
    )


def bss(folder: Path) -> list[Thing]:
    """Images pushed over the teacher's boundary."""
    return learn(folder, {"bss": None})


def dml(folder: Path) -> list[Thing]:
    """Peers that learn together."""
    return learn(folder, {"dml": None}, ema=0.5)


def one(folder: Path) -> list[Thing]:
    """Branches that learn together."""
    return learn(folder, {"one": None})


def other_losses(folder: Path) -> list[Thing]:
    """Losses that no other run has."""
    return learn(folder, dict.fromkeys(("fsp", "sp", "rkd", "rkd-d", "rkd-a", "labels")))


def logits(folder: Path) -> list[Thing]:
    """The teacher's logits themselves, with labels beside them."""
    return learn(folder, {"mse": None})


def study(folder: Path) -> list[Thing]:
    """One cell of a study: damaged labels, two losses, attacks."""
    test = load_images(MNIST_SLICE, "test")
    options = StudyOptions(("hinton+at",), ("noise=0.2",), seeds=(0,), images=40, attacks=8)
    cells = run_study(
        teacher=load_teacher(),
        sets={"demo": TransferSet.load(demo_set(folder))},
        test=test.chosen(torch.arange(200)),
        out=folder / "study",
        options=options,
        distillation=replace(SHORT, labels="data"),
        runtime=ALIKE,
    )
    return [{name: cell[name] for name in (*JUDGED, *ATTACKED)} for cell in cells]


def scorecard(folder: Path) -> list[Thing]:
    """The demo's set, scored; the dearer scores look at a part of it."""
    images = TransferSet.load(demo_set(folder)).images
    card = score(
        images, load_teacher(), "own", ScoreOptions(gradients=40, compared=50), runtime=ALIKE
    )
    return [{name: getattr(card, name) for name in SCORED}]


RUNS: dict[str, Callable[[Path], list[Thing]]] = {
    "demo": demo,
    "float32": float32,
    "reference": reference,
    "hints": hints,
    "replace_all": replace_all,
    "keep_all": keep_all,
    "policy": policy,
    "plain": plain,
    "two_shards": two_shards,
    "adversarial": adversarial,
    "sources": drawn_blocks,
    "collect": collected,
    "collect_blends": blended,
    "distil_hinton": hinton,
    "distil_patience": patience,
    "distil_hints": only_hints,
    "distil_fitnet_at": features,
    "distil_bss": bss,
    "distil_dml": dml,
    "distil_one": one,
    "distil_others": other_losses,
    "distil_mse": logits,
    "study": study,
    "score": scorecard,
}
