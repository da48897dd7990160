"""Writing of the metrics of `seqvae evaluate` into a checkpoint: metrics.json, and the tables of its model card.

    seqvae evaluate -m checkpoints/music --data DIR --json > figures.json
    python benchmarks/card.py checkpoints/music figures.json

The tables replace the text between the comment lines `<!-- figures -->` and `<!-- end of figures -->` of the card.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from seqvae.evaluation import music_report, text_report

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def main(folder: Path, figures: Path) -> None:
    result = json.loads(figures.read_text())
    card = (folder / "README.md").read_text()
    before, _, rest = card.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{folder}/README.md: add {BEGIN} and {END} where the tables belong")
    kind = json.loads((folder / "config.json").read_text())["recipe"]["tokenizer"]["kind"]
    table = (music_report if kind == "midi" else text_report).table(result)
    (folder / "README.md").write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
    (folder / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
