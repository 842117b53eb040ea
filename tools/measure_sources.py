"""Make sets from many sources, teach a student by each, score them all, and keep every figure.

    python tools/measure_sources.py --data /path/to/MNIST --photos /path/to/CIFAR-10/train

For each seed: sixteen sets of 2,000 images (real digits, unrelated photographs, shaders, leaves,
fractals, two noises, four of these unbalanced, one class of a source alone and the same pushed over
the boundaries, twice each, SSD-KD), then `echoset score --validate` over them. Work is under
runs/sources: every command is given again, which takes what it finished and refuses what another
one left; a set that comes short ends all. Figures go to configs/results/sources.json, and tables
for docs/results/sources.md to standard output.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import RESULTS, Figures, pick, this_command, write_study
from tables import rows_to_markdown, spread
from verbs import new_parser, plain_endings, run_verbs

from synthesis_kernels.backend import repository_commit

DRAWN = ("shaders", "leaves", "fractals", "noise", "pink")
"""Sources that draw their images."""
KEPT = ("drawn", "raw_counts", "raw_coverage", "taken", "short", "exposed", "seconds")
"""What a collection tells of itself."""
JUDGED = ("set", "corruption", "method", "seed", "loss", "set_size", "accuracy", "seconds")
"""What is kept of a student."""


def sets(data: str, photos: str, images: int) -> dict[str, list[str]]:
    """How each set is made: names and the command behind them, without --out and --seed."""
    collect = ["collect", "--images", str(images), "--source"]
    sources = {"real": data, "photos": photos} | {name: name for name in DRAWN}
    made = {name: [*collect, source] for name, source in sources.items()}
    for name in ("photos", "shaders", "leaves", "fractals"):
        made[f"{name}-unbalanced"] = [*made[name], "--collection.balanced", "false"]
    # As they are, not exposed: the teacher calls nearly all of them an eight.
    for name in ("shaders", "leaves"):
        one_class = [*made[name], "--collection.expose", "0", "--collection.only", "[8]"]
        made[f"{name}-one-class"] = [*one_class, "--collection.balanced", "false"]
        made[f"{name}-pushed"] = one_class
    made["ssd-kd"] = ["synthesize", "--images", str(images), "--synthesis.calls", "60"]
    return made


def measure(
    seeds: list[int],
    made: dict[str, list[str]],
    data: str,
    folder: Path,
    processes: int,
    steps: int,
) -> list[Figures]:
    """All sets; then one document of `score --validate` for each seed."""
    commands = []
    for seed in seeds:
        for name, command in made.items():
            out = str(folder / str(seed) / name)
            commands.append([*command, "--seed", str(seed), "--out", out])
    run_verbs(commands, processes)
    documents = []
    for seed in seeds:
        page = folder / f"score-{seed}.html"
        command = ["score", *(f"{name}={folder / str(seed) / name}" for name in made)]
        command += ["--validate", "--seeds", f"[{seed}]", "--data", data, "--out", str(page)]
        command += ["--distillation.steps", str(steps)]
        cells = [cell_file(folder, name, seed) for name in made]
        if processes > 1 and not all(cell.is_file() for cell in cells):
            share = [*command, "--world", str(processes), "--rank"]
            run_verbs([[*share, str(rank)] for rank in range(processes)], processes)
        run_verbs([command])
        documents.append(read_json(page.with_suffix("") / "validation.json"))
    return documents


def cell_file(folder: Path, name: str, seed: int) -> Path:
    """Where `score --validate` leaves what a student came to."""
    return folder / f"score-{seed}" / "cells" / f"{name}--none--hinton--{seed}.json"


def read_json(path: Path) -> Figures:
    """A document."""
    return json.loads(path.read_text())


def publish(
    documents: list[Figures],
    seeds: list[int],
    made: dict[str, list[str]],
    folder: Path,
    head: Figures,
) -> list[Figures]:
    """Write the file and return its cells."""
    cells = []
    tests = []
    machine: Figures = {}
    for seed, document in zip(seeds, documents, strict=True):
        for name in made:
            cell = read_json(cell_file(folder, name, seed))
            manifest = read_json(folder / str(seed) / name / "manifest.json")
            machine = pick(cell, ("device", "torch"))
            cells.append(public_cell(cell, manifest, made, document["sets"][name]))
        tests.append({"seed": seed} | pick(document["validation"], ("overall", "scores")))
    write_study(RESULTS / "sources.json", {**head, **machine, "validation": tests}, cells)
    return cells


def public_cell(
    cell: Figures, manifest: Figures, made: dict[str, list[str]], card: Figures
) -> Figures:
    """A set's figures without the places where the data lie here: its student's, how it was made,
    and its scores.
    """
    collection = None
    if "collection" in manifest:
        collection = pick(manifest["collection"], KEPT)
    kept = pick(cell, JUDGED) | {
        "command": " ".join(["echoset", *made[cell["set"]]]),
        "counts": manifest["counts"],
        "collection": collection,
    }
    places = {made["real"][-1]: "DIR", made["photos"][-1]: "PHOTOS"}
    scores = {name: _rounded(value) for name, value in card["values"].items()}
    return _anonymous(kept, places) | {"scores": scores, "overall": round(card["overall"], 4)}


def _anonymous(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {places.get(key, key): _anonymous(inner, places) for key, inner in value.items()}
    if isinstance(value, str):
        return " ".join(places.get(word, word) for word in value.split(" "))
    return value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def tables(cells: list[Figures], documents: list[Figures]) -> str:
    """Markdown: the sets by accuracy, the balanced ones beside their twins, and what predicts."""
    by_set: dict[str, list[Figures]] = {}
    for cell in cells:
        by_set.setdefault(cell["set"], []).append(cell)
    parts = (by_accuracy(by_set), beside_twins(by_set), predictors(documents))
    return "\n\n".join(map(rows_to_markdown, parts))


def accuracies(cells: list[Figures]) -> list[float]:
    """Of the students of one set."""
    return [cell["accuracy"] for cell in cells]


def by_accuracy(by_set: dict[str, list[Figures]]) -> list[list[str]]:
    """A row a set, the best first."""
    rows = [["set", "accuracy, %", "worst", "η drawn", "η kept", "overall"]]
    order = sorted(by_set, key=lambda name: -statistics.mean(accuracies(by_set[name])))
    for name in order:
        cells = by_set[name]
        scores = [cell["scores"] for cell in cells]
        drawn = [each["coverage_raw"] for each in scores if each["coverage_raw"] is not None]
        kept = [each["coverage"] for each in scores]
        overall = [cell["overall"] for cell in cells]
        rows.append(
            [
                name,
                spread(accuracies(cells)),
                f"{100 * min(accuracies(cells)):.2f}",
                f"{statistics.mean(drawn):.2f}" if drawn else "–",
                f"{statistics.mean(kept):.2f}",
                f"{statistics.mean(overall):.3f}",
            ]
        )
    return rows


def beside_twins(by_set: dict[str, list[Figures]]) -> list[list[str]]:
    """Balanced sets and their unbalanced twins."""
    rows = [["source", "balanced", "unbalanced twin"]]
    for name, cells in by_set.items():
        twin = by_set.get(f"{name}-unbalanced")
        if twin:
            rows.append([name, spread(accuracies(cells)), spread(accuracies(twin))])
    return rows


def predictors(documents: list[Figures]) -> list[list[str]]:
    """How the order by each score agrees with the order by accuracy."""
    tests = [document["validation"] for document in documents]
    rows = [
        ["score", "claimed", "ρ with accuracy, by seed"],
        ["**overall**", "", _rhos([test["overall"] for test in tests])],
    ]
    for scores in zip(*(test["scores"] for test in tests), strict=True):
        rows.append([scores[0]["title"], scores[0]["claim"] or "nothing", _rhos(scores)])
    return rows


def _rhos(tests: Sequence[Figures]) -> str:
    """Correlations with their intervals, a seed each."""
    texts = []
    for test in tests:
        if test["rho"] is None:
            texts.append("–")
        else:
            texts.append(f"{test['rho']:.2f} ({test['low']:.2f} to {test['high']:.2f})")
    return ", ".join(texts)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data",
        required=True,
        help="MNIST's folder: its train split is the set 'real', its test split judges",
    )
    parser.add_argument(
        "--photos",
        required=True,
        help="folder of unrelated photographs, such as CIFAR-10's train split",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=600, help="of each student")
    parser.add_argument(
        "--processes", type=int, default=2, help="at once, each on one thread if there are several"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/sources"))
    given = parser.parse_args()
    plan = sets(given.data, given.photos, given.images)
    head = {
        "command": this_command({given.data: "DIR", given.photos: "PHOTOS"}),
        "commit": repository_commit(),
    }
    with plain_endings():
        documents = measure(
            given.seeds, plan, given.data, given.folder, given.processes, given.steps
        )
        cells = publish(documents, given.seeds, plan, given.folder, head)
        print(tables(cells, documents))
