"""The teacher's answers to views of a set: asked once for each (image, view), in large batches, and
never again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
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
from distill.models.modes import evaluating
from distill.models.own_size import OwnSize
from distill.options import ViewOptions
from distill.restoring import blaming_state
from distill.tasks.places import enlarge
from distill.team import SOLO, Team
from synthesis_kernels.backend import forward_pass, name_form

CHUNK = 500
"""Images whose views the teacher is asked for at once."""
CACHED = 128 * 32**2
"""Pixels whose maps in a network of common widths fit into the caches of a CPU."""
ANSWERS = "answers-{}-{}.state"
"""A file of answers, by its bank and by the number of chunks that are in earlier files."""
DISTILLATION = "distillation"

Look = Callable[[Tensor], Sequence[Tensor]]


def to_input(pixels: Tensor) -> Tensor:
    """Stored pixels as a network takes them: float in [0, 1], channels last."""
    return (pixels.float() / 255).contiguous(memory_format=torch.channels_last)


def at_once(images: Tensor, most: int = 512) -> int:
    """How many of these images a network is given at once: of larger ones fewer, as they take more
    memory; and on a CPU so many that their maps stay in its caches.
    """
    pixels = images.shape[-2] * images.shape[-1]
    if not images.is_cuda:
        most = min(most, max(CACHED // pixels, 1))
    return max(8, min(most, most * 64**2 // pixels))


def ask(
    network: nn.Module,
    images: Tensor,  # (B, C, H, W) in [0, 1]
    precision: torch.dtype,
) -> Tensor:  # (B, K, *places)
    """A network's float32 logits, without gradients."""
    parts = images.split(at_once(images))
    with torch.no_grad(), forward_pass(images.device, precision):
        return torch.cat([network(part).float() for part in parts])


def ask_to_keep(
    network: nn.Module,
    images: Tensor,  # (B, C, H, W) in [0, 1]
    precision: torch.dtype,
) -> Tensor:  # (B, K, h, w), or of one decision an image (B, K)
    """The same, but at the network's own size where that is smaller: `enlarge` gives the rest."""
    rows = []
    with torch.no_grad(), forward_pass(images.device, precision):
        for part in images.split(at_once(images)):
            with OwnSize() as own:
                logits = network(part)
            rows.append(own.undo(logits))
    return torch.cat(of_one_size(rows))


def of_one_size(answers: Sequence[Tensor]) -> list[Tensor]:
    """Answers that are kept, (B, K, h, w) each, at the largest of their sizes: of a network that
    changes what it enlarged, some can't be taken back.
    """
    largest = max(answers, key=lambda each: each[0].numel())
    return [enlarge(each, largest.shape[2:]) for each in answers]


def kept_shape(network: Classifier) -> tuple[int, ...]:  # (K, h, w), or (K,)
    """Shape of an answer as `ask_to_keep` gives it."""
    if not network.answer_shape[1:]:
        return network.answer_shape
    with evaluating(network):
        return tuple(ask_to_keep(network, network.grey_images(), torch.float32).shape[1:])


def bank_answers(
    teacher: Classifier,
    pool: Tensor,  # (N, C, H, W) uint8
    per_image: int,
    options: ViewOptions,
    seed: int,
    precision: torch.dtype,
    quiet: bool = False,
    folder: Path | None = None,
    look: Look | None = None,
    work: str = DISTILLATION,
    team: Team = SOLO,
) -> list[Tensor]:  # of (N, V, …)
    """The teacher's logits, at its own size, for views 0 … V−1 of every image, or all that `look`
    gives for a batch of views.

    The views themselves need no storing: `make_views` repeats them. In a `folder` the answers are
    kept while they are asked for, and a run that was stopped goes on where it was, by the same
    `look`. Where it is stopped, it tells which `work` was. The processes of a `team` ask for a part
    each, and keep nothing in the folder.
    """
    bank = _Bank(pool, per_image)
    save = None
    if folder is not None and team.world == 1:
        key = _bank_key(teacher, pool, per_image, options, seed, precision)
        bank.restore(folder, key)
        save = partial(bank.save, folder, key)
    if look is None:
        # Of a team all have to keep answers alike, and none knows what the others can take back.
        look = _look_at_logits(teacher, precision, ask if team.world > 1 else ask_to_keep)
    look = look_in_parts(look, team)
    total = per_image * len(pool)
    with Loop(
        "asking the teacher",
        total,
        quiet,
        bank.images,
        save=save,
        work=work,
        step="image",
        team=team,
    ) as loop:
        while not bank.full:
            view, index = bank.next
            images = make_views(pool, index, torch.full_like(index, view), options, seed)
            bank.add(look(images))
            loop.advance(bank.images)
    return bank.answers


def forget_answers(folder: Path) -> None:
    """Delete what `bank_answers` kept in the folder."""
    for path in folder.glob(ANSWERS.format("*", "*")):
        path.unlink(missing_ok=True)


def _bank_key(
    teacher: Classifier,
    pool: Tensor,
    per_image: int,
    options: ViewOptions,
    seed: int,
    precision: torch.dtype,
) -> str:
    """All that the answers depend on, as a hash: a bank is continued only where it is the same."""
    device = pool.device
    question = [teacher.weight_hash(), teacher.contract, content_hash(pool, None)]
    settings = [per_image, asdict(options), seed, CHUNK, "at the network's own size"]
    machine = [device.type, str(precision), name_form(device)]
    return sha256(json.dumps([*question, *settings, *machine]).encode()).hexdigest()


def _look_at_logits(
    teacher: Classifier, precision: torch.dtype, ask: Callable[..., Tensor]
) -> Look:
    frozen = Frozen(teacher, precision)

    def look(images: Tensor) -> list[Tensor]:
        return [ask(frozen, images, precision)]

    return look


def look_in_parts(look: Look, team: Team) -> Look:
    """The same by all processes of a team, each of which looks at its part."""
    if team.world == 1:
        return look

    def together(images: Tensor) -> list[Tensor]:
        rest = -len(images) % team.world
        padded = torch.cat([images, images[:1].expand(rest, *images.shape[1:])])
        return [team.gather(answer)[: len(images)] for answer in look(team.part(padded))]

    return together


class _Bank:
    """Answers to every view of a pool, filled chunk by chunk, each one view of some images.

    Chunks come in a fixed order, so a number says which are there: `done`. In a folder each file
    holds the chunks that were added since the file before it.
    """

    def __init__(self, pool: Tensor, per_image: int) -> None:
        self.pool = pool
        self.per_image = per_image
        parts = torch.arange(len(pool), device=pool.device).split(CHUNK)
        self.chunks = [(view, part) for view in range(per_image) for part in parts]
        self.answers: list[Tensor] = []  # of (N, V, …)
        self.done = 0
        self.images = 0
        """How many images the chunks that are done have."""
        self._saved = 0

    @property
    def full(self) -> bool:
        """Whether every chunk is there."""
        return self.done == len(self.chunks)

    @property
    def next(self) -> tuple[int, Tensor]:
        """View and images, (B,) int64, of the chunk to come."""
        return self.chunks[self.done]

    def add(self, answers: Sequence[Tensor]) -> None:  # of (B, …)
        """Put the answers to the next chunk in their place."""
        view, index = self.next
        if not self.answers:
            self.answers = [self._room_for(answer) for answer in answers]
        for place, (whole, answer) in enumerate(zip(self.answers, answers, strict=True)):
            if whole.shape[2:] != answer.shape[1:]:
                whole, answer = self._alike(whole, answer)
                self.answers[place] = whole
            whole[index, view] = answer.to(self.pool.device)
        self.done += 1
        self.images += len(index)

    def _alike(self, whole: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Room and answers of one size: see `of_one_size`."""
        room, answer = of_one_size([whole.flatten(0, 1), answer])
        return room.unflatten(0, whole.shape[:2]), answer

    def _room_for(self, answer: Tensor) -> Tensor:  # (B, …) -> (N, V, …)
        size = (len(self.pool), self.per_image, *answer.shape[1:])
        return answer.new_zeros(size, device=self.pool.device)

    def restore(self, folder: Path, key: str) -> None:
        """Add what the folder's files hold, one after another."""
        while saved := load_state(self._file(folder, key), key):
            with blaming_state(self._file(folder, key)):
                for answers in saved["found"]:
                    self.add(answers)
            self._saved = self.done

    def save(self, folder: Path, key: str, seconds: float) -> Path:
        """Keep what is new in a file of its own."""
        new = [
            [whole[index, view].cpu() for whole in self.answers]
            for view, index in self.chunks[self._saved : self.done]
        ]
        save_state(self._file(folder, key), key, {"found": new})
        self._saved = self.done
        return folder

    def _file(self, folder: Path, key: str) -> Path:
        """The file that begins where the last one ended."""
        return folder / ANSWERS.format(key[:12], self._saved)
