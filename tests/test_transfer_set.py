import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from distill import TransferSet
from distill.files import JsonLines, load_state, read_log, save_state, unseal
from distill.sets.shards import shard_name, write_shard
from distill.sets.transfer_set import write_manifest
from inversion import plan
from inversion.options import SynthesisOptions
from synthesis_kernels.errors import EchosetError


def tensors(count=6, classes=3):
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(0))
    return {
        "images": torch.arange(count * 16, dtype=torch.uint8).view(count, 1, 4, 4),
        "labels": logits.argmax(1),
        "logits": logits,
        "priority": torch.rand(count),
        "round": torch.zeros(count, dtype=torch.int32),
    }


@pytest.fixture
def folder(tmp_path):
    content = tensors()
    digest = write_shard(tmp_path / shard_name(0, 1), content)
    counts = torch.bincount(content["labels"], minlength=3).tolist()
    contract = {
        "channels": 1,
        "size": 4,
        "classes": 3,
        "task": "classification",
        "mean": [0.0],
        "std": [1.0],
    }
    shards = [{"file": shard_name(0, 1), "sha256": digest, "count": 6}]
    manifest = {
        "code_version": "0",
        "teacher": {},
        "config": {},
        "input": contract,
        "counts": counts,
        "shards": shards,
    }
    write_manifest(tmp_path, manifest)
    return tmp_path


def edit(folder, change):
    manifest = unseal(json.loads((folder / "manifest.json").read_text()))
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_killed_runs_left_of_a_state_is_cleared_away(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    here = socket.gethostname()
    gone, own, alive = (
        f"{here}.{int(done.stdout)}",
        f"{here}.{os.getpid()}",
        f"{here}.{os.getppid()}",
    )
    for writer in (gone, own, alive, "elsewhere.1"):
        (tmp_path / f".s.state.{writer}-abcd.tmp").write_text("half")
    save_state(tmp_path / "s.state", "key", {"step": 3})
    assert load_state(tmp_path / "s.state", "key") == {"step": 3}
    left = {path.name for path in tmp_path.glob(".*")}
    assert left == {f".s.state.{alive}-abcd.tmp", ".s.state.elsewhere.1-abcd.tmp"}
    os.utime(tmp_path / ".s.state.elsewhere.1-abcd.tmp", (0, 0))
    save_state(tmp_path / "s.state", "key", {"step": 4})
    assert {path.name for path in tmp_path.glob(".*")} == {f".s.state.{alive}-abcd.tmp"}


def test_round_trip_and_iteration(folder):
    loaded = TransferSet.load(folder, check_hashes=True)
    assert len(loaded) == 6 == len(list(loaded))
    assert torch.equal(loaded.images, tensors()["images"])
    image, label, _, _ = loaded[1]
    assert image.max() <= 1 and image.dtype == torch.float32 and label == loaded.labels[1]
    batch, labels, _, _ = next(iter(DataLoader(loaded, batch_size=4)))
    assert batch.shape == (4, 1, 4, 4) and labels.shape == (4,)
    with pytest.raises(IndexError):
        loaded[6]


def test_equal_tensors_give_equal_bytes(tmp_path):
    assert write_shard(tmp_path / "a", tensors() | {"priority": torch.ones(6)}) == write_shard(
        tmp_path / "b", tensors() | {"priority": torch.ones(6)}
    )


def test_a_changed_byte_is_found(folder):
    path = folder / shard_name(0, 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    TransferSet.load(folder, check_hashes=False)
    with pytest.raises(EchosetError, match=r"shard-00000-of-00001\.safetensors has changed"):
        TransferSet.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.update(format_version=99), "format version 99"),
        (lambda m: m.pop("counts"), "'counts' is missing"),
        (lambda m: m.update(shards=[]), "no shards"),
        (lambda m: m["input"].update(size="4"), "'input': size must be a whole number"),
        (lambda m: m["input"].update(channels=True), "'input': channels must be a whole number"),
        (
            lambda m: m["input"].update(classes=10**9),
            "'input': classes must be a whole number from 2 to",
        ),
        (lambda m: m["input"].update(std=["x"]), "'input': std must be a list of numbers"),
        (lambda m: m["input"].update(std=[float("nan")]), "'input': std must be a list of numbers"),
        (lambda m: m["input"].update(std=[0]), "'input': every std must be positive"),
        (lambda m: m["input"].update(mean=[0.1] * 7), "'input': mean has 7 values"),
        (lambda m: m["shards"].append(m["shards"][0]), "lists a shard twice"),
        (lambda m: m["shards"][0].update(count=0), "lists no images"),
        (lambda m: m["shards"][0].update(count=-1), "lacks a count"),
        (lambda m: m.update(counts=[9, 0, 0]), "per class"),
        (lambda m: m["shards"][0].update(count=5), "expected"),
        (lambda m: m["shards"][0].update(file="../outside.safetensors"), "not a plain shard name"),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), "not a plain shard name"),
        (lambda m: m["shards"][0].update(file="../" + shard_name(0, 1)), "not a plain shard name"),
        (lambda m: m["shards"][0].update(file=shard_name(1, 2)), "is missing, though"),
        (lambda m: m["shards"][0].pop("sha256"), "lacks a count or a SHA-256"),
    ],
)
def test_manifests_that_do_not_hold(folder, change, message):
    edit(folder, change)
    with pytest.raises(EchosetError, match=message):
        TransferSet.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("round"), "lacks 'round'"),
        (lambda t: t.update(images=t["images"].float()), "'images' is"),
        (lambda t: t.update(logits=t["logits"][:, :2].contiguous()), "'logits' is"),
        (lambda t: t["logits"].fill_(float("nan")), "not finite"),
        (lambda t: t["labels"].add_(1), "not the classes their stored logits prefer"),
    ],
)
def test_shards_that_do_not_hold(folder, change, message):
    path = folder / shard_name(0, 1)
    content = load_file(path)
    change(content)
    save_file(content, path)
    with pytest.raises(EchosetError, match=message):
        TransferSet.load(folder, check_hashes=False)


def test_truncated_shard_and_missing_manifest(folder, tmp_path):
    path = folder / shard_name(0, 1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EchosetError, match="has changed since it was made"):
        TransferSet.load(folder)
    with pytest.raises(EchosetError, match="cut short"):
        TransferSet.load(folder, check_hashes=False)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(EchosetError, match="not readable JSON"):
        TransferSet.load(folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(EchosetError, match="not readable JSON"):
        TransferSet.load(folder)
    with pytest.raises(EchosetError, match="not a finished transfer set"):
        TransferSet.load(tmp_path / "nowhere")


@given(st.integers(1, 400), st.integers(1, 120), st.integers(2, 12))
@settings(max_examples=80)
def test_the_plan_is_balanced_in_every_job_and_in_all(images, shard_images, classes):
    jobs = plan(SynthesisOptions(images=images, shard_images=shard_images), classes)
    for job in jobs:
        assert max(job.quotas) - min(job.quotas) <= 1 and 0 < sum(job.quotas) <= shard_images
    totals = [sum(column) for column in zip(*(job.quotas for job in jobs), strict=True)]
    assert sum(totals) == images and max(totals) - min(totals) <= 1
    assert len({job.seed for job in jobs}) == len(jobs)


def test_a_job_depends_on_seed_and_index_alone():
    few, many = (plan(SynthesisOptions(images=n, shard_images=10), 10, seed=3) for n in (20, 40))
    assert [job.seed for job in few] == [job.seed for job in many[:2]]
    assert plan(SynthesisOptions(), 10, seed=4)[0].seed != few[0].seed


def test_state_files_belong_to_one_job_and_hold_no_code(tmp_path):
    path = tmp_path / "x.state"
    save_state(path, "mine", {"a": torch.ones(2), "b": (1, 2.0)})
    with pytest.raises(
        EchosetError, match=r"x\.state was left by a stopped run with other options"
    ):
        load_state(path, "another")
    assert load_state(path, "mine")["b"] == (1, 2.0)
    assert load_state(tmp_path / "none", "mine") is None
    path.write_bytes(b"broken")
    with pytest.raises(EchosetError, match="delete it"):
        load_state(path, "mine")


def test_a_log_line_cut_short_is_passed_over(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.write("call", call=1)
    with open(log.path, "a") as file:
        file.write('{"event": "ca')
    assert read_log(log.path) == [{"event": "call", "call": 1}]
