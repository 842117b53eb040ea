"""Runs that are stopped as by Ctrl-C."""

from contextlib import contextmanager

import pytest

from distill.loop import Interrupted, Loop


@contextmanager
def stopped(when=lambda loop, done: True, says="keeps it"):
    """What runs in here stops after the first step of which `when` is true, and says so."""
    advance = Loop.advance

    def stop(loop, done, *arguments, **more):
        loop._flag.raised = when(loop, done)
        advance(loop, done, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match=says):
        patch.setattr(Loop, "advance", stop)
        yield
