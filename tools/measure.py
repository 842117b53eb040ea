"""Run `echoset demo` over configs and seeds, keep every figure, and print a table.

    python tools/measure.py --name demo --seeds 0 1 2 --data /path/to/MNIST
    python tools/measure.py --name ablations --configs configs/ablations/*.yaml --seeds 0 1 \\
        --data /path/to/MNIST

Results go to configs/results/<name>.json after every run; a run that is already there is not made
again. Runs of a configuration that has changed since, or of another device, are not mixed with new
ones: delete the file first, or give another name.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from results import RESULTS, Figures, add_run, digest, pick, read_runs, this_command
from tables import rows_to_markdown
from verbs import new_parser, plain_endings, read_options, run_verb

from inversion.cli.schema import DemoRun
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


@dataclass(frozen=True)
class Demo:
    """One run of the demo, as it is asked for."""

    title: str
    """The configuration's name."""
    seed: int
    """The run's seed."""
    command: tuple[str, ...]
    """The verb and its flags, but for places."""

    @property
    def options(self) -> DemoRun:
        """What the command asks for."""
        return read_options(DemoRun, "demo", self.command[1:])


def measure(
    name: str, configs: list[str], seeds: list[int], data: str | None, flags: list[str]
) -> list[Figures]:
    """Run what is missing and return all runs."""
    path = RESULTS / f"{name}.json"
    for config in configs or [""]:
        for seed in seeds:
            demo = plan(config, seed, flags)
            if not is_there(path, demo, judged_on_all=bool(data)):
                make_run(path, demo, data)
    return read_runs(path)["runs"]


def plan(config: str, seed: int, flags: list[str]) -> Demo:
    """One run of a configuration, or of none."""
    command = ["demo", "--seed", str(seed), *flags]
    title = "default"
    if config:
        command += ["--config", config]
        title = Path(config).stem
    return Demo(title, seed, tuple(command))


def make_run(path: Path, demo: Demo, data: str | None) -> None:
    """Make a run and add its figures to the file."""
    options = demo.options
    commit = repository_commit()
    places = ["--out", f"runs/measure/{path.stem}-{demo.title}-{demo.seed}"]
    if data:
        places += ["--data", data]
    figures = run_verb(*demo.command, *places)
    machine = pick(figures, ("device", "torch"))
    run = {
        "name": demo.title,
        "seed": demo.seed,
        "command": " ".join(["echoset", *demo.command]),
        "commit": commit,
        "configuration": digest(options),
        **pick(figures, ("start", "beside")),
        **machine,
        "balanced": not options.synthesis.replay.keep_all,
        **pick(figures, KEPT),
    }
    head = {
        **machine,
        "commit": commit,
        "command": this_command({data: "DIR"}),
        "test_images": FULL if data else figures["test_images"],
    }
    add_run(path, run, head)
    print(
        f"{demo.title} seed {demo.seed}: {figures['student_accuracy']:.2%} in "
        f"{figures['seconds']['total']:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def is_there(path: Path, demo: Demo, judged_on_all: bool) -> bool:
    """Whether the file has this run; one that can't stand beside those it has is refused."""
    document = read_runs(path)
    runs = document["runs"]
    if runs and (document["test_images"] == FULL) != judged_on_all:
        raise SystemExit(
            f"{path} has runs judged on {document['test_images']}; judge these on the same images, "
            "or give another --name"
        )
    options = demo.options
    configuration = digest(options)
    of_one_name = [run for run in runs if run["name"] == demo.title]
    # Early files don't say with which options.
    if any(run.get("configuration") != configuration for run in of_one_name):
        raise SystemExit(
            f"{path} has runs of {demo.title} with other options; delete it, or give another --name"
        )
    if any(run["seed"] == demo.seed for run in of_one_name):
        return True
    here = describe_device(resolve_device(options.device))
    others = {run.get("device", document.get("device")) for run in runs} - {here}
    if others:
        raise SystemExit(
            f"{path} has runs made on {others.pop()}, and this is {here}; give another --name"
        )
    return False


def table(runs: list[Figures]) -> str:
    """Markdown: one row a config, worst and mean over its seeds."""
    rows = [["run", "seeds", "student, worst", "mean", "seconds, median"]]
    for title in dict.fromkeys(run["name"] for run in runs):
        of_one_name = [run for run in runs if run["name"] == title]
        accuracy = [run["student_accuracy"] for run in of_one_name]
        seconds = [run["seconds"]["total"] for run in of_one_name]
        rows.append(
            [
                title,
                str(len(of_one_name)),
                f"{min(accuracy):.2%}",
                f"{statistics.mean(accuracy):.2%}",
                f"{statistics.median(seconds):.0f}",
            ]
        )
    return rows_to_markdown(rows)


if __name__ == "__main__":
    parser = new_parser(__doc__)
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
