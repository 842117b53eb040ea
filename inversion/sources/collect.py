"""Sets that need no generator: images of any source, chosen by the teacher until every class has
its share.

After "Arbitrary transfer sets" (Nayak, Mopuri and Chakraborty, WACV 2021): walk the sources in
order, keep an image while the class the teacher decides for is still short. What the sources don't
give is made as `CollectOptions.short` says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.claims import Claims, claiming
from distill.files import load_state, save_state
from distill.loop import Loop
from distill.models import Classifier, as_classifier, as_found
from distill.models.classifier import on_device
from distill.outlook import Outlook
from distill.ranges import require_options
from distill.restoring import restore
from distill.runtime import Runtime
from distill.sets.transfer_set import MARKER, TransferSet, read_manifest
from distill.views import ask, to_input
from inversion.classes import MOST_ROWS, say_spread
from inversion.inspection import check_gradient, check_shape
from inversion.jobs import add_class_names, claim, finish_set, key_of
from inversion.options import CollectOptions
from inversion.sources.ahead import Ahead, Block, Make, make_ahead
from inversion.sources.choice import choose_exposure
from inversion.sources.collection import Collection
from inversion.sources.outcome import summarize, write_shards
from inversion.sources.own import OwnSource
from inversion.sources.phases import Phase, check_options, plan_phases, replace_push
from inversion.sources.stock import Stock, empty_stock, quotas_of
from inversion.sources.stream import Source, open_sources
from synthesis_kernels.errors import EchosetError

STATE = ".collect.state"
"""In a set's folder while it is collected: how far that is."""


def collect(
    teacher: Classifier | nn.Module,
    sources: Sequence[str | OwnSource] = ("shaders",),
    options: CollectOptions = CollectOptions(),
    out: str | Path = "runs/collected",
    runtime: Runtime = Runtime(),
) -> TransferSet:
    """Collect a transfer set for `teacher` in the folder `out`; run again after a stop, it goes on
    where it was.

    Sources are named as `open_source` reads them, and walked in order. From Python a source may be
    pictures, such as a torch data set or any iterable, or an object with `draw`. The manifest's
    `collection` says what was drawn, taken, made, and is still missing.
    """
    require_options(options, CollectOptions, "options")
    require_options(runtime, Runtime, "runtime")
    if runtime.world > 1:
        raise EchosetError(
            f"this is one process of {runtime.world}, and collect makes a whole set; call "
            "collect_share, which takes the same"
        )
    made = collect_share(teacher, sources, options, out, runtime)
    assert made is not None, "a process alone collects everything"
    return made


def collect_share(
    teacher: Classifier | nn.Module,
    sources: Sequence[str | OwnSource] = ("shaders",),
    options: CollectOptions = CollectOptions(),
    out: str | Path = "runs/collected",
    runtime: Runtime = Runtime(),
) -> TransferSet | None:
    """What `collect` does, by the processes of torchrun: process 0 chooses images and writes the
    set. The others draw blocks of the sources and ask the teacher about them, and return None.
    """
    teacher = as_classifier(teacher)
    options = replace_push(options, teacher, runtime)
    check_options(options, teacher)
    check_shape(teacher)
    if "push" in options.short:
        check_gradient(teacher)
    if runtime.world > 1 and not runtime.claims:
        raise EchosetError(
            f"this is one process of {runtime.world}, and they can share collect under torchrun "
            "alone; start them by torchrun, or one with world 1"
        )
    device = runtime.resolve_device()
    spec = teacher.spec
    most = math.ceil(options.images * options.draws)
    opened = open_sources(
        sources, spec.channels, spec.size, runtime.seed, device, runtime.quiet, most
    )
    task = _Task(teacher, teacher.weight_hash(), opened, options, Path(out), runtime)
    if not runtime.claims:
        return task.lead(task.make)
    with claiming(runtime, f"collection {key_of(task.identity)}") as claims:
        claims.begin()
        if not runtime.leads:
            task.help(claims)
            return None
        collected = task.lead(Ahead(claims, task.answer))
        claims.write("over", claims.name)
        return collected


@dataclasses.dataclass(frozen=True)
class _Task:
    """A set to collect."""

    teacher: Classifier
    weight_hash: str
    sources: list[Source]
    options: CollectOptions
    out: Path
    runtime: Runtime

    @property
    def identity(self) -> dict[str, Any]:
        """What the set follows from."""
        return {
            "config": dataclasses.asdict(self.options),
            "sources": [source.address for source in self.sources],
            "contents": [source.content for source in self.sources],
            "seed": self.runtime.seed,
            "teacher_hash": self.weight_hash,
            "input": self.teacher.contract,
        }

    def make(self, phase: Phase, number: int, stock: Stock) -> Block:
        """A block of a phase, and the teacher's answers."""
        images = phase.make(number, stock)
        return images, self.answer(images, stock)

    def answer(self, images: Tensor, stock: Stock) -> Tensor:
        """The teacher's answers to a block's images."""
        if not len(images):
            return stock.logits[:0]
        return ask(self.teacher, to_input(images), torch.float32)

    def lead(self, make: Make) -> TransferSet:
        """Collect the set of blocks that are made so."""
        key = claim(self.out, self.identity, "options, sources, seed or teacher")
        state = self.out / STATE
        if _is_finished(self.out):
            state.unlink(missing_ok=True)  # of a run that was killed at its very end
            add_class_names(self.out, self.teacher)
            return TransferSet.load(self.out)
        with as_found(self.teacher):
            _write(self, self._shown(), key, make)
        state.unlink(missing_ok=True)
        return TransferSet.load(self.out)

    def help(self, claims: Claims) -> None:
        """Make blocks for the process that leads."""
        with as_found(self.teacher):
            phases = plan_phases(self._shown(), self.teacher, self.options, self.runtime.seed)
            device = self.runtime.resolve_device()
            stock = empty_stock(self.teacher, self.options, device)
            make_ahead(claims, self.runtime.world, phases, self.answer, stock)

    def _shown(self) -> list[Source]:
        """The sources as they are shown, and the teacher ready to be asked."""
        on_device(self.teacher, self.runtime.resolve_device()).eval().requires_grad_(False)
        quiet = self.runtime.quiet
        return [_as_shown(source, self.teacher, self.options, quiet) for source in self.sources]


def _write(task: _Task, sources: list[Source], key: str, make: Make) -> None:
    """Collect the set, and write its shards and manifest."""
    options = task.options
    collection = _fill(task, sources, key, make)
    account = {
        "sources": [source.address for source in sources],
        "exposed": {source.address: source.exposed for source in sources},
        **summarize(collection),
    }
    finish_set(
        task.out,
        "collect",
        options,
        task.runtime.seed,
        task.teacher,
        task.weight_hash,
        write_shards(collection, task.teacher, options.shard_images, task.out),
        quotas_of(options, task.teacher.spec.classes) if options.balanced else None,
        collection=account,
    )


def _fill(task: _Task, sources: list[Source], key: str, make: Make) -> Collection:
    """Go through the sources, and what is done about short classes, from where a run was
    stopped.
    """
    options = task.options
    device = task.runtime.resolve_device()
    state_key = f"{key} {device.type}"
    collection = Collection(empty_stock(task.teacher, options, device), device)
    saved = load_state(task.out / STATE, state_key)
    if saved is not None:
        restore(collection, saved, task.out / STATE)
    phases = plan_phases(sources, task.teacher, options, task.runtime.seed)
    _walk(collection, phases, make, options, task.out, state_key, task.runtime.quiet)
    _require_some(collection, task.out)
    return collection


def _is_finished(out: Path) -> bool:
    """Whether the set is there; a shard that was lost is made again."""
    if not (out / "manifest.json").is_file():
        return False
    return all((out / shard["file"]).is_file() for shard in read_manifest(out)["shards"])


def _as_shown(source: Source, teacher: Classifier, options: CollectOptions, quiet: bool) -> Source:
    """The source with as many of its images exposed as suits the teacher."""
    share = choose_exposure(source, teacher, options, quiet)
    return dataclasses.replace(source, exposed=share)


def _walk(
    collection: Collection,
    phases: list[Phase],
    make: Make,
    options: CollectOptions,
    out: Path,
    key: str,
    quiet: bool,
) -> None:
    """Walk the phases until the stock is full."""
    stock = collection.stock
    file = out / STATE

    def save(seconds: float) -> Path:
        collection.seconds = seconds
        save_state(file, key, collection.state_dict())
        return file

    loop = Loop(
        "collecting",
        stock.total,
        quiet,
        start=int(stock.held.sum()),
        save=save,
        seconds=collection.seconds,
        work="collecting",
        step="",  # there is no telling how many images a block gives; see below
    )
    outlook: Outlook | None = None
    with loop:
        while collection.phase < len(phases) and not stock.full:
            phase = phases[collection.phase]
            if collection.blocks < 0:
                collection.blocks = phase.limit(stock)
            if _is_over(collection, phase, options):
                collection.next_phase()
                outlook = None
                continue
            outlook = outlook or loop.watch(phase.name, "block", collection.block)
            images, logits = make(phase, collection.block, stock)
            collection.block += 1
            if len(images):
                collection.take(phase, images, logits, options)
            loop.advance(int(stock.held.sum()), collection.figures_line(phase))
            outlook.look(collection.block, collection.blocks)
    collection.seconds = loop.seconds


def _is_over(collection: Collection, phase: Phase, options: CollectOptions) -> bool:
    """Whether nothing more is to come of a phase."""
    if collection.block >= collection.blocks:
        return True
    return phase.drawn and collection.has_drawn_enough(options)


def _require_some(collection: Collection, out: Path) -> None:
    """Refuse a set without images, and leave its folder free for other options."""
    if collection.stock.held.any():
        return
    for name in (STATE, MARKER):
        (out / name).unlink(missing_ok=True)
    counts = collection.raw.tolist()
    told = f"by class {counts}" if len(counts) <= MOST_ROWS else say_spread(counts)
    raise EchosetError(
        f"no image was taken of {sum(counts)} drawn ({told}); widen confidence, margin or only"
    )
