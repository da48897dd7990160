#!/usr/bin/env bash
# A folder of music, blended by each of several amounts in a loop: OUT/0.25/song.mid, OUT/0.5/song.mid and so on.
# `seqvae blend` takes a whole folder, so that the model is loaded once for each amount and not for each song.
#
#   docs/examples/blend-folder.sh songs/ jazz out/            # by 0.25, 0.5, 0.75 and 1
#   docs/examples/blend-folder.sh songs/ jazz out/ 0.3 0.6
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: blend-folder.sh FOLDER STYLE OUT [AMOUNT...]" >&2; exit 2; }

songs=$1 style=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- 0.25 0.5 0.75 1
for amount; do
    seqvae blend "$songs" -m music --to "$style" --amount "$amount" -o "$out/$amount/"
done
