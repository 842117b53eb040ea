"""The environment of `make gpu`, made over a throwaway one whose packages are stubs."""

import os
import re
import subprocess
import sys
import venv
from importlib import metadata

import gpu_setup
import pytest
from conftest import ROOT

TOOL = ROOT / "tools" / "gpu_setup.py"


def told_by(python, *arguments, **more):
    """A process without network, and without this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        env=environment | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        **more,
    )


class Outer:
    """An environment's Python, and the folder of its packages, which have names and versions
    only.
    """

    def __init__(self, folder):
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"
        for wanted in gpu_setup._requirements():
            self.put(wanted.name, metadata.version(wanted.name))
        (self.packages / "torch").mkdir()
        (self.packages / "torch" / "__init__.py").write_text("")

    def put(self, name, version):
        """A package of this name and version, in the place of any other; None for none."""
        for old in self.packages.glob(f"{name}-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        if version is not None:
            folder = self.packages / f"{name}-{version}.dist-info"
            folder.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (folder / "METADATA").write_text(text)


@pytest.fixture(scope="module")
def outer(tmp_path_factory):
    return Outer(tmp_path_factory.mktemp("outer"))


@pytest.fixture(scope="module")
def made(outer, tmp_path_factory):
    """What making the environment gave, and its folder."""
    folder = tmp_path_factory.mktemp("made") / "gpu"
    return told_by(outer.python, TOOL, folder), folder


def test_packages_of_another_environment_are_used(outer, made, tmp_path):
    done, folder = made
    assert done.returncode == 0, done.stderr
    code = "import torch, inversion; print(torch.__file__, inversion.__file__)"
    found = told_by(folder / "bin" / "python", "-c", code, cwd=tmp_path).stdout.split()
    assert found == [
        str(outer.packages / "torch" / "__init__.py"),
        str(ROOT / "inversion" / "__init__.py"),
    ]


def test_what_is_missing_and_cannot_be_fetched_is_named(outer, made):
    outer.put("kornia", None)
    done = told_by(outer.python, TOOL, made[1])
    outer.put("kornia", metadata.version("kornia"))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert re.fullmatch(r"missing, and can't be fetched: kornia[<>=.,0-9]+", last)


def test_a_package_of_another_version_is_used_and_named(outer, made):
    outer.put("torch", "2.9.0+cu130")
    done = told_by(outer.python, TOOL, made[1])
    outer.put("torch", metadata.version("torch"))
    assert done.returncode == 0 and "torch" in done.stderr and "2.9.0+cu130 is there" in done.stderr


def test_a_python_without_torch_lends_nothing(outer, made, tmp_path):
    outer.packages.joinpath("torch").rename(tmp_path / "torch")
    done = told_by(outer.python, TOOL, made[1])
    (tmp_path / "torch").rename(outer.packages / "torch")
    assert done.returncode == 1 and "torch" in done.stderr and "numpy" in done.stderr
    (link,) = made[1].rglob(gpu_setup.LINK)
    assert link.read_text() == f"{ROOT}\n"


def test_the_requirements_are_those_of_the_project():
    assert not gpu_setup.lacking()
    names = {wanted.name for wanted in gpu_setup._requirements()}
    assert {"torch", "kornia", "pytest", "hypothesis", "docstring-parser"} <= names
    assert "ruff" not in names
