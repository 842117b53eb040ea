"""Make the environment that `make gpu` runs in, over whatever Python this is.

    python tools/gpu_setup.py .venv-gpu

Where this Python has torch, its packages are used as they are, be it a system's Python or that of
another environment, and only what is missing is fetched. Without a network, what is missing is
named. The checkout itself is on the new environment's path, and needs no installing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = "zz_outer.pth"
"""Read last of the environment's path files: what is installed in it comes first."""
FOR_TESTS = ("pytest>", "hypothesis", "triton")
"""Of the extra `dev`, what a machine with a GPU needs."""

Lacking = dict[str, str | None]
"""Requirements that are not met, and the version there is of each, if any."""


def make(folder: Path) -> Path:
    """The environment's Python. Packages of this Python are linked in where torch is one of
    them.
    """
    settings = folder / "pyvenv.cfg"
    made = settings.read_text() if settings.exists() else ""
    is_same = f"version = {platform.python_version()}\n" in made
    if not is_same or not (folder / "bin" / "pip").exists():
        venv.create(folder, symlinks=True, with_pip=True, clear=True)
    python = folder.absolute() / "bin" / "python"
    lines = [str(ROOT)]
    if importlib.util.find_spec("torch") is not None:
        lines += outer_paths()
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    told = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    Path(told.stdout.strip(), LINK).write_text("".join(f"{line}\n" for line in lines))
    return python


def outer_paths() -> list[str]:
    """Where this Python finds packages, its own library aside."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    own.add(sysconfig.get_config_var("DESTSHARED"))
    own.add(str(ROOT / "tools"))
    return [path for path in sys.path if path not in own and Path(path).is_dir()]


def lacking() -> Lacking:
    """What this Python lacks of what the packages and the tests of a GPU need."""
    found: Lacking = {}
    for wanted in _requirements():
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found[str(wanted)] = None
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            found[str(wanted)] = version
    return found


def _requirements() -> Iterator[Any]:
    """Those of pyproject.toml, parsed, and what their extras add to them."""
    # A plain environment has no other parser.
    from pip._vendor.packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dev = project["optional-dependencies"]["dev"]
    for line in [*project["dependencies"], *[each for each in dev if each.startswith(FOR_TESTS)]]:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate():
            yield wanted
        for extra in wanted.extras:
            for further in map(Requirement, _required_by(wanted.name)):
                if further.marker is not None and further.marker.evaluate({"extra": extra}):
                    yield further


def _required_by(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def lacking_in(python: Path) -> Lacking:
    """The same of another Python."""
    command = [python, __file__, "--lacking"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(told.stdout)


def fetch(python: Path, requirements: list[str]) -> bool:
    """Install what is missing; whether that worked. A machine without a network is told so soon.
    A torch that is there stays the one there is.
    """
    command = [python, "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "15"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        if importlib.util.find_spec("torch") is not None:
            constraints.write(f"torch=={importlib.metadata.version('torch')}\n")
        constraints.flush()
        return subprocess.run([*command, "-c", constraints.name, *requirements]).returncode == 0


def main(folder: Path) -> int:
    """Make the environment, and say what it lacks; whether it lacks too much."""
    python = make(folder)
    found = lacking_in(python)
    missing = [wanted for wanted, version in found.items() if version is None]
    for wanted, version in found.items():
        if version is not None:
            print(f"note: {wanted} is asked for, and {version} is there", file=sys.stderr)
    if not missing or fetch(python, missing):
        return 0
    print(f"missing, and can't be fetched: {', '.join(missing)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(f"usage: {Path(__file__).name} FOLDER\n\n{__doc__}")
    if sys.argv[1] == "--lacking":
        print(json.dumps(lacking()))
    else:
        sys.exit(main(Path(sys.argv[1])))
