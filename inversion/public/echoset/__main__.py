"""`python -m echoset VERB …` is `echoset VERB …`."""

import sys

from inversion.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
