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

import torch
from torch import nn

from distill.files import load_state, save_state
from distill.loop import Loop
from distill.models import Classifier, as_classifier, as_found
from distill.models.classifier import on_device
from distill.outlook import Outlook
from distill.restoring import restore
from distill.runtime import Runtime
from distill.sets.transfer_set import MARKER, TransferSet, read_manifest
from inversion.classes import MOST_ROWS, say_spread
from inversion.inspection import check_gradient, check_shape
from inversion.jobs import add_class_names, claim, finish_set
from inversion.options import CollectOptions
from inversion.sources.boundary import require_one_decision
from inversion.sources.choice import choose_exposure
from inversion.sources.collection import Collection
from inversion.sources.outcome import summarize, write_shards
from inversion.sources.own import OwnSource
from inversion.sources.phases import Phase, plan_phases
from inversion.sources.stock import Stock
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
    teacher = as_classifier(teacher)
    options = _settle_ways(options, teacher, runtime)
    check_options(options, teacher)
    check_shape(teacher)
    if "push" in options.short:
        check_gradient(teacher)
    runtime.require_alone("collect")
    out = Path(out)
    device = runtime.resolve_device()
    spec = teacher.spec
    most = math.ceil(options.images * options.draws)
    opened = open_sources(
        sources, spec.channels, spec.size, runtime.seed, device, runtime.quiet, most
    )
    weight_hash = teacher.weight_hash()
    key = _claim(out, teacher, weight_hash, opened, options, runtime.seed)
    if _is_finished(out):
        (out / STATE).unlink(missing_ok=True)  # of a run that was killed at its very end
        add_class_names(out, teacher)
        return TransferSet.load(out)
    with as_found(teacher):
        _write(teacher, weight_hash, opened, options, out, key, runtime)
    (out / STATE).unlink(missing_ok=True)
    return TransferSet.load(out)


def _write(
    teacher: Classifier,
    weight_hash: str,
    sources: list[Source],
    options: CollectOptions,
    out: Path,
    key: str,
    runtime: Runtime,
) -> None:
    """Collect the set, and write its shards and manifest."""
    on_device(teacher, runtime.resolve_device()).eval().requires_grad_(False)
    shown = [_as_shown(source, teacher, options, runtime.quiet) for source in sources]
    collection = _fill(teacher, shown, options, out, key, runtime)
    account = {
        "sources": [source.address for source in shown],
        "exposed": {source.address: source.exposed for source in shown},
        **summarize(collection),
    }
    finish_set(
        out,
        "collect",
        options,
        runtime.seed,
        teacher,
        weight_hash,
        write_shards(collection, options.shard_images, out),
        _quotas(options, teacher.spec.classes) if options.balanced else None,
        collection=account,
    )


def _fill(
    teacher: Classifier,
    sources: list[Source],
    options: CollectOptions,
    out: Path,
    key: str,
    runtime: Runtime,
) -> Collection:
    """Go through the sources, and what is done about short classes, from where a run was
    stopped.
    """
    device = runtime.resolve_device()
    state_key = f"{key} {device.type}"
    collection = Collection(_empty_stock(teacher, options, device), device)
    saved = load_state(out / STATE, state_key)
    if saved is not None:
        restore(collection, saved, out / STATE)
    phases = plan_phases(sources, teacher, options, runtime.seed)
    _walk(collection, phases, teacher, options, out, state_key, runtime.quiet)
    _require_some(collection, out)
    return collection


def _settle_ways(options: CollectOptions, teacher: Classifier, runtime: Runtime) -> CollectOptions:
    """The options with other ways than the usual one to fill short classes, where that one walks
    from one decision to another and an image has many.
    """
    if teacher.task.exact or options.short != CollectOptions.short or not options.balanced:
        return options
    runtime.say(f"{teacher.spec.task} has no push: short classes are filled by draw and mixup")
    return dataclasses.replace(options, short=("draw", "mixup"))


def check_options(options: CollectOptions, teacher: Classifier) -> None:
    """Refuse what can't work with this teacher, by name."""
    classes = teacher.spec.classes
    unknown = [label for label in options.only if not 0 <= label < classes]
    if unknown:
        raise EchosetError(
            f"collection.only names class {unknown[0]}; the teacher knows 0 to {classes - 1}"
        )
    if options.balanced and "push" in options.short:
        remedy = "fill classes by other ways (collection.short: draw, augment, mixup)"
        require_one_decision(teacher, "push", remedy)


def _claim(
    out: Path,
    teacher: Classifier,
    weight_hash: str,
    opened: list[Source],
    options: CollectOptions,
    seed: int,
) -> str:
    """Mark the folder with what is collected in it, and return the mark."""
    identity = {
        "config": dataclasses.asdict(options),
        "sources": [source.address for source in opened],
        "contents": [source.content for source in opened],
        "seed": seed,
        "teacher_hash": weight_hash,
        "input": teacher.contract,
    }
    return claim(out, identity, "options, sources, seed or teacher")


def _is_finished(out: Path) -> bool:
    """Whether the set is there; a shard that was lost is made again."""
    if not (out / "manifest.json").is_file():
        return False
    return all((out / shard["file"]).is_file() for shard in read_manifest(out)["shards"])


def _as_shown(source: Source, teacher: Classifier, options: CollectOptions, quiet: bool) -> Source:
    """The source with as many of its images exposed as suits the teacher."""
    share = choose_exposure(source, teacher, options, quiet)
    return dataclasses.replace(source, exposed=share)


def _quotas(options: CollectOptions, classes: int) -> list[int]:
    """Images of each class: image i of the set is of class i mod K."""
    return [len(range(label, options.images, classes)) for label in range(classes)]


def _empty_stock(teacher: Classifier, options: CollectOptions, device: torch.device) -> Stock:
    spec = teacher.spec
    return Stock(
        _quotas(options, spec.classes),
        spec.shape,
        options.balanced,
        device,
        teacher.task,
        teacher.answer_shape[1:],
    )


def _walk(
    collection: Collection,
    phases: list[Phase],
    teacher: Classifier,
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
            images = phase.make(collection.block, stock)
            collection.block += 1
            if len(images):
                collection.take(phase, images, teacher, options)
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
