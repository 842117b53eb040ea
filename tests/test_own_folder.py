"""Folders that hold what others made, full disks, and Ctrl-C before any work."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from collecting import FLAGS
from conftest import ROOT, environment

from distill.files import JsonLines, save_state
from distill.locks import held_alone, in_turn
from inversion.cli.main import main
from synthesis_kernels.errors import EchosetError

QUICK = ["--distillation.steps=2", "--distillation.batch=8", "--student=convnet-4", "--quiet"]


@pytest.fixture(scope="module")
def transfer_set(tmp_path_factory):
    """A small set of the bundled teacher."""
    out = tmp_path_factory.mktemp("made") / "set"
    assert main(["collect", *FLAGS, f"--out={out}", "--quiet"]) == 0
    return out


def study(transfer_set, out):
    return [
        "study",
        f'--sets={{"mine": "{transfer_set}"}}',
        f"--out={out}",
        '--study.methods=["hinton"]',
        "--study.seeds=[0]",
        "--study.attacks=0",
        *QUICK,
    ]


@pytest.mark.parametrize(
    "verb, name",
    [("distill", "student.safetensors"), ("study", "study.json"), ("demo", "summary.json")],
)
def test_what_others_made_is_not_written_over(transfer_set, tmp_path, run, refused, verb, name):
    (tmp_path / name).write_bytes(b"hours")
    commands = {
        "distill": ["distill", f"--set={transfer_set}", f"--out={tmp_path}", *QUICK],
        "study": study(transfer_set, tmp_path),
        "demo": ["demo", f"--out={tmp_path}", "--quiet"],
    }
    said = refused(*commands[verb])
    assert f"{tmp_path / name} is there, and no {verb} has made it" in said
    assert "--overwrite" in said
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"hours"
    if verb == "distill":
        run(*commands[verb], "--overwrite")
        assert (tmp_path / name).read_bytes() != b"hours"
        other = [*commands[verb][:-1], "--distillation.warmup=0.2"]
        assert "was made by another command" in refused(*other)
        run(*other, "--overwrite")


def test_a_student_put_in_the_place_of_ours_stays(transfer_set, tmp_path, run, refused):
    command = ["distill", f"--set={transfer_set}", f"--out={tmp_path}", *QUICK]
    run(*command)
    (tmp_path / "student.safetensors").write_bytes(b"hours")
    assert "is not the student that was made there" in refused(*command)
    assert (tmp_path / "student.safetensors").read_bytes() == b"hours"


def test_two_processes_do_not_work_in_one_folder(transfer_set, tmp_path, refused):
    command = ["distill", f"--set={transfer_set}", f"--out={tmp_path}", *QUICK]
    with held_alone(tmp_path / ".distill.echoset") as is_free:
        assert is_free
        assert f"another process is at work in {tmp_path}" in refused(*command)


HOLD = """
import sys, time
from pathlib import Path
from distill.locks import in_turn
with in_turn(Path(sys.argv[1]), "mine--none--hinton--0", print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_study_waits_for_the_cell_of_the_first(transfer_set, tmp_path, run):
    lock = tmp_path / "cells" / ".lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment(), cwd=ROOT, text=True
    )
    assert first.stdout.readline() == "held\n"
    (tmp_path / ".study.echoset").touch()
    waited = []

    def end():
        waited.append(1)
        first.kill()  # and the system lets go what it held

    with in_turn(lock, "another cell", end):
        assert not waited
    with in_turn(lock, "mine--none--hinton--0", end):
        assert waited
    first.wait()
    run(*study(transfer_set, tmp_path))
    assert len(list((tmp_path / "cells").glob("*.json"))) == 1


@pytest.fixture
def small_files():
    """Files may have 10,000 bytes at most."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_the_file_and_what_it_takes(tmp_path, small_files, capsys):
    assert main(["collect", *FLAGS, f"--out={tmp_path / 'set'}", "--quiet"]) == 1
    said = capsys.readouterr().err
    assert (
        f"{tmp_path / 'set'}{os.sep}" in said
        and "can't be written: File too large; it takes" in said
    )
    assert "Free that much there and give the same command again" in said
    with pytest.raises(EchosetError, match=r"x\.state can't be written"):
        save_state(tmp_path / "x.state", "key", {"text": "x" * 20_000})
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".x")]
    log = JsonLines(tmp_path / "log.jsonl")
    with pytest.raises(EchosetError, match=r"log\.jsonl can't be written"):
        log.write("call", text="x" * 20_000)


STOPPED = """
import os, signal, sys
place, *sys.argv[1:] = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == place:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop())
from echoset.__main__ import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["inversion.cli.main", "jsonargparse", "torch._C", "torch.nn", "distill.study"]
)
def test_ctrl_c_while_modules_are_imported_is_one_line_and_status_130(tmp_path, place):
    given = environment()
    given["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'inversion' / 'public'}"
    command = [sys.executable, "-c", STOPPED, place, "study", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=ROOT)
    assert (done.returncode, done.stderr, done.stdout) == (130, "echoset: stopped\n", "")
    assert not (tmp_path / "out").exists()


def test_a_lock_is_let_go_when_its_process_is_killed(tmp_path):
    child = os.fork()
    if not child:
        with held_alone(tmp_path / "lock"):
            time.sleep(60)
    while not (tmp_path / "lock").exists():
        time.sleep(0.01)
    with open(tmp_path / "lock", "ab") as held:
        while True:  # until the child has it
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                break
            fcntl.flock(held, fcntl.LOCK_UN)
            time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with held_alone(tmp_path / "lock") as is_free:
        assert is_free
