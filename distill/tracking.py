"""Where figures go while a run makes them, beside its log: a CSV file, TensorBoard, or any object
with `log(figures, step)`, such as a run of Weights & Biases.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from synthesis_kernels.errors import EchosetError

Row = dict[str, str]
"""Of a CSV file: a text by the name of its column."""


class Logger(Protocol):
    """Takes the figures of a step."""

    def log(self, figures: dict[str, float], step: int, /) -> Any:
        """Figures by name; `step` counts the calls of a synthesis, or the steps of a training."""


class CsvLog:
    """A CSV file with a row a step, and a column a figure. A run that goes on writes the rows since
    its last saved state again, and these take the place of those that are there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.columns: list[str] = []
        self._begun: set[str] = set()

    def log(self, figures: dict[str, float], step: int, /) -> None:
        """Add a row."""
        row = {"step": str(step), **{name: repr(value) for name, value in figures.items()}}
        stage = next(iter(figures), "").rpartition("/")[0]
        if stage not in self._begun:
            self._begun.add(stage)
            self._begin(row)
        elif set(row) <= set(self.columns):
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._write([*self._read(), row])

    def _begin(self, row: Row) -> None:
        """Keep the rows before this one, and those of other figures."""
        names = set(row) - {"step"}
        kept = []
        for old in self._read():
            alike = any(old[name] for name in names & set(old))
            if not alike or int(old["step"]) < int(row["step"]):
                kept.append(old)
        self._write([*kept, row])

    def _read(self) -> list[Row]:
        """The rows of the file; one that a kill cut short is passed over."""
        if not self.path.is_file():
            return []
        with open(self.path, newline="") as file:
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        rows: list[Row] = list(csv.DictReader(io.StringIO(whole), restval=""))
        if any(not row.get("step", "").isdigit() or None in row for row in rows):
            raise EchosetError(f"{self.path} is no CSV file of figures; choose another path")
        return rows

    def _write(self, rows: list[Row]) -> None:
        # Here, so that the command line's help needs no torch.
        from distill.files import write_atomically

        columns = dict.fromkeys(name for row in rows for name in row)
        self.columns = list(columns)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue().encode())


class TensorBoardLog:
    """Event files for TensorBoard, a folder each stage: `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writers: dict[str, Any] = {}
        self._kind = _summary_writer()

    def log(self, figures: dict[str, float], step: int, /) -> None:
        """Add a point to every figure's curve."""
        for name, value in figures.items():
            self._writer(name.partition("/")[0], step).add_scalar(name, value, step)
        for writer in self._writers.values():
            writer.flush()

    def _writer(self, stage: str, step: int) -> Any:
        """The stage's file; what a stopped run wrote from this step on is not shown."""
        if stage not in self._writers:
            self._writers[stage] = self._kind(str(self.folder / stage), purge_step=step)
        return self._writers[stage]


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise EchosetError(
            f"TensorBoard is not installed: pip install 'echoset[tensorboard]' ({error})"
        ) from error
    return SummaryWriter


TRACKERS: Mapping[str, tuple[Callable[[str], Logger], str]] = {
    "csv": (CsvLog, "figures.csv"),
    "tensorboard": (TensorBoardLog, "tensorboard"),
}
"""What --track names, and where it writes in the run's folder where nothing else is said."""


def check_track(text: str | None) -> None:
    """Refuse what --track does not know."""
    kind = (text or "csv").partition(":")[0]
    if kind not in TRACKERS:
        raise EchosetError(f"track must be csv[:PATH] or tensorboard[:PATH], got {text}")


def open_tracker(text: str | None, out: str | Path, rank: int = 0) -> Logger | None:
    """What `csv`, `tensorboard` or either with `:PATH` names. Of several processes each has a file
    or folder of its own.
    """
    if text is None:
        return None
    check_track(text)
    kind, _, place = text.partition(":")
    make, usual = TRACKERS[kind]
    path = Path(place or Path(out) / usual)
    if rank:
        path = path.with_name(f"{path.stem}-{rank}{path.suffix}")
    return make(str(path))


class Tracker:
    """Hands a stage's figures to a user's logger. Of one that fails this is said, and the run goes
    on without it.
    """

    def __init__(self, logger: Logger | None, stage: str) -> None:
        if logger is not None and not callable(getattr(logger, "log", None)):
            raise EchosetError(
                "log must be an object with a method log(figures, step), as CsvLog has, not a "
                f"{type(logger).__name__}"
            )
        self.logger = logger
        self.stage = stage

    def log(self, figures: Mapping[str, float], step: int, part: str = "") -> None:
        """Hand them on, called STAGE/NAME, or STAGE/PART/NAME."""
        if self.logger is None:
            return
        head = f"{self.stage}/{part}/" if part else f"{self.stage}/"
        try:
            self.logger.log({f"{head}{name}": value for name, value in figures.items()}, step)
        except EchosetError:
            raise
        except Exception as error:  # whatever a user's object raises
            kind = type(self.logger).__name__
            reason = f"{type(error).__name__}: {error}"
            print(f"{kind} failed, and gets no more figures ({reason})", file=sys.stderr)
            self.logger = None
