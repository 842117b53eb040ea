"""What the tools share, and the small ones."""

import json
import math
import runpy
import signal
import sys

import gpu
import publish_study
import pytest
import results
import tables
from conftest import ROOT
from verbs import plain_endings, run_verb, run_verbs

from distill.loop import Interrupted


@pytest.fixture
def verbs(tmp_path, monkeypatch):
    """Shell scripts in the place of verbs, which find the verb's name in $3; the folder that they
    run in.
    """

    def write(script):
        program = tmp_path / "echoset"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr("verbs._stopped", False)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return write


def test_verbs_run_side_by_side_and_answer_in_order(verbs):
    answer = """printf 'said\\n["%s", %s]' $3 $OMP_NUM_THREADS"""
    verbs(f"touch $3; until [ -e one ] && [ -e two ]; do sleep 0.02; done; {answer}")
    assert run_verbs([["one"], ["two"]], processes=2) == [["one", 1], ["two", 1]]


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_stopped_tool_waits_for_what_runs(verbs, capsys, name):
    folder = verbs(
        f"trap 'sleep 0.3; touch kept; exit 130' TERM; kill -{name} $PPID; while :; do sleep "
        "0.02; done"
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended, plain_endings():
        run_verbs([["demo"], ["never"]])
    assert ended.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    assert (folder / "kept").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_stop_that_came_too_late_for_one_verb_holds_for_the_next(verbs):
    verbs("trap : TERM; kill -INT $PPID; sleep 0.5; echo '[1]'")
    assert run_verb("demo") == [1]
    with pytest.raises(Interrupted):
        run_verb("demo")


def test_a_verb_that_fails_ends_the_others_first(verbs):
    long = "trap 'sleep 0.3; touch kept; exit 130' TERM; touch ready; while :; do sleep 0.02; done"
    folder = verbs(
        f"if [ $3 = long ]; then {long}; fi; until [ -e ready ]; do sleep 0.02; done; echo why "
        ">&2; exit 1"
    )
    with pytest.raises(SystemExit, match="failed: echoset wrong 'a b'\nwhy"):
        run_verbs([["long"], ["wrong", "a b"]], processes=2)
    assert (folder / "kept").exists()


def test_published_commands_tell_no_places(monkeypatch):
    words = ["--data=/home/me/data", "--set", "data", "--labels", "data", "--out", "a b"]
    monkeypatch.setattr(sys, "argv", ["/home/me/tools/measure_x.py", *words])
    assert results.this_command({"/home/me/data": "DIR", "data": "SET", None: "NONE"}) == (
        "python tools/measure_x.py --data=DIR --set SET --labels data --out 'a b'"
    )
    sets = """'{"real": "/d", "made": "/b/set", "here": "runs/c"}'"""
    assert publish_study.public(
        f"echoset study --sets {sets} --original /d --data=/d --rank 1 --world 2"
    ) == (
        """echoset study --sets '{"real": "DIR", "made": "SET", "here": "runs/c"}' --original DIR --data=DIR"""
    )


def test_a_study_is_published_a_cell_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(publish_study, "RESULTS", tmp_path / "results")
    run = dict.fromkeys(publish_study.KEPT, 0.1234567) | {"device": "a CPU", "torch": "2"}
    (tmp_path / "study.json").write_text(
        json.dumps({"command": "echoset study --data /d", "runs": [run, run], "rows": []})
    )
    assert publish_study.publish(tmp_path / "study.json", "mine") == []
    text = (tmp_path / "results" / "mine.json").read_text()
    found = json.loads(text)
    assert (
        found["command"] == "echoset study --data DIR" and found["study"][1]["accuracy"] == 0.12346
    )
    assert len(text.splitlines()) == 4


def test_a_part_out_of_time_ends_with_what_it_has_started():
    """The second process would hold the output open for a minute."""
    status, output = gpu.run_part(["sh", "-c", "echo begun; sleep 60 & wait"], 3)
    assert status == 124 and output.splitlines() == ["begun", "", "out of time after 3 s"]
    assert gpu.run_part(["sh", "-c", "echo done; exit 3"], 30) == (3, "done\n")


def test_parts_of_the_gpu_run_end_within_eight_minutes():
    assert [part.name for part in gpu.PARTS] == ["demo", "bench", "tests"]
    assert sum(part.seconds for part in gpu.PARTS) <= 480


def test_figures_of_a_part_are_kept_whatever_the_next_one_does(tmp_path, monkeypatch, capsys):
    """Each part finds those before it in the file, and one that hangs takes nothing along."""
    out = tmp_path / "runs" / "gpu.json"
    say = """echo a table; echo '{"accuracy": 0.9}'; echo a warning >&2"""
    look = f"""grep -c -e '"demo"' -e '"bench"' {out}"""
    hang = "echo begun; sleep 60 & echo why >&2; wait"
    parts = [("demo", say, 30), ("bench", hang, 1), ("tests", look, 30)]
    monkeypatch.setattr(
        gpu, "PARTS", [gpu.Part(name, ["sh", "-c", line], limit) for name, line, limit in parts]
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a device")
    assert gpu.main(out) == 1
    document = json.loads(out.read_text())
    assert document["device"] == "a device"
    assert document["demo"]["result"] == {"accuracy": 0.9} and document["demo"]["status"] == 0
    assert document["bench"]["status"] == 124 and "why" in document["bench"]["result"]
    assert document["tests"]["result"] == "2"
    shown = capsys.readouterr().out
    assert "a table" in shown and "accuracy" not in shown.split("why")[0]


@pytest.mark.parametrize("name", ["gallery", "make_mnist_slice"])
def test_help_is_no_path(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


@pytest.fixture
def table_of(tmp_path, monkeypatch):
    """A table of a page, from a result file with this content."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def made(table, name, content):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tables.render(f"<!-- table: {table} -->\n<!-- end -->")

    return made


def demo_run(accuracy):
    seconds = {"synthesis": 60.0, "distillation": 120.0, "total": 200.0}
    return {"student_accuracy": accuracy, "images": 5000, "seconds": seconds}


def test_demos_have_a_row_a_configuration(table_of):
    row = "| `cifar10-wrn` | 5,000 | 2 | 86.00 ± 1.41 | 85.00 | 1.0 | 0.0 | 2.0 | 3.3 |"
    assert row in table_of("cifar10", "cifar10-wrn", {"runs": [demo_run(0.85), demo_run(0.87)]})
    beside = {"runs": [demo_run(0.85) | {"beside": {"images": 1500}}]}
    assert "| 5,000 + 1,500 | 1 | 85.00 |" in table_of("cifar10-small", "cifar10-small", beside)
    # Small ones have a table of their own, and what has no runs is in none.
    shown = table_of("cifar10", "cifar10-curve", {"study": []})
    assert row in shown and "small" not in shown and "curve" not in shown


def test_points_of_a_curve_are_means_over_seeds(table_of):
    cell = {"set": "real", "method": "hinton", "set_size": 5000, "steps": 900, "agreement": 0.91}
    cells = [cell | {"accuracy": accuracy} for accuracy in (0.9, 0.92)]
    cells.append(cell | {"set_size": 500, "accuracy": 0.7})
    shown = table_of("curve", "cifar10-curve", {"study": cells})
    row = "| real | `hinton` | 5,000 | 900 | 2 | 91.00 ± 1.41 | 91.00 ± 0.00 |"
    assert f"{row}\n<!--" in shown


def test_students_have_a_row_a_kind(table_of):
    runs = []
    for seed, accuracy in enumerate((0.8, 0.82)):
        run = {"name": "wrn-16-1", "steps": 2000, "parameters": 175_066, "images": 5000}
        run |= {"beside": None, "seconds": {"distillation": 90.0}}
        run |= {"student_accuracy": accuracy, "agreement": accuracy}
        runs.append(run | {"command": f"echoset distill --seed {seed} --student wrn-16-1"})
    row = "| wrn-16-1 | 175,066 | 5,000 | 2,000 | 2 | 81.00 ± 1.41 | 81.00 ± 1.41 | 1.5 |"
    assert row in table_of("students", "cifar10-students", {"runs": runs})


def test_teachers_have_a_row_each_and_the_page_around_stays(table_of):
    teacher = {"name": "wrn-40-2", "accuracy": 0.94, "parameters": 2_243_546}
    teacher |= {"seconds": 5400, "device": "a CPU"}
    row = "| wrn-40-2 | 94.00 | 2,243,546 | 90 | a CPU |"
    assert row in table_of("teachers", "teachers", {"teachers": [teacher]})
    page = "a\n<!-- table: teachers -->\nold\n<!-- end -->\nc\n"
    shown = tables.render(page)
    assert shown.startswith("a\n") and shown.endswith("c\n") and "old" not in shown
    assert row in shown and tables.render(shown) == shown


def test_a_page_that_asks_for_an_unknown_table_is_refused():
    with pytest.raises(SystemExit, match="'nothing'"):
        tables.render("<!-- table: nothing -->\n<!-- end -->")


def test_differences_have_student_s_interval():
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    rows = [
        ("uniform", 0, 0.80),
        ("uniform", 1, 0.82),
        ("priority", 0, 0.81),
        ("priority", 1, 0.84),
    ]
    runs = [
        {
            "name": name,
            "seed": seed,
            "calls": 40 + seed,
            "cross_agreement": value,
            "student_accuracy": value,
            "seconds": {"synthesis": 9.0},
        }
        for name, seed, value in rows
    ]
    table = tables.reweighting(runs)
    assert "| uniform | 81.00 % | -1.50 ± 6.35 | 81.00 % | -1.50 ± 6.35 | 9 | 40, 41 |" in table
    assert "| priority | 82.50 % | – | 82.50 % | – | 9 | 40, 41 |" in table
