"""Write the tables of measured figures in docs/results, README.md and configs/README.md from
`configs/results`, and those of sources, methods, recipes and scores from the code, so that none is
typed by hand.

`python tools/tables.py` rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`; a
test holds the pages to it.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from distill.methods import find_method
from inversion.cli import lists
from inversion.cli.help import read_docs
from inversion.recipes import find_recipe
from inversion.scoring.scores import SCORES
from inversion.sources import DRAWN, find_drawer

Figures = dict[str, Any]
"""What a result file has of one run, cell or network."""
Rows = list[list[str]]
"""Of a table; the first is its head."""
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "configs" / "results"
PAGES = (
    ROOT / "README.md",
    ROOT / "configs" / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("sources", "distilling", "recipes", "scorecard")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
    *sorted((ROOT / "docs" / "uses").glob("*.md")),
)
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's quantile, of 1 to 9 degrees of freedom."""
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def rows_to_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "| --- " * len(rows[0]) + "|", *body])


def spread(values: list[float]) -> str:
    """Percent: mean and sample deviation, or the one value."""
    mean = f"{100 * statistics.mean(values):.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.2f}"


def minutes(seconds: list[float]) -> str:
    """Median, in minutes."""
    return f"{statistics.median(seconds) / 60:.1f}"


def images(run: Figures) -> str:
    """How many taught the student: those of the set and, if any, those beside it."""
    count = f"{run['images']:,}"
    beside = run.get("beside")
    if not beside:
        return count
    return f"{count} + {beside['images']:,}"


def load(name: str) -> Figures:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def teachers(name: str) -> str:
    """Networks trained on real images, by `tools/train_teacher.py`."""
    rows: Rows = [["network", "test accuracy, %", "parameters", "minutes", "device"]]
    for run in load(name)["teachers"]:
        rows.append(
            [
                run["name"],
                f"{100 * run['accuracy']:.2f}",
                f"{run['parameters']:,}",
                f"{run['seconds'] / 60:.0f}",
                run["device"],
            ]
        )
    return rows_to_markdown(rows)


STAGES = {
    "synthesis": "synthesis, min",
    "collection": "beside",
    "distillation": "distillation",
    "total": "in all",
}
"""Parts of a demo that are timed, and what the table calls them."""


def demos(pattern: str) -> str:
    """Every run of the configurations whose result files the pattern names."""
    head = ["configuration", "images", "seeds", "student, %", "worst", *STAGES.values()]
    rows: Rows = [head]
    for path in sorted(RESULTS.glob(pattern)):
        runs = json.loads(path.read_text()).get("runs", [])
        if not runs:
            continue
        accuracy = [run["student_accuracy"] for run in runs]
        row = [
            f"`{path.stem}`",
            images(runs[0]),
            str(len(runs)),
            spread(accuracy),
            f"{100 * min(accuracy):.2f}",
        ]
        for stage in STAGES:
            row.append(minutes([run["seconds"].get(stage, 0) for run in runs]))
        rows.append(row)
    return rows_to_markdown(rows)


SAME_DECISION = "same decision as the teacher, %"


def students(name: str) -> str:
    """Kinds of student taught by one set, by `tools/measure_students.py`."""
    head = ["student", "parameters", "images", "steps", "seeds", "student, %"]
    rows: Rows = [[*head, SAME_DECISION, "minutes"]]
    kinds: dict[tuple[str, int, str], list[Figures]] = {}
    for run in load(name)["runs"]:
        kinds.setdefault((run["name"], run["steps"], _taught_by(run)), []).append(run)
    for (kind, steps, _), runs in kinds.items():
        before = ", taught before" if runs[0].get("taught_before") else ""
        rows.append(
            [
                kind + before,
                f"{runs[0]['parameters']:,}",
                images(runs[0]),
                f"{steps:,}",
                str(len(runs)),
                spread([run["student_accuracy"] for run in runs]),
                spread([run["agreement"] for run in runs]),
                minutes([run["seconds"]["distillation"] for run in runs]),
            ]
        )
    return rows_to_markdown(rows)


def _taught_by(run: Figures) -> str:
    """What the seeds of a student share: options and sets, or in early rows the command."""
    if "configuration" in run:
        return " ".join([run["configuration"], *run.get("set_hashes", [])])
    return re.sub(r" --seed \d+", "", run["command"])


IMAGES_USED = ("none", "real", "ours", "shaders", "noise")
"""Columns of the tables about uses: the images that were used."""


def uses(name: str) -> str:
    """What came of a use of sets, by the images that were used: a row a network and case."""
    rows: Rows = [["network", "case", "images", "seeds", *IMAGES_USED]]
    cases: dict[tuple[str, str, int], list[Figures]] = {}
    for run in load(name)["uses"]:
        cases.setdefault((run["network"], run["case"], run["set_size"]), []).append(run)
    for (network, case, size), runs in cases.items():
        kinds = {run["images"] for run in runs}
        count = "–" if kinds == {"none"} else f"{size:,}"
        row = [network, case, count, str(len({run["seed"] for run in runs}))]
        for images in IMAGES_USED:
            found = [run["accuracy"] for run in runs if run["images"] == images]
            row.append(spread(found) if found else "–")
        rows.append(row)
    return rows_to_markdown(rows)


def curve(name: str) -> str:
    """Students of synthetic and of real images, by the size of the set."""
    head = ["learnt from", "loss", "images", "steps", "seeds", "student, %", SAME_DECISION]
    rows: Rows = [head]
    points: dict[tuple[str, str, int, int], list[Figures]] = {}
    for cell in load(name)["study"]:
        point = (cell["method"], cell["set"], cell["set_size"], cell["steps"])
        points.setdefault(point, []).append(cell)
    for (method, source, size, steps), cells in sorted(points.items()):
        rows.append(
            [
                source,
                f"`{method}`",
                f"{size:,}",
                f"{steps:,}",
                str(len(cells)),
                spread([cell["accuracy"] for cell in cells]),
                spread([cell["agreement"] for cell in cells]),
            ]
        )
    return rows_to_markdown(rows)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of the width of its 95 % interval; infinite for a single value."""
    if len(values) < 2:
        return values[0], math.inf
    quantile = T95[min(len(values) - 2, len(T95) - 1)]
    deviation = statistics.stdev(values)
    return statistics.mean(values), quantile * deviation / math.sqrt(len(values))


def reweighting(runs: list[Figures]) -> str:
    """Ways to draw from the buffer, by `tools/measure_reweighting.py`: one row a way."""
    by_way: dict[str, dict[int, Figures]] = {}
    for run in runs:
        by_way.setdefault(run["name"], {})[run["seed"]] = run
    head = ["draws", "agreement on other seeds' sets", "… less δ's", "test accuracy"]
    rows: Rows = [[*head, "… less δ's", "synthesis, s", "calls"]]
    for way, by_seed in by_way.items():
        seconds = [run["seconds"]["synthesis"] for run in by_seed.values()]
        rows.append(
            [
                way,
                *_beside_priority(way, by_way, "cross_agreement"),
                *_beside_priority(way, by_way, "student_accuracy"),
                f"{statistics.median(seconds):.0f}",
                ", ".join(str(run["calls"]) for run in by_seed.values()),
            ]
        )
    return rows_to_markdown(rows)


def sources() -> str:
    """Every source that is drawn, by what its class says of itself and of its settings."""
    sentences = lists.sources()
    rows = [["source", "what it gives", "settings and their defaults"]]
    for name in DRAWN:
        drawer = find_drawer(name)
        docs = read_docs(drawer)
        settings = [
            f"`{field.name}={field.default:g}`: {docs[field.name]}" for field in fields(drawer)
        ]
        rows.append([f"`{name}`", sentences[name], " ".join(settings) or "–"])
    return rows_to_markdown(rows)


def methods() -> str:
    """Every way to distil, by what its file says of itself."""
    rows = [["method", "what it does", "weight", "compares"]]
    for name, sentence in lists.methods().items():
        method = find_method(name)
        compared = ", ".join(sorted(method.needs)) or "labels"
        rows.append([f"`{name}`", sentence, f"{method.weight:g}", compared])
    return rows_to_markdown(rows)


def recipes() -> str:
    """Every recipe that trains a generator, by what its class says of itself."""
    rows = [["recipe", "what trains the generator, and how the student draws", "needs"]]
    for name, sentence in lists.recipes().items():
        rows.append([f"`{name}`", sentence, find_recipe(name).needs])
    return rows_to_markdown(rows)


def scores() -> str:
    """Every figure of the scorecard."""
    rows = [["score", "what it is", "range", "good"]]
    rows += [[score.heading, score.definition, score.range, score.good] for score in SCORES]
    return rows_to_markdown(rows)


def _beside_priority(
    way: str, by_way: dict[str, dict[int, Figures]], figure: str
) -> tuple[str, str]:
    """The mean of a figure, and of its differences from the one drawn by δ, seed by seed."""
    by_seed = by_way[way]
    mean = f"{statistics.mean([100 * run[figure] for run in by_seed.values()]):.2f} %"
    if way == "priority":
        return mean, "–"
    differences = []
    for seed, run in by_seed.items():
        differences.append(100 * (run[figure] - by_way["priority"][seed][figure]))
    difference, half = interval(differences)
    return mean, f"{difference:+.2f} ± {half:.2f}"


def normless(name: str) -> str:
    """What students learn from teachers without BatchNorm: a row a way, a column a teacher."""
    runs = load(name)["runs"]
    teachers = list(dict.fromkeys(run["teacher"] for run in runs))
    rows = [["set", *(f"`{name}`, %" for name in teachers), "pushed", "set, min"]]
    for name in dict.fromkeys(run["set"] for run in runs):
        made = [run for run in runs if run["set"] == name]
        row = [name]
        for teacher in teachers:
            accuracy = [run["student_accuracy"] for run in made if run["teacher"] == teacher]
            row.append(spread(accuracy) if accuracy else "–")
        row.append(", ".join(f"{run['pushed']:,}" for run in made))
        row.append(minutes([run["seconds"]["set"] for run in made]))
        rows.append(row)
    return rows_to_markdown(rows)


def _by_way(name: str) -> dict[str, list[Figures]]:
    """The runs of label maps in a result file, by the way their images came about."""
    ways: dict[str, list[Figures]] = {}
    for run in load(name)["maps"]:
        ways.setdefault(run["name"], []).append(run)
    order = ("real", "ours", "unbalanced", "adversarial", "shaders", "leaves", "noise")
    known = [way for way in order if way in ways]
    return {way: ways[way] for way in [*known, *sorted(ways.keys() - set(known), reverse=True)]}


def _class_names(name: str) -> list[str]:
    """Those that the teacher's recipe gives."""
    recipe = (ROOT / "configs" / "teachers" / f"{name}.yaml").read_text()
    return re.findall(r"^names: *(.+)$", recipe, re.M)[0].split(",")


def maps(name: str) -> str:
    """Students of label maps, by what they learnt from."""
    rows: Rows = [["learnt from", "images", "seeds", "mean IoU, %", "pixels right, %", "set, min"]]
    for way, runs in _by_way(name).items():
        count = runs[0]["images"]
        row = [way, f"{count:,}" if count else "–", str(len(runs))]
        row.append(spread([run["mean_iou"] for run in runs]))
        row.append(spread([run["accuracy"] for run in runs]))
        row.append(minutes([run["seconds"]["set"] for run in runs]) if count else "–")
        rows.append(row)
    return rows_to_markdown(rows)


def map_classes(name: str) -> str:
    """What these students have of each class: means over seeds, in percent."""
    rows: Rows = [["learnt from", *_class_names(name)]]
    for way, runs in _by_way(name).items():
        means = [statistics.mean(each) for each in zip(*(run["iou"] for run in runs), strict=True)]
        rows.append([way, *(f"{100 * mean:.0f}" for mean in means)])
    return rows_to_markdown(rows)


def _of_equal(counts: list[int]) -> list[float]:
    """Counts as parts of their mean."""
    mean = statistics.mean(counts)
    return [count / mean for count in counts]


def map_pixels(name: str) -> str:
    """What the sets have of each class, as parts of an equal share: means over seeds."""
    rows: Rows = [["set", *_class_names(name)]]
    for way, runs in _by_way(name).items():
        if runs[0]["pixels"] and not way.endswith("-by-answers"):
            parts = [_of_equal(run["pixels"]) for run in runs]
            means = [statistics.mean(each) for each in zip(*parts, strict=True)]
            rows.append([way, *(f"{mean:.2f}" for mean in means)])
    return rows_to_markdown(rows)


TABLES: dict[str, Callable[[], str]] = {
    "camvid": lambda: maps("camvid"),
    "camvid-classes": lambda: map_classes("camvid"),
    "camvid-pixels": lambda: map_pixels("camvid"),
    "sources": sources,
    "methods": methods,
    "recipes": recipes,
    "scores": scores,
    "teachers": lambda: teachers("teachers"),
    "real": lambda: teachers("cifar10-real"),
    "cifar10": lambda: demos("cifar10-[!s]*.json"),
    "cifar10-small": lambda: demos("cifar10-small*.json"),
    "students": lambda: students("cifar10-students"),
    "students-hints": lambda: students("cifar10-students-hints"),
    "uses-quantisation": lambda: uses("uses-quantisation"),
    "uses-pruning": lambda: uses("uses-pruning"),
    "uses-replay": lambda: uses("uses-replay"),
    "curve": lambda: curve("cifar10-curve"),
    "curve-small": lambda: curve("cifar10-small-curve"),
    "normless": lambda: normless("normless"),
    "normless-mnist": lambda: normless("normless-mnist"),
    "reweighting-mnist": lambda: reweighting(load("reweighting-mnist")["runs"]),
    "reweighting-cifar10-small": lambda: reweighting(load("reweighting-cifar10-small")["runs"]),
}


def render(page: str) -> str:
    """A page with every marked table made anew."""
    for _, name, _ in BLOCK.findall(page):
        if name not in TABLES:
            raise SystemExit(f"a page asks for a table '{name}'; there are {', '.join(TABLES)}")
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]]()}\n{block[3]}", page)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text()))
