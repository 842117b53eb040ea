"""Test parts of label maps whose answers take more memory than there may be: counted in parts."""

import pytest
import torch
from conftest import last_json
from roads import CLASSES, SIZE, VOID, Dense, save_network, write_pairs

from distill import (
    DistillOptions,
    Images,
    Maps,
    StudentOptions,
    evaluate,
    load_classifier,
    load_images,
    run_study,
    tally,
)
from distill import evaluation as judging
from distill.options import StudyOptions
from distill.runtime import Runtime
from distill.tasks import places
from inversion.cli.schema import DemoRun
from inversion.cli.verbs.demo_judging import judge_demo
from inversion.cli.verbs.judged import judge_student

RUN = Runtime(device="cpu", precision="float32", quiet=True)
COUNT = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_network(folder / f"{seed}.safetensors", Dense())
    return folder


@pytest.fixture(scope="module")
def networks(files):
    return [load_classifier(files / f"{seed}.safetensors", trust=True) for seed in (1, 2)]


@pytest.fixture(scope="module")
def pictures(files):
    write_pairs(files / "test", COUNT)
    return files / "test"


@pytest.fixture
def data(pictures):
    return load_images(pictures, maps=Maps(VOID, CLASSES))


@pytest.fixture
def little_memory(monkeypatch):
    """Answers to 8 images fit, and a network is asked about 3 of them at once."""
    monkeypatch.setattr(places, "MOST_ROWS", 8 * 4 * CLASSES * SIZE[0] * SIZE[1])
    monkeypatch.setattr(tally, "AT_ONCE", 1)
    monkeypatch.setattr(judging, "BATCH", 3)


def assert_alike(found, expected):
    """The same counts and calibration; entropies are added up in another order."""
    assert found.entropy == pytest.approx(expected.entropy, rel=1e-6)
    assert found.ece == pytest.approx(expected.ece, abs=1e-9)
    for name in ("accuracy", "per_class", "agreement", "images", "own", "top5"):
        assert getattr(found, name) == getattr(expected, name), name


def test_figures_are_those_of_the_whole(networks, data, request):
    student, teacher = networks
    expected = evaluate(student, data, teacher, runtime=RUN)
    assert 0 < expected.agreement < 1 and 0 < expected.own["mean_iou"] < 1
    request.getfixturevalue("little_memory")
    kept = []
    found = evaluate(student, data, teacher, runtime=RUN, look=lambda *each: kept.append(each))
    assert_alike(found, expected)
    assert [len(own) for own, _ in kept] == [3] * 6 + [2]
    with torch.no_grad():
        answers = [network.eval()(data.images.float() / 255).argmax(1) for network in networks]
    for place, decided in enumerate(answers):
        assert torch.equal(torch.cat([each[place] for each in kept]), decided)


def test_no_more_is_kept_of_more_images(networks, data, little_memory):
    many = Images(data.images.repeat(5, 1, 1, 1), data.labels.repeat(5, 1, 1), "many")
    sizes = []
    found = evaluate(networks[0], many, runtime=RUN, look=lambda own, _: sizes.append(len(own)))
    assert max(sizes) == 3 and found.images == 5 * COUNT
    once = evaluate(networks[0], data, runtime=RUN)
    assert found.own["iou"] == pytest.approx(once.own["iou"])
    assert found.ece == pytest.approx(once.ece, abs=1e-9)


def test_the_command_writes_its_page(files, pictures, run, tmp_path, request):
    asked = ["evaluate", f"--model={files / '1.safetensors'}", "--trust", f"--data={pictures}"]
    asked += [f"--void={VOID}", f"--against={files / '2.safetensors'}", "--device=cpu", "--json"]
    whole = last_json(run(*asked, f"--page={tmp_path / 'page.html'}"))
    page = (tmp_path / "page.html").read_text()
    request.getfixturevalue("little_memory")
    parts = last_json(run(*asked, f"--page={tmp_path / 'page.html'}"))
    assert parts.pop("entropy") == pytest.approx(whole.pop("entropy"), rel=1e-6)
    assert parts.pop("ece") == pytest.approx(whole.pop("ece"), abs=1e-9)
    assert parts == whole and (tmp_path / "page.html").read_text() == page


def test_a_student_is_compared_with_its_teacher_on_as_many_as_fit(networks, data, little_memory):
    document = judge_student(*networks, data, RUN, "pictures")
    assert document["images"] == 8 and len(document["samples"]) == 8


def test_a_demo_judges_both_networks(networks, data, request):
    student, teacher = networks
    run = DemoRun(data="pictures", device="cpu", precision="float32", quiet=True)
    whole = judge_demo(run, teacher, student, data, None)
    request.getfixturevalue("little_memory")
    parts = judge_demo(run, teacher, student, data, None)
    assert_alike(parts.student, whole.student)
    assert_alike(parts.teacher, whole.teacher)
    assert parts.judged == whole.judged


def test_a_study_asks_the_teacher_for_each_cell(networks, data, tmp_path, little_memory):
    cells = run_study(
        networks[0],
        {"same": data},
        data,
        tmp_path,
        StudentOptions("roads.Dense"),
        StudyOptions(methods=("plain",), seeds=(0,), attacks=0),
        DistillOptions(steps=2, batch=4, views_per_image=0),
        runtime=RUN,
    )
    assert len(cells) == 1 and 0 <= cells[0]["agreement"] <= 1
