"""Give the readers thousands of files that were changed at random: each is read or refused by an
`EchosetError`, in time and without much memory.

    python tools/mutate.py --count 5000 --seed 0

prints what became of each kind of file, and ends with status 1 where anything went wrong. A kind of
file is a class in `mutated.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mutated import KINDS, Kind

from distill.loop import StepProgress
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.terminal import plain

SECONDS = 10
"""Of computing that a file may take."""
WAITING = 60
"""Times as long on the clock: others may use the machine, or stop the process for a while."""
MEGABYTES = 500
"""Of memory that a file may take beyond twice its size."""


class TooSlowError(BaseException):
    """A file took longer than it may."""


@dataclass
class Outcome:
    """What became of files of one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def run(
    count: int, seed: int, kinds: list[str] | None = None, quiet: bool = True
) -> dict[str, Outcome]:
    """Change and read so many files, of all kinds in turn."""
    names = kinds or list(KINDS)
    outcomes = {name: Outcome() for name in names}
    with (
        tempfile.TemporaryDirectory() as place,
        StepProgress("files", count, quiet) as progress,
    ):
        made = {}
        for name in names:
            folder = Path(place) / name
            folder.mkdir()
            made[name] = KINDS[name](folder)
            result, told = _read(made[name])
            if result != "read":
                raise SystemExit(f"{name}, which nobody changed, is not read: {told}")
        for number in range(count):
            name = names[number % len(names)]
            _try(made[name], f"{seed}/{name}/{number}", outcomes[name])
            progress.update(number + 1)
    return outcomes


def _try(kind: Kind, label: str, outcome: Outcome) -> None:
    """One file: change it, read it, and note how that went."""
    size = kind.change(random.Random(label))
    before = _memory(reset=True)
    began = time.monotonic()
    result, told = _read(kind)
    seconds = time.monotonic() - began
    taken = (_memory() - before) / 1e6
    outcome.counts[result] += 1
    if result in ("traceback", "slow", "wrong"):
        outcome.problems.append(f"{label}: {result}: {told}")
    elif told:
        outcome.refusals.append(f"{label}: {told}")
    if taken > 2 * size / 1e6 + MEGABYTES:
        outcome.counts["memory"] += 1
        outcome.problems.append(f"{label}: took {taken:.0f} MB and {seconds:.1f} s, {result}")


def _read(kind: Kind) -> tuple[str, str]:
    said = io.StringIO()
    try:
        with _within(SECONDS), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            kind.read()
    except EchosetError as error:
        return ("wrong", "an error of no words") if not str(error) else ("refused", str(error))
    except SystemExit as ended:  # of the command line
        return ("refused", "") if ended.code == 2 else ("wrong", f"status {ended.code}")
    except TooSlowError:
        return "slow", "".join(traceback.format_exc().splitlines(keepends=True)[-7:])
    except Exception:
        return "traceback", "".join(traceback.format_exc().splitlines(keepends=True)[-7:])
    if "\x1b" in said.getvalue():
        return "wrong", "what was said orders the terminal about"
    return "read", ""


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Break off what computes longer, or waits much longer, where there are signals for it."""

    def stop(*_: object) -> None:
        raise TooSlowError

    if not hasattr(signal, "SIGPROF"):
        yield
        return
    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, stop) for number in timers}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _memory(reset: bool = False) -> int:
    """The most bytes that this process has had since the last reset; 0 where Linux is not there."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> int:
    """Run, and print a line a kind, the problems and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="files in all")
    parser.add_argument("--seed", type=int, default=0, help="of all changes")
    parser.add_argument("--kind", action="append", choices=KINDS, help="these alone")
    parser.add_argument("--refusals", action="store_true", help="show what was said")
    given = parser.parse_args()
    began = time.monotonic()
    outcomes = run(given.count, given.seed, given.kind, quiet=False)
    for name, outcome in outcomes.items():
        told = ", ".join(f"{count} {result}" for result, count in outcome.counts.most_common())
        print(f"{name:12}{told}")
        for problem in outcome.problems + (outcome.refusals if given.refusals else []):
            print(f"  {plain(problem)}")
    counts = {name: dict(outcome.counts) for name, outcome in outcomes.items()}
    seconds = round(time.monotonic() - began)
    print(json.dumps({"count": given.count, "seed": given.seed, "seconds": seconds, **counts}))
    return 1 if any(outcome.problems for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
