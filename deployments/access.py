"""`onblock access`: who may use the console, as what. Everybody has a token; it is shown once."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

access = typer.Typer(
    help="Who may use the console: viewers look, operators act, admins change jobs.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Who: letters, digits, dot, dash, underscore.")]


@access.command()
def add(name: Name, role: Annotated[str, typer.Option(help="viewer, operator or admin.")] = "viewer") -> None:
    """Give somebody, or a program, a token; whoever has one gets a new one, and the old one is void. Printed once."""
    from blocks.errors import ConfigError
    from deployments.console.access import People, Role

    try:
        wanted = Role[role.upper()]
    except KeyError:
        raise ConfigError(f"{role!r} is no role; there are {', '.join(r.name.lower() for r in Role)}") from None
    print(People().add(name, wanted))


@access.command("list")
def access_list() -> None:
    """List who has a token, and what he may do."""
    from deployments.console.access import People

    found = People().all()
    for p in found:
        print(
            f"{p.name}  {p.role.name.lower()}  since {datetime.fromtimestamp(p.made_at).astimezone():%Y-%m-%d %H:%M %Z}"
        )
    if not found:
        print("nobody yet; the console makes an admin when it is started first")


@access.command()
def remove(name: Name) -> None:
    """Take somebody's token back, and end his sessions."""
    from deployments.console.access import People

    People().remove(name)
    print(f"{name} has no access any more")
