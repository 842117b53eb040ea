"""Collections that are stopped, and taken up again."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from collecting import (
    FLAGS,
    PLAIN,
    linear_teacher,
    make,
    shard_bytes,
)
from conftest import ROOT, environment

from distill.loop import Interrupted
from inversion.cli.main import main
from inversion.sources.collection import Collection
from synthesis_kernels.errors import EchosetError

LONG = replace(
    PLAIN,
    images=240,
    draws=1.0,
    short=("draw", "augment", "mixup", "push"),
    expose=0.5,
    confidence=(0.35, 1.0),
)
MADE_ONLY = replace(LONG, images=400, short=("augment", "mixup"), confidence=(0.6, 1.0))


@pytest.mark.parametrize("last, options, ways", [(-5, LONG, 7), (-3, MADE_ONLY, 4)])
def test_a_run_stopped_after_any_block_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, last, options, ways
):
    teacher = linear_teacher(last)
    sources = ("noise", "smooth")
    take = Collection.take
    calls = []
    stop_at = None

    def watched(self, phase, *rest):
        take(self, phase, *rest)
        calls.append(phase.name)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Collection, "take", watched)
    whole = make(teacher, sources, options, tmp_path / "whole")
    names = calls.copy()
    assert len(dict.fromkeys(names)) == ways  # sources, both again, and ways of making
    starts = [
        number for number in range(len(names)) if number == 0 or names[number] != names[number - 1]
    ]
    for stop_at in sorted(
        {*starts[1:], *(min(start + 2, len(names)) for start in starts), len(names)}
    ):  # ends, middles
        calls.clear()
        folder = tmp_path / f"stopped{stop_at}"
        with pytest.raises(Interrupted, match="keeps it"):
            make(teacher, sources, options, folder)
        assert (folder / ".collect.state").is_file()
        assert not (folder / "manifest.json").exists()
        assert calls == names[:stop_at]
        result = make(teacher, sources, options, folder)
        assert calls == names  # nothing was done twice, or left out
        assert shard_bytes(folder) == shard_bytes(tmp_path / "whole")
        assert not (folder / ".collect.state").exists()
        for name, value in whole.manifest["collection"].items():
            assert name == "seconds" or result.manifest["collection"][name] == value


STOPPING = """
import os, signal, sys
from inversion.sources.collection import Collection
take, calls = Collection.take, []
def stopping(*arguments):
    take(*arguments)
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
Collection.take = stopping
import distill.loop
distill.loop.Every.__call__ = lambda self: True  # saved after every block
from inversion.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A set of the bundled teacher, collected without a stop."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert main(["collect", *FLAGS, f"--out={out}", "--quiet"]) == 0
    return out


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_stopped_process_goes_on_to_the_same_bytes(whole, tmp_path, name):
    out = tmp_path / "stopped"
    arguments = ["collect", *FLAGS, f"--out={out}", "--quiet"]
    command = [sys.executable, "-c", STOPPING, name, *arguments]
    stopped = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert (out / ".collect.state").is_file()
    assert not (out / "manifest.json").exists()
    if name == "SIGKILL":
        assert stopped.returncode == -signal.SIGKILL
    else:
        assert stopped.returncode == 130
        assert "run the same command again" in stopped.stderr
        assert "Traceback" not in stopped.stderr
    if name == "SIGKILL":
        command = [sys.executable, "-m", "inversion.cli.main", *arguments]
        subprocess.run(command, env=environment(), cwd=ROOT, check=True)
    else:
        assert main(arguments) == 0  # another process would do no more
    assert shard_bytes(out) == shard_bytes(whole)


@pytest.fixture(scope="module")
def linear():
    return linear_teacher()


def test_a_damaged_state_is_named(linear, tmp_path, monkeypatch):
    key = {}
    monkeypatch.setattr(
        "inversion.sources.collect._walk",
        lambda *arguments: key.update(value=arguments[5]) or (_ for _ in ()).throw(Interrupted()),
    )
    with pytest.raises(Interrupted):
        make(linear, ("noise",), PLAIN, tmp_path / "set")
    monkeypatch.undo()
    (tmp_path / "set" / ".collect.state").write_bytes(b"cut short")
    with pytest.raises(EchosetError, match=r"\.collect\.state cannot be read as saved state"):
        make(linear, ("noise",), PLAIN, tmp_path / "set")
    assert key["value"].endswith(" cpu")
