"""Let a finished set carry its teacher's answers."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distill.models import Classifier, as_classifier, as_found
from distill.models.classifier import CONTRACT, OUTPUT, on_device
from distill.models.contract import differing
from distill.models.frozen import Frozen
from distill.options import DistillOptions, ViewOptions
from distill.runtime import Machine, Runtime
from distill.sets.answers import ENTRY, drop_answers, write_answers
from distill.sets.keeping import MOST
from distill.sets.transfer_set import TransferSet, find_set_answers, write_manifest
from distill.views import ask_to_keep, bank_answers, forget_answers, kept_shape
from synthesis_kernels.errors import EchosetError

USUAL = DistillOptions()


def add_answers(
    folder: str | Path,
    teacher: Classifier | nn.Module,
    per_image: int = USUAL.views_per_image,
    views: ViewOptions = USUAL.views,
    runtime: Runtime = Runtime(),
) -> TransferSet:
    """Ask the teacher for its answers to so many views of each image of the finished set in
    `folder`, and keep them there: to learn from them, `distill` needs no teacher.

    A set that carries just these stays as it is; others are replaced. Run again after a stop, it
    goes on where it was.
    """
    if per_image < 1:
        raise EchosetError(f"answers are to 1 view of each image at least, not {per_image}")
    folder = Path(folder)
    data = TransferSet.load(folder)
    if _carries(data, per_image, views, runtime.seed):
        forget_answers(folder)  # of a run killed at its very end
        return data
    teacher = as_classifier(teacher)
    require_budget(teacher, len(data), per_image)
    if not made_by(data, teacher):
        raise EchosetError(f"{folder} was made by another teacher; its answers must be that one's")
    _leave_others(data, folder)
    machine = runtime.resolve()
    with as_found(teacher):
        on_device(teacher, machine.device).eval().requires_grad_(False)
        answers = _ask(data, teacher, per_image, views, machine, runtime, folder)
    entry = {
        "per_image": per_image,
        "views": asdict(views),
        "seed": runtime.seed,
        "precision": str(machine.precision).removeprefix("torch."),
        "files": _write(data, answers, folder),
    }
    manifest = {**data.manifest, ENTRY: entry}
    write_manifest(folder, manifest)
    forget_answers(folder)
    return replace(data, manifest=manifest, answers=find_set_answers(folder))


def require_budget(teacher: Classifier, images: int, per_image: int) -> None:
    """Refuse answers at many places of an image that would take more than `MOST` bytes."""
    if not teacher.answer_shape[1:]:
        return
    classes, *places = kept_shape(teacher)
    size = 2 * math.prod((classes, *places)) * images * per_image
    if size <= MOST:
        return
    fit = MOST * per_image // size
    fewer = f"ask for {fit} at most (--answers {fit})" if fit else "leave them out (--answers 0)"
    raise EchosetError(
        f"answers to {per_image} views of {images:,} images would take {size / 2**30:.1f} GiB: 2 "
        f"bytes for each of {classes} classes at each of {' × '.join(map(str, places))} places. "
        f"{MOST / 2**30:.0f} GiB is the most; {fewer}, and distill asks the teacher itself"
    )


def made_by(data: TransferSet, teacher: Classifier) -> bool:
    """Whether this is the very teacher that made the set, by its weights and its contract."""
    if data.manifest["teacher"].get("weight_hash") != teacher.weight_hash():
        return False
    return not differing(teacher.contract, data.manifest["input"], (*CONTRACT, *OUTPUT))


def _carries(data: TransferSet, per_image: int, views: ViewOptions, seed: int) -> bool:
    """Whether the set has these answers, each file in its place."""
    answers = data.answers
    if answers is None or not all(
        (answers.folder / each["file"]).is_file() for each in answers.files
    ):
        return False
    return (answers.per_image, answers.views, answers.seed) == (per_image, views, seed)


def _leave_others(data: TransferSet, folder: Path) -> None:
    """Drop answers that are not wanted any more, the manifest first: a kill leaves a whole set."""
    if data.answers is not None:
        kept = {key: value for key, value in data.manifest.items() if key != ENTRY}
        write_manifest(folder, kept)
    drop_answers(folder)


def _ask(
    data: TransferSet,
    teacher: Classifier,
    per_image: int,
    views: ViewOptions,
    machine: Machine,
    runtime: Runtime,
    folder: Path,
) -> Tensor:  # (N, V, K, h, w), or (N, V, K), float16
    frozen = Frozen(teacher, machine.precision)

    def look(images: Tensor) -> list[Tensor]:
        return [ask_to_keep(frozen, images, machine.precision).half()]

    (answers,) = bank_answers(
        teacher,
        data.images.to(machine.device),
        per_image,
        views,
        runtime.seed,
        machine.precision,
        runtime.quiet,
        folder,
        look,
        work="asking for the set's answers",
    )
    return answers


def _write(data: TransferSet, answers: Tensor, folder: Path) -> list[dict[str, Any]]:
    """One file beside each shard, and what the manifest says of it."""
    files = []
    first = 0
    for shard in data.manifest["shards"]:
        last = first + shard["count"]
        files.append(write_answers(folder, shard["file"], answers[first:last]))
        first = last
    return files
