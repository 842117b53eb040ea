"""Compare ways to draw from the replay buffer: uniformly, by the priority δ, by a learned policy,
by another teacher's policy.

    python tools/measure_reweighting.py --name reweighting-mnist --seeds 0 1 2 3 4 5 --data
    /path/to/MNIST

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
from results import RESULTS, plain_endings, run_verbs, this_command, write_json
from tables import reweighting

from distill.evaluation import predict
from distill.models import load_classifier
from distill.sets.transfer_set import TransferSet
from inversion.parts.policy import FEATURES
from synthesis_kernels.backend import repository_commit, resolve_device

KEPT = ("student_accuracy", "agreement", "images", "per_class", "seconds")


def ways(policy: list[float] | None) -> dict[str, list[str]]:
    """The flags of each way to draw."""
    draw = "--synthesis.replay.sampling="
    found = {
        "uniform": [draw + "uniform"],
        "priority": [draw + "priority"],
        "policy": [draw + "policy"],
    }
    if policy:
        weights = f"--synthesis.replay.policy={json.dumps(policy)}"
        found["transferred"] = [draw + "policy", weights, "--synthesis.replay.policy_rate=0"]
    return found


def check_flags(todo: list[tuple[Path, list[str]]]) -> None:
    """Mark every folder with the flags of its run; one that other flags made must not pass for this
    one.
    """
    for folder, flags in todo:
        note = folder / ".flags"
        if note.is_file() and json.loads(note.read_text()) != flags:
            raise SystemExit(
                f"{folder} was made with other flags; delete it, or give another --name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(flags))


def cross_agreement(folders: dict[tuple[str, int], Path]) -> dict[tuple[str, int], float]:
    """Each student's agreement with the teacher on the sets of other seeds, whatever way made them;
    mean over these sets.
    """
    sets = {key: TransferSet.load(folder / "set") for key, folder in folders.items()}
    found = {}
    for (way, seed), folder in folders.items():
        student = load_classifier(folder / "student.safetensors")
        agreements = []
        for (_, other), made in sets.items():
            if other != seed:
                decided = predict(student, made.images, resolve_device("auto")).argmax(1).cpu()
                agreements.append((decided == made.labels).float().mean().item())
        found[way, seed] = statistics.mean(agreements)
    return found


def measure(given: argparse.Namespace) -> None:
    """Make what is missing, judge all, write the file and print its table."""
    commit = repository_commit()
    theirs = json.loads(Path(given.transfer).read_text())["policy"] if given.transfer else None
    common = [*given.flags, *(["--config", given.config] if given.config else [])]
    places, todo = {}, []
    for seed in given.seeds:
        for way, flags in ways(theirs).items():
            places[way, seed] = Path("runs") / given.name / f"{way}-{seed}"
            todo.append(
                (places[way, seed], [*common, *flags, "--seed", str(seed), "--data", given.data])
            )
    check_flags(todo)
    missing = [(folder, flags) for folder, flags in todo if not (folder / "summary.json").is_file()]
    run_verbs(
        [["demo", "--out", str(folder), *flags] for folder, flags in missing], given.processes
    )
    agreements, runs = cross_agreement(places), []
    for (way, seed), folder in places.items():
        summary = json.loads((folder / "summary.json").read_text())
        shard = json.loads((folder / "set" / "manifest.json").read_text())["shards"][0]
        policy = {"policy": shard["policy"]} if "policy" in shard else {}
        command = " ".join(
            ["echoset demo", *common, *ways(theirs)[way], f"--seed {seed} --data DIR"]
        )
        run = {
            "name": way,
            "seed": seed,
            "command": command,
            "calls": shard["calls"],
            "cross_agreement": agreements[way, seed],
        }
        runs.append(run | policy | {key: summary[key] for key in KEPT})
    learnt = [run["policy"] for run in runs if run["name"] == "policy"]
    content = {
        "command": this_command({given.data: "DIR"}),
        "threads": 1 if given.processes > 1 else torch.get_num_threads(),
        "commit": commit,
        "device": summary["device"],
        "torch": torch.__version__,
        "features": FEATURES,
        "policy": [round(statistics.mean(values), 4) for values in zip(*learnt, strict=True)],
        "runs": runs,
    }
    write_json(RESULTS / f"{given.name}.json", content)
    print(reweighting(runs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
