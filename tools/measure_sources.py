"""Make sets from many sources, teach a student by each, score them all, and keep every figure.

    python tools/measure_sources.py --data /path/to/MNIST --photos /path/to/CIFAR-10/train

For each seed: sixteen sets of 2,000 images (real digits, unrelated photographs, shaders, leaves, fractals, two noises, four of
these unbalanced, one class of a source alone and the same pushed over the boundaries, twice each, SSD-KD), then
`echoset score --validate` over them. Work is under runs/sources; what is there already is not made again. Figures go to
configs/results/sources.json, and tables for the README to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from synthesis_kernels.backend import repository_commit

RESULTS = Path(__file__).parent.parent / "configs" / "results"
KEPT = ("drawn", "raw_counts", "raw_coverage", "taken", "short", "exposed", "seconds")


def sets(data: str, photos: str, images: int) -> dict[str, list[str]]:
    """How each set is made: names and the command behind them, without --out and --seed."""
    collect = ["collect", "--images", str(images), "--source"]
    sources = {"real": data, "photos": photos, **{name: name for name in ("shaders", "leaves", "fractals", "noise", "pink")}}
    made = {name: [*collect, source] for name, source in sources.items()}
    for name in ("photos", "shaders", "leaves", "fractals"):
        made[f"{name}-unbalanced"] = [*made[name], "--collection.balanced", "false"]
    for name in ("shaders", "leaves"):  # as they are, not exposed: the teacher calls nearly all of them an eight
        one_class = [*made[name], "--collection.expose", "0", "--collection.only", "[8]"]
        made[f"{name}-one-class"] = [*one_class, "--collection.balanced", "false"]
        made[f"{name}-pushed"] = one_class
    made["ssd-kd"] = ["synthesize", "--images", str(images)]
    return made


def run_all(commands: list[list[str]], processes: int) -> None:
    """Run commands of the CLI, some at a time, each on a thread of its own."""
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if processes > 1 else {})
    running: list[tuple[list[str], subprocess.Popen]] = []
    while commands or running:
        while commands and len(running) < processes:
            command, *commands = commands
            print("echoset", *command, file=sys.stderr, flush=True)
            whole = [sys.executable, "-m", "inversion.cli", *command, "--quiet"]
            running.append((command, subprocess.Popen(whole, env=environment, stdout=subprocess.DEVNULL)))
        time.sleep(0.5)
        for command, process in [pair for pair in running if pair[1].poll() is not None]:
            if process.returncode:
                for _, other in running:
                    other.terminate()
                raise SystemExit(f"failed: echoset {' '.join(command)}")
            running.remove((command, process))


def measure(seeds: list[int], made: dict[str, list[str]], data: str, folder: Path, processes: int, steps: int) -> list[dict]:
    """Everything that is missing; then one document of `score --validate` for each seed."""
    places = {(name, seed): folder / str(seed) / name for seed in seeds for name in made}
    todo = [(name, seed) for (name, seed), path in places.items() if not (path / "manifest.json").is_file()]
    run_all([[*made[name], "--seed", str(seed), "--out", str(places[name, seed])] for name, seed in todo], processes)
    documents = []
    for seed in seeds:
        named = [f"{name}={places[name, seed]}" for name in made]
        page = folder / f"score-{seed}.html"
        command = ["score", *named, "--validate", "--seeds", f"[{seed}]", "--data", data, "--out", str(page)]
        command += ["--distillation.steps", str(steps)]
        cells = [page.with_suffix("") / "cells" / f"{name}--none--hinton--{seed}.json" for name in made]
        if processes > 1 and not all(cell.is_file() for cell in cells):
            run_all([[*command, "--rank", str(rank), "--world", str(processes)] for rank in range(processes)], processes)
        run_all([command], 1)
        documents.append(json.loads((page.with_suffix("") / "validation.json").read_text()))
    return documents


def publish(documents: list[dict], seeds: list[int], made: dict[str, list[str]], folder: Path, command: str) -> list[dict]:
    """Write the file and return its cells."""
    cells = []
    for seed, document in zip(seeds, documents, strict=True):
        for name in made:
            cell = json.loads((folder / f"score-{seed}" / "cells" / f"{name}--none--hinton--{seed}.json").read_text())
            manifest = json.loads((folder / str(seed) / name / "manifest.json").read_text())
            kept = {key: cell[key] for key in ("set", "corruption", "method", "seed", "loss", "set_size", "accuracy", "seconds")}
            kept |= {"command": " ".join(["echoset", *made[name]]), "counts": manifest["counts"]}
            kept["collection"] = {key: manifest["collection"][key] for key in KEPT} if "collection" in manifest else None
            card = document["sets"][name]
            cell_scores = {"scores": _rounded(card["values"]), "overall": round(card["overall"], 4)}
            names = {made["real"][-1]: "DIR", made["photos"][-1]: "PHOTOS"}
            cells.append(_anonymous(kept, names) | cell_scores)
            common = {key: cell[key] for key in ("device", "torch")}
    commit = repository_commit()
    tests = [
        {"seed": seed, "overall": d["validation"]["overall"], "scores": d["validation"]["scores"]}
        for seed, d in zip(seeds, documents, strict=True)
    ]
    content = {"command": command, "commit": commit, **common, "validation": tests}
    head, rows = json.dumps(content | {"study": []})[:-3], ",\n ".join(json.dumps(cell) for cell in cells)
    (RESULTS / "sources.json").write_text(f"{head}[\n {rows}\n]}}\n")
    return cells


def _anonymous(value: Any, names: dict[str, str]) -> Any:
    """Where the data lie is nobody's business."""
    if isinstance(value, dict):
        return {names.get(key, key): _anonymous(inner, names) for key, inner in value.items()}
    return " ".join(names.get(word, word) for word in value.split(" ")) if isinstance(value, str) else value


def tables(cells: list[dict], documents: list[dict]) -> str:
    """Markdown: the sets by accuracy, the balanced ones beside their twins, and what predicts."""
    names = list(dict.fromkeys(cell["set"] for cell in cells))
    mine = {name: [cell for cell in cells if cell["set"] == name] for name in names}
    accuracy = {name: [100 * cell["accuracy"] for cell in mine[name]] for name in names}
    lines = ["| set | accuracy, % | worst | η drawn | η kept | overall |", "| --- | --- | --- | --- | --- | --- |"]
    for name in sorted(names, key=lambda name: -statistics.mean(accuracy[name])):
        raw = [cell["scores"]["coverage_raw"] for cell in mine[name] if cell["scores"]["coverage_raw"] is not None]
        shown = [f"{statistics.mean(raw):.2f}" if raw else "–"]
        shown += [f"{statistics.mean(values):.2f}" for values in ([c["scores"]["coverage"] for c in mine[name]],)]
        shown += [f"{statistics.mean(cell['overall'] for cell in mine[name]):.3f}"]
        lines.append(f"| {name} | {_spread(accuracy[name])} | {min(accuracy[name]):.2f} | {' | '.join(shown)} |")
    lines += ["", "| source | balanced | unbalanced twin |", "| --- | --- | --- |"]
    for name in names:
        if f"{name}-unbalanced" in names:
            lines.append(f"| {name} | {_spread(accuracy[name])} | {_spread(accuracy[f'{name}-unbalanced'])} |")
    lines += ["", "| score | claimed | ρ with accuracy, by seed |", "| --- | --- | --- |"]
    tests = [document["validation"] for document in documents]
    lines.append(f"| **overall** | | {_rhos([test['overall'] for test in tests])} |")
    for rows in zip(*(test["scores"] for test in tests), strict=True):
        lines.append(f"| {rows[0]['title']} | {rows[0]['claim'] or 'nothing'} | {_rhos(rows)} |")
    return "\n".join(lines)


def _rhos(tests: list[dict]) -> str:
    return ", ".join(
        "–" if test["rho"] is None else f"{test['rho']:.2f} ({test['low']:.2f} to {test['high']:.2f})" for test in tests
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 5) for name, value in values.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST's folder: its train split is the set 'real', its test split judges")
    parser.add_argument("--photos", required=True, help="folder of unrelated photographs, such as CIFAR-10's train split")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=600, help="of each student")
    parser.add_argument("--processes", type=int, default=2, help="at once, each on one thread if there are several")
    parser.add_argument("--folder", type=Path, default=Path("runs/sources"))
    given = parser.parse_args()
    plan = sets(given.data, given.photos, given.images)
    found = measure(given.seeds, plan, given.data, given.folder, given.processes, given.steps)
    line = "python tools/measure_sources.py --data DIR --photos DIR"
    print(tables(publish(found, given.seeds, plan, given.folder, line), found))
