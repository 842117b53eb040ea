"""`python -m inversion VERB …` is `echoset VERB …`."""

import sys

from inversion.cli.main import main

sys.exit(main())
