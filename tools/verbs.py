"""Verbs of the command line in processes of their own, with polite stops: what the measuring tools
share.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from distill.loop import Interrupted, StopFlag
from inversion.cli.main import parse
from synthesis_kernels.errors import EchosetError

STOPPED = 130
"""Exit status of whatever Ctrl-C or SIGTERM stopped."""
LOOK = 0.2
"""Seconds between two looks at what runs."""
Options = TypeVar("Options")
_stopped = False


def new_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def read_options(kind: type[Options], verb: str, arguments: Sequence[str]) -> Options:
    """A verb's options, of the class that the verb has."""
    options = parse(verb, list(arguments))
    if not isinstance(options, kind):
        raise TypeError(f"{verb} has {type(options).__name__}, not {kind.__name__}")
    return options


@contextmanager
def plain_endings() -> Iterator[None]:
    """End with a line, as the verbs do, where there is a mistake to mend or a stop."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        # A closed terminal stops the verbs, too.
        signal.signal(signal.SIGHUP, signal.default_int_handler)
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

    A stop is passed on to those that run and waits for them, as they keep what is done. If all of
    them finish in spite of it, their documents are returned, and the next call raises
    `Interrupted`.
    """
    global _stopped
    if _stopped:
        raise Interrupted
    with TemporaryDirectory() as folder, StopFlag() as stop:
        pool = _Pool(commands, processes, Path(folder))
        try:
            pool.run(stop)
        finally:
            # Another one failed, or Ctrl-C came twice.
            pool.end()
    _stopped = stop.raised
    if len(pool.documents) < len(commands):
        raise Interrupted
    return [pool.documents[number] for number in range(len(commands))]


class _Running(NamedTuple):
    """A verb's process, and where it writes."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path


class _Pool:
    """Verbs that run side by side, each in a session of its own, so that it hears a stop once."""

    def __init__(self, commands: Sequence[Sequence[str]], processes: int, folder: Path) -> None:
        self.commands = commands
        self.processes = processes
        self.folder = folder
        self.environment = dict(os.environ)
        if processes > 1:
            self.environment["OMP_NUM_THREADS"] = "1"
        self.waiting = list(range(len(commands)))
        self.running: dict[int, _Running] = {}
        self.documents: dict[int, dict[str, Any]] = {}

    def run(self, stop: StopFlag) -> None:
        """Run all, or, once there is a stop, those that have begun."""
        told = False
        while self.running or (self.waiting and not stop.raised):
            while self.waiting and len(self.running) < self.processes and not stop.raised:
                self._start(self.waiting.pop(0))
            time.sleep(LOOK)
            if stop.raised and not told:
                told = True
                self._terminate()
            self._gather(stop)

    def end(self) -> None:
        """Stop what still runs, and wait for it."""
        self._terminate()
        for each in self.running.values():
            each.process.wait()

    def _start(self, number: int) -> None:
        command = self.commands[number]
        print("echoset", *command, file=sys.stderr, flush=True)
        whole = [sys.executable, "-m", "inversion.cli.main", *command, "--json", "--quiet"]
        output = self.folder / f"{number}.out"
        errors = self.folder / f"{number}.err"
        with open(output, "w") as out, open(errors, "w") as err:
            process = subprocess.Popen(
                whole, env=self.environment, stdout=out, stderr=err, start_new_session=True
            )
        self.running[number] = _Running(process, output, errors)

    def _gather(self, stop: StopFlag) -> None:
        """Take the documents of those that have ended; one that failed ends all."""
        ended = [number for number, each in self.running.items() if each.process.poll() is not None]
        for number in ended:
            verb = self.running.pop(number)
            status = verb.process.returncode
            if status == 0:
                self.documents[number] = json.loads(verb.output.read_text().splitlines()[-1])
            elif status != STOPPED and not stop.raised:
                command = shlex.join(["echoset", *self.commands[number]])
                raise SystemExit(f"failed: {command}\n{verb.errors.read_text()}")

    def _terminate(self) -> None:
        for each in self.running.values():
            each.process.terminate()
