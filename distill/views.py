"""The teacher's answers to views of a set: asked once per (image, view), in large batches, then
never again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.augment import make_views
from distill.data.images import content_hash
from distill.files import load_state, save_state
from distill.loop import Loop
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.options import ViewOptions
from synthesis_kernels.backend import forward_pass, name_form

CHUNK = 500
ANSWERS = "answers-{}-{}.state"


def to_input(pixels: Tensor) -> Tensor:
    """Stored pixels as a network takes them: float in [0, 1], channels last."""
    return (pixels.float() / 255).contiguous(memory_format=torch.channels_last)


def at_once(size: int, most: int = 512) -> int:
    """How many images of this side a network is given at once: of larger ones fewer, as they take
    more memory.
    """
    return max(8, min(most, most * 64**2 // size**2))


def ask(
    network: nn.Module, images: Tensor, precision: torch.dtype
) -> Tensor:  # (B, C, H, W) in [0, 1] -> (B, K)
    """A network's float32 logits, without gradients."""
    with torch.no_grad(), forward_pass(images.device, precision):
        return torch.cat(
            [network(part).float() for part in images.split(at_once(images.shape[-1]))]
        )


def bank_answers(
    teacher: Classifier,
    pool: Tensor,  # (N, C, H, W) uint8
    per_image: int,
    options: ViewOptions,
    seed: int,
    precision: torch.dtype,
    quiet: bool = False,
    folder: Path | None = None,
    look: Callable[[Tensor], Sequence[Tensor]] | None = None,
    what: str = "logits",
) -> list[Tensor]:  # of (N, V, …)
    """The teacher's logits for views 0 … V−1 of every image, or all that `look` gives for a batch
    of views: `what` names it.

    The views themselves need no storing: `make_views` repeats them. In a `folder` the answers are
    kept while they are asked for, and a run that was stopped goes on where it was.
    """
    key = ""
    if folder:
        asked = [
            teacher.weight_hash(),
            teacher.contract,
            content_hash(pool, None),
            per_image,
            asdict(options),
            seed,
            CHUNK,
        ]
        asked += [pool.device.type, str(precision), name_form(pool.device), what]
        key = sha256(json.dumps(asked).encode()).hexdigest()
    if look is None:
        frozen = Frozen(teacher, precision)
        look = lambda images: [ask(frozen, images, precision)]  # noqa: E731
    todo = [
        (view, index)
        for view in range(per_image)
        for index in torch.arange(len(pool), device=pool.device).split(CHUNK)
    ]
    bank: list[Tensor] = []
    done = asked_images = kept = 0

    def put(found: Sequence[Tensor]) -> None:
        nonlocal done, asked_images
        view, index = todo[done]
        if not bank:
            bank.extend(
                part.new_zeros(len(pool), per_image, *part.shape[1:], device=pool.device)
                for part in found
            )
        for whole, part in zip(bank, found, strict=True):
            whole[index, view] = part.to(pool.device)
        done, asked_images = done + 1, asked_images + len(index)

    while folder and (saved := load_state(folder / ANSWERS.format(key[:12], done), key)):
        for found in saved["found"]:
            put(found)
        kept = done

    def save(seconds: float) -> Path:
        """Keep what is new, as a file of its own."""
        nonlocal kept
        new = [[whole[index, view].cpu() for whole in bank] for view, index in todo[kept:done]]
        save_state(folder / ANSWERS.format(key[:12], kept), key, {"found": new})
        kept = done
        return folder

    title = "asking the teacher"
    total = per_image * len(pool)
    keep = save if folder else None
    with Loop(title, total, quiet, asked_images, save=keep, work="distillation") as loop:
        while done < len(todo):
            view, index = todo[done]
            put(look(make_views(pool, index, torch.full_like(index, view), options, seed)))
            loop.advance(asked_images)
    return bank
