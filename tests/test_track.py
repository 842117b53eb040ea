"""Figures for others: CSV, TensorBoard, and any object with `log(figures, step)`."""

import csv
import importlib.util
import os
import pty
import re
import sys

import pytest
from conftest import ROOT, TINY_FLAGS, environment

from distill import CsvLog, TensorBoardLog
from distill.loop import Loop
from distill.tracking import Tracker, open_tracker
from synthesis_kernels.errors import EchosetError

SMALL = [*TINY_FLAGS, "--images=10", "--synthesis.batch=20", "--synthesis.calls=2"]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_has_a_row_a_step_and_goes_on_after_a_stop(tmp_path):
    path = tmp_path / "deep" / "figures.csv"
    first = CsvLog(path)
    for step in (1, 2, 3):
        first.log({"synthesis/bn": step / 4}, step)
    first.log({"distillation/loss": 9.0}, 2)
    with open(path, "a") as file:
        file.write("4,0.7")  # cut short by a kill
    second = CsvLog(path)
    second.log({"synthesis/bn": 7.0}, 3)
    second.log({"synthesis/bn": 8.0}, 4)
    shown = [(row["step"], row["synthesis/bn"], row["distillation/loss"]) for row in rows(path)]
    assert shown == [
        ("1", "0.25", ""),
        ("2", "0.5", ""),
        ("2", "", "9.0"),
        ("3", "7.0", ""),
        ("4", "8.0", ""),
    ]


def test_a_new_figure_gets_a_column(tmp_path):
    log = CsvLog(tmp_path / "f.csv")
    log.log({"a/x": 1.0}, 1)
    log.log({"a/x": 2.0, "a/y": 3.0}, 2)
    assert rows(tmp_path / "f.csv") == [
        {"step": "1", "a/x": "1.0", "a/y": ""},
        {"step": "2", "a/x": "2.0", "a/y": "3.0"},
    ]


def test_another_file_is_not_written_over(tmp_path):
    (tmp_path / "f.csv").write_text("name,age\nAnna,7\n")
    with pytest.raises(EchosetError, match="no CSV file of figures"):
        CsvLog(tmp_path / "f.csv").log({"a/x": 1.0}, 1)
    assert "Anna" in (tmp_path / "f.csv").read_text()


@pytest.mark.slow
def test_the_command_line_writes_the_figures_of_the_log(run, tmp_path):
    out = tmp_path / "set"
    run("synthesize", f"--out={out}", "--track=csv", *SMALL)
    figures = rows(out / "figures.csv")
    assert [row["step"] for row in figures][:2] == ["1", "2"]
    assert float(figures[0]["synthesis/kept"]) > 0
    again = tmp_path / "plain"
    run("synthesize", f"--out={again}", *SMALL)
    shard = "shard-00000-of-00001.safetensors"
    assert (out / shard).read_bytes() == (again / shard).read_bytes()


def test_a_track_that_is_none_is_refused(refused):
    assert "csv[:PATH] or tensorboard[:PATH]" in refused("demo", "--track=tensorbord", status=2)


def test_each_process_has_a_file_of_its_own(tmp_path):
    assert open_tracker(None, tmp_path) is None
    assert open_tracker("csv", tmp_path).path == tmp_path / "figures.csv"
    assert open_tracker("csv", tmp_path, 2).path == tmp_path / "figures-2.csv"
    assert open_tracker(f"csv:{tmp_path}/a.csv", "elsewhere").path == tmp_path / "a.csv"


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs tensorboard")
def test_tensorboard_has_a_folder_a_stage(tmp_path):
    log = open_tracker("tensorboard", tmp_path)
    log.log({"synthesis/bn": 0.5}, 1)
    log.log({"distillation/loss": 0.5}, 50)
    stages = {path.parent.name for path in (tmp_path / "tensorboard").rglob("events*")}
    assert stages == {"synthesis", "distillation"}


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(EchosetError, match=r"pip install 'echoset\[tensorboard\]'"):
        TensorBoardLog(tmp_path)


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(capsys):
    class Broken:
        calls = 0

        def log(self, figures, step):
            self.calls += 1
            raise ConnectionError("no network")

    broken = Broken()
    with Loop("work", 2, quiet=True, work="work", logger=broken) as loop:
        for step in (1, 2):
            loop.track({"loss": 1.0}, step)
            loop.advance(step)
    assert broken.calls == 1
    assert "Broken failed" in capsys.readouterr().err
    with pytest.raises(EchosetError, match=r"log\(figures, step\)"):
        Tracker(print, "work")


BAR = """
from distill.loop import StepProgress
with StepProgress({title!r}, 6000) as progress:
    progress._bar.live.auto_refresh = False
    progress.update(3000, "kept 12/20 [1 2 3 4 5 6 7 8 9 10]  bn 1.23  class 0.12")
    progress._bar.refresh()
"""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "shown"),
    [(140, "class 0.12"), (80, "synthesising"), (40, "synth")],
)
def test_a_narrow_terminal_keeps_the_bar_the_count_and_the_time(columns, shown):
    done = draw(BAR.format(title="synthesising"), columns)
    assert "3000/6000" in done and "━" in done and re.search(r"[-\d]:[-\d]{2}:", done)
    assert shown in done
    assert max(map(len, done.splitlines())) <= columns
    assert ("class 0.12" in done) == (columns >= 140)


def draw(code, columns):
    """The last frame that a terminal of so many columns shows."""
    process, terminal = pty.fork()
    if not process:
        kept = environment() | {"COLUMNS": str(columns), "TERM": "xterm"}
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-c", code], kept)
    said = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # its other end was closed
            break
        if not part:
            break
        said += part
    os.waitpid(process, 0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    return [line for line in re.split(r"[\r\n]+", text) if "3000/6000" in line][-1]
