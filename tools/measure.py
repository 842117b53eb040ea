"""Run `echoset demo` over configs and seeds, keep every figure, and print a table.

    python tools/measure.py --name demo --seeds 0 1 2 --data /path/to/MNIST python tools/measure.py
    --name ablations --configs configs/ablations/*.yaml --seeds 0 1 --data /path/to/MNIST

Results go to configs/results/<name>.json after every run; a run that is already there is not made
again. Runs of a configuration that has changed since, or of another device, are not mixed with new
ones: delete the file first, or give another name.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from results import RESULTS, add_run, digest, plain_endings, read_runs, run_verb, this_command
from tables import rows_to_markdown

from inversion.cli.main import parse
from synthesis_kernels.backend import describe_device, repository_commit, resolve_device

FULL = "full test set"
KEPT = (
    "teacher_accuracy",
    "student_accuracy",
    "adversary_accuracy",
    "agreement",
    "images",
    "per_class",
    "seconds",
)


def measure(
    name: str, configs: list[str], seeds: list[int], data: str | None, flags: list[str]
) -> list[dict]:
    """Run what is missing and return all runs."""
    path = RESULTS / f"{name}.json"
    for config in configs or [""]:
        title = Path(config).stem if config else "default"
        for seed in seeds:
            command = [
                "demo",
                "--seed",
                str(seed),
                *flags,
                *(["--config", config] if config else []),
            ]
            asked = parse("demo", command[1:])
            configuration = digest(asked)
            if _is_there(path, title, seed, configuration, asked.device, bool(data)):
                continue
            commit = repository_commit()
            hidden = [
                "--out",
                f"runs/measure/{name}-{title}-{seed}",
                *(["--data", data] if data else []),
            ]
            found = run_verb(*command, *hidden)
            run = {
                "name": title,
                "seed": seed,
                "command": " ".join(["echoset", *command]),
                "commit": commit,
            }
            run |= {
                "configuration": configuration,
                "start": found["start"],
                "beside": found["beside"],
            }
            run |= {key: found[key] for key in ("device", "torch")} | {
                "balanced": not asked.synthesis.replay.keep_all
            }
            head = {key: found[key] for key in ("device", "torch")} | {"commit": commit}
            head |= {
                "command": this_command({data: "DIR"}),
                "test_images": FULL if data else found["test_images"],
            }
            add_run(path, run | {key: found[key] for key in KEPT}, head)
            print(
                f"{title} seed {seed}: {found['student_accuracy']:.2%} in "
                f"{found['seconds']['total']:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return read_runs(path)["runs"]


def _is_there(
    path: Path, title: str, seed: int, configuration: str, device: str, full: bool
) -> bool:
    """Whether the file has this run; one that can't stand beside those it has is refused."""
    kept = read_runs(path)
    if kept["runs"] and (kept["test_images"] == FULL) != full:
        raise SystemExit(
            f"{path} has runs judged on {kept['test_images']}; judge these on the same images, or "
            "give another --name"
        )
    mine = [run for run in kept["runs"] if run["name"] == title]
    if any(
        run.get("configuration") != configuration for run in mine
    ):  # early files don't say with which options
        raise SystemExit(
            f"{path} has runs of {title} with other options; delete it, or give another --name"
        )
    if any(run["seed"] == seed for run in mine):
        return True
    here = describe_device(resolve_device(device))
    if others := {run.get("device", kept.get("device")) for run in kept["runs"]} - {here}:
        raise SystemExit(
            f"{path} has runs made on {others.pop()}, and this is {here}; give another --name"
        )
    return False


def table(runs: list[dict]) -> str:
    """Markdown: one row a config, worst and mean over its seeds."""
    rows = [["run", "seeds", "student, worst", "mean", "seconds, median"]]
    for title in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == title]
        accuracy, seconds = (
            [r["student_accuracy"] for r in mine],
            [r["seconds"]["total"] for r in mine],
        )
        shares = [f"{share:.2%}" for share in (min(accuracy), statistics.mean(accuracy))]
        rows.append([title, str(len(mine)), *shares, f"{statistics.median(seconds):.0f}"])
    return rows_to_markdown(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--configs", nargs="*", default=[], help="YAML files; none = the defaults")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", help="folder of the full test set")
    parser.add_argument("flags", nargs="*", help="further flags for echoset demo, after --")
    given = parser.parse_args()
    if len({Path(config).stem for config in given.configs}) < len(given.configs):
        parser.error("two of --configs have the same name, by which their runs are told apart")
    with plain_endings():
        print(table(measure(given.name, given.configs, given.seeds, given.data, given.flags)))
