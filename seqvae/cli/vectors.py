"""The commands `encode` and `decode`: latent vectors in a file.

Scope: arguments, the file of vectors, and notices. Out of scope: moves of vectors (cli/app.py, cli/style.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqvae.cli import console
from seqvae.cli.console import AnyModel, Exact, Html, Inputs, Json, Model, Out, Png, Strict, Wav, tell, verb
from seqvae.errors import SeqVAEError

if TYPE_CHECKING:
    from torch import Tensor

app = console.group("Write latent vectors to a file, and decode them.")

Latents = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.", show_default=False)]


@verb(
    app,
    "seqvae encode song.mid -m music -o latents.safetensors",
    "seqvae encode @in.txt -m reviews -o latents.safetensors",
)
def encode(
    out: Latents, inputs: Inputs = None, model: AnyModel = None, exact: Exact = False, strict: Strict = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write latent vectors to a file.

    For music, each file gives a tensor (segments, dimensions) under its name. For text, `z` holds the vectors of all
    lines in order, and `segments` the number of vectors of each line: one, or none for a blank line.
    """
    from seqvae.cli.inputs import chosen, load

    model, kind = chosen(model, inputs or [])
    batches = kind.read(inputs or [])
    ranks = console.processes(kind.FILES, inputs)
    codec = load(model, exact=exact)
    from seqvae.checkpoint import folder as checkpoint
    from seqvae.cli.notices import Notices

    notices = Notices(codec, strict)

    def encoded(batch: Sequence[Any]) -> Iterator[tuple[Any, Tensor]]:
        notices.check_length(batch)
        return zip(batch, codec.encode([item.piece for item in batch]), strict=True)

    items: list[Any] = []
    latents: list[Tensor] = []
    for item, z in ranks.in_rounds(batches, encoded):
        items.append(item)
        latents.append(z)
    ranks.leave()
    if ranks.rank:
        return
    checked = notices.sampled(len(items))
    looked = [items[i] for i in checked]
    notices.look(looked, [codec.segments(item.piece) for item in looked], [latents[i] for i in checked])
    tensors, sources, rows = kind.pack(inputs or [], items, latents, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": model, "kind": codec.tokenizer.kind, "sources": json.dumps(sources)}
    checkpoint.save_tensors(tensors, about, out)
    for text, facts in rows:
        tell(text, facts, as_json)
    notices.report()


@verb(
    app,
    "seqvae decode latents.safetensors -m music --like song.mid -o out/",
    "seqvae decode latents.safetensors -m reviews > out.txt",
)
def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="File that `encode` wrote.", show_default=False)],
    model: Model = "music",
    like: Annotated[str | None, typer.Option(help="Music: song to take tempo, metre and key from.")] = None,
    out: Out = None,
    wav: Wav = False,
    png: Png = False,
    html: Html = False,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Decode latent vectors. Songs are named after their tensors; text comes in the order of its lines."""
    from seqvae.cli.inputs import also, kind_of, load

    kind = kind_of(model)
    template = None if like is None else kind.template(like)
    from seqvae.checkpoint import folder as checkpoint

    tensors, about = checkpoint.load_tensors(latents)
    pieces = kind.unpack(tensors, latents)
    with kind.new([name for name, _ in pieces], out, as_json, also(wav, png, html)) as desk:
        codec = load(model, exact=exact)
        if about.get("kind", codec.tokenizer.kind) != codec.tokenizer.kind:
            raise SeqVAEError(f"{latents}: holds {about['kind']}, and {model} is for {codec.tokenizer.kind}; choose -m")
        lengths = None if template is None else codec.adapter.limits(template)
        most = None if lengths is None else -(-len(lengths) // codec.chunks)
        for name, z in pieces:
            if most is not None and len(z) > most:
                raise SeqVAEError(f"'{name}' has {len(z)} segments, and --like {like} only {most}; name a longer song")
        rest = iter(pieces)
        for batch in desk.batches():
            named = [(name, z.float()) for _, (name, z) in zip(batch, rest, strict=False)]
            frames = None if template is None else [template] * len(batch)
            results = codec.decode([z for _, z in named], like=frames)
            for item, (name, z), piece in zip(batch, named, results, strict=True):
                desk.write(item, piece, {"name": name, "segments": len(z)})
