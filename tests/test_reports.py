"""Reports of what networks decide: by class, what is confused, mistakes, and two runs abreast."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_pages import SCRIPT, write_set

from distill import evaluate, load_images
from distill.evaluation import predict
from inversion import MNIST_SLICE
from inversion.pages.comparison import write_comparison
from inversion.pages.gallery import LARGEST, gallery, thumbnail
from inversion.pages.judged_sections import judged_part
from inversion.pages.judging import MOST_MISTAKES, judge
from inversion.pages.page import render
from inversion.pages.report import write_report
from inversion.pages.student import write_evaluation
from synthesis_kernels.errors import EchosetError

TRUTH = torch.tensor([0, 0, 0, 1, 1, 2])
STUDENT = torch.tensor([0, 0, 1, 2, 2, 2])
TEACHER = torch.tensor([0, 0, 0, 1, 1, 0])


def pictures(count, size=8):
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 1, size, size), dtype=torch.uint8, generator=random)


def judged(**more):
    """Six test images of three classes, as a student and its teacher decide them."""
    return judge(pictures(6), TRUTH, STUDENT, 3, TEACHER, **more)


def page_of(document):
    """The page about these answers, as a browser has its text."""
    part = judged_part(document)
    content = {"lead": "", "rows": [("",)], "notes_below": [], "provenance": [], "options": ""}
    page = render("student.html.j2", title="t", judged_images=part, sections=[], **content)
    return page.decode()


def labelled_set(folder, **more):
    return write_set(folder, torch.tensor([0, 1, 2] * 4), **more)


def test_each_class_has_the_students_accuracy_and_the_teachers():
    assert judged_part(judged()).classes == [
        ("class", "images", "student", "teacher"),
        ("0", "3", "66.7%", "100.0%"),
        ("1", "2", "0.0%", "100.0%"),
        ("2", "1", "100.0%", "0.0%"),
    ]


def test_a_class_without_test_images_has_no_accuracy():
    document = judge(pictures(1), TRUTH[:1], STUDENT[:1], 3)
    assert judged_part(document).classes[2] == ("1", "0", "–")


def test_the_matrix_counts_what_is_taken_for_what_and_shades_shares_of_a_row():
    rows = judged_part(judged()).matrix
    counts = [[cell.text for cell in cells] for _, cells in rows]
    assert counts == [["2", "1", "·"], ["·", "·", "2"], ["·", "·", "1"]]
    assert [cell.shade for cell in rows[0][1]] == ["0.67", "0.33", "0.00"]
    assert page_of(judged()).count("background: rgba(") == 9


def test_mistakes_are_shown_with_both_answers_and_said_to_be_judged_only():
    part = judged_part(judged())
    said = [picture.lines for picture in part.mistakes]
    assert said[0] == ["is 0", "student: 1", "teacher: 0"] and len(said) == 3
    assert "3 of 3 wrong decisions" in part.mistakes_note and "only judged" in part.mistakes_note


def test_mistakes_are_few_however_many_there_are():
    wrong = torch.ones(500).long()
    document = judge(pictures(500), wrong, 0 * wrong, 3)
    assert len(document["mistakes"]) == MOST_MISTAKES
    assert document["pairs"] == [[1, 0, 500]]


def test_without_test_data_a_page_tells_agreement_and_where_both_differ():
    document = judge(pictures(6), TEACHER, STUDENT, 3, tested=False)
    part = judged_part(document)
    assert part.title == "Agreement by class" and "No test data was given" in part.note
    assert part.classes[0] == ("class", "images", "agreement")
    assert part.mistakes[0].lines == ["student: 1", "teacher: 0"]


def test_names_of_classes_stand_beside_their_numbers():
    page = page_of(judged(class_names=["cat", "dog", "2"]))
    assert "<td>0 (cat)" in page and "is 1 (dog)" in page and "<td>2<" in page


def test_whatever_the_files_say_is_escaped():
    document = judged(class_names=[SCRIPT] * 3, networks=(SCRIPT, SCRIPT))
    document["data"] = SCRIPT
    document["mistakes"][0]["png"] = f'"{SCRIPT}'
    page = page_of(document)
    assert "<script" not in page and page.count("&lt;script&gt;") > 10
    assert "&#34;&lt;script" in page  # does not leave its attribute


def test_a_thousand_classes_have_the_worst_pairs_and_a_small_page():
    random = torch.Generator().manual_seed(0)
    truth = torch.randint(1000, (5000,), generator=random)
    decided = torch.where(torch.rand(5000, generator=random) < 0.5, truth, truth // 2)
    document = judge(pictures(5000), truth, decided, 1000, truth)
    part = judged_part(document)
    page = page_of(document)
    assert not part.matrix and len(part.pairs) == 11 and len(part.classes) == 11
    assert "of 1,000 classes" in part.more and "classes by accuracy" in page
    assert len(page) < 60_000


def test_decisions_on_pixels_are_counted_and_no_image_is_called_a_mistake():
    truth = torch.tensor([[[0, 1], [1, 2]]])
    document = judge(pictures(1), truth, truth.flip(1), 3)
    assert document["counts"] == [1, 2, 1] and not document["mistakes"]
    assert judged_part(document).matrix[0][1][1].text == "1"


def test_large_pictures_are_shrunk_on_a_page():
    images = pictures(20, size=200).numpy()
    strip = gallery(images, np.zeros(20, int), 1).strips[0]
    assert (strip.width, strip.height) == (16 * LARGEST, LARGEST)
    shown = Image.open(io.BytesIO(base64.b64decode(thumbnail(images[0]))))
    assert shown.size == (LARGEST, LARGEST)


def score_file(folder, shards, name="it"):
    values = {"coverage_raw": None, "coverage": 0.5, "vendi": 12.34}
    card = {"overall": 0.25, "values": values, "shards": shards}
    (folder / "score.json").write_text(json.dumps({"ranked": ["x", name], "sets": {name: card}}))


def test_the_scorecards_verdict_is_told_of_the_set_it_scored_alone(tmp_path):
    folder = labelled_set(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    score_file(folder, [shard["sha256"] for shard in manifest["shards"]])
    page = write_report(folder).read_text()
    assert "gives the set 0.250 of 1 overall: class coverage 0.500 after filtering" in page
    assert "place 2 of 2 sets" in page
    score_file(folder, ["another"])
    assert "scorecard" not in write_report(folder).read_text()
    (folder / "score.json").write_text('{"sets": {"it": {}}}')
    with pytest.raises(EchosetError, match=r"score\.json is not as echoset writes it"):
        write_report(folder)


def cells_of(page):
    """Rows of all tables, each as its cells' text."""
    rows = []
    for row in re.findall(r"<tr>(.*?)\n", page):
        cells = re.split(r"<t[dh][^>]*>", row)[1:]
        rows.append([html.unescape(cell) for cell in cells])
    return rows


def test_two_runs_stand_side_by_side_with_the_options_that_differ(tmp_path):
    configs = {"a": {"calls": 8, "generator": {"width": 32}}, "b": {"calls": 9}}
    for name, config in configs.items():
        folder = labelled_set(tmp_path / name, config=config)
        told = {"classes": 3, "tested": True, "counts": [4, 4, 0], "right": [2, 4, 0]}
        if name == "b":
            told["right"] = [3, 4, 0]
        (folder / "judged.json").write_text(json.dumps(told))
        options = {"distillation": {"steps": 5, "batch": len(name)}}
        student = {"options": options, "model": SCRIPT, "parameters": 7, "agreement": 0.5}
        (folder / "student.json").write_text(json.dumps(student))
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    score_file(tmp_path / "b", [shard["sha256"] for shard in manifest["shards"]])
    page = write_comparison(tmp_path / "a", tmp_path / "b").read_text()
    rows = cells_of(page)
    assert ["images of the set", "12", "12"] in rows
    assert ["scorecard, overall", "–", "0.250"] in rows
    assert ["set.calls", "8", "9"] in rows and ["set.generator.width", "32", "–"] in rows
    assert not [row for row in rows if row[0].startswith("distillation")]
    assert ["0", "50.0%", "75.0%", "+25.0"] in rows and ["1", "100.0%", "100.0%", "+0.0"] in rows
    assert "<script" not in page and ["student", SCRIPT, SCRIPT] in rows


def test_a_folder_that_holds_no_run_is_named(tmp_path):
    labelled_set(tmp_path / "a")
    with pytest.raises(EchosetError, match=r"empty holds neither a demo"):
        write_comparison(tmp_path / "a", tmp_path / "empty")


def test_report_takes_one_folder_or_two_as_words(run, refused, tmp_path):
    first = labelled_set(tmp_path / "a")
    second = labelled_set(tmp_path / "b")
    for flags in ([first], ["--quiet", first], [f"--run={first}"]):
        run("report", *flags)
        assert (first / "report.html").is_file()
        (first / "report.html").unlink()
    for flags in (
        [first, second],
        [first, "--against", second],
        [f"--run={first}", f"--against={second}"],
    ):
        run("report", *flags)
        assert "Two runs" in (first / "comparison.html").read_text()
        (first / "comparison.html").unlink()
    run("report", first, second, f"--out={tmp_path / 'c.html'}")
    assert (tmp_path / "c.html").is_file() and not (first / "report.html").exists()
    assert "error" in refused("report", first, second, first, status=2)


def test_a_pages_network_is_judged_by_class_and_beside_another(run, few, tmp_path):
    page = tmp_path / "pages" / "e.html"
    command = ("evaluate", "--model=mnist", "--against=mnist", f"--data={few}")
    plain = json.loads(run(*command, "--json").stdout.splitlines()[-1])
    *_, said, document = run(*command, f"--page={page}", "--json").stdout.splitlines()
    told = json.loads(document)
    assert said == f"page: {page}"
    assert told.pop("page") == str(page) and told == plain
    text = page.read_text()
    assert ["class", "images", "network", "other"] in cells_of(text)
    assert not re.search(r"(src|href)=.?(https?:|/|\.)|<script", text)


def test_a_page_is_not_written_over_a_network(refused, tmp_path):
    said = refused("evaluate", "--model=mnist", f"--page={tmp_path / 'student.safetensors'}")
    assert "--page is the page to write and should end in .html" in said


def test_answers_that_are_known_give_the_same_figures(teacher):
    data = load_images(MNIST_SLICE).chosen(torch.arange(0, 2000, 40))
    logits = predict(teacher, data.images, torch.device("cpu"))
    known = evaluate(teacher, data, teacher, teacher_logits=logits, logits=logits)
    assert known == evaluate(teacher, data, teacher)


@pytest.mark.slow
def test_distill_leaves_what_a_page_about_the_student_shows(run, few, tmp_path):
    out = tmp_path / "student"
    run("distill", f"--set={few}", "--teacher=mnist", "--distillation.steps=2", f"--out={out}")
    run("report", out)
    text = (out / "report.html").read_text()
    assert "A student, convnet-16, has learnt from 200 images" in text
    assert ["class", "images", "agreement"] in cells_of(text) and "Where they differ" in text
    assert json.loads((out / "student.json").read_text())["options"]["distillation"]["steps"] == 2
    (out / "student.json").write_text("{}")
    with pytest.raises(EchosetError, match=r"student\.json is not as echoset writes it: it lacks"):
        from inversion.pages.student import write_student

        write_student(out)


def test_an_evaluations_page_needs_no_second_network(tmp_path):
    document = judge(pictures(6), TRUTH, STUDENT, 3, networks=["network"])
    write_evaluation(SCRIPT, [("", SCRIPT)], document, SCRIPT, tmp_path / "e.html")
    text = (tmp_path / "e.html").read_text()
    assert "<script" not in text and ["class", "images", "network"] in cells_of(text)
