"""Make sets from many sources, teach a student by each, score them all, and keep every figure.

    python tools/measure_sources.py --data /path/to/MNIST --photos /path/to/CIFAR-10/train

For each seed: sixteen sets of 2,000 images (real digits, unrelated photographs, shaders, leaves,
fractals, two noises, four of these unbalanced, one class of a source alone and the same pushed over
the boundaries, twice each, SSD-KD), then `echoset score --validate` over them. Work is under
runs/sources: every command is given again, which takes what it finished and refuses what another
one left; a set that comes short ends all. Figures go to configs/results/sources.json, and tables
for configs/README.md to standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from results import RESULTS, plain_endings, run_verbs, this_command, write_study
from tables import rows_to_markdown, spread

from synthesis_kernels.backend import repository_commit

KEPT = ("drawn", "raw_counts", "raw_coverage", "taken", "short", "exposed", "seconds")


def sets(data: str, photos: str, images: int) -> dict[str, list[str]]:
    """How each set is made: names and the command behind them, without --out and --seed."""
    collect = ["collect", "--images", str(images), "--source"]
    sources = {
        "real": data,
        "photos": photos,
        **{name: name for name in ("shaders", "leaves", "fractals", "noise", "pink")},
    }
    made = {name: [*collect, source] for name, source in sources.items()}
    for name in ("photos", "shaders", "leaves", "fractals"):
        made[f"{name}-unbalanced"] = [*made[name], "--collection.balanced", "false"]
    for name in (
        "shaders",
        "leaves",
    ):  # as they are, not exposed: the teacher calls nearly all of them an eight
        one_class = [*made[name], "--collection.expose", "0", "--collection.only", "[8]"]
        made[f"{name}-one-class"] = [*one_class, "--collection.balanced", "false"]
        made[f"{name}-pushed"] = one_class
    made["ssd-kd"] = ["synthesize", "--images", str(images)]
    return made


def measure(
    seeds: list[int],
    made: dict[str, list[str]],
    data: str,
    folder: Path,
    processes: int,
    steps: int,
) -> list[dict]:
    """All sets; then one document of `score --validate` for each seed."""
    places = {(name, seed): folder / str(seed) / name for seed in seeds for name in made}
    run_verbs(
        [
            [*made[name], "--seed", str(seed), "--out", str(path)]
            for (name, seed), path in places.items()
        ],
        processes,
    )
    documents = []
    for seed in seeds:
        named = [f"{name}={places[name, seed]}" for name in made]
        page = folder / f"score-{seed}.html"
        command = [
            "score",
            *named,
            "--validate",
            "--seeds",
            f"[{seed}]",
            "--data",
            data,
            "--out",
            str(page),
        ]
        command += ["--distillation.steps", str(steps)]
        cells = [
            page.with_suffix("") / "cells" / f"{name}--none--hinton--{seed}.json" for name in made
        ]
        if processes > 1 and not all(cell.is_file() for cell in cells):
            run_verbs(
                [
                    [*command, "--rank", str(rank), "--world", str(processes)]
                    for rank in range(processes)
                ],
                processes,
            )
        run_verbs([command])
        documents.append(json.loads((page.with_suffix("") / "validation.json").read_text()))
    return documents


def publish(
    documents: list[dict], seeds: list[int], made: dict[str, list[str]], folder: Path, head: dict
) -> list[dict]:
    """Write the file and return its cells."""
    cells = []
    for seed, document in zip(seeds, documents, strict=True):
        for name in made:
            cell = json.loads(
                (
                    folder / f"score-{seed}" / "cells" / f"{name}--none--hinton--{seed}.json"
                ).read_text()
            )
            manifest = json.loads((folder / str(seed) / name / "manifest.json").read_text())
            kept = {
                key: cell[key]
                for key in (
                    "set",
                    "corruption",
                    "method",
                    "seed",
                    "loss",
                    "set_size",
                    "accuracy",
                    "seconds",
                )
            }
            kept |= {"command": " ".join(["echoset", *made[name]]), "counts": manifest["counts"]}
            kept["collection"] = (
                {key: manifest["collection"][key] for key in KEPT}
                if "collection" in manifest
                else None
            )
            card = document["sets"][name]
            cell_scores = {"scores": _rounded(card["values"]), "overall": round(card["overall"], 4)}
            names = {made["real"][-1]: "DIR", made["photos"][-1]: "PHOTOS"}
            cells.append(_anonymous(kept, names) | cell_scores)
            common = {key: cell[key] for key in ("device", "torch")}
    tests = [
        {"seed": seed, "overall": d["validation"]["overall"], "scores": d["validation"]["scores"]}
        for seed, d in zip(seeds, documents, strict=True)
    ]
    write_study(RESULTS / "sources.json", {**head, **common, "validation": tests}, cells)
    return cells


def _anonymous(value: Any, names: dict[str, str]) -> Any:
    """Without the places where the data lie here."""
    if isinstance(value, dict):
        return {names.get(key, key): _anonymous(inner, names) for key, inner in value.items()}
    return (
        " ".join(names.get(word, word) for word in value.split(" "))
        if isinstance(value, str)
        else value
    )


def tables(cells: list[dict], documents: list[dict]) -> str:
    """Markdown: the sets by accuracy, the balanced ones beside their twins, and what predicts."""
    mine: dict[str, list[dict]] = {}
    for cell in cells:
        mine.setdefault(cell["set"], []).append(cell)
    accuracy = {name: [cell["accuracy"] for cell in found] for name, found in mine.items()}
    sets = [["set", "accuracy, %", "worst", "η drawn", "η kept", "overall"]]
    for name in sorted(mine, key=lambda name: -statistics.mean(accuracy[name])):
        scores = [cell["scores"] for cell in mine[name]]
        raw = [each["coverage_raw"] for each in scores if each["coverage_raw"] is not None]
        shown = [
            f"{statistics.mean(raw):.2f}" if raw else "–",
            f"{statistics.mean(each['coverage'] for each in scores):.2f}",
        ]
        overall = statistics.mean(cell["overall"] for cell in mine[name])
        sets.append(
            [
                name,
                spread(accuracy[name]),
                f"{100 * min(accuracy[name]):.2f}",
                *shown,
                f"{overall:.3f}",
            ]
        )
    twins = [["source", "balanced", "unbalanced twin"]]
    twins += [
        [name, *(spread(accuracy[each]) for each in (name, twin))]
        for name in mine
        if (twin := f"{name}-unbalanced") in mine
    ]
    tests = [document["validation"] for document in documents]
    predictors = [
        ["score", "claimed", "ρ with accuracy, by seed"],
        ["**overall**", "", _rhos([test["overall"] for test in tests])],
    ]
    for rows in zip(*(test["scores"] for test in tests), strict=True):
        predictors.append([rows[0]["title"], rows[0]["claim"] or "nothing", _rhos(rows)])
    return "\n\n".join(map(rows_to_markdown, (sets, twins, predictors)))


def _rhos(tests: list[dict]) -> str:
    return ", ".join(
        "–"
        if test["rho"] is None
        else f"{test['rho']:.2f} ({test['low']:.2f} to {test['high']:.2f})"
        for test in tests
    )


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 5) for name, value in values.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        found = measure(given.seeds, plan, given.data, given.folder, given.processes, given.steps)
        print(tables(publish(found, given.seeds, plan, given.folder, head), found))
