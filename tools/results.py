"""Files of figures in `configs/results`, and the commands that stand in them."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from distill.files import write_atomically, write_json
from distill.sets.transfer_set import TransferSet

Figures = dict[str, Any]
"""What a result file has of one run, cell or set."""
RESULTS = Path(__file__).parent.parent / "configs" / "results"
PLACES = ("data", "photos", "original", "set", "beside")
"""Options whose values are places."""


def pick(figures: Mapping[str, Any], names: Iterable[str]) -> Figures:
    """Those of the figures that have these names."""
    return {name: figures[name] for name in names}


def digest(run: Any, *places: str) -> str:
    """Short hash of a verb's options, leaving out its seed, its --out and the other `places` named:
    only those may differ.
    """
    usual = {name: getattr(type(run), name) for name in ("out", *places)}
    options = asdict(replace(run, seed=0, **usual))
    return sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]


def set_hashes(*sets: TransferSet) -> list[str]:
    """What sets hold: the SHA-256 of their shards."""
    return [shard["sha256"] for part in sets for shard in part.manifest["shards"]]


def this_command(places: Mapping[str | None, str]) -> str:
    """The command that runs this tool, for others to repeat."""
    tool = f"tools/{Path(sys.argv[0]).name}"
    return hide(shlex.join(["python", tool, *sys.argv[1:]]), places)


def hide(command: str, places: Mapping[str | None, str]) -> str:
    """The command with `places[path]` for each path, so that it doesn't tell where things lie here;
    a path without a slash is replaced only as the value of one of the options `PLACES`.
    """
    paths = [path for path in places if path]
    for path in sorted(paths, key=len, reverse=True):
        before = r"(?<![\w./-])"
        if "/" not in path:
            before = "|".join(rf"(?<=--{name}[ =])" for name in PLACES)
        command = re.sub(rf"(?:{before}){re.escape(path)}(?![\w.-])", places[path], command)
    return command


def write_study(path: Path, head: Figures, cells: list[Figures]) -> None:
    """A result file with a cell a line."""
    rows = ",\n ".join(json.dumps(cell) for cell in cells)
    beginning = json.dumps(head | {"study": []}).removesuffix("[]}")
    write_atomically(path, f"{beginning}[\n {rows}\n]}}\n".encode())


def read_runs(path: Path, kind: str = "runs") -> Figures:
    """A result file of runs of this kind, or the beginning of one."""
    return json.loads(path.read_text()) if path.is_file() else {kind: []}


def add_run(path: Path, run: Figures, head: Figures, kind: str = "runs") -> None:
    """Add a run to the file as it is now: another process may have added one meanwhile."""
    document = read_runs(path, kind)
    document[kind].append(run)
    write_json(path, document | head)
