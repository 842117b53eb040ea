"""Check a transfer set."""

from __future__ import annotations

from typing import Any

from distill.evaluation import predict
from distill.sets.transfer_set import TransferSet
from inversion.cli.schema import VerifyRun
from inversion.cli.show import finish, new_table
from inversion.cli.verbs.shared import require_same_teacher
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError


def execute(run: VerifyRun) -> int:
    """Check everything about a set that can be checked."""
    transfer_set = TransferSet.load(run.set, check_hashes=True)
    counts = transfer_set.counts()
    balanced, found = max(counts) - min(counts) <= 1, f"{min(counts)} to {max(counts)}"
    document: dict[str, Any] = {
        "set": run.set,
        "images": len(transfer_set),
        "per_class": counts,
        "balanced": balanced,
    }
    table = new_table(f"Transfer set {run.set}", "", "found")
    table.add_row(
        "shards", f"{len(transfer_set.manifest['shards'])}, hashes, shapes and labels hold"
    )
    table.add_row("images", f"{len(transfer_set):,}")
    # The unbalanced twin of a collected set, and a growing pool, were not meant to be balanced.
    config = transfer_set.manifest["config"]
    replay = config.get("replay")
    meant = config.get("balanced", True) and not (
        isinstance(replay, dict) and replay.get("keep_all", False)
    )
    table.add_row(
        "per class",
        found
        + ("" if balanced else ": not balanced" if meant else ": not balanced, nor meant to be"),
    )
    problem = (
        f"{run.set} is not balanced: {found} images per class" if meant and not balanced else None
    )
    if run.teacher is not None:
        teacher = load_teacher(run.teacher)
        require_same_teacher(transfer_set, teacher, run.set)
        answers = predict(teacher, transfer_set.images, run.resolve_device(), quiet=run.quiet).cpu()
        # float16 keeps 11 bits: a stored logit is off by at most 2⁻¹¹ of its size, and float32 sums
        # differ in their order, which can decide between two classes that are next to equal, as on
        # images pushed to a boundary.
        behind = answers.amax(1) - answers.gather(1, transfer_set.labels[:, None])[:, 0]
        wrong = int((behind > 1e-4 * (1 + answers.abs().amax(1))).sum())
        gap = (answers - transfer_set.logits.float()).abs() / (1 + answers.abs())
        document |= {"labels_differ": wrong, "largest_logit_gap": gap.max().item()}
        table.add_row("labels the teacher gives otherwise", str(wrong))
        table.add_row("largest gap to stored logits", f"{gap.max():.1e} of their size")
        if wrong or gap.max() > 2e-3:
            problem = (
                f"{run.set}: the teacher answers otherwise than stored ({wrong} labels, "
                f"logits off by up to {gap.max():.1e})"
            )
    status = finish(run, table, document)
    if problem:
        raise EchosetError(problem)
    return status
