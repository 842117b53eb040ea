"""A finished synthesis that goes on: the same plan with more calls, or more patience."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.files import load_state, save_state, write_atomically
from distill.sets.transfer_set import MARKER, read_manifest
from inversion.jobs import ShardJob, key_of, note_of
from inversion.options import SynthesisOptions
from inversion.shards import last_state_file, state_file
from synthesis_kernels.errors import EchosetError

Identity = Callable[[SynthesisOptions], dict[str, Any]]
"""What a folder's content follows from, by the options."""


def go_on(
    out: Path, jobs: list[ShardJob], options: SynthesisOptions, identity: Identity, machine: str
) -> bool:
    """Take a finished set up again where it differs in nothing but calls and patience, which are
    more now; tells whether it did.

    The last state of each shard becomes one of a stopped run. The manifest goes last: a kill before
    that leaves all of this to be done again.
    """
    if not (out / "manifest.json").is_file() or not (out / MARKER).is_file():
        return False
    manifest = read_manifest(out)
    before = _options_before(manifest, options)
    if before is None:
        return False
    marked = (out / MARKER).read_text(errors="replace")
    old = key_of(identity(before))
    new = key_of(identity(options))
    if marked not in (old, new):
        return False
    _require_more(out, manifest, before, options)
    for job in jobs:
        state = load_state(last_state_file(out, job), f"{old} {machine}")
        if state is None:
            raise EchosetError(
                f"{out} was finished with {before.calls} calls and its last state is gone, so it "
                "can't go on; make a set of more calls in another --out, or delete that folder"
            )
        save_state(state_file(out, job), f"{new} {machine}", state)
    write_atomically(out / MARKER, new.encode())
    for shard in manifest["shards"][len(jobs) :]:  # what filled short classes
        (out / shard["file"]).unlink(missing_ok=True)
    for job in jobs:
        note_of(out, job).unlink(missing_ok=True)
    (out / "manifest.json").unlink()
    return True


def _options_before(manifest: dict[str, Any], options: SynthesisOptions) -> SynthesisOptions | None:
    """The options with the calls and the patience that the set was made with; None where they are
    no fewer now.
    """
    config = manifest["config"]
    calls = config.get("calls")
    patience = config.get("patience")
    if not isinstance(calls, int) or not isinstance(patience, int):
        return None
    if options.calls < calls or (options.calls, options.patience) == (calls, patience):
        return None
    try:
        return replace(options, calls=calls, patience=patience)
    except EchosetError:  # other options than those, then
        return None


def _require_more(
    out: Path, manifest: dict[str, Any], before: SynthesisOptions, options: SynthesisOptions
) -> None:
    """Refuse where more calls would make nothing else, or a larger set."""
    if options.replay.keep_all:
        raise EchosetError(
            f"{out} keeps every image of {before.calls} calls, and more calls make a larger set; "
            "choose another --out"
        )
    made = [shard.get("calls", 0) for shard in manifest["shards"]]
    if before.calls < options.calls <= max(made):
        raise EchosetError(
            f"{out} has taken {max(made)} calls already, more than the {before.calls} that it was "
            "asked for, as classes were short; to go on say more than that"
        )
    if max(made) < before.calls and options.patience <= before.patience:
        raise EchosetError(
            f"{out} was finished after {max(made)} of {before.calls} calls, as agreement had "
            "stopped rising; to go on raise --synthesis.patience, too"
        )
