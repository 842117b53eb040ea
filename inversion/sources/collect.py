"""Sets that need no generator: images of any source, chosen by the teacher until every class has
its share.

After "Arbitrary transfer sets" (Nayak, Mopuri and Chakraborty, WACV 2021): walk the sources in
order, keep an image while the class the teacher decides for is still short. What the sources don't
give is made as `CollectOptions.short` says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.augment import make_views
from distill.files import load_state, save_state
from distill.loop import Loop, StepProgress
from distill.models import Classifier, as_found
from distill.runtime import Runtime
from distill.sets.transfer_set import MARKER, TransferSet, read_manifest, shard_name, write_shard
from distill.views import ask, to_input
from inversion.jobs import claim, finish_set
from inversion.options import CollectOptions
from inversion.scoring.measures import coverage
from inversion.sources.boundary import attack_boundaries
from inversion.sources.boundary import check_options as check_boundary
from inversion.sources.random import Random
from inversion.sources.stock import Stock
from inversion.sources.stream import BLOCK, Source, open_sources
from inversion.teacher import check_shape
from synthesis_kernels.backend import describe_device
from synthesis_kernels.errors import EchosetError

MADE = -1
"""The `round` of images that were made from others."""
TRIES = 20
"""Images offered to a short class for each one that it lacks, before a way of making them is given
up.
"""
LOOK = 4
"""Blocks of a source that are looked at to decide whether it wants exposure."""
WORTH = 0.1
"""What exposure has to add to η, the evenness of the classes, to be taken up."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """One way to come by images, and how many blocks of them there may be."""

    name: str
    make: Callable[[int, Stock], Tensor]
    limit: Callable[[Stock], int]
    drawn: bool
    """Whether these are a source's own images, which `raw_counts` counts."""


class Collection:
    """How far a collection is, and what it came to; saving a run is saving this."""

    def __init__(self, stock: Stock, device: torch.device) -> None:
        self.stock = stock
        self.phase, self.block, self.blocks = 0, 0, -1
        self.seconds = 0.0
        zeros = torch.zeros(stock.classes, dtype=torch.long, device=device)
        self.raw, self.accepted = zeros.clone(), zeros.clone()
        self.needed = zeros - 1
        """Images drawn until each class was full; −1 while it isn't."""
        self.taken: dict[str, Tensor] = {}
        """Images of each class that came from each phase."""

    def state_dict(self) -> dict[str, Any]:
        """Counters and the stock."""
        return {name: value for name, value in vars(self).items() if name != "stock"} | {
            "stock": self.stock.state_dict()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.stock.load_state_dict(state["stock"])
        device = self.raw.device
        for name in ("phase", "block", "blocks", "seconds"):
            setattr(self, name, state[name])
        self.raw, self.accepted, self.needed = (
            state[name].to(device) for name in ("raw", "accepted", "needed")
        )
        self.taken = {name: value.to(device) for name, value in state["taken"].items()}


def collect(
    teacher: Classifier,
    sources: Sequence[str] = ("shaders",),
    options: CollectOptions = CollectOptions(),
    out: str | Path = "runs/collected",
    runtime: Runtime = Runtime(),
) -> TransferSet:
    """Collect a transfer set for `teacher` in the folder `out`; run again after a stop, it goes on
    where it was.

    Sources are named as `open_source` reads them, and walked in order. The manifest's `collection`
    says what was drawn, taken, made, and is still missing.
    """
    check_options(options, teacher)
    check_shape(teacher)
    runtime.require_alone("collect")
    out, where, spec = Path(out), runtime.resolve_device(), teacher.spec
    seed, quiet = runtime.seed, runtime.quiet
    opened = open_sources(sources, spec.channels, spec.size, seed, where, quiet)
    contents = [source.content for source in opened]
    weight_hash = teacher.weight_hash()
    identity = {
        "config": dataclasses.asdict(options),
        "sources": list(sources),
        "contents": contents,
        "seed": seed,
    }
    identity |= {"teacher_hash": weight_hash, "input": teacher.contract}
    key = claim(out, identity, "options, sources, seed or teacher")
    if (out / "manifest.json").is_file() and all(
        (out / shard["file"]).is_file() for shard in read_manifest(out)["shards"]
    ):
        return TransferSet.load(out)  # or a shard was lost, and is made again
    with as_found(teacher):
        teacher = teacher.to(where, memory_format=torch.channels_last).eval().requires_grad_(False)
        opened = [
            dataclasses.replace(source, exposed=_exposure(source, teacher, options, quiet))
            for source in opened
        ]
        quotas = [len(range(label, options.images, spec.classes)) for label in range(spec.classes)]
        shape = (spec.channels, spec.size, spec.size)
        state = Collection(Stock(quotas, shape, options.balanced, where), where)
        if (saved := load_state(out / ".collect.state", f"{key} {where.type}")) is not None:
            state.load_state_dict(saved)
        _run(
            state,
            teacher,
            phases(opened, teacher, options, seed),
            options,
            out,
            f"{key} {where.type}",
            quiet,
        )
        if not state.stock.held.any():
            for name in (
                ".collect.state",
                MARKER,
            ):  # nothing to keep: the same folder may serve other options
                (out / name).unlink(missing_ok=True)
            raise EchosetError(
                f"no image was taken of {int(state.raw.sum())} drawn (by class "
                f"{state.raw.tolist()}); widen confidence, margin or "
                "only"
            )
        shards = _write(state, options, out, where)
        exposed = {source.address: source.exposed for source in opened}
        wanted = quotas if options.balanced else None
        collection = {"sources": list(sources), "exposed": exposed, **summary(state, wanted)}
        finish_set(
            out,
            "collect",
            options,
            seed,
            teacher,
            weight_hash,
            shards,
            wanted,
            collection=collection,
        )
        (out / ".collect.state").unlink(missing_ok=True)
        return TransferSet.load(out)


def _run(
    state: Collection,
    teacher: Classifier,
    todo: list[Phase],
    options: CollectOptions,
    out: Path,
    key: str,
    quiet: bool,
) -> None:
    """Walk the phases until the stock is full."""
    stock = state.stock
    file = out / ".collect.state"

    def save(seconds: float) -> Path:
        state.seconds = seconds
        save_state(file, key, state.state_dict())
        return file

    loop = Loop(
        "collecting",
        stock.total,
        quiet,
        start=int(stock.held.sum()),
        save=save,
        seconds=state.seconds,
        work="collecting",
    )
    with loop:
        while state.phase < len(todo) and not stock.full:
            phase = todo[state.phase]
            if state.blocks < 0:
                state.blocks = phase.limit(stock)
            if state.block >= state.blocks or (phase.drawn and _has_enough(stock, options)):
                state.phase, state.block, state.blocks = state.phase + 1, 0, -1
                continue
            images = phase.make(state.block, stock)
            state.block += 1
            if len(images):
                _take(state, phase, images, teacher, options)
            loop.advance(int(stock.held.sum()), _figures_line(state, phase))
    state.seconds = loop.seconds


def _has_enough(stock: Stock, options: CollectOptions) -> bool:
    """Nothing more to draw: all classes that may be taken are full."""
    return stock.balanced and bool(options.only) and not stock.missing()[list(options.only)].any()


def _take(
    state: Collection, phase: Phase, images: Tensor, teacher: Classifier, options: CollectOptions
) -> None:
    """Ask the teacher about a block, and keep what is wanted of it."""
    logits = ask(teacher, to_input(images), torch.float32)
    allowed = _allowed(logits, options, phase.drawn)
    taken = state.stock.offer(images, logits, allowed, state.block if phase.drawn else MADE)
    state.taken[phase.name] = state.taken.get(phase.name, 0) + taken
    if phase.drawn:
        labels = logits.argmax(1)
        state.raw += torch.bincount(labels, minlength=len(state.raw))
        state.accepted += torch.bincount(labels[allowed], minlength=len(state.raw))
        if state.stock.balanced:
            newly = (state.needed < 0) & (state.stock.held == state.stock.quotas)
            state.needed = torch.where(newly, state.raw.sum(), state.needed)


def _allowed(logits: Tensor, options: CollectOptions, drawn: bool) -> Tensor:  # (B,) bool
    """Which answers lie in the window; `only` is about what a source gives, not about what is made
    of it.
    """
    first, second = logits.softmax(1).topk(2, dim=1).values.unbind(1)
    (low, high), (least, most) = options.confidence, options.margin
    allowed = (
        (first >= low) & (first <= high) & (first - second >= least) & (first - second <= most)
    )
    if options.only and drawn:
        allowed &= torch.isin(logits.argmax(1), torch.tensor(options.only, device=logits.device))
    return allowed


def phases(
    sources: list[Source], teacher: Classifier, options: CollectOptions, seed: int
) -> list[Phase]:
    """The sources one after another, then what is done about short classes."""
    most = math.ceil(options.draws * options.images / BLOCK)
    todo = [_drawing(source, 0, most, source.address) for source in sources]
    for way in options.short if options.balanced else ():  # without quotas no class is short
        if way == "draw":
            todo += [
                _drawing(source, most, 10 * most, f"{source.address} again") for source in sources
            ]
        else:
            todo.append(_making(way, sources, teacher, options, seed))
    return todo


def _drawing(source: Source, first: int, count: int, name: str) -> Phase:
    """`count` blocks of a source from block `first` on, or as many as it has left."""
    blocks = count if source.blocks is None else max(min(source.blocks - first, count), 0)
    return Phase(
        name, lambda number, stock: source.block(first + number), lambda stock: blocks, True
    )


def _making(
    way: str, sources: list[Source], teacher: Classifier, options: CollectOptions, seed: int
) -> Phase:
    """Images made for classes that are short, from those held and from the sources' in turn."""

    def make(number: int, stock: Stock) -> Tensor:
        source = sources[number % len(sources)]
        random = Random(source.device, way, seed, number)
        if way == "augment":
            return augmented(stock, options, random, seed, number)
        turn = number // len(sources)
        again, block = divmod(turn, source.blocks) if source.blocks else (0, turn)
        images = source.block(block)
        if again:  # the same walk from the same picture would end in a copy
            index = torch.arange(len(images), device=images.device)
            images = (
                (
                    make_views(images, index, torch.full_like(index, again), options.views, seed)
                    * 255
                )
                .round()
                .to(torch.uint8)
            )
        return (
            mixed(stock, images, random)
            if way == "mixup"
            else pushed(stock, images, teacher, options, random)
        )

    def limit(stock: Stock) -> int:
        blocks = math.ceil(TRIES * int(stock.missing().sum()) / BLOCK) + 1
        return (
            max(blocks, TRIES) if way == "push" else blocks
        )  # a block of pushed images is as small as what is missing

    return Phase(way, make, limit, False)


def augmented(
    stock: Stock, options: CollectOptions, random: Random, seed: int, number: int
) -> Tensor:  # (≤ BLOCK, C, H, W) uint8
    """New views of images whose classes are short, the shorter the more."""
    kept = stock.kept()
    chances = stock.missing()[stock.logits[kept].argmax(1)].float()
    if not chances.any():
        return stock.images[:0]
    drawn = random.draw(chances, BLOCK)
    view = torch.arange(BLOCK, device=drawn.device) + BLOCK * number
    views = make_views(stock.images[kept], drawn, view, options.views, seed)
    return (views * 255).round().to(torch.uint8)


def mixed(stock: Stock, images: Tensor, random: Random) -> Tensor:  # (B, C, H, W) uint8
    """Blends of two images: one of a short class where there are any, and one from the source."""
    kept = stock.kept()
    short = kept[stock.missing()[stock.logits[kept].argmax(1)] > 0]
    partner = short if len(short) else kept
    if not len(partner):
        return images[:0]
    drawn = partner[random.integers(0, len(partner) - 1, len(images))]
    share = random.uniform(
        len(images), 1, 1, 1, low=0.5 if len(short) else 0.2, high=0.95 if len(short) else 0.8
    )
    return torch.lerp(images.float(), stock.images[drawn].float(), share).round().to(torch.uint8)


def pushed(
    stock: Stock, images: Tensor, teacher: Classifier, options: CollectOptions, random: Random
) -> Tensor:
    """Images over the boundary into short classes: of each walk the one just over it and the one a
    step deeper.
    """
    missing = stock.missing()
    wanted = min(
        len(images), -(-int(missing.sum()) * 3 // 4)
    )  # two of each walk, and some walks fail
    targets = random.draw(missing.float(), max(wanted, 2))[: len(images), None]
    found = attack_boundaries(teacher, images[: len(targets)], targets, options.boundary)
    return torch.cat([found.deep_after[found.found], found.after[found.found]])


def _exposure(source: Source, teacher: Classifier, options: CollectOptions, quiet: bool) -> float:
    """The part of the images to expose: as asked, or whichever of 0, ½ and 1 spreads the teacher's
    decisions on the first blocks most evenly over the classes, where that gains enough.
    """
    if options.expose is not None:
        return options.expose
    if source.finished or (source.stored is not None and len(source.stored) < BLOCK):
        return 0.0
    count = LOOK if source.blocks is None else min(LOOK, source.blocks)
    seen = {
        share: torch.zeros(teacher.spec.classes, dtype=torch.long, device=source.device)
        for share in (0.0, 0.5, 1.0)
    }
    with StepProgress(f"looking at {source.address}", count, quiet) as progress:
        for number in range(count):
            images = source.block(number)
            for share, counts in seen.items():
                labels = ask(
                    teacher, to_input(source.shown(images, number, share)), torch.float32
                ).argmax(1)
                counts += torch.bincount(labels, minlength=len(counts))
            progress.update(number + 1)
    evenness = {share: coverage(counts) for share, counts in seen.items()}
    best = max(evenness, key=evenness.__getitem__)
    return best if evenness[best] > evenness[0.0] + WORTH else 0.0


def summary(state: Collection, quotas: list[int] | None) -> dict[str, Any]:
    """What was drawn, accepted, taken, made, and is missing, by class."""
    stock, raw = state.stock, state.raw
    own = torch.bincount(stock.logits[stock.kept()].argmax(1), minlength=stock.classes).tolist()
    short = {
        str(c): q - n for c, (q, n) in enumerate(zip(quotas or own, own, strict=True)) if n < q
    }
    return {
        "drawn": int(raw.sum()),
        "raw_counts": raw.tolist(),
        "raw_coverage": round(coverage(raw), 4),
        "accepted": state.accepted.tolist(),
        "needed": [n if n >= 0 else None for n in state.needed.tolist()],
        "taken": {name: counts.tolist() for name, counts in state.taken.items() if counts.any()},
        "short": short,
        "missing": stock.total - sum(own),
        "seconds": round(state.seconds, 3),
    }


def _figures_line(state: Collection, phase: Phase) -> str:
    missing = state.stock.missing().tolist()
    short = [label for label, count in enumerate(missing) if count]
    line = f"{phase.name}, block {state.block} of {state.blocks}; "
    if not (state.stock.balanced and short):
        return line
    named = ", ".join(f"{label} by {missing[label]}" for label in short[:5])
    more = " …" if len(short) > 5 else ""
    return f"{line}short: {named}{more}"


def _write(
    state: Collection, options: CollectOptions, out: Path, device: torch.device
) -> list[dict[str, Any]]:
    """All shards, each balanced like the whole."""
    stock = state.stock
    kept = stock.kept()
    total = -(-len(kept) // options.shard_images)
    entries = []
    for index in range(total):
        mine = kept[len(kept) * index // total : len(kept) * (index + 1) // total]
        logits = stock.logits[mine]
        labels = logits.argmax(1)
        tensors = {
            "images": stock.images[mine],
            "labels": labels,
            "logits": logits.clamp(-65504, 65504),
        }
        tensors |= {"priority": torch.zeros(len(mine)), "round": stock.round[mine]}
        name = shard_name(index, total)
        entry = {"file": name, "sha256": write_shard(out / name, tensors), "count": len(mine)}
        counts = torch.bincount(labels, minlength=stock.classes).tolist()
        entries.append(
            entry
            | {
                "counts": counts,
                "seconds": round(state.seconds / total, 3),
                "device": describe_device(device),
            }
        )
    return entries


def check_options(options: CollectOptions, teacher: Classifier) -> None:
    """Refuse what can't work, by name."""
    for name in ("images", "shard_images"):
        if getattr(options, name) < 1:
            raise EchosetError(
                f"collection.{name} must be at least 1, got {getattr(options, name)}"
            )
    for name in ("confidence", "margin"):
        low, high = getattr(options, name)
        if not 0 <= low <= high <= 1:
            raise EchosetError(
                f"collection.{name} must be two numbers in [0, 1], the lower first, got {low} and "
                f"{high}"
            )
    if not (math.isfinite(options.draws) and options.draws > 0):
        raise EchosetError(f"collection.draws must be above 0 and finite, got {options.draws}")
    if options.expose is not None and not 0 <= options.expose <= 1:
        raise EchosetError(f"collection.expose must lie in [0, 1], got {options.expose}")
    if unknown := [label for label in options.only if not 0 <= label < teacher.spec.classes]:
        raise EchosetError(
            f"collection.only names class {unknown[0]}; the teacher knows 0 to "
            f"{teacher.spec.classes - 1}"
        )
    if len(set(options.short)) < len(options.short):
        raise EchosetError(f"collection.short names a way twice: {', '.join(options.short)}")
    if not options.balanced and options.short not in ((), CollectOptions().short):
        raise EchosetError(
            "collection.short fills classes that are short, and none is where collection.balanced "
            "is false"
        )
    check_boundary(options.boundary)
