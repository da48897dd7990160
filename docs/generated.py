"""Generated pages of the site: the model cards, and the help of every command.

Scope: mkdocs' events, paths of the cards, and the help of commands. Out of scope: the content of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from seqvae.cli.app import app

ROOT = Path(__file__).parent.parent
CARDS = sorted(card.parent for card in (ROOT / "checkpoints").glob("*/README.md"))
CARD = re.compile(r"\]\((?:\.\./)+(?:checkpoints/)?([\w-]+)/README\.md")  # as the repository's pages link to a card
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+(?:notebooks|tests|benchmarks)/[^)]*\)")
PICTURE = re.compile(r"\]\((?:\.\./)+checkpoints/([\w-]+)/([\w-]+\.png)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every card into the navigation."""
    for entry in config.nav or []:
        if "Model cards" in entry:
            entry["Model cards"] = [{folder.name: f"cards/{folder.name}/index.md"} for folder in CARDS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the cards with their pictures, and the page of commands."""
    for folder in CARDS:
        text = (folder / "README.md").read_text()
        files.append(File.generated(config, f"cards/{folder.name}/index.md", content=text))
        for picture in folder.glob("*.png"):
            files.append(File.generated(config, f"cards/{folder.name}/{picture.name}", abs_src_path=str(picture)))
    files.append(File.generated(config, "reference/commands.md", content="".join(commands())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead from a page to the cards where they lie on the site, and nowhere outside of it."""
    up = "../" * page.file.src_uri.count("/")
    markdown = OUTSIDE.sub(r"\1", markdown)
    return PICTURE.sub(rf"]({up}cards/\1/\2", CARD.sub(rf"]({up}cards/\1/index.md", markdown))


def commands() -> Iterator[str]:
    """A page of Markdown: what `--help` says of every command."""
    yield "# Commands\n\nWhat `--help` says, of every command.\n"
    yield from _helps(typer.main.get_command(app), "seqvae", None)


def _helps(command: Any, name: str, above: Any) -> Iterator[str]:
    context = command.make_context(name, [], parent=above, resilient_parsing=True, max_content_width=100)
    context.terminal_width = 100
    yield f"\n## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    for child, found in getattr(command, "commands", {}).items():
        yield from _helps(found, child, context)
