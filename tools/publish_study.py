"""Keep a finished study's figures in the repository, and print its tables for
docs/results/studies.md.

    python tools/publish_study.py runs/study-mnist/study.json --name study-mnist

Writes configs/results/<name>.json: every cell with its figures, seconds and device, the command (of
the whole grid, and with names for where things lie), and the commit of this checkout, which should
be the one that made the study.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from results import RESULTS, Figures, hide, pick, write_study
from tables import rows_to_markdown
from verbs import new_parser

from inversion.pages.study import grid
from synthesis_kernels.backend import repository_commit

KEPT = (
    "set",
    "corruption",
    "method",
    "seed",
    "set_size",
    "report",
    "loss",
    "labels",
    "accuracy",
    "agreement",
    "ece",
    "entropy",
    "magnitude_similarity",
    "angle_similarity",
    "boundary_pairs",
    "transfer",
    "transfer_teacher",
    "steps",
    "seconds",
)


def publish(study: Path, name: str) -> list[Figures]:
    """Write the file and return its rows of means."""
    document = json.loads(study.read_text())
    cells = []
    for run in document["runs"]:
        cells.append({key: _short(value) for key, value in pick(run, KEPT).items()})
    head = {
        "command": public(document["command"]),
        "commit": repository_commit(),
        **pick(document["runs"][0], ("device", "torch")),
    }
    write_study(RESULTS / f"{name}.json", head, cells)
    return document["rows"]


def public(command: str) -> str:
    """The command of the whole grid, for others to repeat."""
    places: dict[str | None, str] = dict.fromkeys(re.findall(r'"(/[^"]+)"', command), "SET")
    places |= dict.fromkeys(re.findall(r"--(?:data|original)[ =]('[^']*'|\S+)", command), "DIR")
    return hide(re.sub(r" --(rank|world)[ =]\d+", "", command), places)


def _short(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value


def markdown(rows: list[Figures], figure: str) -> str:
    """One table a set: methods down, corruptions across."""
    tables = []
    for name in dict.fromkeys(row["set"] for row in rows):
        tables.append(f"\n{name}, {figure}:\n\n{rows_to_markdown(grid(rows, name, figure))}")
    return "\n".join(tables)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument(
        "--figures",
        nargs="+",
        default=["accuracy"],
        help="accuracy, agreement, ece, angle_similarity …",
    )
    given = parser.parse_args()
    published = publish(given.study, given.name)
    print("\n".join(markdown(published, figure) for figure in given.figures))
