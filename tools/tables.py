"""Write the tables of measured figures in README.md and configs/README.md from `configs/results`,
and that of sources from their classes, so that none is typed by hand.

`python tools/tables.py` rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`; a
test holds both pages to it.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from inversion.cli.help import read_docs
from inversion.sources import DRAWN, find_drawer

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "configs" / "results"
PAGES = (
    ROOT / "README.md",
    ROOT / "configs" / "README.md",
    ROOT / "docs" / "sources.md",
    *sorted((ROOT / "docs" / "results").glob("*.md")),
)
T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
)  # Student's quantile, 1 to 9 degrees of freedom
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def rows_to_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "| --- " * len(rows[0]) + "|", *body])


def spread(values: list[float]) -> str:
    """Percent: mean and sample deviation, or the one value."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")


def minutes(seconds: list[float]) -> str:
    """Median, in minutes."""
    return f"{statistics.median(seconds) / 60:.1f}"


def images(run: dict) -> str:
    """How many taught the student: those of the set and, if any, those beside it."""
    return " + ".join(f"{part['images']:,}" for part in (run, run.get("beside")) if part)


def load(name: str) -> dict:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def teachers(name: str) -> str:
    """Networks trained on real images, by `tools/train_teacher.py`."""
    rows = [["network", "test accuracy, %", "parameters", "minutes", "device"]]
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


def demos(pattern: str) -> str:
    """Every run of the configurations whose result files the pattern names."""
    rows = [
        [
            "configuration",
            "images",
            "seeds",
            "student, %",
            "worst",
            "synthesis, min",
            "beside",
            "distillation",
            "in all",
        ]
    ]
    stages = ("synthesis", "collection", "distillation", "total")
    for path in sorted(RESULTS.glob(pattern)):
        runs = json.loads(path.read_text()).get("runs", [])
        if not runs:
            continue
        accuracy, times = (
            [run["student_accuracy"] for run in runs],
            [run["seconds"] for run in runs],
        )
        rows.append(
            [
                f"`{path.stem}`",
                images(runs[0]),
                str(len(runs)),
                spread(accuracy),
                f"{100 * min(accuracy):.2f}",
                *(minutes([time.get(stage, 0) for time in times]) for stage in stages),
            ]
        )
    return rows_to_markdown(rows)


def students(name: str) -> str:
    """Kinds of student taught by one set, by `tools/measure_students.py`."""
    rows = [
        [
            "student",
            "parameters",
            "images",
            "steps",
            "seeds",
            "student, %",
            "same decision as the teacher, %",
            "minutes",
        ]
    ]
    kinds: dict[tuple[str, int, str], list[dict]] = {}
    for run in load(name)["runs"]:
        kinds.setdefault((run["name"], run["steps"], _taught_by(run)), []).append(run)
    for (kind, steps, _), runs in kinds.items():
        figures = [spread([run[key] for run in runs]) for key in ("student_accuracy", "agreement")]
        took = minutes([run["seconds"]["distillation"] for run in runs])
        before = ", taught before" if runs[0].get("taught_before") else ""
        rows.append(
            [
                kind + before,
                f"{runs[0]['parameters']:,}",
                images(runs[0]),
                f"{steps:,}",
                str(len(runs)),
                *figures,
                took,
            ]
        )
    return rows_to_markdown(rows)


def _taught_by(run: dict) -> str:
    """What the seeds of a student share: options and sets, or in early rows the command."""
    if "configuration" in run:
        return " ".join([run["configuration"], *run.get("set_hashes", [])])
    return re.sub(r" --seed \d+", "", run["command"])


def curve(name: str) -> str:
    """Students of synthetic and of real images, by the size of the set."""
    rows = [
        [
            "learnt from",
            "loss",
            "images",
            "steps",
            "seeds",
            "student, %",
            "same decision as the teacher, %",
        ]
    ]
    cells: dict[tuple[str, str, int, int], list[dict]] = {}
    for cell in load(name)["study"]:
        cells.setdefault((cell["method"], cell["set"], cell["set_size"], cell["steps"]), []).append(
            cell
        )
    for (method, source, size, steps), found in sorted(cells.items()):
        figures = [spread([cell[key] for cell in found]) for key in ("accuracy", "agreement")]
        rows.append([source, f"`{method}`", f"{size:,}", f"{steps:,}", str(len(found)), *figures])
    return rows_to_markdown(rows)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of the width of its 95 % interval; infinite for a single value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.mean(values), T95[min(len(values) - 2, len(T95) - 1)] * statistics.stdev(
        values
    ) / math.sqrt(len(values))


def reweighting(runs: list[dict]) -> str:
    """Ways to draw from the buffer, by `tools/measure_reweighting.py`: one row a way."""
    rows = [
        [
            "draws",
            "agreement on other seeds' sets",
            "… less δ's",
            "test accuracy",
            "… less δ's",
            "synthesis, s",
            "calls",
        ]
    ]
    mine: dict[str, dict[int, dict]] = {}
    for run in runs:
        mine.setdefault(run["name"], {})[run["seed"]] = run
    for name, by_seed in mine.items():
        row = [name]
        for figure in ("cross_agreement", "student_accuracy"):
            values = [100 * run[figure] for run in by_seed.values()]
            mean, half = interval(
                [
                    100 * (run[figure] - mine["priority"][seed][figure])
                    for seed, run in by_seed.items()
                ]
            )
            row += [
                f"{statistics.mean(values):.2f} %",
                "–" if name == "priority" else f"{mean:+.2f} ± {half:.2f}",
            ]
        seconds = statistics.median(run["seconds"]["synthesis"] for run in by_seed.values())
        rows.append(
            [*row, f"{seconds:.0f}", ", ".join(str(run["calls"]) for run in by_seed.values())]
        )
    return rows_to_markdown(rows)


def sources() -> str:
    """Every source that is drawn, by what its class says of itself and of its settings."""
    rows = [["source", "what it gives", "settings and their defaults"]]
    for name in DRAWN:
        drawer = find_drawer(name)
        first, *_ = (inspect.getdoc(drawer) or "").split("\n\n")
        docs = read_docs(drawer)
        settings = [
            f"`{field.name}={field.default:g}`: {docs[field.name]}" for field in fields(drawer)
        ]
        rows.append([f"`{name}`", " ".join(first.split()), " ".join(settings) or "–"])
    return rows_to_markdown(rows)


TABLES: dict[str, Callable[[], str]] = {
    "sources": sources,
    "teachers": lambda: teachers("teachers"),
    "real": lambda: teachers("cifar10-real"),
    "cifar10": lambda: demos("cifar10-[!s]*.json"),
    "cifar10-small": lambda: demos("cifar10-small*.json"),
    "students": lambda: students("cifar10-students"),
    "students-hints": lambda: students("cifar10-students-hints"),
    "curve": lambda: curve("cifar10-curve"),
    "curve-small": lambda: curve("cifar10-small-curve"),
    "reweighting-mnist": lambda: reweighting(load("reweighting-mnist")["runs"]),
    "reweighting-cifar10-small": lambda: reweighting(load("reweighting-cifar10-small")["runs"]),
}


def render(page: str) -> str:
    """A page with every marked table made anew."""
    if unknown := [name for _, name, _ in BLOCK.findall(page) if name not in TABLES]:
        raise SystemExit(f"a page asks for a table '{unknown[0]}'; there are {', '.join(TABLES)}")
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text()))
