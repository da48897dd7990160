"""seqvae: a sequence VAE that blends, interpolates and samples music, sentences and event logs.

Scope: the public names, imported at first use. `import seqvae` loads neither torch nor music21, so that `seqvae --help`
answers at once.
"""

from typing import TYPE_CHECKING

from seqvae import _aliases

__all__ = ["Codec", "Detector", "LogReader", "SequenceVAE", "__version__", "load"]

_aliases.install()

if TYPE_CHECKING:
    from seqvae.anomaly.detector import Detector
    from seqvae.codec import Codec, load
    from seqvae.events.lines import LogReader
    from seqvae.nn.model import SequenceVAE

    __version__: str
else:
    # Hidden from the type checker, which would otherwise take every misspelt name for an `Any` found here.
    _HOMES = {
        "Codec": "seqvae.codec",
        "load": "seqvae.codec",
        "Detector": "seqvae.anomaly.detector",
        "LogReader": "seqvae.events.lines",
        "SequenceVAE": "seqvae.nn.model",
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562), and keep it."""
        if name == "__version__":
            from importlib.metadata import version

            value = version("seqvae")
        elif name in _HOMES:
            from importlib import import_module

            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module 'seqvae' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
