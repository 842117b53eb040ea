"""Run `echoset demo` over configs and seeds, keep every figure, and print a table for the README.

    python tools/measure.py --name demo --seeds 0 1 2 --data /path/to/MNIST
    python tools/measure.py --name ablations --configs configs/ablations/*.yaml --seeds 0 1 --data /path/to/MNIST

Results go to configs/results/<name>.json after every run; a run that is already there is not made again. Runs of a
configuration that has changed since are not mixed with new ones: delete the file first, or give another name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from inversion.cli import _parse
from inversion.runs import DemoRun
from synthesis_kernels.backend import repository_commit

FULL = "full test set"
RESULTS = Path(__file__).parent.parent / "configs" / "results"


def digest(command: list[str]) -> str:
    """What a demo's options come to, but for its seed."""
    options = asdict(replace(_parse("demo", command[1:]), seed=0, out=DemoRun.out))
    return sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]


def measure(name: str, configs: list[str], seeds: list[int], data: str | None, flags: list[str]) -> list[dict]:
    """Run what is missing and return all runs."""
    path = RESULTS / f"{name}.json"
    commit = repository_commit()
    kept = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    if kept["runs"] and (kept["test_images"] == FULL) != bool(data):
        raise SystemExit(f"{path} has runs judged on {kept['test_images']}; judge these on the same images, or give another --name")
    done = {(run["name"], run["seed"]) for run in kept["runs"]}
    before = {run["name"]: run.get("configuration") for run in kept["runs"]}
    for config in configs or [""]:
        for seed in seeds:
            title = Path(config).stem if config else "default"
            command = ["demo", "--seed", str(seed), *flags, *(["--config", config] if config else [])]
            configuration = digest(command)
            if before.get(title) not in (None, configuration):
                raise SystemExit(f"{path} has runs of {title} with other options; delete it, or give another --name")
            if (title, seed) in done:
                continue
            hidden = ["--out", f"runs/measure/{name}-{title}-{seed}", "--json", "--quiet", *(["--data", data] if data else [])]
            output = subprocess.run([sys.executable, "-m", "inversion.cli", *command, *hidden], capture_output=True, text=True)
            if output.returncode:
                raise SystemExit(f"{title}, seed {seed}: {output.stderr}")
            found = json.loads(output.stdout.splitlines()[-1])
            keys = ("teacher_accuracy", "student_accuracy", "adversary_accuracy", "agreement", "images", "per_class", "seconds")
            run = {"name": title, "seed": seed, "command": " ".join(["echoset", *command]), "commit": commit}
            run |= {"configuration": configuration, "start": found["start"], "beside": found["beside"]}
            run |= {key: found[key] for key in ("device", "torch")}
            run["balanced"] = not _parse("demo", command[1:]).synthesis.replay.keep_all
            kept["runs"].append(run | {key: found[key] for key in keys})
            kept |= {key: found[key] for key in ("device", "torch")} | {"commit": commit}
            kept["command"], kept["test_images"] = (
                f"python tools/measure.py --name {name}",
                FULL if data else found["test_images"],
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + "\n")
            print(
                f"{title} seed {seed}: {found['student_accuracy']:.2%} in {found['seconds']['total']:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return kept["runs"]


def table(runs: list[dict]) -> str:
    """Markdown: one row a config, worst and mean over its seeds."""
    lines = ["| run | seeds | student, worst | mean | seconds, median |", "| --- | --- | --- | --- | --- |"]
    for title in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == title]
        accuracy, seconds = [r["student_accuracy"] for r in mine], [r["seconds"]["total"] for r in mine]
        lines.append(
            f"| {title} | {len(mine)} | {min(accuracy):.2%} | {statistics.mean(accuracy):.2%} | {statistics.median(seconds):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--configs", nargs="*", default=[], help="YAML files; none = the defaults")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", help="folder of the full test set")
    parser.add_argument("flags", nargs="*", help="further flags for echoset demo, after --")
    given = parser.parse_args()
    if len({Path(config).stem for config in given.configs}) < len(given.configs):
        parser.error("two of --configs have the same name, by which their runs are told apart")
    print(table(measure(given.name, given.configs, given.seeds, given.data, given.flags)))
