"""Every verb that writes, killed before its file operations or at any moment, goes on to the same
files.

Processes are forked from this one, so that they need not import anything; each is killed for real.
"""

import json
import os
import random
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from test_exports import make

from distill import export
from distill.files import unseal
from inversion.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
]
PLACES = int(os.environ.get("ECHOSET_KILLS", "6"))
"""At which each verb is killed; so many of them as make the test quick. All: ECHOSET_KILLS=1000. And
so many runs are killed at random moments.
"""
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
COLLECT = ["collect", "gaussian", "--images=12", "--collection.balanced=false", "--seed=1"]
LEARN = ["--student=convnet-4", "--distillation.steps=3", "--distillation.batch=4"]
SYNTHESIZE = [
    "--synthesis.images=10",
    "--synthesis.calls=2",
    "--synthesis.batch=20",
    "--synthesis.held_out=0.2",
    "--synthesis.generator.width=4",
    "--synthesis.generator.inner_steps=1",
    "--synthesis.adversary.steps=1",
    "--synthesis.adversary.batch=8",
    "--synthesis.adversary.student.model=convnet-4",
    "--synthesis.objective.adversary_after=0",
]


def command_of(verb, given, out):
    """A short run of a verb that writes to `out`, on a set and a student that are there."""
    even = str(given / "even")
    sets = f'{{"mine": "{given / "set"}"}}'
    judged = ["--study.seeds=[0]", "--study.attacks=0", '--study.methods=["hinton","labels"]']
    return {
        "collect": [*COLLECT, f"--out={out}"],
        "synthesize": ["synthesize", *SYNTHESIZE, f"--out={out}"],
        "distill": ["distill", f"--set={given / 'set'}", *LEARN, f"--out={out}"],
        "study": ["study", f"--sets={sets}", *judged, *LEARN, f"--out={out}"],
        "score": ["score", f"mine={given / 'set'}", f"--out={out / 'score.html'}"],
        "report": ["report", str(given / "student"), f"--out={out / 'page.html'}"],
        "demo": ["demo", *SYNTHESIZE, *LEARN, f"--out={out}"],
        "export-folder": ["export", even, f"--out={out / 'made'}"],
        "export-npz": ["export", even, "--form=npz", f"--out={out / 'made'}"],
        "export-webdataset": ["export", even, "--form=webdataset", f"--out={out / 'made'}"],
        "export-merged": [
            "export",
            even,
            str(given / "other"),
            "--form=set",
            f"--out={out / 'made'}",
        ],
        "export-into-a-folder": ["export", even, f"--out={out}"],
        "export-student": [
            "export-student",
            f"--student={given / 'student' / 'student.safetensors'}",
            f"--out={out / 'student.pt2'}",
        ],
    }[verb]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Sets and a student; and everything that the verbs import has been imported."""
    folder = tmp_path_factory.mktemp("given")
    assert main([*COLLECT, f"--out={folder / 'set'}", "--quiet"]) == 0
    for name in ("even", "other"):
        export(make(9, 3, seed=len(name)), folder / name, "set")
    assert main([*command_of("distill", folder, folder / "student"), "--quiet"]) == 0
    return folder


class Watch:
    """Notes what is done to files in a folder, and kills its process before one of these."""

    def __init__(self, folder, last):
        self.folder = str(folder)
        self.last = last
        self.done = []

    def __call__(self, event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        if not writes and event not in CHANGES:
            return
        path = str(arguments[0])
        if not path.startswith(self.folder) or _changes_nothing(event, path):
            return
        if len(self.done) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        # Temporary names differ from run to run.
        name = Path(path).name
        self.done.append(f"{event} {name.rpartition('.')[0] if name.endswith('.tmp') else name}")


def _changes_nothing(event, path):
    """Of what is done to be sure: a folder that is there, a temporary file that is gone."""
    if event == "os.mkdir":
        return os.path.isdir(path)
    return event == "os.remove" and not os.path.exists(path)


def in_a_fork(command, folder, last=None, seconds=None):
    """The status of a run, and what it did to files; killed before operation number `last`, or
    after so many seconds, unless it has ended.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        torch.set_num_threads(1)
        import distill.loop

        distill.loop.Every.__call__ = lambda self: True  # everything is saved at once
        watch = Watch(folder, last)
        sys.addaudithook(watch)
        status = 99
        try:
            status = main([*command, "--quiet"])
        finally:
            with suppress(OSError):  # whoever asked may be gone
                os.write(writing, json.dumps(watch.done).encode()[:60_000])
            os._exit(status)
    os.close(writing)
    if seconds is not None and not select.select([reading], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as told:
        text = told.read()
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), json.loads(text) if text else []


def bytes_of(folder, verb):
    """The bytes of all files that tell no time, by name: all of an export, else those of tensors."""
    pattern = "*" if verb.startswith("export") else "*.safetensors"
    files = [path for path in sorted(folder.rglob(pattern)) if path.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def new_place(folder, verb):
    """Where a verb writes: a folder that only has to be there for an export into one."""
    if verb == "export-into-a-folder":
        folder.mkdir()
    return folder


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def places_of(done):
    """The first and the last time of everything that is done."""
    firsts = {name: number for number, name in reversed(list(enumerate(done)))}
    lasts = {name: number for number, name in enumerate(done)}
    return sorted({*firsts.values(), *lasts.values()})


VERBS = ("collect", "synthesize", "distill", "study", "score", "report", "demo")
FORMS = ("folder", "npz", "webdataset", "merged", "into-a-folder")


@pytest.mark.parametrize("verb", [*VERBS, "export-student", *(f"export-{form}" for form in FORMS)])
def test_a_verb_killed_before_any_file_operation_goes_on(given, tmp_path, verb):
    whole = new_place(tmp_path / "whole", verb)
    status, done = in_a_fork(command_of(verb, given, whole), whole)
    # 1: written, and short of images, as those of an export are not.
    assert status in ((0,) if "export" in verb else (0, 1)) and done
    places = places_of(done)
    for place in sorted(random.Random(0).sample(places, min(PLACES, len(places)))):
        out = new_place(tmp_path / "killed", verb)
        killed, _ = in_a_fork(command_of(verb, given, out), out, last=place)
        assert killed == -signal.SIGKILL, (place, done[place])
        again, _ = in_a_fork(command_of(verb, given, out), out)
        assert again == status, (place, done[place])
        require_equal(out, whole, verb, (place, done[place]))
        shutil.rmtree(out)


def test_verbs_killed_at_random_moments_go_on(given, tmp_path):
    """Before one of their file operations, or after a time; half of them a second time, too."""
    chance = random.Random(0)
    verbs = ("synthesize", "distill", "export-folder", "export-into-a-folder")
    wholes = {verb: run_whole(given, tmp_path, verb) for verb in verbs}
    kills = dict.fromkeys(("last", "seconds"), 0)
    for number in range(PLACES):
        verb = verbs[number % len(verbs)]
        whole, status, limits = wholes[verb]
        out = new_place(tmp_path / "killed", verb)
        command = command_of(verb, given, out)
        tried = []
        ended = -signal.SIGKILL
        while ended == -signal.SIGKILL and not (tried and is_over(verb, out, whole)):
            moment = random_moment(chance, limits) if len(tried) <= number // 4 % 2 else {}
            ended, _ = in_a_fork(command, out, **moment)
            tried.append(moment)
            for way in moment:
                kills[way] += ended == -signal.SIGKILL
        assert ended in (status, -signal.SIGKILL), (verb, tried)
        require_equal(out, whole, verb, (verb, tried))
        shutil.rmtree(out)
    print(f"{PLACES} runs killed: {kills}")


def run_whole(given, folder, verb):
    """What a run leaves that nobody kills: where, its status, and its operations and seconds."""
    whole = new_place(folder / verb, verb)
    began = time.monotonic()
    status, done = in_a_fork(command_of(verb, given, whole), whole)
    return whole, status, {"last": len(done), "seconds": time.monotonic() - began}


def random_moment(chance, limits):
    way = chance.choice(list(limits))
    moment = chance.uniform(0, limits[way])
    return {way: int(moment) if way == "last" else moment}


def is_over(verb, out, whole):
    """Whether an export was killed after its end: its command would now be refused."""
    return verb.startswith("export") and names_in(out) == names_in(whole)


def require_equal(out, whole, verb, why):
    assert names_in(out) == names_in(whole), why
    assert bytes_of(out, verb) == bytes_of(whole, verb), why
    for file in out.rglob("*.json"):
        unseal(json.loads(file.read_text()))
