"""The same command on what is finished, and a synthesis that goes on."""

from dataclasses import replace

import pytest
import torch
from conftest import STUDENT, TINY_FLAGS, last_json

from distill import TransferSet
from distill.files import read_log
from distill.runtime import Runtime
from distill.sets.transfer_set import write_manifest
from inversion import synthesize
from inversion.more_calls import go_on
from inversion.pages.report import write_report
from synthesis_kernels.errors import EchosetError

SHORT = ["--student=convnet-4", "--distillation.steps=2", "--distillation.views_per_image=2"]
SHARD = "shard-00000-of-00001.safetensors"


def test_a_finished_set_and_a_finished_student_say_so(run, tmp_path):
    collect = ["collect", "noise", f"--out={tmp_path / 'set'}", "--images=12"]
    collect.append("--collection.balanced=false")
    assert "finished already" not in run(*collect).stderr
    said = run(*collect).stderr
    assert f"echoset distill --set {tmp_path / 'set'}" in said and "finished already" in said

    distil = ["distill", f"--set={tmp_path / 'set'}", f"--out={tmp_path / 'out'}", *SHORT]
    first = last_json(run(*distil, "--json"))
    stamp = (tmp_path / "out" / STUDENT).stat().st_mtime_ns
    again = run(*distil, "--json")
    assert "finished already by this command" in again.stdout and last_json(again) == first
    assert (tmp_path / "out" / STUDENT).stat().st_mtime_ns == stamp
    kept = run(*distil, "--seed=1", status=1).stderr
    assert "was made by another command" in kept and "--overwrite" in kept
    assert (tmp_path / "out" / STUDENT).stat().st_mtime_ns == stamp
    assert "finished already" not in run(*distil, "--seed=1", "--overwrite").stdout
    assert (tmp_path / "out" / STUDENT).stat().st_mtime_ns != stamp
    (tmp_path / "out" / STUDENT).unlink()
    assert "finished already" not in run(*distil).stdout


def make(teacher, options, out):
    return synthesize(teacher, options, out, runtime=Runtime(device="cpu", quiet=True))


@pytest.mark.slow
def test_a_finished_set_goes_on_with_more_calls(teacher, tiny, tmp_path):
    out = tmp_path / "set"
    before = make(teacher, replace(tiny, calls=8), out)
    after = make(teacher, replace(tiny, calls=10), out)
    calls = [event["call"] for event in read_log(out / "log.jsonl")]
    assert calls == list(range(1, calls[-1] + 1)) and calls[-1] > calls[-3] >= 8
    assert after.manifest["config"]["calls"] == 10 and after.counts() == before.counts()
    assert after.manifest["shards"][0]["sha256"] != before.manifest["shards"][0]["sha256"]
    with pytest.raises(EchosetError, match="other options, seed or teacher"):
        make(teacher, replace(tiny, calls=8), out)

    (out / f".{SHARD}.last").unlink()
    with pytest.raises(EchosetError, match=r"its last state is gone, so it can't go on; make"):
        make(teacher, replace(tiny, calls=12), out)
    assert make(teacher, replace(tiny, calls=10), out).manifest == after.manifest


@pytest.mark.slow
def test_where_patience_ended_it_more_patience_is_asked_for(teacher, tiny, tmp_path):
    out = tmp_path / "set"
    made = make(teacher, replace(tiny, calls=40, patience=2), out)
    ended = made.manifest["shards"][0]["calls"]
    with pytest.raises(EchosetError, match=f"after {ended} of 40 calls.*raise --synthesis.patien"):
        make(teacher, replace(tiny, calls=50, patience=2), out)
    more = make(teacher, replace(tiny, calls=40, patience=4), out)
    assert more.manifest["shards"][0]["calls"] > ended


@pytest.mark.slow
def test_a_kill_before_it_goes_on_leaves_it_to_be_begun_again(teacher, tiny, tmp_path, monkeypatch):
    out = tmp_path / "set"
    make(teacher, replace(tiny, calls=8), out)

    def killed(*arguments):
        assert go_on(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("inversion.assignment.go_on", killed)
        with pytest.raises(KeyboardInterrupt):
            make(teacher, replace(tiny, calls=10), out)
    assert make(teacher, replace(tiny, calls=10), out).manifest["config"]["calls"] == 10


def test_calls_that_were_made_already_are_no_more_calls(teacher, tiny, tmp_path):
    manifest = make(teacher, replace(tiny, calls=8), tmp_path).manifest
    shards = [{**shard, "calls": 12} for shard in manifest["shards"]]  # as classes were short
    write_manifest(tmp_path, {**manifest, "shards": shards})
    with pytest.raises(EchosetError, match="has taken 12 calls already, more than the 8"):
        make(teacher, replace(tiny, calls=10), tmp_path)


@pytest.mark.slow
def test_python_says_what_is_short(teacher, tiny, tmp_path, capsys):
    out = tmp_path / "set"
    made = synthesize(teacher, replace(tiny, images=80, calls=2), out, Runtime(device="cpu"))
    assert made.manifest["short"]
    assert f"{out} is not balanced: class " in capsys.readouterr().err


@pytest.mark.slow
def test_short_classes_are_filled_with_images_made_of_the_others(run, tmp_path):
    out = tmp_path / "set"
    flags = [*TINY_FLAGS, "--images=80", "--synthesis.calls=2", f"--out={out}", "--json"]
    short = run("synthesize", *flags, "--short", status=1)
    lacks = last_json(short)["short"]
    assert lacks and "leave --short out of the same command" in short.stderr
    before = TransferSet.load(out)
    run("synthesize", *flags, "--short", "augment", status=1)
    augmented = sum(TransferSet.load(out).manifest["filled"]["augment"])

    filled = run("synthesize", *flags)
    assert last_json(filled)["per_class"] == [8] * 10 and not last_json(filled)["short"]
    after = TransferSet.load(out, check_hashes=True)
    assert torch.equal(after.images[: len(before)], before.images)
    made = {way: sum(rows) for way, rows in after.manifest["filled"].items()}
    assert made["augment"] == augmented and sum(made.values()) == sum(lacks.values())
    told = f"{sum(lacks.values())} images of short classes were made by "
    assert f"{out}: {told}" in filled.stderr and told in write_report(out).read_text()
    is_much = sum(lacks.values()) - augmented > 20
    assert ("% of the set: for more of the generator's, raise" in filled.stderr) is is_much
    assert not (out / ".filling").exists()
    last_json(run("verify", f"--set={out}", "--teacher=mnist", "--json"))
    assert "finished already" in run("synthesize", *flags).stderr
