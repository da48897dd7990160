"""Entry point of the command `seqvae` and of `python -m seqvae`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command `seqvae` and exit; an interrupt during imports prints one line."""
    try:
        from seqvae.cli import app as cli

        cli.main()
    except KeyboardInterrupt:
        print("seqvae: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
