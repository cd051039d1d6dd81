"""A group of commands that imports one only when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

# The module in this room, the click command in it, and what it does.
Entry = tuple[str, str, str]


class LazyGroup(click.Group):
    """A group that knows its commands by name alone until one runs.

    Args:
        entries: by the command's name.
    """

    def __init__(self, *args: Any, entries: Mapping[str, Entry], **options: Any) -> None:
        super().__init__(*args, **options)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.entries:
            return None
        module, name, _ = self.entries[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"nextscale.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, does) for name, (_, _, does) in self.entries.items()])
