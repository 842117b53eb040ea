"""What is read back is what was written: one flipped bit is refused, or changes nothing."""

import json
import random
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from collecting import FLAGS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distill import TransferSet
from distill.files import load_state, read_log, save_state, unseal, write_sealed
from distill.loop import StopFlag
from distill.models import ModelSpec, build_classifier, load_classifier, save_classifier
from distill.study.cell import read_cell
from distill.study.origin import Origin
from distill.study.summary import FIGURES
from inversion.cli.main import main
from inversion.jobs import finished, plan
from inversion.options import SynthesisOptions, TeacherOptions
from inversion.teacher import load_teacher
from synthesis_kernels.errors import EchosetError

STEPS = 12
QUICK = [
    f"--distillation.steps={STEPS}",
    "--distillation.batch=8",
    "--student=convnet-4",
    "--quiet",
]


def stop_after(monkeypatch, looks):
    """Stop the next loop as Ctrl-C does, at so many of its looks."""
    left = iter([False] * looks + [True] * 9)

    class Stops(StopFlag):
        raised = property(lambda self: next(left, True), lambda self, value: None)

    monkeypatch.setattr("distill.loop.StopFlag", Stops)


@pytest.fixture(scope="module")
def transfer_set(tmp_path_factory):
    """A small set of the bundled teacher."""
    out = tmp_path_factory.mktemp("made") / "set"
    assert main(["collect", *FLAGS, f"--out={out}", "--quiet"]) == 0
    return out


@pytest.fixture
def stopped(transfer_set, tmp_path, monkeypatch):
    """A distillation that was stopped, and the command that goes on with it."""
    command = ["distill", f"--set={transfer_set}", f"--out={tmp_path / 'student'}", *QUICK]
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert main(command) == 130
    return command


def flips(path: Path, count: int, seed: int, last: int | None = None):
    """The file with one bit flipped, of its first `last` bytes, so many times; then as it was."""
    whole = path.read_bytes()
    draw = random.Random(seed)
    for _ in range(count):
        place = draw.randrange(last or len(whole))
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        yield place
    path.write_bytes(whole)


def read_or_refused(read):
    with suppress(EchosetError):
        return read()
    return None


def test_a_flipped_bit_of_a_state_is_refused(stopped):
    path = Path(stopped[2].removeprefix("--out=")) / "student.state"
    for _ in flips(path, 100, seed=1):
        with pytest.raises(EchosetError, match=r"student\.state cannot be read as saved state"):
            load_state(path, "any key")


def test_a_flipped_bit_of_a_set_is_refused_or_changes_nothing(transfer_set):
    whole = TransferSet.load(transfer_set)
    shard = next(transfer_set.glob("shard-*"))
    for _ in flips(shard, 100, seed=2):
        with pytest.raises(EchosetError, match=r"has changed since it was made.*delete it"):
            TransferSet.load(transfer_set)
    for place in flips(transfer_set / "manifest.json", 100, seed=3):
        read = read_or_refused(lambda: TransferSet.load(transfer_set))
        # A flip within the checksum's name leaves one that is not known.
        known = read and {name: read.manifest.get(name) for name in whole.manifest}
        assert read is None or known == whole.manifest, place


@pytest.fixture
def student(tmp_path):
    """A student's file."""
    spec = ModelSpec("convnet-4", {}, 1, 28, 10, mean=(0.25,), std=(0.5,), notes={"seed": 3})
    path = tmp_path / "own.safetensors"
    save_classifier(build_classifier(spec), path)
    return path


@pytest.mark.parametrize("part", ["whole", "header"])
def test_a_flipped_bit_of_a_model_file_is_refused_or_changes_nothing(student, part):
    def read():
        return read_or_refused(lambda: load_classifier(student))

    def read_as_weights():
        options = TeacherOptions("convnet-4", str(student))
        return read_or_refused(lambda: load_teacher(options))

    def told(network):
        return network.weight_hash(), network.contract, network.spec.notes

    known = told(load_classifier(student))
    last = int.from_bytes(student.read_bytes()[:8], "little") if part == "header" else None
    refused = 0
    for place in flips(student, 100, seed=7, last=last):
        networks = [read(), read_as_weights()]
        refused += networks.count(None)
        assert all(told(network) == known for network in networks if network), place
    assert refused > 190
    assert told(read()) == told(read_as_weights()) == known


def test_every_bit_of_a_description_s_name_counts(student):
    whole = student.read_bytes()
    place = whole.index(b"echoset")
    for number in range(7 * 8):
        changed = bytearray(whole)
        changed[place + number // 8] ^= 1 << number % 8
        student.write_bytes(changed)
        with pytest.raises(EchosetError, match=r"own\.safetensors"):
            load_teacher(TeacherOptions("convnet-4", str(student)))


def test_a_command_on_a_damaged_model_file_fails_and_names_it(
    transfer_set, student, tmp_path, capsys
):
    data = bytearray(student.read_bytes())
    data[-1] ^= 1
    student.write_bytes(data)
    export = f"--out={tmp_path / 'student.pt2'}"
    learn = ["distill", f"--set={transfer_set}", f"--out={tmp_path / 'learnt'}", *QUICK]
    for command in (
        ["evaluate", f"--model={student}"],
        ["export-student", f"--student={student}", export],
        ["inspect", f"--teacher={student}"],
        [*learn, f"--student.weights={student}"],
    ):
        assert main(command) == 1, command
        said = capsys.readouterr().err
        assert f"{student} has changed since it was written, in its tensors" in said, command


def test_weights_of_somebody_s_own_and_files_from_before_have_no_hash(student):
    tensors = load_file(student)
    with safe_open(student, "pt") as file:
        told = json.loads(file.metadata()["echoset"])
    del told["checksum"], told["tensors"]
    name, tensor = next(iter(tensors.items()))
    save_file({**tensors, name: tensor + 1}, student, {"echoset": json.dumps(told)})
    assert torch.equal(load_classifier(student).network.state_dict()[name], tensor + 1)


@pytest.mark.parametrize("name", ["student.state", "shard"])
def test_a_command_on_a_damaged_file_fails_and_names_it(
    transfer_set, stopped, tmp_path, capsys, name
):
    student = tmp_path / "student"
    path = student / name if name == "student.state" else next(transfer_set.glob("shard-*"))
    for _ in flips(path, 5, seed=4):
        assert main(stopped) == 1
        said = capsys.readouterr().err
        assert str(path) in said and "delete it" in said
        assert not (student / "student.safetensors").exists()
    assert main(stopped) == 0
    assert not path.exists() or name == "shard"
    steps = [event["step"] for event in read_log(student / "log.jsonl")]
    assert steps == [STEPS]


def test_a_flipped_bit_of_a_note_or_a_cell_is_refused_or_changes_nothing(tmp_path):
    job = plan(SynthesisOptions(images=20), 10)[0]
    (tmp_path / job.file).write_bytes(b"a shard")
    note = {"file": job.file, "sha256": "0" * 64, "count": 20, "counts": [2] * 10, "seed": 7}
    path = tmp_path / f".{job.file}.done"
    write_sealed(path, note)
    for _ in flips(path, 100, seed=5):
        read = read_or_refused(lambda: finished(tmp_path, job))
        assert read is None or note.items() <= read.items()
    origin = Origin({"steps": 3}, {"set": "0" * 64})
    told = {
        "key": origin.key,
        "set": "s",
        "corruption": "none",
        "method": "at",
        "report": "as they are",
    }
    cell = {**told, "seconds": 0.25, **dict.fromkeys(FIGURES, 0.5)}
    path = tmp_path / "cell.json"
    write_sealed(path, cell)
    for _ in flips(path, 100, seed=6):
        read = read_or_refused(lambda: read_cell(path, origin))
        assert read is None or cell.items() <= read.items()
    assert finished(tmp_path, job) == note
    assert read_cell(path, origin) == cell


def test_a_done_mark_that_changed_makes_the_student_again(stopped, tmp_path, capsys):
    assert main(stopped) == 0
    student = tmp_path / "student" / "student.safetensors"
    whole = student.read_bytes()
    mark = student.with_name(".student.done")
    content = json.loads(mark.read_text())
    content["document"]["agreement"] = 1.5
    mark.write_text(json.dumps(content))
    capsys.readouterr()
    assert main([*stopped, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["agreement"] <= 1
    assert student.read_bytes() == whole
    assert unseal(json.loads(mark.read_text()))["document"]["agreement"] <= 1


def test_a_report_does_not_show_figures_that_changed(stopped, tmp_path, capsys):
    assert main(stopped) == 0
    path = tmp_path / "student" / "student.json"
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 9'))
    assert main(["report", str(tmp_path / "student")]) == 1
    assert "student.json is not as echoset writes it: it has changed" in capsys.readouterr().err


def test_states_of_any_kind_are_checked(tmp_path):
    path = tmp_path / "x.state"
    state = {"a": torch.arange(5), "b": [1, 2.0, None], "c": {"d": (1, 2)}}
    save_state(path, "k", state)
    read = load_state(path, "other", "k")
    assert torch.equal(read.pop("a"), state.pop("a")) and read == state
    data = path.read_bytes()
    for cut in (0, 10, 80, 90, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(EchosetError, match="delete it"):
            load_state(path, "k")
