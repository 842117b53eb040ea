"""Compare ways to draw from the replay buffer: uniformly, by the priority δ, by a learned policy,
by another teacher's policy.

    python tools/measure_reweighting.py --name reweighting-mnist --seeds 0 1 2 3 4 5 \\
        --data /path/to/MNIST

Each way makes a set and teaches a fresh student with each seed, all else equal. Two figures count:
the student's agreement with the teacher on the sets of all other seeds (data-free; this one may
choose a default), and its test accuracy (published, chooses nothing). Differences from δ are taken
seed by seed, with Student's 95 % interval of their mean. Work is under runs/<name>; what is there
already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from results import RESULTS, Figures, pick, this_command
from tables import reweighting
from verbs import new_parser, plain_endings, run_verbs

from distill.evaluation import predict
from distill.files import write_json
from distill.models import load_classifier
from distill.sets.transfer_set import TransferSet
from inversion.parts.policy import FEATURES
from synthesis_kernels.backend import repository_commit, resolve_device

Key = tuple[str, int]
"""A way to draw, and a seed."""
KEPT = ("student_accuracy", "agreement", "images", "per_class", "seconds")


def ways(policy: list[float] | None) -> dict[str, list[str]]:
    """The flags of each way to draw."""
    draw = "--synthesis.replay.sampling="
    flags = {name: [draw + name] for name in ("uniform", "priority", "policy")}
    if policy:
        weights = f"--synthesis.replay.policy={json.dumps(policy)}"
        flags["transferred"] = [draw + "policy", weights, "--synthesis.replay.policy_rate=0"]
    return flags


def plan(given: argparse.Namespace) -> dict[Key, list[str]]:
    """The flags of every run but its places."""
    policy = None
    if given.transfer:
        policy = json.loads(Path(given.transfer).read_text())["policy"]
    common = list(given.flags)
    if given.config:
        common += ["--config", given.config]
    flags = {}
    for seed in given.seeds:
        for way, own in ways(policy).items():
            flags[way, seed] = [*common, *own, "--seed", str(seed)]
    return flags


def check_flags(folders: dict[Key, Path], flags: dict[Key, list[str]]) -> None:
    """Mark every folder with the flags of its run; one that other flags made must not pass for this
    one.
    """
    for key, folder in folders.items():
        note = folder / ".flags"
        if note.is_file() and json.loads(note.read_text()) != flags[key]:
            raise SystemExit(
                f"{folder} was made with other flags; delete it, or give another --name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(flags[key]))


def cross_agreement(folders: dict[Key, Path]) -> dict[Key, float]:
    """Each student's agreement with the teacher on the sets of other seeds, whatever way made them;
    mean over these sets.
    """
    sets = {key: TransferSet.load(folder / "set") for key, folder in folders.items()}
    means = {}
    for (way, seed), folder in folders.items():
        student = load_classifier(folder / "student.safetensors")
        agreements = []
        for (_, other_seed), made in sets.items():
            if other_seed != seed:
                decided = predict(student, made.images, resolve_device("auto")).argmax(1).cpu()
                agreements.append((decided == made.labels).float().mean().item())
        means[way, seed] = statistics.mean(agreements)
    return means


def measure(given: argparse.Namespace) -> None:
    """Make what is missing, judge all, write the file and print its table."""
    commit = repository_commit()
    planned = plan(given)
    folders = {(way, seed): Path("runs") / given.name / f"{way}-{seed}" for way, seed in planned}
    flags = {key: [*own, "--data", given.data] for key, own in planned.items()}
    check_flags(folders, flags)
    missing = []
    for key, folder in folders.items():
        if not (folder / "summary.json").is_file():
            missing.append(["demo", "--out", str(folder), *flags[key]])
    run_verbs(missing, given.processes)
    agreements = cross_agreement(folders)
    runs = []
    for key, folder in folders.items():
        runs.append(read_run(key, folder, planned[key], agreements[key]))
    learnt = [run["policy"] for run in runs if run["name"] == "policy"]
    *_, last_folder = folders.values()
    last = json.loads((last_folder / "summary.json").read_text())
    content = {
        "command": this_command({given.data: "DIR"}),
        "threads": 1 if given.processes > 1 else torch.get_num_threads(),
        "commit": commit,
        "device": last["device"],
        "torch": torch.__version__,
        "features": FEATURES,
        "policy": [round(statistics.mean(values), 4) for values in zip(*learnt, strict=True)],
        "runs": runs,
    }
    write_json(RESULTS / f"{given.name}.json", content)
    print(reweighting(runs))


def read_run(key: Key, folder: Path, flags: list[str], agreement: float) -> Figures:
    """The figures of one run."""
    way, seed = key
    summary = json.loads((folder / "summary.json").read_text())
    shard = json.loads((folder / "set" / "manifest.json").read_text())["shards"][0]
    run = {
        "name": way,
        "seed": seed,
        "command": " ".join(["echoset demo", *flags, "--data DIR"]),
        "calls": shard["calls"],
        "cross_agreement": agreement,
    }
    if "policy" in shard:
        run["policy"] = shard["policy"]
    return run | pick(summary, KEPT)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--config", help="YAML file of a run; default: the demo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--data", required=True, help="folder of the test set")
    parser.add_argument(
        "--transfer", help="result file of another teacher, whose mean policy is applied, frozen"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="at once, each on one thread if there are several"
    )
    parser.add_argument("flags", nargs="*", help="further flags for echoset demo, after --")
    given = parser.parse_args()
    if len(set(given.seeds)) < max(2, len(given.seeds)):
        parser.error(
            "--seeds takes two seeds at least, no two of them equal: students are judged on the "
            "sets of other seeds"
        )
    with plain_endings():
        measure(given)
