"""The front door: `echoset <verb>`. Parses first and imports torch only when there is work to
do.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

VERBS = {
    "demo": "the whole path on the bundled MNIST teacher, or on yours: synthesise, distil, evaluate, report",
    "inspect": "say what a teacher is, and whether a set can be made from it",
    "synthesize": "make a class-balanced transfer set from a teacher",
    "collect": "choose a class-balanced transfer set from noise, procedural pictures, folders or other sets",
    "distill": "train a student on a transfer set, or on any images, by any of ten methods",
    "evaluate": "measure a model on labelled images: accuracy, calibration, nearness to a teacher",
    "report": "write one self-contained HTML page about a run",
    "export": "merge transfer sets, draw a part of one, write it for other trainers: pictures, .npz, WebDataset",
    "verify": "check a transfer set: hashes, shapes, balance, and the teacher's answers",
    "study": "compare methods on sets, under label noise and imbalance, over seeds",
    "score": "say what sets are worth to a distillation, from the teacher alone, and whether that holds",
    "bench": "time the kernels and both loops against their definitions and the usual formulation",
}
SWITCHES = ("--json", "--quiet", "--validate")
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""In the words of torch, on CUDA and on a CPU."""
HELP = f"""usage: echoset VERB [options]

Make a small, class-balanced synthetic set from a trained network, and teach a student with it.

{chr(10).join(f"  {verb:<12}{text}" for verb, text in VERBS.items())}

echoset VERB --help shows a verb's options. Every verb takes --seed, --json, and --config FILE.yaml (flags win over the
file; --print_config writes one). Exit status: 0 done, 1 failed, 2 misused, 130 stopped by Ctrl-C (run again to go on).
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a × or … that the terminal's encoding lacks is no reason to stop
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from inversion import __version__

        print(f"echoset {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        print(
            f"echoset: no verb '{verb}'{f'; did you mean {close[0]}?' if close else ''}\n\n{HELP}",
            end="",
            file=sys.stderr,
        )
        return 2
    arguments = arguments[1:]
    if verb == "score":
        arguments = _gather_sets(arguments)
    elif verb in ("collect", "export") and arguments and not arguments[0].startswith("-"):
        if any(argument.split("=")[0] in ("--sources", "--sets") for argument in arguments):
            print(
                f"echoset: name what to {verb} in words or by an option, not both", file=sys.stderr
            )
            return 2
        arguments = ["--source" if verb == "collect" else "--from", *arguments]
    from synthesis_kernels.errors import EchosetError

    try:
        options = parse(verb, arguments)
    except EchosetError as error:
        print(f"echoset: {error}", file=sys.stderr)
        return 1
    try:
        from distill.loop import Interrupted
        from inversion.cli import verbs
        from synthesis_kernels.backend import heed_quota, keep_freed_memory, kernel_form

        keep_freed_memory()
        heed_quota()
        with kernel_form(options.kernels):
            return getattr(verbs, verb)(options)
    except EchosetError as error:
        print(f"echoset: {error}", file=sys.stderr)
        return 1
    except Interrupted as stopped:
        print(f"echoset: {stopped}; run the same command again to go on", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("echoset: stopped", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(
            words in str(error) for words in NO_MEMORY
        ):
            raise
        print(
            "echoset: out of memory; lower the batch, or use smaller images or networks",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(
            f"echoset: {error.strerror or error}{f': {error.filename}' if error.filename else ''}",
            file=sys.stderr,
        )
        return 1


def parse(verb: str, arguments: list[str]) -> object:
    """Parse a verb's flags and YAML into its frozen dataclass; a mistake ends the process with
    status 2.
    """
    import jsonargparse

    from distill.methods import METHODS
    from inversion.cli import schema

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    options_class = getattr(schema, f"{verb.capitalize()}Run")
    types = {field.name: str(field.type) for field in fields(options_class)}
    parser = jsonargparse.ArgumentParser(prog=f"echoset {verb}", description=VERBS[verb])
    if "distillation" in types:
        parser.epilog = f"Losses: {', '.join(METHODS)}."
    parser.add_argument(
        "--config", action="config", help="YAML file of these options; flags win over it"
    )
    parser.add_class_arguments(options_class, as_group=False)
    parsed = parser.parse_args(_shorthands(arguments, types))
    values = vars(parser.instantiate(parsed))
    values.pop("config")
    return options_class(**values)


SHORT = {
    "--teacher": ["--teacher.model"],
    "--student": ["--student.model"],
    "--model": ["--model.model"],
    "--against": ["--against.model"],
    "--images": ["--images", "--synthesis.images", "--collection.images", "--study.images"],
    "--patience": ["--distillation.patience", "--synthesis.patience"],
}
"""Short names, and what they stand for: the first that the verb has."""

LISTS = {"--source": "--sources", "--from": "--sets", "--short": "--collection.short"}
"""Options that take several words, and what they stand for."""


def _shorthands(arguments: list[str], types: dict[str, str]) -> list[str]:
    """The options people type most by their short names, and `--json` for `--json true`; `types`
    are those of the verb's fields.
    """
    # A file named late would win over flags before it, so it goes first.
    files = [i for i, argument in enumerate(arguments) if argument.split("=")[0] == "--config"]
    first = [
        j for i in files for j in ([i] if "=" in arguments[i] else [i, i + 1]) if j < len(arguments)
    ]
    arguments = [arguments[i] for i in first] + [
        a for i, a in enumerate(arguments) if i not in first
    ]
    short = {}
    for name, options in SHORT.items():
        for option in reversed(options):
            field, dot, _ = option[2:].partition(".")
            if field in types and (not dot or "Options" in types[field]):
                short[name] = option
    arguments = _join_lists(_join_losses(arguments))
    full = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if argument in SWITCHES and following.lower() not in ("true", "false"):
            equals, value = "=", "true"
        none = "null" in (value, following)  # instead of a group of options, none
        full.append((name if none else short.get(name, name)) + equals + value)
    return full


def _join_lists(arguments: list[str]) -> list[str]:
    """`--source a b` as the one option it stands for, `--sources=["a", "b"]`."""
    joined, lists, words = [], {}, None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in LISTS:
            if name not in lists:
                joined.append((LISTS[name], lists.setdefault(name, [])))
            words = lists[name]  # named again, it goes on
            words += [value] if equals else []
        elif words is not None and not argument.startswith("-"):
            words.append(argument)
        else:
            words = None
            joined.append(argument)
    return [
        part if isinstance(part, str) else f"{part[0]}={json.dumps(part[1])}" for part in joined
    ]


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)  # nan is none
    except ValueError:
        return False


def _join_losses(arguments: list[str]) -> list[str]:
    """`--loss hinton=1 at` as the one option it stands for; a loss without a number has its
    published weight.
    """
    joined, losses = [], None
    for argument in [*arguments, "--"]:
        if losses is not None and not argument.startswith("-"):
            losses.append(argument)
            continue
        if losses is not None:
            weights = dict(loss.partition("=")[::2] for loss in losses)
            if len(weights) < len(losses) or any(
                j.startswith("--distillation.loss={") for j in joined
            ):
                print(
                    "echoset: a loss is named twice; give all losses once, after one --loss",
                    file=sys.stderr,
                )
                sys.exit(2)
            for name, weight in weights.items():
                if weight and not _is_number(weight):
                    print(f"echoset: loss {name}: '{weight}' is not a number", file=sys.stderr)
                    sys.exit(2)
            pairs = ", ".join(f'"{name}": {weight or "null"}' for name, weight in weights.items())
            joined.append(f"--distillation.loss={{{pairs}}}")
            losses = None
        name, equals, value = argument.partition("=")
        if name == "--loss":
            losses = [value] if equals else []
        else:
            joined.append(argument)
    return joined[:-1]


def _gather_sets(arguments: list[str]) -> list[str]:
    """`SET NAME=SET …`, wherever they stand, as the one option `--sets` they are short for."""
    kept, sets, previous = [], {}, ""
    for argument in arguments:
        # The word after an option is its value, unless the option is a switch.
        switch = previous in (*SWITCHES, "-h", "--help", "--print_config")
        value = (
            previous.startswith("-")
            and "=" not in previous
            and (not switch or argument.lower() in ("true", "false"))
        )
        previous = "" if value else argument
        if value or argument.startswith("-"):
            kept.append(argument)
            continue
        name, equals, path = argument.partition("=")
        if not equals or "/" in name or Path(argument).exists():
            name, path = _name_of(argument, sets), argument
        if name in sets:
            print(
                f"echoset: two sets would be called '{name}'; give one another name: NAME={path}",
                file=sys.stderr,
            )
            sys.exit(2)
        sets[name] = path
    if sets and any(argument.split("=")[0] == "--sets" for argument in kept):
        print(
            "echoset: give sets by name in --sets, or one after another, not both", file=sys.stderr
        )
        sys.exit(2)
    return [*kept, f"--sets={json.dumps(sets)}"] if sets else kept


def _name_of(path: str, taken: dict[str, str]) -> str:
    """What a set is called if nobody says: the last part of its path, with the one before where
    that says too little.
    """
    place = Path(path)
    name = (place.stem if place.suffix == ".npz" else place.name) or path
    return (
        f"{place.parent.name}-{name}"
        if (name == "set" or name in taken) and place.parent.name
        else name
    )


if __name__ == "__main__":
    sys.exit(main())
