"""What the measuring tools share: verbs in processes of their own, polite stops, and files of
figures.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distill.files import write_atomically, write_json
from distill.loop import Interrupted, StopFlag
from distill.sets.transfer_set import TransferSet
from synthesis_kernels.errors import EchosetError

RESULTS = Path(__file__).parent.parent / "configs" / "results"
STOPPED = 130
"""Exit status of whatever Ctrl-C or SIGTERM stopped."""
PLACES = ("data", "photos", "original", "set", "beside")
"""Options whose values are places."""
_stopped = False


@contextmanager
def plain_endings() -> Iterator[None]:
    """End with a line, as the verbs do, where there is a mistake to mend or a stop."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(
            signal.SIGHUP, signal.default_int_handler
        )  # a closed terminal stops the verbs, too
    try:
        yield
    except EchosetError as error:
        raise SystemExit(str(error)) from error
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(f"{str(stopped) or 'stopped'}; the same command goes on", file=sys.stderr)
        raise SystemExit(STOPPED) from None


def run_verb(*command: str) -> dict[str, Any]:
    """The document that a verb prints last."""
    return run_verbs([command])[0]


def run_verbs(commands: Sequence[Sequence[str]], processes: int = 1) -> list[dict[str, Any]]:
    """The documents of several, run so many at a time, each on a thread of its own if there are
    several.

    A stop is passed on to those that run (in sessions of their own, so that they hear it once) and
    waits for them, as they keep what is done. If all of them finish in spite of it, their documents
    are returned, and the next call raises `Interrupted`.
    """
    global _stopped
    if _stopped:
        raise Interrupted
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if processes > 1 else {})
    waiting = list(range(len(commands)))
    running: dict[int, subprocess.Popen] = {}
    documents: dict[int, dict[str, Any]] = {}
    told = False
    with TemporaryDirectory() as folder, StopFlag() as stop:
        try:
            while running or (waiting and not stop.raised):
                while waiting and len(running) < processes and not stop.raised:
                    number = waiting.pop(0)
                    running[number] = _start(
                        commands[number], Path(folder) / str(number), environment
                    )
                time.sleep(0.2)
                if stop.raised and not told:
                    told = True
                    _terminate(running)
                for number in [
                    number for number, process in running.items() if process.poll() is not None
                ]:
                    status, said = running.pop(number).returncode, Path(folder) / str(number)
                    if status == 0:
                        documents[number] = json.loads(
                            said.with_suffix(".out").read_text().splitlines()[-1]
                        )
                    elif status != STOPPED and not stop.raised:
                        wrong = said.with_suffix(".err").read_text()
                        raise SystemExit(
                            f"failed: {shlex.join(['echoset', *commands[number]])}\n{wrong}"
                        )
        finally:  # another one failed, or Ctrl-C came twice
            _terminate(running)
            for process in running.values():
                process.wait()
    _stopped = stop.raised
    if len(documents) < len(commands):
        raise Interrupted
    return [documents[number] for number in range(len(commands))]


def _start(command: Sequence[str], said: Path, environment: dict[str, str]) -> subprocess.Popen:
    print("echoset", *command, file=sys.stderr, flush=True)
    whole = [sys.executable, "-m", "inversion.cli.main", *command, "--json", "--quiet"]
    with (
        open(said.with_suffix(".out"), "w") as output,
        open(said.with_suffix(".err"), "w") as errors,
    ):
        return subprocess.Popen(
            whole, env=environment, stdout=output, stderr=errors, start_new_session=True
        )


def _terminate(running: dict[int, subprocess.Popen]) -> None:
    for process in running.values():
        process.terminate()


def digest(run: Any, *places: str) -> str:
    """Short hash of a verb's options, leaving out its seed, its --out and the other `places` named:
    only those may differ.
    """
    options = asdict(
        replace(run, seed=0, **{name: getattr(type(run), name) for name in ("out", *places)})
    )
    return sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]


def set_hashes(*sets: TransferSet) -> list[str]:
    """What sets hold: the SHA-256 of their shards."""
    return [shard["sha256"] for part in sets for shard in part.manifest["shards"]]


def this_command(places: dict[str | None, str]) -> str:
    """The command that runs this tool, for others to repeat."""
    return hide(shlex.join(["python", f"tools/{Path(sys.argv[0]).name}", *sys.argv[1:]]), places)


def hide(command: str, places: dict[str | None, str]) -> str:
    """The command with `places[path]` for each path, so that it doesn't tell where things lie here;
    a path without a slash is replaced only as the value of one of the options `PLACES`.
    """
    for path in sorted(filter(None, places), key=len, reverse=True):
        before = (
            r"(?<![\w./-])" if "/" in path else "|".join(rf"(?<=--{name}[ =])" for name in PLACES)
        )
        command = re.sub(rf"(?:{before}){re.escape(path)}(?![\w.-])", places[path], command)
    return command


def write_study(path: Path, head: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    """A result file with a cell a line."""
    rows = ",\n ".join(json.dumps(cell) for cell in cells)
    write_atomically(path, f"{json.dumps(head | {'study': []})[:-3]}[\n {rows}\n]}}\n".encode())


def read_runs(path: Path) -> dict[str, Any]:
    """A result file of runs, or the beginning of one."""
    return json.loads(path.read_text()) if path.is_file() else {"runs": []}


def add_run(path: Path, run: dict[str, Any], head: dict[str, Any]) -> None:
    """Add a run to the file as it is now: another process may have added one meanwhile."""
    found = read_runs(path)
    found["runs"].append(run)
    write_json(path, found | head)
