"""Tiny runs of everything, and a SHA-256 of what each leaves: the bytes that a rebuild must keep.

    make golden                                        # print the hashes
    python tools/golden.py --save /tmp/before.json     # before a rebuild: keep them
    python tools/golden.py --against /tmp/before.json  # after it: compare, and name what differs
    python tools/golden.py --only demo score           # some of the runs; combines with both

With --against the exit status is 1 where a hash differs.

A hash covers tensors (name, type, shape and bytes) and figures (every digit of a float). Seconds,
devices, versions, paths and the files' own bytes don't count. Each run has a process of its own
with one thread, so neither the load of the machine nor --processes changes anything.

Another processor or another torch gives other bytes. Compare hashes on the machine that made them,
and keep none in the repository. A saved file says which machine it was, and the precision its runs
computed in.

Only the part "The runs" knows the library. What a rebuild renames is renamed there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from distill import (
    DistillOptions,
    StudentOptions,
    StudyOptions,
    TransferSet,
    ViewOptions,
    build_student,
    distill,
    load_images,
    run_study,
)
from distill.runtime import Runtime
from inversion import (
    MNIST_SLICE,
    CollectOptions,
    ScoreOptions,
    SynthesisOptions,
    TeacherOptions,
    collect,
    load_teacher,
    open_source,
    score,
    synthesize,
)
from inversion.options import (
    AdversaryOptions,
    GeneratorOptions,
    ObjectiveOptions,
    ReplayOptions,
    TeacherViewOptions,
)
from synthesis_kernels.backend import (
    describe_device,
    kernel_form,
    name_form,
    repository_commit,
    resolve_precision,
)

Thing = dict[str, Any]
"""Something to hash: tensors or figures by their names."""
ALIKE = Runtime(device="cpu", quiet=True)
"""How every run is called; its precision is `auto`, but for the run that says otherwise."""
SHARED = "shared-set"
"""Folder of the demo's set, from which other runs learn."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What a processor may have that decides how torch computes on it."""


# The runs

DEMO = SynthesisOptions(
    images=60,
    batch=60,
    calls=8,
    objective=ObjectiveOptions(adversary_after=2),
    adversary=AdversaryOptions(steps=3),
)
"""The demo's synthesis, of fewer images, calls and steps: enough that the adversary acts."""
TINY = SynthesisOptions(
    images=30,
    batch=40,
    calls=6,
    held_out=0.34,
    generator=GeneratorOptions(
        conditioning=2.0,
        width=8,
        inner_steps=3,
        learning_rate=0.01,
        latent_rate=0.1,
        meta_rate=0.05,
    ),
    objective=ObjectiveOptions(bn=2.0, classes=5.0, adversary_after=2),
    adversary=AdversaryOptions(steps=3, batch=32),
)
"""The whole method in two seconds; every other synthesis changes a part of it."""
SHORT = DistillOptions(steps=20, batch=32)
"""A distillation in seconds."""
PASTED = ViewOptions(mixup=0.3, cutmix=0.3, flip=True, cutout=0.2)
"""Views of two images, made of whole pixels and turned ones."""
DRAWN = ("noise", "gaussian", "smooth", "pink", "leaves", "shaders", "fractals")
"""Every source that draws its images."""
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
    loss = {"hinton": 0.9, "labels": 0.1}
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
    """Every loss that no other run has."""
    return learn(folder, dict.fromkeys(("fsp", "sp", "rkd", "rkd-d", "rkd-a", "labels")))


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
    "study": study,
    "score": scorecard,
}


def make_set(
    folder: Path,
    options: SynthesisOptions,
    teacher: str = "mnist",
    **more: Any,
) -> list[Thing]:
    """The shards of a synthesis, and its adversarial student where that is kept."""
    synthesize(
        load_teacher(TeacherOptions(teacher)), options, folder, runtime=replace(ALIKE, **more)
    )
    return read_tensors(folder)


def collect_set(
    folder: Path,
    sources: tuple[str, ...],
    options: CollectOptions,
) -> list[Thing]:
    """The shards of a collection."""
    collect(load_teacher(), sources, options, folder, runtime=ALIKE)
    return read_tensors(folder)


def make_student(folder: Path, data: Path, options: DistillOptions, **more: Any) -> list[Thing]:
    """A fresh student that has learnt from a set."""
    teacher = load_teacher()
    student = build_student(StudentOptions(), teacher.contract)
    distill(
        student,
        TransferSet.load(data),
        teacher,
        options,
        folder=folder,
        runtime=replace(ALIKE, **more),
    )
    return [student.state_dict()]


def learn(folder: Path, loss: dict[str, float | None], **changes: Any) -> list[Thing]:
    """A student that has learnt from the demo's set by these losses."""
    options = replace(SHORT, loss=loss, **changes)
    return make_student(folder / "student", demo_set(folder), options)


def demo_set(folder: Path) -> Path:
    """The demo's set, which runs share; `prepare` made it."""
    return folder.parent / SHARED


def prepare(folder: Path) -> None:
    """Make what runs share."""
    make_set(folder / SHARED, DEMO)


def machine() -> dict[str, Any]:
    """What hashes depend on beside the code, and the commit of the code."""
    device = torch.device("cpu")
    return {
        "device": describe_device(device).partition(",")[0],
        "flags": [flag for flag in FLAGS if flag in processor_flags()],
        "precision": str(resolve_precision(device)).removeprefix("torch."),
        "kernels": name_form(device),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "commit": repository_commit(),
    }


# Hashing, processes and comparing: nothing here knows the library.

FAILED = "failed"
"""In place of the hash of a run that raised an error."""


def read_tensors(folder: Path) -> list[Thing]:
    """Every safetensors file of a folder, in the order of their names."""
    return [load_file(path) for path in sorted(folder.glob("*.safetensors"))]


def digest(things: Sequence[Thing]) -> str:
    """SHA-256 over everything, one value after another in the order of their names."""
    if not any(things):
        raise ValueError("a run left nothing to hash")
    total = sha256()
    for thing in things:
        for name in sorted(thing):
            total.update(f"{name} {content(thing[name])}\n".encode())
        total.update(b"\n")
    return total.hexdigest()


def content(value: Any) -> str:
    """A tensor's type, shape and hash, or a figure as JSON, which keeps every digit."""
    if not isinstance(value, Tensor):
        return json.dumps(value, sort_keys=True)
    values = value.detach().cpu().reshape(-1).contiguous()
    bytes_of_it = values.view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {sha256(bytes_of_it).hexdigest()}"


def in_processes(calls: Sequence[tuple]) -> list[Any]:
    """What the calls return; each, (function, *arguments), has a fresh process with one thread."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(calls), mp_context=spawn) as pool:
        return list(pool.map(on_one_thread, calls))


def on_one_thread(call: tuple) -> Any:
    """Call (function, *arguments) with one thread."""
    function, *arguments = call
    torch.set_num_threads(1)
    return function(*arguments)


def run(name: str, folder: Path) -> tuple[str, float]:
    """One run's hash and seconds."""
    began = time.perf_counter()
    found = digest(RUNS[name](folder))
    return found, time.perf_counter() - began


def tell_run(name: str, folder: Path) -> str:
    """One run's hash, or `FAILED`; its time, or what went wrong, is told on standard error."""
    try:
        [(found, seconds)] = in_processes([(run, name, folder)])
    except Exception:  # whatever a rebuild has broken; the other runs shall tell, too
        traceback.print_exc()
        return FAILED
    print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def make_runs(names: Sequence[str], processes: int) -> dict[str, str]:
    """The hashes of these runs, so many made at once."""
    hashes = {}
    with TemporaryDirectory(prefix="golden-") as folder, ThreadPoolExecutor(processes) as pool:
        in_processes([(prepare, Path(folder))])
        found = pool.map(lambda name: tell_run(name, Path(folder) / name), names)
        for name, value in zip(names, found, strict=True):
            hashes[name] = value
            print(f"{value}  {name}", flush=True)
    return hashes


def processor_flags() -> set[str]:
    """The processor's features as Linux lists them; none are known elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.split())


def compare(now: dict[str, Any], before: dict[str, Any], some: bool) -> bool:
    """Tell which hashes are not those saved before, and what else is another machine's."""
    here = now["machine"]
    hashes = now["runs"]
    for key in sorted(here.keys() - {"commit"}):
        then = before["machine"].get(key)
        if here[key] != then:
            print(f"other {key}: {here[key]} now, {then} before", file=sys.stderr)
    names = hashes if some else {**hashes, **before["runs"]}  # a run that is gone differs, too
    changed = [name for name in names if hashes.get(name) != before["runs"].get(name)]
    print(f"differ: {', '.join(changed)}" if changed else f"{len(hashes)} runs, all as before")
    return not changed


def main(given: argparse.Namespace) -> int:
    """Make the runs, print their hashes, and save or compare them."""
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    before = json.loads(given.against.read_text()) if given.against else None
    here = machine()
    print(json.dumps(here), file=sys.stderr, flush=True)
    names = [name for name in RUNS if not given.only or name in given.only]
    hashes = make_runs(names, given.processes)
    print(f"all: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    now = {"machine": here, "runs": hashes}
    failed = FAILED in hashes.values()
    if given.save and not failed:
        given.save.write_text(json.dumps(now, indent=1) + "\n")
    same = before is None or compare(now, before, bool(given.only))
    return 0 if same and not failed else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the hashes to this file")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with a saved file")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="runs at once")
    sys.exit(main(parser.parse_args()))
