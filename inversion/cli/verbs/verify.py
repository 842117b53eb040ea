"""Check a transfer set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from distill.data.augment import make_views
from distill.loop import StepProgress
from distill.models.classifier import on_device
from distill.sets.answers import REMEDY
from distill.sets.transfer_set import TransferSet
from distill.tasks.places import enlarge
from distill.views import ask_to_keep, at_once, to_input
from inversion.classes import class_rows
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.shared import require_same_teacher
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from distill.models import Classifier
    from distill.sets.answers import ViewAnswers
    from inversion.cli.schema import VerifyRun

LOGIT_GAP = 2e-3
"""Largest relative gap to a stored logit: float16 keeps 11 bits, so 2⁻¹¹ of its size, and float32
sums differ in their order."""
ROUGH_GAP = 0.3
"""The same of answers to views that were asked for in fewer bits than float32: bfloat16 keeps 8 in
every layer."""
SAMPLE = 512
"""Views that a teacher is asked for again."""
TIE = 1e-4
"""Two classes this near to each other, relative to the answer, may change places by the order of
float32 sums, as on images pushed to a boundary."""


def execute(run: VerifyRun) -> int:
    """Check everything about a set that can be checked."""
    transfer_set = TransferSet.load(run.set)
    balance = _check_balance(transfer_set)
    document: dict[str, Any] = {
        "set": run.set,
        "images": len(transfer_set),
        "per_class": transfer_set.counts(),
        "balanced": balance.is_even,
    }
    shards = len(transfer_set.manifest["shards"])
    table = new_table(f"Transfer set {run.set}", "", "found")
    table.add_row("shards", f"{shards}, hashes, shapes and labels hold")
    table.add_row("images", f"{len(transfer_set):,}")
    table.add_row("per class", balance.describe())
    names = transfer_set.class_names
    shares = transfer_set.task.words.shares
    if names:
        document["class_names"] = list(names)
    if names or shares:
        for row in class_rows([transfer_set.counts()], names, shares):
            table.add_row(*row)
    carried = transfer_set.answers
    if carried is not None:
        document["views_answered"] = len(carried.tensor) * carried.per_image
        views = f"{carried.per_image} views of each image"
        table.add_row("answers", f"to {views}, hashes and shapes hold")
    problem = None
    if balance.was_meant and not balance.is_even and transfer_set.task.exact:
        problem = f"{run.set} is not balanced: {balance.spread} per class"
    if run.teacher is not None:
        teacher = load_teacher(run.teacher, trust=run.trust)
        problem = _compare(run, teacher, transfer_set, table, document) or problem
    status = finish(run, table, document)
    if problem:
        raise EchosetError(problem)
    return status


def _compare(
    run: VerifyRun,
    teacher: Classifier,
    transfer_set: TransferSet,
    table: Table,
    document: dict[str, Any],
) -> str | None:
    """Ask the teacher again, add what it says to the table and the document, and tell what is
    wrong.
    """
    require_same_teacher(transfer_set, teacher, run.set)
    answers = _ask_again(run, teacher, transfer_set)
    document["labels_differ"] = answers.wrong
    table.add_row("labels the teacher gives otherwise", str(answers.wrong))
    if transfer_set.has_logits:
        document["largest_logit_gap"] = answers.gap
        table.add_row("largest gap to stored logits", f"{answers.gap:.1e} of their size")
    if answers.wrong or answers.gap > LOGIT_GAP:
        return (
            f"{run.set}: the teacher answers otherwise than stored ({answers.wrong} labels, "
            f"logits off by up to {answers.gap:.1e})"
        )
    carried = transfer_set.answers
    if carried is None:
        return None
    gap = _ask_for_views(run, teacher, transfer_set, carried)
    document["largest_answer_gap"] = gap
    table.add_row("largest gap to stored answers", f"{gap:.1e} of their size")
    if gap <= (LOGIT_GAP if carried.precision == "float32" else ROUGH_GAP):
        return None
    return (
        f"{run.set}: the teacher answers otherwise to views than stored (off by up to {gap:.1e}); "
        f"{REMEDY}"
    )


class Balance(NamedTuple):
    """How evenly a set is spread over the classes."""

    is_even: bool
    """As even as its task can have it."""
    was_meant: bool
    """Whether it was made to be even."""
    spread: str
    """From the smallest class to the largest."""
    is_exact: bool
    """Whether its task can have it exactly even."""

    def describe(self) -> str:
        """The spread, and what is wrong with it."""
        if self.is_even:
            return self.spread
        if not self.is_exact:
            return (
                f"{self.spread}: some classes have less than half of an equal share, or over twice"
            )
        if self.was_meant:
            return f"{self.spread}: not balanced"
        return f"{self.spread}: not balanced, nor meant to be"


def _check_balance(transfer_set: TransferSet) -> Balance:
    counts = transfer_set.counts()
    words = transfer_set.task.words
    config = transfer_set.manifest["config"]
    # The unbalanced twin of a collected set, and a growing pool, were not meant to be balanced.
    replay = config.get("replay")
    keeps_all = isinstance(replay, dict) and replay.get("keep_all", False)
    return Balance(
        is_even=transfer_set.task.is_balanced(counts),
        was_meant=config.get("balanced", True) and not keeps_all,
        spread=f"{words.spread(counts, once=False)} {words.measure}",
        is_exact=transfer_set.task.exact,
    )


class Answers(NamedTuple):
    """What a teacher says of a set today, against what is stored."""

    wrong: int
    """Labels that it clearly gives otherwise."""
    gap: float
    """Largest difference of a logit, relative to its size."""


def _ask_again(run: VerifyRun, teacher: Classifier, transfer_set: TransferSet) -> Answers:
    device = run.resolve_device()
    on_device(teacher, device).eval()
    parts = []
    with StepProgress("asking the teacher", len(transfer_set), run.quiet) as progress:
        count = at_once(transfer_set.images)
        for start in range(0, len(transfer_set), count):
            part = slice(start, start + count)
            images = to_input(transfer_set.images[part].to(device))
            answers = ask_to_keep(teacher, images, torch.float32).cpu()
            labels = transfer_set.labels[part].long()
            parts.append(_compare_answers(answers, transfer_set.logits[part], labels))
            progress.update(min(part.stop, len(transfer_set)))
    return Answers(wrong=sum(part.wrong for part in parts), gap=max(part.gap for part in parts))


def _compare_answers(
    answers: Tensor,  # (N, K, h, w), or one decision an image (N, K)
    stored: Tensor,  # the same, in float16, or none
    labels: Tensor,  # (N, *places)
) -> Answers:
    logits = enlarge(answers, labels.shape[1:])
    label_logits = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    behind = logits.amax(1) - label_logits
    is_wrong = behind > TIE * (1 + logits.abs().amax(1))
    gap = _largest_gap(answers, stored) if stored.numel() else 0.0
    return Answers(wrong=int(is_wrong.sum()), gap=gap)


def _largest_gap(answers: Tensor, stored: Tensor) -> float:
    """Relative to the answers' size; other tools may have stored them at another."""
    answers = enlarge(answers, stored.shape[2:])
    return ((answers - stored.float()).abs() / (1 + answers.abs())).max().item()


def _ask_for_views(
    run: VerifyRun, teacher: Classifier, transfer_set: TransferSet, carried: ViewAnswers
) -> float:
    """The largest gap to the stored answers, relative to their size, over some of the views, which
    are spread over all of them.
    """
    device = run.resolve_device()
    stored = carried.tensor.flatten(0, 1)  # (N·V, K, h, w), or one decision an image (N·V, K)
    places = torch.linspace(0, len(stored) - 1, min(SAMPLE, len(stored))).long()
    index = places // carried.per_image
    view = places % carried.per_image
    pool = transfer_set.images.to(device)
    images = make_views(pool, index.to(device), view.to(device), carried.views, carried.seed)
    answers = ask_to_keep(teacher.to(device), images, torch.float32).cpu()
    return _largest_gap(answers, stored[places])
