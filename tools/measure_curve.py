"""Accuracy over the size of a set: one synthetic set and the real training images, drawn down to
the same sizes.

    python tools/measure_curve.py --config configs/cifar10-wrn40x2-wrn16x1.yaml --set runs/large/set
    --data /path/to/CIFAR-10

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
from typing import Any

from results import RESULTS, plain_endings, set_hashes, this_command, write_study

from distill.data.images import Images, load_images
from distill.options import StudyOptions
from distill.sets.transfer_set import TransferSet
from distill.study import run_study
from inversion.cli.main import parse
from inversion.teacher import load_teacher
from synthesis_kernels.backend import repository_commit
from synthesis_kernels.errors import EchosetError

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


def which(cell: dict[str, Any]) -> tuple[str, str, int, int, int]:
    """What tells one row of the file from another."""
    return cell["method"], cell["set"], cell["set_size"], cell["steps"], cell["seed"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; early ones have their command and commit in the file's head."""
    found = json.loads(path.read_text()) if path.is_file() else {"study": []}
    return [{key: found[key] for key in ("command", "commit")} | row for row in found["study"]]


def measure(given: argparse.Namespace) -> None:
    """Teach by every size, and put the figures among those of the file."""
    path, commit, run = (
        RESULTS / f"{given.name}.json",
        repository_commit(),
        parse("demo", ["--config", given.config]),
    )
    sets: dict[str, TransferSet | Images] = {"real": load_images(given.data, "train")}
    hashes: dict[str, dict[str, Any]] = {"real": {}}
    if given.set:
        made = TransferSet.load(given.set)
        sets, hashes["synthetic"] = {"synthetic": made, **sets}, {"set_hashes": set_hashes(made)}
        if any(
            row.get("set_hashes", set_hashes(made)) != set_hashes(made) for row in read_rows(path)
        ):
            raise EchosetError(f"{path} has rows of another synthetic set; give another --name")
    if small := [name for name, images in sets.items() if len(images.images) < max(given.sizes)]:
        raise EchosetError(
            f"the set '{small[0]}' has fewer than {max(given.sizes):,} images; give smaller --sizes"
        )
    test, distillation = (
        load_images(given.data, "test"),
        replace(run.distillation, steps=given.steps),
    )
    cells: list[dict[str, Any]] = []
    for size in given.sizes:
        options = StudyOptions(
            methods=(given.method,), seeds=tuple(given.seeds), images=size, attacks=0
        )
        out = Path("runs") / "curve" / given.name / f"{given.method}-{size}-{given.steps}"
        found = run_study(
            load_teacher(run.teacher),
            sets,
            test,
            out,
            run.student,
            options,
            distillation,
            runtime=run,
        )
        print(
            *(f"{cell['set']} {cell['set_size']:,}: {cell['accuracy']:.2%}" for cell in found),
            sep="\n",
            flush=True,
        )
        cells += found
    how = {"command": this_command({given.data: "DIR", given.set: "SET"}), "commit": commit}
    rows = {which(row): row for row in read_rows(path)}
    for cell in ({key: cell[key] for key in KEPT} for cell in cells):
        if (
            not cell.items() <= rows.get(which(cell), {}).items()
        ):  # one that an earlier call computed keeps its commit
            rows[which(cell)] = cell | how | hashes[cell["set"]]
    write_study(
        path,
        how | {key: cells[0][key] for key in ("device", "torch")},
        sorted(rows.values(), key=which),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
