"""Compiled kernels that are kept: damaged ones are made again, and others' are not run."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment, needs_native

from synthesis_kernels.kept import Kept
from synthesis_kernels.native import find_compiler, library

pytestmark = pytest.mark.skipif(
    os.name != "posix" or find_compiler() is None, reason="there is no compiler"
)


def build(number):
    """What compiles a library of one function, which gives this number."""

    def compile(made):
        source = made.with_suffix(".c")
        source.write_text(f"int number(void) {{ return {number}; }}")
        command = [find_compiler(), "-shared", "-fPIC", "-x", "c", source, "-o", made]
        subprocess.run(command, check=True)

    return compile


def number_of(library: ctypes.CDLL) -> int:
    return library.number()


@pytest.fixture
def folder(tmp_path):
    """A folder that keeps a library."""
    cache = tmp_path / "cache"
    assert Kept(cache, "native-key").load() is None
    assert number_of(Kept(cache, "native-key").make(build(7))) == 7
    assert [path.name[:11] for path in cache.iterdir()] == ["native-key-"]
    return cache


def test_a_whole_library_is_loaded_and_nothing_is_said(folder, capfd):
    assert number_of(Kept(folder, "native-key").load()) == 7
    assert Kept(folder, "native-other").load() is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("cut", [0, 100, 5000, -1])
def test_a_library_cut_short_is_made_again(folder, capfd, cut):
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:cut])
    kept = Kept(folder, "native-key")
    assert kept.load() is None
    assert capfd.readouterr().err == f"{file} is damaged; the kernels are compiled again\n"
    assert not file.exists()
    assert number_of(kept.make(build(8))) == 8


def test_what_others_could_have_written_is_not_run(folder, capfd):
    (file,) = folder.iterdir()
    file.chmod(0o777)
    assert Kept(folder, "native-key").load() is None
    assert "can be written to by others; the kernels are compiled again" in capfd.readouterr().err
    number_of(Kept(folder, "native-key").make(build(7)))
    folder.chmod(0o777)
    kept = Kept(folder, "native-key")
    assert "can be written to by others, so no kernels are run from there" in capfd.readouterr().err
    assert kept.load() is None
    assert kept.folder != folder
    assert number_of(kept.make(build(9))) == 9


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_another_users_library_is_not_run(folder, capfd):
    (file,) = folder.iterdir()
    os.chown(file, 12345, -1)
    assert Kept(folder, "native-key").load() is None
    assert "belongs to another user" in capfd.readouterr().err


def test_what_a_killed_build_left_is_cleared(folder):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    for process in (int(done.stdout), os.getppid()):
        (folder / f".building-{process}-abc").mkdir()
    Kept(folder, "native-key").make(build(7))
    left = [path.name for path in folder.iterdir() if path.is_dir()]
    assert left == [f".building-{os.getppid()}-abc"]


ASK = "from synthesis_kernels.native import has; print(has('channel_sums_float32'))"


@needs_native
@pytest.mark.slow
def test_a_process_makes_a_damaged_library_again(tmp_path):
    """As a user sees it: one line, and the kernels."""
    usual = Path(library()._name)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    shutil.copy(usual, cache)
    (cache / usual.name).write_bytes(usual.read_bytes()[:4096])
    command = [sys.executable, "-c", ASK]
    given = environment() | {"ECHOSET_CACHE": str(cache)}
    for said in ("is damaged; the kernels are compiled again", ""):
        done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=ROOT)
        assert done.stdout.strip() == "True", done.stderr
        assert said in done.stderr and ("compiling" in done.stderr) == bool(said)
