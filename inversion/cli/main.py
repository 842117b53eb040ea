"""The front door: `echoset VERB`. Parses first; imports torch only when there is work."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from inversion.cli.stopping import STOPPED, Stopping
from inversion.cli.table import VERBS
from synthesis_kernels.errors import suggest
from synthesis_kernels.terminal import plain

if TYPE_CHECKING:
    from inversion.cli.schema import Common

PIPE_CLOSED = 141
"""Exit status where nobody reads on, as of programs that SIGPIPE ends."""
HELP = f"""usage: echoset VERB [options]

Make a small, class-balanced synthetic set from a trained network, and teach a student with it.

{chr(10).join(f"  {name:<16}{verb.sentence}" for name, verb in VERBS.items())}

echoset VERB --help shows the options that matter first, --help all every one. Every verb takes
--seed, --json and --config FILE.yaml; of a file and options, what comes later wins.
Exit status: 0 done, 1 failed, 2 misused, 130 stopped by Ctrl-C (run again to go on), 141 where
nobody reads the output on.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    try:
        try:
            with Stopping() as stopping:
                return _answer(sys.argv[1:] if arguments is None else arguments, stopping)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read this has seen enough
        _leave_output()
        return PIPE_CLOSED
    except OSError as error:  # of the output, such as a full disk
        _leave_output()
        return _fail_reading(error)


def _leave_output() -> None:
    """Write nothing more, not even what waits to be written when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer(arguments: list[str], stopping: Stopping) -> int:
    """Give the help that is asked for, or do a verb's work."""
    for stream in (sys.stdout, sys.stderr):  # a × that the terminal lacks is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if verb == "--version":
        print(f"echoset {import_module('inversion').__version__}")
        return 0
    if verb not in VERBS:
        print(f"error: no verb '{plain(verb)}'{suggest(verb, VERBS)}", file=sys.stderr)
        print("echoset --help lists the verbs", file=sys.stderr)
        return 2
    if arguments[1:] in (["-h"], ["--help"]):  # answered without the grammar, which takes longer
        from inversion.cli.help import describe

        print(describe(verb), end="")
        return 0
    return run(verb, parse(verb, arguments[1:]), arguments[1:], stopping)


def parse(verb: str, arguments: list[str]) -> Common:
    """A verb's options; a mistake ends the process with status 2."""
    if VERBS[verb].light:  # plain words need no grammar, which takes longer
        options: Common | None = _module_of(verb).read(arguments)
        if options is not None:
            return options
    from inversion.cli.grammar import parse as read

    return read(verb, arguments)


def run(verb: str, options: Common, arguments: list[str], stopping: Stopping) -> int:
    """Do a verb's work; what goes wrong becomes a line and a status."""
    if VERBS[verb].light:
        try:
            return _module_of(verb).execute(options)
        except OSError as error:  # a pipe that was closed
            return _fail_reading(error)
    from inversion.cli.early import check_names
    from synthesis_kernels.errors import EchosetError

    try:
        check_names(options)
    except EchosetError as error:
        return _fail(str(error))
    from distill.loop import Interrupted
    from inversion.cli.preset import follow_teacher

    try:
        return _execute(verb, follow_teacher(verb, options, arguments), stopping)
    except Interrupted as stopped:
        return _fail(f"{stopped}; run the same command again to go on", STOPPED)
    except KeyboardInterrupt:
        return _fail("stopped", STOPPED)
    except Exception as error:
        if stopping.asked:  # an import that Ctrl-C cuts off fails in any way
            return _fail("stopped", STOPPED)
        return _tell(error)


def _tell(error: Exception) -> int:
    """Tell what went wrong; what nobody has thought of is raised."""
    from synthesis_kernels.errors import EchosetError

    if isinstance(error, EchosetError):
        return _fail(str(error))
    if isinstance(error, OSError):
        return _fail_reading(error)
    if isinstance(error, MemoryError | RuntimeError):
        from distill.memory import is_out_of_memory

        if is_out_of_memory(error):
            return _fail("out of memory; lower the batch, or use smaller images or networks")
    raise error


def _execute(verb: str, options: Common, stopping: Stopping) -> int:
    from synthesis_kernels.backend import heed_quota, keep_freed_memory, kernel_form

    if not VERBS[verb].shared:
        options.require_alone(verb)
    keep_freed_memory()
    heed_quota()
    module = _module_of(verb)
    if not options.leads:  # one of them is enough to hear
        options = replace(options, quiet=True)
    stopping.importing = False
    with kernel_form(options.kernels):
        return module.execute(options)


def _module_of(verb: str) -> Any:
    return import_module(f"inversion.cli.verbs.{verb.replace('-', '_')}")


def _fail_reading(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):  # `main` ends it without a word
        raise error
    file = f": {error.filename}" if error.filename else ""
    return _fail(f"{error.strerror or error}{file}")


def _fail(message: str, status: int = 1) -> int:
    print(f"echoset: {plain(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
