"""Names of the moves between styles.

Scope: the names, for command lines that answer before torch is imported. Out of scope: the moves
(style/translation.py).
"""

from __future__ import annotations

from typing import Literal

Method = Literal["mean", "discriminant", "transport"]
