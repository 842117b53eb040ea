"""Teach a student by teachers without BatchNorm, by every way there is to make a set of them.

    python tools/measure_normless.py --name normless --data DIR --teachers vit=FILE gn=FILE

One set after another, and after each a student, of equal steps: noise that the teacher has chosen
from, with and without images pushed over its boundaries; procedural pictures; and the recipes that
need no BatchNorm. Work is under runs/NAME. What configs/results/NAME.json has is not made again,
and a stopped set or student goes on. Only the judging reads --data.
"""

from __future__ import annotations

import json
from pathlib import Path

from results import RESULTS, Figures, add_run, pick, read_runs, this_command
from tables import normless
from verbs import new_parser, plain_endings, run_verb

from inversion import TeacherOptions, load_teacher
from inversion.parts.attention_heads import has_heads
from synthesis_kernels.backend import repository_commit

SOURCES = ("noise", "shaders", "leaves")
RECIPE = (
    "--synthesis.batch=100",
    "--synthesis.calls=30",
    "--synthesis.generator.inner_steps=5",
    "--synthesis.generator.smooth=1",
    "--synthesis.adversary.steps=3",
)
"""How long a recipe learns: as long as a few minutes of one thread allow."""
JUDGED = ("steps", "agreement", "device", "torch")
"""What is kept of a student."""


def ways(has_attention: bool, images: int) -> dict[str, list[str]]:
    """How each set is made: a name and the command behind it, without teacher, seed and place."""
    made = {}
    for source in SOURCES:
        made[source] = ["collect", "--source", source, "--collection.draws", "8"]
    # Drawn for as long as it takes, and none pushed over a boundary.
    filtered = ["--collection.draws", "80", "--collection.short", '["augment"]']
    made["noise-filtered"] = ["collect", "--source", "noise", *filtered]
    for recipe in ("attention", "adversarial") if has_attention else ("adversarial",):
        made[recipe] = ["synthesize", "--synthesis.recipe", recipe, *RECIPE, "--short", "push"]
    return {name: [*command, "--images", str(images)] for name, command in made.items()}


def measure(path: Path, who: Figures, file: str, views: list[str], steps: int, data: str) -> None:
    """Make a set, teach a student, and add the figures to the file."""
    name = who["set"]
    seed = str(who["seed"])
    folder = Path("runs") / path.stem / f"{who['teacher']}-{name}-{seed}"
    flags = ["--teacher", file, "--seed", seed, "--out", str(folder / "set")]
    run_verb(*who["command"].split()[1:], *flags)
    manifest = json.loads((folder / "set" / "manifest.json").read_text())
    study = ["study", "--sets", json.dumps({name: str(folder / "set")}), "--teacher", file]
    study += ["--study.methods", '["hinton"]', "--study.attacks", "0", "--study.seeds", f"[{seed}]"]
    study += ["--distillation.steps", str(steps), *views]
    run_verb(*study, "--data", data, "--out", str(folder / "study"))
    (cell,) = json.loads((folder / "study" / "study.json").read_text())["runs"]
    run = {
        **who,
        "commit": repository_commit(),
        **pick(cell, JUDGED),
        "student_accuracy": cell["accuracy"],
        "images": cell["set_size"],
        "per_class": manifest["counts"],
        "pushed": pushed(manifest),
        "seconds": {
            "set": round(sum(shard["seconds"] for shard in manifest["shards"]), 1),
            "student": cell["seconds"],
        },
    }
    head = {"command": this_command({data: "DIR"}), **pick(run, ("commit", "device", "torch"))}
    add_run(path, run, head)


def pushed(manifest: Figures) -> int:
    """Images of the set that the teacher's boundary was crossed for."""
    taken = manifest["collection"]["taken"] if "collection" in manifest else manifest.get("filled")
    return sum((taken or {}).get("push", []))


def plan(teachers: dict[str, str], seeds: list[int], images: int) -> list[tuple[Figures, str]]:
    """What tells each run from others, and the teacher's file."""
    runs = []
    for seed in seeds:
        for teacher, file in teachers.items():
            network = load_teacher(TeacherOptions(file))
            has_attention = has_heads(network, network.grey_images())
            for name, command in ways(has_attention, images).items():
                told = " ".join(["echoset", *command])
                who = {
                    "name": f"{teacher}-{name}",
                    "teacher": teacher,
                    "set": name,
                    "seed": seed,
                    "command": told,
                }
                runs.append((who, file))
    return runs


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--data", required=True, help="where the full test set is")
    parser.add_argument("--teachers", nargs="+", required=True, help="names and files: vit=FILE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=500, help="of each student")
    parser.add_argument("--sets", nargs="+", default=[], help="these of them alone")
    parser.add_argument("views", nargs="*", help="further flags for echoset study, after --")
    given = parser.parse_args()
    path = RESULTS / f"{given.name}.json"
    teachers = dict(each.split("=", 1) for each in given.teachers)
    with plain_endings():
        for who, file in plan(teachers, given.seeds, given.images):
            if given.sets and who["set"] not in given.sets:
                continue
            if not any(who.items() <= run.items() for run in read_runs(path)["runs"]):
                try:
                    measure(path, who, file, given.views, given.steps, given.data)
                except SystemExit as error:  # no way to fill a set from this teacher
                    print(f"{who['name']}: {error}")
        print(normless(given.name))
