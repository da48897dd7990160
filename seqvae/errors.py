"""The errors that users see, each one line: what, where, what to do.

Scope: the format of these lines. Out of scope: their facts, which come from the code that raises them. The command line
prints these errors and exits with `exit_code`; any other exception is a bug in seqvae and keeps its traceback.
"""

from __future__ import annotations

from os import PathLike

LENGTH = 600
"""Maximum characters of a message; text from an untrusted file may be long."""


class SeqVAEError(Exception):
    """An error that the user can correct. The message says what is wrong, where, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """The message on one line, even where a library's message has several."""
        return _line(super().__str__())


def _line(text: str) -> str:
    """`text` on one line, shortened in the middle: the problem comes first, the remedy last."""
    line = " ".join(text.splitlines())
    return line if len(line) <= LENGTH else f"{line[: LENGTH // 2]} ... {line[-(LENGTH // 2 - 5) :]}"


class ReadError(SeqVAEError):
    """A file, sentence or session that cannot be read. A folder skips it and counts it; alone it ends the command."""

    def __init__(self, path: str | PathLike[str], reason: str, advice: str) -> None:
        # Files are read in several processes, and an exception is pickled as its class and `args`: keep all three.
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        """The path, the reason and the advice on one line."""
        return _line(f"cannot read {self.path}: {self.reason}; {self.advice}")


class UsageError(SeqVAEError):
    """Arguments of a command that exclude each other."""

    exit_code = 2


class ConfigError(SeqVAEError):
    """A setting, recipe or argument with an unknown name or an invalid value."""


class TokenizerError(SeqVAEError):
    """Input that the tokenizer cannot encode, or tokens that it cannot decode."""


class CheckpointError(SeqVAEError):
    """A checkpoint that is missing, incomplete or of another kind."""


class StyleError(SeqVAEError):
    """A style that the model does not have, or that cannot be fitted."""
