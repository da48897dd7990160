"""`python -m seqvae` is the command `seqvae`, and this is where both begin."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """The command `seqvae`, which ends the process; an interrupt while its modules are imported is told in a line."""
    try:
        from seqvae.cli import app as cli

        cli.main()
    except KeyboardInterrupt:
        print("seqvae: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
