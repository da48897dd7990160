"""Templates of log messages: the constant text around numbers, addresses, paths and ids.

Scope: masking, and Drain (He et al. 2017) from the package drain3. Out of scope: files, sessions and models.

Templates are mined from some messages and then fixed: a later message has the template that Drain would choose for it,
or none. So a new kind of message counts as new every time it occurs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Self

from drain3.drain import Drain, LogCluster

from seqvae.errors import SeqVAEError

WILDCARD = "<*>"
"""Stands for a variable part."""
NEW = "<new>"
"""The event of a message without a template."""
SIMILARITY = 0.5  # share of a template's words that a message must have
DEPTH = 5  # depth of Drain's tree: templates of equal length and first two words are compared
_WORDS = DEPTH - 3  # words that determine the position in the tree
MASKS = {
    "url": r"\b[a-z][a-z0-9+.-]*://[^\s,\"'>\])]+",
    "uuid": r"(?<!\w)[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?!\w)",
    "ipv4": r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w.])",
    "ipv6 or mac": r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){5,7}[0-9A-Fa-f]{1,4}(?![\w:.])",
    "hex": r"0x[0-9A-Fa-f]+|(?<![A-Za-z0-9])(?=[A-Fa-f]*\d)(?=\d*[A-Fa-f])[0-9A-Fa-f]{6,}(?![A-Za-z0-9])",
    "path": r"\b[A-Za-z]:\\[^\s\",]+|(?<![\w.<>)*-])/(?:[\w.@$%+~=:-]+/?)+",
    "number": r"(?<![A-Za-z0-9])[-+]?\d+(?:[.,:]\d+)*(?![A-Za-z0-9])",
}
"""Patterns of masked parts by name; where two match at the same letter, the earlier one applies."""
_MASKED = re.compile("|".join(MASKS.values()))


def mask(content: str) -> str:
    """A message with WILDCARD for numbers, addresses, paths and ids, and one space between its words.

    >>> mask("block blk_-38 from /10.0.0.7:50010 to /var/log in 0.3")
    'block blk_<*> from /<*> to <*> in <*>'
    """
    return " ".join([word if word.isalpha() else _word(word) for word in content.split()])


@lru_cache(1 << 16)
def _word(word: str) -> str:
    """A masked word; cached, since no mask spans a space and most words recur."""
    return _MASKED.sub(WILDCARD, word)


class Templates:
    """Templates of messages; each is an event `E1`, `E2` and so on, in order of first occurrence."""

    def __init__(self) -> None:
        self._drain = Drain(depth=DEPTH, sim_th=SIMILARITY)
        self._first: dict[int, list[str]] = {}  # first words of each template's first message: its position in the tree

    @classmethod
    def mine(cls, messages: Iterable[str]) -> Self:
        """Mine the templates of messages, in the order of the log."""
        made = cls()
        made.add(messages)
        return made

    def add(self, messages: Iterable[str]) -> None:
        """Mine further messages; existing templates keep their events and may get more variable parts."""
        for message in messages:
            masked = mask(message)
            cluster, _ = self._drain.add_log_message(masked)
            if cluster.cluster_id not in self._first:
                self._first[cluster.cluster_id] = masked.split()[:_WORDS]

    def __len__(self) -> int:
        return len(self._first)

    def event(self, message: str) -> str:
        """The event of a message: that of its template, or NEW."""
        drain = self._drain
        words = drain.get_content_as_tokens(mask(message))
        found = drain.tree_search(drain.root_node, words, drain.sim_th, False)
        return NEW if found is None else f"E{found.cluster_id}"

    def texts(self) -> dict[str, str]:
        """The template of each event."""
        return {f"E{cluster.cluster_id}": cluster.get_template() for cluster in self._clusters()}

    def counts(self) -> dict[str, int]:
        """Number of mined messages of each event."""
        return {f"E{cluster.cluster_id}": cluster.size for cluster in self._clusters()}

    def _clusters(self) -> list[LogCluster]:
        return list(self._drain.clusters)

    def state(self) -> list[dict[str, Any]]:
        """The state for a JSON file, from which `from_state` restores the templates."""
        return [
            {"template": one.get_template(), "first": self._first[one.cluster_id], "count": one.size}
            for one in self._clusters()
        ]

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """Templates from a `state`; raises SeqVAEError for an invalid one."""
        made = cls()
        drain = made._drain
        try:
            for number, one in enumerate(state, 1):
                words, first, count = one["template"].split(), one["first"], one["count"]
                if (
                    not (words[_WORDS:] or len(first) == len(words))
                    or not " ".join(first).split() == first
                    or count < 1
                ):
                    raise ValueError("a template without its count or its first words")
                cluster = LogCluster([*first, *words[len(first) :]], number)
                drain.id_to_cluster[number] = cluster
                drain.add_seq_to_prefix_tree(drain.root_node, cluster)
                cluster.log_template_tokens, cluster.size = tuple(words), count
                made._first[number] = first
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise SeqVAEError(f"templates that cannot be read ({error}); learn the detector again") from error
        drain.clusters_counter = len(made)
        return made
