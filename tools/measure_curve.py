"""Accuracy over the size of a set: one synthetic set and the real training images, drawn down to the same sizes.

    python tools/measure_curve.py --config configs/cifar10-wrn40x2-wrn16x1.yaml --set runs/large/set --data /path/to/CIFAR-10

The student, the teacher and the views are those of the configuration; every size gets the same number of steps. Labels choose
which real images are drawn, as many of each class, and teach nothing: the teacher answers for both. Work is under runs/curve; a
cell that is there already is not computed again. Figures go to configs/results/<name>.json, beside those of other sets, sizes and
seeds that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from distill.data import load_images
from distill.options import StudyOptions
from distill.study import run_study
from distill.transfer_set import TransferSet
from inversion.cli import _parse
from inversion.teacher import load_teacher
from synthesis_kernels.backend import repository_commit

RESULTS = Path(__file__).parent.parent / "configs" / "results"
KEPT = ("set", "corruption", "method", "seed", "loss", "set_size", "accuracy", "agreement", "steps", "seconds", "device", "torch")


def which(cell: dict) -> tuple[str, int, int, int]:
    """What tells one row of the file from another."""
    return cell["set"], cell["set_size"], cell["steps"], cell["seed"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="of `echoset demo`: its teacher, student and distillation count")
    parser.add_argument("--set", help="a transfer set of the largest size; without one, real images alone")
    parser.add_argument("--data", required=True, help="folder of the real images, with a train and a test split")
    parser.add_argument("--sizes", nargs="+", type=int, default=[500, 1000, 2500, 5000, 10_000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=3000, help="of each student")
    parser.add_argument("--name", default="cifar10-curve", help="of the result file")
    given = parser.parse_args()
    run = _parse("demo", ["--config", given.config])
    sets = {"real": load_images(given.data, "train")}
    if given.set:
        sets = {"synthetic": TransferSet.load(given.set), **sets}
    if small := [name for name, images in sets.items() if len(images.images) < max(given.sizes)]:
        parser.error(f"the set '{small[0]}' has fewer than {max(given.sizes):,} images; give smaller --sizes")
    test, distillation = load_images(given.data, "test"), replace(run.distillation, steps=given.steps)
    cells = []
    for size in given.sizes:
        options = StudyOptions(methods=("hinton",), seeds=tuple(given.seeds), images=size, attacks=0)
        out = Path("runs") / "curve" / given.name / str(size)
        way = {"device": run.device, "precision": run.precision, "step": run.step}
        cells += run_study(load_teacher(run.teacher), sets, test, out, run.student, options, distillation, **way)
        print(
            *(f"{c['set']} {c['set_size']:,}: {c['accuracy']:.2%}" for c in cells[-len(sets) * len(given.seeds) :]),
            sep="\n",
            flush=True,
        )
    commit = repository_commit()
    words = ["SET" if word == given.set else "DIR" if word == given.data else word for word in sys.argv[1:]]
    content = {"command": " ".join(["python tools/measure_curve.py", *words]), "commit": commit}
    content |= {key: cells[0][key] for key in ("device", "torch")}
    cells = [{key: cell[key] for key in KEPT} for cell in cells]
    path, places = RESULTS / f"{given.name}.json", [which(cell) for cell in cells]
    if path.is_file():
        cells = [cell for cell in json.loads(path.read_text())["study"] if which(cell) not in places] + cells
    rows = ",\n ".join(json.dumps(cell) for cell in sorted(cells, key=which))
    path.write_text(f"{json.dumps(content | {'study': []})[:-3]}[\n {rows}\n]}}\n")
