"""The errors a user may see, each one line: what, where, what to do.

Knows how such a line is put together. Refuses to know formats, models or files: whoever raises brings the facts.
The command line prints these and exits with `exit_code`; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from os import PathLike

LENGTH = 600
"""Letters of a message at most; what a stranger's file says of itself may be long."""


class SeqVAEError(Exception):
    """Something the user can put right. The message says what is wrong, where, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """The message on one line, whatever the library that gave the reason put into it."""
        return _line(super().__str__())


def _line(text: str) -> str:
    """`text` on one line, without its middle where it is long: what is wrong comes first, and what to do last."""
    line = " ".join(text.splitlines())
    return line if len(line) <= LENGTH else f"{line[: LENGTH // 2]} ... {line[-(LENGTH // 2 - 5) :]}"


class ReadError(SeqVAEError):
    """A piece that cannot be read. A folder skips it and counts it; on its own it ends the command."""

    def __init__(self, path: str | PathLike[str], reason: str, advice: str) -> None:
        # Pieces are read in several processes, and an exception is pickled as its class and `args`: keep all three.
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        """The path, the reason and the advice on one line."""
        return _line(f"cannot read {self.path}: {self.reason}; {self.advice}")


class UsageError(SeqVAEError):
    """A command whose arguments do not go together."""

    exit_code = 2


class ConfigError(SeqVAEError):
    """A setting, recipe or argument with an unknown name or an impossible value."""


class TokenizerError(SeqVAEError):
    """A piece that the tokenizer has no tokens for, or tokens that are no piece."""


class CheckpointError(SeqVAEError):
    """A checkpoint that is missing, incomplete or made for something else."""


class StyleError(SeqVAEError):
    """A style that the model does not have, or that cannot be fitted."""
