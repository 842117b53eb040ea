"""Who may know whom: floors import from those below them, and the learner knows no method."""

import ast
from pathlib import Path

import pytest

from distill.methods import METHODS
from distill.tasks import TASKS
from inversion.recipes import RECIPES

ROOT = Path(__file__).parent.parent
ABOVE = {"synthesis_kernels": {"distill", "inversion"}, "distill": {"inversion"}}


def imports(path):
    """Full names of the modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("package", ABOVE)
def test_a_floor_imports_only_from_those_below(package):
    for path in (ROOT / package).rglob("*.py"):
        wrong = [name for name in imports(path) if name.partition(".")[0] in ABOVE[package]]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_learner_names_no_method():
    path = ROOT / "distill" / "learner.py"
    texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if is_text(node)}
    assert not texts & METHODS.keys()
    assert not [name for name in imports(path) if name.startswith("distill.methods.")]


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_recipes_do_not_know_one_another_and_parts_know_no_recipe():
    folder = ROOT / "inversion"
    recipes = [path for path in (folder / "recipes").glob("*.py") if path.name != "__init__.py"]
    assert len(recipes) >= len(RECIPES)
    for path in [*recipes, *(folder / "parts").glob("*.py")]:
        wrong = [name for name in imports(path) if name.startswith("inversion.recipes")]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_driver_names_no_recipe():
    path = ROOT / "inversion" / "driver.py"
    texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if is_text(node)}
    assert not texts & RECIPES.keys()
    assert not [name for name in imports(path) if name.startswith("inversion.recipes.")]


def test_only_the_loop_helper_stops_and_draws_what_can_be_stopped():
    """Loops that only show progress, and save nothing, may use the bar alone."""
    for package in ("distill", "inversion"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "loop.py":
                assert "StopFlag" not in path.read_text(), path


def test_nothing_but_its_own_file_names_a_task():
    """What follows from answers alone holds for any number of decisions an image."""
    for package in ABOVE.keys() | {"inversion"}:
        for path in (ROOT / package).rglob("*.py"):
            if path.parent.name == "tasks":
                continue
            texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if is_text(node)}
            assert not texts & TASKS.keys(), path
            wrong = [name for name in imports(path) if name.startswith("distill.tasks.class")]
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
