"""Accuracy over the size of a set: one synthetic set and the real training images, drawn down to
the same sizes.

    python tools/measure_curve.py --config configs/cifar10-wrn40x2-wrn16x1.yaml \\
        --set runs/large/set --data /path/to/CIFAR-10

The student, the teacher and the views are those of the configuration; every size gets the same
number of steps. Labels choose which real images are drawn, as many of each class, and teach
nothing: the teacher answers for both. Work is under runs/curve; a cell that is there already is not
computed again. Figures go to configs/results/<name>.json, beside those of other sizes, steps and
seeds that are there; a file has one synthetic set.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from results import RESULTS, Figures, pick, set_hashes, this_command, write_study
from verbs import new_parser, plain_endings, read_options

from distill.data.images import Images, load_images
from distill.options import StudyOptions
from distill.sets.transfer_set import TransferSet
from distill.study import run_study
from inversion.cli.schema import DemoRun
from inversion.teacher import load_teacher
from synthesis_kernels.backend import repository_commit
from synthesis_kernels.errors import EchosetError

Sets = dict[str, TransferSet | Images]
KEPT = (
    "set",
    "corruption",
    "method",
    "seed",
    "loss",
    "set_size",
    "accuracy",
    "agreement",
    "steps",
    "seconds",
    "device",
    "torch",
)


def key_of(cell: Figures) -> tuple[str, str, int, int, int]:
    """What tells one row of the file from another."""
    return cell["method"], cell["set"], cell["set_size"], cell["steps"], cell["seed"]


def read_rows(path: Path) -> list[Figures]:
    """The rows that are there; early ones have their command and commit in the file's head."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text())
    head = pick(document, ("command", "commit"))
    return [head | row for row in document["study"]]


def measure(given: argparse.Namespace) -> None:
    """Teach by every size, and put the figures among those of the file."""
    path = RESULTS / f"{given.name}.json"
    commit = repository_commit()
    rows = read_rows(path)
    sets: Sets = {}
    hashes: dict[str, Figures] = {"real": {}}
    if given.set:
        made = TransferSet.load(given.set)
        sets["synthetic"] = made
        hashes["synthetic"] = {"set_hashes": set_hashes(made)}
        check_rows(path, rows, set_hashes(made))
    sets["real"] = load_images(given.data, "train")
    check_sizes(sets, max(given.sizes))
    cells = teach_all(given, sets)
    origin = {"command": this_command({given.data: "DIR", given.set: "SET"}), "commit": commit}
    by_key = {key_of(row): row for row in rows}
    for cell in cells:
        kept = pick(cell, KEPT)
        # One that an earlier call computed keeps its commit.
        if not kept.items() <= by_key.get(key_of(kept), {}).items():
            by_key[key_of(kept)] = kept | origin | hashes[kept["set"]]
    head = origin | pick(cells[0], ("device", "torch"))
    write_study(path, head, sorted(by_key.values(), key=key_of))


def check_rows(path: Path, rows: list[Figures], hashes: list[str]) -> None:
    """Refuse a file that has rows of another synthetic set."""
    for row in rows:
        if row.get("set_hashes", hashes) != hashes:
            raise EchosetError(f"{path} has rows of another synthetic set; give another --name")


def check_sizes(sets: Sets, largest: int) -> None:
    """Refuse a set that has too few images."""
    for name, images in sets.items():
        if len(images.images) < largest:
            raise EchosetError(
                f"the set '{name}' has fewer than {largest:,} images; give smaller --sizes"
            )


def teach_all(given: argparse.Namespace, sets: Sets) -> list[Figures]:
    """The cells of every size, computed where they are missing."""
    run = read_options(DemoRun, "demo", ["--config", given.config])
    test = load_images(given.data, "test")
    cells: list[Figures] = []
    for size in given.sizes:
        options = StudyOptions(
            methods=(given.method,), seeds=tuple(given.seeds), images=size, attacks=0
        )
        of_size = run_study(
            load_teacher(run.teacher),
            sets,
            test,
            Path("runs") / "curve" / given.name / f"{given.method}-{size}-{given.steps}",
            run.student,
            options,
            replace(run.distillation, steps=given.steps),
            runtime=run,
        )
        for cell in of_size:
            print(f"{cell['set']} {cell['set_size']:,}: {cell['accuracy']:.2%}", flush=True)
        cells += of_size
    return cells


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument(
        "--config",
        required=True,
        help="of `echoset demo`: its teacher, student and distillation count",
    )
    parser.add_argument(
        "--set", help="a transfer set of the largest size; without one, real images alone"
    )
    parser.add_argument(
        "--data", required=True, help="folder of the real images, with a train and a test split"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[500, 1000, 2500, 5000, 10_000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=3000, help="of each student")
    parser.add_argument(
        "--method",
        default="hinton",
        help="loss of each student, as in `echoset study`: hinton, hinton+hints, …",
    )
    parser.add_argument("--name", default="cifar10-curve", help="of the result file")
    given = parser.parse_args()
    with plain_endings():
        measure(given)
