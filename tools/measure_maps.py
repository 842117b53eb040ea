"""Teach a student of label maps by every way there is to have images, and judge it on real ones.

    python tools/measure_maps.py --data CAMVID

One way after another: the real images of the training part; the set of configs/camvid.yaml; the
same without asking for the classes that it lacks; the recipe `adversarial`, as long; and sources
without a generator. Each student takes equal steps, and the teacher alone teaches it: by its
answers and features, and in two further rows by its answers. Work is under runs/NAME. What
configs/results/NAME.json has is not made again, and a stopped set or student goes on. Only the
first way and the judging read --data. A set whose source lacks images of some classes teaches all
the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from results import RESULTS, Figures, add_run, pick, read_runs, this_command
from verbs import new_parser, plain_endings, run_verb

from distill.files import write_atomically
from synthesis_kernels.backend import describe_device, repository_commit, resolve_device

CONFIG = Path("configs/camvid.yaml")
VOID = "--void=11"
KIND = "maps"
"""The name of the list of runs in the result file."""
SYNTHESES: dict[str, list[str]] = {
    "ours": ["--preset", "maps"],
    "unbalanced": ["--preset", "maps", "--synthesis.replay.balanced_targets", "false"],
    "adversarial": ["--preset", "dfad"],
}
"""Presets, and what is changed of them. `maps` is the synthesis of the configuration."""
SOURCES = ("shaders", "leaves", "noise")
ALONE = "-by-answers"
"""What is taught so learns from the teacher's answers alone, and not from its features."""


def settings() -> dict[str, Any]:
    """What the configuration says."""
    content: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    return content


def make(way: str, folder: Path, seed: int) -> str:
    """Make a set, and give the command."""
    config = settings()
    place = folder / "set"
    common = ["--teacher", config["teacher"]["model"], "--seed", str(seed)]
    if way in SYNTHESES:
        command = ["synthesize", *SYNTHESES[way]]
    else:
        images = str(config["synthesis"]["images"])
        command = ["collect", "--source", way, "--images", images, "--collection.draws", "5"]
    try:
        run_verb(*command, *common, "--out", str(place))
    except SystemExit as error:
        if "is written but" not in str(error):
            raise
        print(error, file=sys.stderr)  # what lacks images of some classes teaches all the same
    return " ".join(["echoset", *command, *common])


def teach(images: str, folder: Path, seed: int) -> Figures:
    """Teach a student, and give what its lesson tells."""
    config = settings()
    if ALONE in folder.name:
        config["distillation"]["loss"] = {"hinton": 1}
    file = folder / "lesson.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    lesson = {"distillation": config["distillation"], "student": config["student"]}
    write_atomically(file, yaml.safe_dump(lesson).encode())
    flags = ["--teacher", config["teacher"]["model"], "--seed", str(seed), VOID]
    command = ["distill", "--config", str(file), "--set", images, *flags]
    return run_verb(*command, "--out", str(folder / "student"))


def measure(path: Path, way: str, seed: int, data: str) -> None:
    """Images, a student, its figures."""
    folder = Path("runs") / path.stem / f"{way}-{seed}"
    told = "the training part of the data"
    images = data
    manifest: Figures = {}
    source = way.removesuffix(ALONE)
    if source != "real":
        made = folder.with_name(f"{source}-{seed}")
        told = make(source, made, seed)
        images = str(made / "set")
        manifest = json.loads((made / "set" / "manifest.json").read_text())
    taught = teach(images, folder, seed)
    student = str(folder / "student" / "student.safetensors")
    found = run_verb("evaluate", "--model", student, "--data", data, VOID, "--json")
    run = {
        "name": way,
        "seed": seed,
        "command": told,
        "commit": repository_commit(),
        "mean_iou": found["own"]["mean_iou"],
        "iou": found["own"]["iou"],
        "accuracy": found["accuracy"],
        "images": sum(shard["count"] for shard in manifest.get("shards", [])) or None,
        "pixels": manifest.get("counts"),
        "steps": taught["steps"],
        "seconds": {
            "set": round(sum(shard["seconds"] for shard in manifest.get("shards", [])), 1),
            "student": round(taught["seconds"], 1),
        },
        "device": describe_device(resolve_device("auto")),
        "torch": torch.__version__,
    }
    head = {"command": this_command({data: "DIR"}), **pick(run, ("commit", "device", "torch"))}
    add_run(path, run, head, KIND)
    print(f"{way}, seed {seed}: mean IoU {run['mean_iou']:.4f}")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--name", default="camvid", help="of the result file")
    parser.add_argument("--data", required=True, help="train, val and test of images and labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    every = ("real", *SYNTHESES, *SOURCES, f"real{ALONE}", f"ours{ALONE}")
    parser.add_argument("--ways", nargs="+", default=every, choices=every)
    given = parser.parse_args()
    path = RESULTS / f"{given.name}.json"
    with plain_endings():
        for seed in given.seeds:
            for way in given.ways:
                done = read_runs(path, KIND)[KIND]
                if not any((way, seed) == (run["name"], run["seed"]) for run in done):
                    measure(path, way, seed, given.data)
