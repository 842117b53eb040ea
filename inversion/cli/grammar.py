"""Builds the parser of a verb from its dataclass. The grammar is jsonargparse's own."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import jsonargparse

from distill.brief import default_of
from distill.methods import METHODS
from inversion.cli.help import (
    EVERYTHING,
    describe,
    group_of,
    names_of,
    options_of,
    read_docs,
)
from inversion.cli.mistakes import name_in_full, refuse, say_plainly
from inversion.cli.option_files import check_files
from inversion.cli.table import VERBS
from inversion.cli.words import AFTER_VERB, MODEL, SEVERAL, THEN, Several, Unsaved, Words, values_of
from inversion.plain_yaml import register
from inversion.presets import PresetName, read_preset
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from inversion.cli.schema import Common


def parse(verb: str, arguments: list[str]) -> Common:
    """A verb's options from its arguments; a mistake ends the process with status 2."""
    preset = _preset_among(arguments)
    options = read_options(verb, arguments, preset)
    told = getattr(options, "preset", None)  # in a file, perhaps
    return options if told == preset else read_options(verb, arguments, told)


def read_options(
    verb: str,
    arguments: Sequence[str],
    preset: str | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Common:
    """A verb's options, with those of a preset in place of the defaults, and `more` in place of
    these.
    """
    help_line = f"echoset {verb} --help {EVERYTHING} explains every option"
    try:
        check_files(verb, arguments)
        parser = build_parser(verb)
        if preset in get_args(PresetName):
            _set_defaults(parser, {**read_preset(str(preset)), **more})
        return _build_options(options_of(verb), parser.parse_args(list(arguments)))
    except argparse.ArgumentError as error:
        refuse(say_plainly(str(error), verb, arguments), help_line)
    except EchosetError as error:
        refuse(str(error), help_line)
    except OverflowError:
        refuse("a number among the options is too large to compute with", help_line)


def _preset_among(arguments: Sequence[str]) -> str | None:
    """The preset that these name; the last one counts."""
    given = values_of("--preset", arguments)
    return given[-1] if given else None


def _set_defaults(parser: jsonargparse.ArgumentParser, options: dict[str, Any]) -> None:
    """Give the options that the parser knows other defaults."""
    known = {action.dest for action in parser._actions}
    parser.set_defaults({key: value for key, value in options.items() if key in known})


def build_parser(verb: str, explain: bool = False) -> jsonargparse.ArgumentParser:
    """The parser of a verb, which raises ArgumentError at a mistake. To explain every option it
    has to read all docstrings, which takes a while.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=explain)
    parser = jsonargparse.ArgumentParser(
        prog=f"echoset {verb}",
        description=VERBS[verb].sentence,
        conflict_handler="resolve",  # --teacher names a model, not a file of options
        exit_on_error=False,
        add_help=False,
        allow_abbrev=False,
        parser_mode=register(),
    )
    parser.add_argument("-h", "--help", action=Help, verb=verb)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of these options; of files and options, what comes later wins.",
    )
    if "distillation" in {field.name for field in dataclasses.fields(options_of(verb))}:
        parser.epilog = f"Losses: {', '.join(METHODS)}."
    given: dict[str, str] = {}
    if verb in AFTER_VERB:
        key, several = AFTER_VERB[verb]
        _add_words(parser, "words", key, several, given)
    if verb in THEN:
        key, several = THEN[verb]
        _add_words(parser, "second word", key, several, given)
    _add_fields(parser, verb, given)
    return parser


def _add_fields(parser: jsonargparse.ArgumentParser, verb: str, given: dict[str, str]) -> None:
    """The options of a verb, and their groups."""
    kind = options_of(verb)
    names = names_of(verb)
    hints = get_type_hints(kind)
    docs = read_docs(kind)
    for field in dataclasses.fields(kind):
        group = group_of(hints[field.name])
        if group is None:
            _add_option(parser, field, hints[field.name], docs[field.name])
            if field.name in SEVERAL:
                _add_words(parser, names[field.name], field.name, SEVERAL[field.name], given)
        else:
            optional = is_optional(hints[field.name])
            _add_group(parser, field, group, optional, names, given)


class Help(Unsaved):
    """`--help` shows the options that matter first, `--help all` every one."""

    def __init__(self, verb: str, **settings: Any) -> None:
        settings["dest"] = argparse.SUPPRESS
        super().__init__(
            nargs="?",
            metavar=EVERYTHING,
            default=argparse.SUPPRESS,
            help=f"Show the options that matter first; with {EVERYTHING}, every one.",
            **settings,
        )
        self.verb = verb

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Any,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Print it and end."""
        if values == EVERYTHING:
            text = build_parser(self.verb, explain=True).format_help()
        else:
            text = describe(self.verb)
        print(text, end="")
        parser.exit()


def is_optional(hint: Any) -> bool:
    """Whether a type has room for None."""
    return NoneType in get_args(hint)


def _add_option(
    parser: jsonargparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, text: str
) -> None:
    """An option of the verb itself."""
    name = f"--{field.name}"
    if hint is bool:
        switch = jsonargparse.ActionYesNo(no_prefix="no-")
        parser.add_argument(name, action=switch, default=field.default, help=text)
    else:
        parser.add_argument(name, type=hint, default=default_of(field), help=text)


def _add_group(
    parser: jsonargparse.ArgumentParser,
    field: dataclasses.Field[Any],
    kind: type,
    optional: bool,
    names: dict[str, str],
    given: dict[str, str],
) -> None:
    """The options of a dataclass inside the verb's; some have a short name beside their own."""
    default = kind() if optional else default_of(field)
    short = {}
    for inner in dataclasses.fields(kind):
        key = f"{field.name}.{inner.name}"
        if key in names:
            short[inner.name] = key
    own = {name for name, key in short.items() if key not in SEVERAL}
    usual = dataclasses.asdict(kind())
    changed = {}
    for name, value in dataclasses.asdict(default).items():
        if name not in own and value != usual[name]:
            changed[name] = value
    parser.add_class_arguments(kind, field.name, skip=own, default=changed, instantiate=False)
    hints = get_type_hints(kind)
    docs = read_docs(kind)
    for name, key in short.items():
        if key in SEVERAL:
            _add_words(parser, names[key], key, SEVERAL[key], given)
            continue
        spelled = [f"--{key}"]
        if name == "model":  # a second spelling would take the group's name in a file
            _add_words(parser, names[key], key, MODEL, given)
        else:
            spelled.append(names[key])
        parser.add_argument(
            *spelled,
            type=hints[name] | None if optional else hints[name],
            default=None if optional else getattr(default, name),
            help=docs[name],
        )


def _add_words(
    parser: jsonargparse.ArgumentParser,
    name: str,
    key: str,
    several: Several,
    given: dict[str, str],
) -> None:
    """An option, or the words after the verb, that set a key by several words."""
    settings: dict[str, Any] = {}
    if name.startswith("-"):
        settings["dest"] = argparse.SUPPRESS
    parser.add_argument(
        name,
        action=Words,
        key=key,
        given=given,
        read=several.read,
        nargs=several.nargs,
        metavar=several.metavar,
        default=argparse.SUPPRESS,
        help=f"Short for --{key}; the words stand together.",
        **settings,
    )


def _build_options(kind: type, parsed: jsonargparse.Namespace, group: str = "") -> Any:
    """The frozen dataclass of a verb, or of a group of its options. A value that it refuses is
    called by its full name.
    """
    options = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        key = f"{group}.{field.name}" if group else field.name
        value = parsed[key]
        inner = group_of(hint)
        if value is None and not is_optional(hint):
            raise EchosetError(f"{key} must have a value, and null is none; leave it out")
        if inner is not None and isinstance(value, jsonargparse.Namespace):
            build = _build_optional if is_optional(hint) and not group else _build_options
            value = build(inner, parsed, key)
        options[field.name] = value
    try:
        return kind(**options)
    except EchosetError as error:
        raise EchosetError(name_in_full(str(error), group, parsed)) from error


def _build_optional(kind: Any, parsed: jsonargparse.Namespace, group: str) -> Any:
    """A group that is there if any of its options was given."""
    model = f"{group}.model"
    was_named = parsed[model] is not None
    if not was_named:
        parsed[model] = kind().model
    options = _build_options(kind, parsed, group)
    if not was_named and options == kind():
        return None
    return options
