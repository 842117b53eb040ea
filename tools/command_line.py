"""Write the tables of options in docs/command-line.md from the source, so that none is typed by
hand.

`python tools/command_line.py` rewrites what stands below `<!-- options -->`; a test holds the page
to it. The source is read as text: neither torch nor the packages are imported.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "command-line.md"
MARK = "<!-- options -->\n"
WIDTH = 140
"""Characters in a line of the page, tables aside."""
COMMON = ("Runtime", "Common")
"""Classes of the options that every verb takes."""


@dataclass(frozen=True)
class Option:
    """One field of an options class."""

    name: str
    group: str | None
    """The options class of its type, where it is a group of options."""
    default: str
    text: str


@dataclass(frozen=True)
class Group:
    """An options class: its bases, its fields, and what its docstring says."""

    bases: tuple[str, ...]
    options: tuple[Option, ...]
    text: str


def read_groups() -> dict[str, Group]:
    """Every options class of the packages, by name."""
    groups: dict[str, Group] = {}
    for package in ("synthesis_kernels", "distill", "inversion"):
        for path in sorted((ROOT / package).rglob("*.py")):
            file = ast.parse(path.read_text())
            for node in file.body:
                if isinstance(node, ast.ClassDef) and _is_options(node.name):
                    groups[node.name] = _read_group(node, file)
    return groups


def read_verbs() -> dict[str, str]:
    """What each verb does, by name: the table of the command line."""
    for path in sorted((ROOT / "inversion" / "cli").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            name, value = _assigned(node)
            if name == "VERBS" and isinstance(value, ast.Dict):
                return _sentences(value)
    raise SystemExit("no table VERBS in inversion/cli")


def render() -> str:
    """The page's generated part."""
    groups = read_groups()
    parts = ["## Every verb\n", _table(_common(groups))]
    used: list[str] = []
    for verb, text in read_verbs().items():
        group = groups[f"{verb.title().replace('-', '')}Run"]
        parts.append(f"## {verb}\n\n{text[0].upper()}{text[1:]}.\n")
        parts.append(_table(_inherited(group, groups) + group.options))
        _use(group, groups, used)
    parts.append("## Groups of options\n")
    for name in used:
        group = groups[name]
        text = textwrap.fill(group.text, WIDTH, break_on_hyphens=False)
        parts.append(f"### {name}\n\n{text}\n")
        parts.append(_table(group.options))
    return "\n".join(parts)


def main() -> int:
    """Write the page; with --check, only say whether it would change."""
    page = PAGE.read_text()
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise SystemExit(f"{PAGE} has no line {MARK.strip()}")
    written = f"{head}{mark}\n{render()}"
    if "--check" in sys.argv[1:]:
        return int(written != page)
    PAGE.write_text(written)
    return 0


def _sentences(table: ast.Dict) -> dict[str, str]:
    """Verbs and what they do: a dictionary of texts, or of calls that begin with one."""
    sentences = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if key is None:
            raise SystemExit("the table VERBS takes in another one; write its verbs out")
        text = value.args[0] if isinstance(value, ast.Call) else value
        sentences[ast.literal_eval(key)] = ast.literal_eval(text)
    return sentences


def _is_options(name: str) -> bool:
    return name in COMMON or name.endswith(("Options", "Run"))


def _assigned(node: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """The name that a statement gives a value, and the value."""
    target: ast.expr | None = None
    value: ast.expr | None = None
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        value = node.value
    elif isinstance(node, ast.AnnAssign):
        target = node.target
        value = node.value
    name = target.id if isinstance(target, ast.Name) else None
    return name, value


def _read_group(node: ast.ClassDef, file: ast.Module) -> Group:
    """A class's fields, each with the string below it; `file` is where the class stands."""
    options = []
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign):
            continue
        name = ast.unparse(field.target)
        groups = re.findall(r"\b\w+Options\b", ast.unparse(field.annotation))
        group = groups[0] if groups else None
        default = _default(field.value, file)
        options.append(Option(name, group, default, _string(below)))
    bases = tuple(ast.unparse(base) for base in node.bases)
    return Group(bases, tuple(options), _flat(ast.get_docstring(node) or ""))


def _default(value: ast.expr | None, file: ast.Module) -> str:
    """A field's default as a reader would write it."""
    if value is None:
        return "(required)"
    if isinstance(value, ast.Name):
        return ast.unparse(_constant(value.id, file))
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "dataclasses.field"):
        factory = value.keywords[0].value
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body)
        return "{}" if ast.unparse(factory) == "dict" else ""
    return ast.unparse(value)


def _constant(name: str, file: ast.Module) -> ast.expr:
    """What a constant stands for that a file assigns, or imports from another one."""
    for node in file.body:
        assigned, value = _assigned(node)
        if assigned == name and value is not None:
            return value
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return _constant(name, _parse_module(node.module or ""))
    raise SystemExit(f"the default {name} of an option is assigned nowhere")


def _parse_module(name: str) -> ast.Module:
    """The source of a module of the packages."""
    path = ROOT.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text())


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return _flat(str(node.value.value))
    return ""


def _flat(text: str) -> str:
    return " ".join(text.split())


def _common(groups: dict[str, Group]) -> tuple[Option, ...]:
    defaults = {"rank": "`RANK`, or 0", "world": "`WORLD_SIZE`, or 1"}
    options = []
    for group in COMMON:
        for option in groups[group].options:
            default = defaults.get(option.name, option.default)
            options.append(replace(option, group=None, default=default))
    return tuple(options)


def _inherited(group: Group, groups: dict[str, Group]) -> tuple[Option, ...]:
    """Options that some verbs share: those of a verb's bases, but for what every verb takes."""
    options: tuple[Option, ...] = ()
    for base in group.bases:
        if base not in COMMON and base in groups:
            options += _inherited(groups[base], groups) + groups[base].options
    return options


def _use(group: Group, groups: dict[str, Group], used: list[str]) -> None:
    """Add the groups that a class's fields name, and theirs, in the order of their appearance."""
    for option in group.options:
        if option.group and option.group not in used:
            used.append(option.group)
            _use(groups[option.group], groups, used)


def _table(options: tuple[Option, ...]) -> str:
    lines = ["| option | default | what it is |", "| --- | --- | --- |"]
    for option in options:
        name = f"{option.name}.…" if option.group else option.name
        default = _shown_default(option)
        text = option.text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
        lines.append(f"| `--{name}` | {default} | {text} |".replace("|  |", "| |"))
    return "\n".join([*lines, ""])


def _shown_default(option: Option) -> str:
    """The default of an option; of a group a link to it, and what it has otherwise."""
    default = option.default.replace("'", '"')
    if option.group is None:
        return default if "`" in default else f"`{default}`"
    link = f"[{option.group}](#{option.group.lower()})"
    if default in (f"{option.group}()", "None"):
        return link
    return f"{link}, but `{default.removeprefix(option.group)}`"


if __name__ == "__main__":
    sys.exit(main())
