"""`python -m echoset VERB …` is `echoset VERB …`."""

import sys


def main() -> int:
    """Run the command line."""
    try:
        from inversion.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # before or after the command's own care for it
        print("echoset: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
