"""The command line, as torchrun starts it for a test: everything is saved at once, and the process
KILLED (a rank) is killed after the step KILLED_AT of its first life.
"""

import os
import signal
import sys

from distill.loop import Loop
from distill.pacing import Every
from inversion.cli.main import main

Every.__call__ = lambda self: True
advance = Loop.advance


def advance_and_die(loop, done, *arguments, **more):
    advance(loop, done, *arguments, **more)
    is_first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    killed = (os.environ.get("KILLED"), os.environ.get("KILLED_AT"))
    if is_first_life and killed == (os.environ["RANK"], str(done)):
        os.kill(os.getpid(), signal.SIGKILL)


Loop.advance = advance_and_die
sys.exit(main())
