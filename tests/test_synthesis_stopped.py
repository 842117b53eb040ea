"""A synthesis that was stopped goes on to the same bytes, and its manifest says what they depend on."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, TINY_FLAGS, environment
from synthesizing import CPU, assert_equal, run_call, shard_bytes

from distill import TransferSet
from distill.files import read_log
from inversion import plan
from inversion.cli.main import main
from inversion.parts.state import SynthesisState


@pytest.mark.parametrize(
    ("banked", "mixed", "hints"),
    [(0, 0.0, 0.0), (2, 0.0, 0.0), (2, 0.5, 0.0), (2, 0.0, 20.0), (2, 0.5, 20.0)],
)
def test_state_restores_to_the_same_future(teacher, tiny, banked, mixed, hints):
    adversary = replace(tiny.adversary, views_per_image=banked, hints=hints)
    tiny = replace(tiny, adversary=adversary, views=replace(tiny.views, cutmix=mixed, mixup=mixed))
    job = plan(tiny, 10)[0]
    state = SynthesisState(teacher, job, tiny, CPU)
    for _ in range(3):
        run_call(teacher, state, tiny)
    state.best_agreement, state.best_call, state.seconds = 0.5, 2, 7.0
    copy = SynthesisState(teacher, job, tiny, CPU)
    buffer = io.BytesIO()  # through bytes, as after a kill
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    copy.load_state_dict(torch.load(buffer, weights_only=True))
    assert len(copy.buffer.hints) == (4 if hints else 0)  # asked for again
    assert all(map(torch.equal, state.buffer.hints, copy.buffer.hints))
    for each in (state, copy):
        for _ in range(2):
            run_call(teacher, each, tiny)
    assert_equal(state.state_dict(), copy.state_dict())


def test_carried_moments_blend_where_they_are(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    first = torch.zeros(2), torch.full((2,), 3.0)
    state.carry_moments(*first, 0.9)  # with nothing to blend with
    places = state.bn_average
    assert torch.equal(places[0], first[0]) and torch.equal(places[1], first[1])
    state.carry_moments(torch.ones(2), torch.ones(2), 0.9)
    torch.testing.assert_close(places[0], torch.full((2,), 0.1))
    torch.testing.assert_close(places[1], torch.full((2,), 2.8))
    state.carry_moments(torch.ones(2), torch.ones(2), 0.0)
    assert state.bn_average is places and places[0].tolist() == places[1].tolist() == [1.0, 1.0]
    assert first[1].tolist() == [3.0, 3.0]  # copied, not kept


def command(out):
    # With a policy, banked answers and hints of mixed views and an optimiser that goes on, a run
    # has the most state.
    flags = [
        *TINY_FLAGS,
        "--synthesis.replay.sampling=policy",
        "--synthesis.held_out=0.34",
        "--quiet",
        "--device=cpu",
    ]
    flags += [
        "--synthesis.generator.learning=plain",
        "--synthesis.adversary.views_per_image=2",
        "--synthesis.views.cutmix=0.5",
    ]
    flags += ["--synthesis.adversary.hints=20"]
    return ["synthesize", f"--out={out}", *flags]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A set made without a stop."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert main(command(out)) == 0
    return out


def test_the_manifest_tells_what_was_drawn_and_what_the_bytes_depend_on(whole, tmp_path, capsys):
    manifest = TransferSet.load(whole).manifest
    calls = [event for event in read_log(whole / "log.jsonl") if event["event"] == "call"]
    assert len(manifest["raw_counts"]) == 10 and sum(manifest["raw_counts"]) == 40 * len(calls)
    assert all(
        raw >= kept for raw, kept in zip(manifest["raw_counts"], manifest["counts"], strict=True)
    )
    shard = manifest["shards"][0]
    assert (shard["step"], shard["torch"]) == ("eager", torch.__version__) and {
        "precision",
        "kernels",
    } <= shard.keys()
    # The scorecard takes it for the teacher's decisions before filtering.
    assert (
        main(
            [
                "score",
                f"made={whole}",
                f"--out={tmp_path / 's.html'}",
                "--scores.gradients=5",
                "--quiet",
                "--json",
            ]
        )
        == 0
    )
    card = json.loads(capsys.readouterr().out.splitlines()[-1])["sets"]["made"]
    assert card["raw_counts"] == manifest["raw_counts"] and 0 < card["values"]["coverage_raw"] < 1


def test_a_shard_that_changed_is_not_taken_for_finished(whole, tmp_path):
    out = tmp_path / "set"
    shutil.copytree(whole, out)
    (state := out / ".shard-00000-of-00001.safetensors.state").write_bytes(
        b"of a run that was killed at its very end"
    )
    assert main(command(out)) == 0 and not state.exists()
    shard = next(out.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main(command(out)) == 1
    shard.unlink()
    assert main(command(out)) == 0 and shard_bytes(out) == shard_bytes(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_bytes(whole, tmp_path, number):
    stopped = tmp_path / "stopped"
    program = [sys.executable, "-m", "inversion.cli.main", *command(stopped)]
    process = subprocess.Popen(
        program, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while len(read_log(stopped / "log.jsonl")) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (
            process.returncode == 130
            and "run the same command again" in errors
            and "Traceback" not in errors
        )
        assert list(stopped.glob(".*.state"))
    assert not (stopped / "manifest.json").exists()
    assert main(command(stopped)) == 0
    assert shard_bytes(stopped) == shard_bytes(whole)
    calls = [event["call"] for event in read_log(stopped / "log.jsonl")]
    assert calls[-1] == read_log(whole / "log.jsonl")[-1]["call"] >= 14
    if number != signal.SIGKILL:
        assert calls == list(range(1, calls[-1] + 1))  # nothing was done twice
