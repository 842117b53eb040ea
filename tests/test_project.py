import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, environment

FLOORS = {"synthesis_kernels": 0, "distill": 1, "inversion": 2}


def test_no_import_runs_upward():
    for package, floor in FLOORS.items():
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                for name in names:
                    above = FLOORS.get(name.split(".")[0], -1)
                    assert above <= floor, (
                        f"{path.relative_to(ROOT)} imports {name} from a floor above"
                    )


def test_packages_import_without_torch():
    code = "import sys, inversion, distill, synthesis_kernels; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), cwd=ROOT)


def test_public_names_exist():
    import distill
    import inversion

    for package in (distill, inversion):
        for name in package.__all__:
            assert getattr(package, name).__doc__


def test_synthesis_never_reads_data():
    """The reader of real images is imported by the verbs, which judge, and by the sources, which
    read what a user names. No other module of the synthesis knows it.
    """
    inversion = ROOT / "inversion"
    allowed = {inversion / "sources" / "stream.py", *(inversion / "cli" / "verbs").iterdir()}
    modules = set(inversion.rglob("*.py")) - allowed
    assert inversion / "recipes" / "ssdkd.py" in modules
    for path in modules:
        assert "distill.data.images" not in path.read_text(), path


def test_assets_are_small():
    for path in (ROOT / "inversion" / "assets").iterdir():
        assert path.stat().st_size < 5_000_000


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1500


NUMBER, WHOLE = (int, float), int
SCHEMA = {
    "study": {
        **dict.fromkeys(("set", "corruption", "method"), str),
        **{"seed": WHOLE, "loss": dict, "set_size": WHOLE, "accuracy": NUMBER, "seconds": NUMBER},
    },
    "runs": {
        **{
            "name": str,
            "seed": WHOLE,
            "student_accuracy": NUMBER,
            "images": WHOLE,
            "per_class": list,
            "seconds": dict,
        },
    },
    "uses": {
        **dict.fromkeys(("network", "case", "images"), str),
        **{"seed": WHOLE, "set_size": WHOLE, "accuracy": NUMBER, "seconds": NUMBER},
    },
    "maps": {
        **{"name": str, "seed": WHOLE, "mean_iou": NUMBER, "iou": list, "accuracy": NUMBER},
        **{"command": str, "steps": WHOLE, "seconds": dict},
    },
    "teachers": {
        **{
            "name": str,
            "file": str,
            "sha256": str,
            "recipe": dict,
            "accuracy": NUMBER,
            "parameters": WHOLE,
            "seconds": NUMBER,
        },
        "device": str,
    },
}
"""What every entry of a result file holds, by the list it is in."""


WITH_TABLES = ("log", "sources", "distilling", "recipes", "scorecard")


PAGES = (
    ROOT / "README.md",
    ROOT / "configs" / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in WITH_TABLES),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
    *sorted((ROOT / "docs" / "uses").glob("*.md")),
)
"""Pages that hold measured figures, or say where they are."""


LINKED = (
    *ROOT.glob("*.md"),
    ROOT / "configs" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
"""Pages whose links are followed."""


def read_pages():
    return "\n".join(page.read_text() for page in PAGES)


def test_results_hold_what_the_readme_says():
    """Every published table names its file, and the file has what a reader needs to repeat it."""
    for path in (ROOT / "configs" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        assert {"command", "commit", "device", "torch"} <= result.keys(), path.name
        lists = SCHEMA.keys() & result.keys()
        assert lists, path.name
        for kind in lists:
            for entry in result[kind]:
                wrong = [
                    name
                    for name, types in SCHEMA[kind].items()
                    if not isinstance(entry.get(name), types)
                ]
                assert not wrong, f"{path.name}: {wrong} of {entry.get('name', entry.get('set'))}"
        for run in result.get("runs", []):
            assert run["seconds"] and all(
                isinstance(seconds, NUMBER) for seconds in run["seconds"].values()
            )
            if run.get("balanced", True):  # a growing pool takes classes as they come
                assert max(run["per_class"]) - min(run["per_class"]) <= 1
        assert Path(path).stem in read_pages()


def test_the_pages_tables_are_those_of_the_result_files():
    sys.path.insert(0, str(ROOT / "tools"))
    from tables import BLOCK, TABLES, render

    assert {name for _, name, _ in BLOCK.findall(read_pages())} == TABLES.keys()
    for page in PAGES:
        assert render(page.read_text()) == page.read_text(), page


def test_the_pages_links_lead_somewhere():
    """Files are there, and so are the headings that a link names."""
    for page in LINKED:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page}: {target}"
            if heading:
                titles = re.findall(r"(?m)^#+ (.+)$", file.read_text())
                names = {
                    re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
                }
                assert heading in names, f"{page}: {target}"


def test_the_commands_of_cells_are_commands():
    from inversion.cli.main import parse

    found = json.loads((ROOT / "configs" / "results" / "leaves-views.json").read_text())["study"]
    asked = {}
    for cell in found:
        environment, program, verb, *flags = shlex.split(cell["command"])
        assert (environment, program, verb) == ("OMP_NUM_THREADS=1", "echoset", "study")
        run = parse(verb, flags)
        assert (
            cell["set"] in run.sets
            and cell["method"] in run.study.methods
            and cell["seed"] in run.study.seeds
        )
        assert cell["steps"] == run.distillation.steps
        asked[cell["views"]] = (run.out, run.distillation.views)
    assert len(set(asked.values())) == len({out for out, _ in asked.values()}) == len(asked) == 4


def test_stored_benchmarks_can_be_compared_with():
    from inversion.bench.bench import HEADLINES

    files = list((ROOT / "configs" / "bench").glob("*.json"))
    assert files
    for path in files:
        found = json.loads(path.read_text())
        assert {*HEADLINES, "device", "precision", "torch", "commit", "repeats"} <= found.keys(), (
            path.name
        )
        assert path.name in read_pages()


def test_the_pages_are_finished():
    assert "@@" not in read_pages()
