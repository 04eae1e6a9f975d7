"""`onblock notify`: who is told when something is wrong. What it makes on the server is in `notifications.py`."""

from __future__ import annotations

from typing import Annotated

import typer

notify = typer.Typer(
    help="Have Prefect tell somebody: a job failed, a device is silent, nothing was delivered.", no_args_is_help=True
)

Block = Annotated[str, typer.Option(help="A notification block on the Prefect server, such as slack-webhook/ops.")]
Job = Annotated[str | None, typer.Option(help="Of this job only.")]
Device = Annotated[str | None, typer.Option(help="Of this device only, also if it was never seen.")]


@notify.command()
def add(
    block: Block,
    when: Annotated[list[str], typer.Option(help="job-failed, device-silent=30m, nothing-delivered=24h; may be given again.")],
    job: Job = None, device: Device = None,
) -> None:  # fmt: skip
    """Have something told through a block. As often as you like: what is there stays, another time replaces the one before."""
    from blocks import names
    from blocks.errors import ConfigError
    from deployments.bootstrap import connect
    from deployments.notifications import What, condition, wire
    from deployments.server import Report

    wanted = [condition(w, job, device) for w in when]
    kinds = [w.what for w in wanted]
    if twice := [k for k in kinds if kinds.count(k) > 1]:
        raise ConfigError(f"`--when {twice[0]}` is given twice")
    if job is not None and all(w.job is None for w in wanted):
        raise ConfigError("`--job` says nothing of `device-silent`; write `--device`")
    if device is not None:
        if What.DEVICE_SILENT not in kinds:
            raise ConfigError("`--device` goes with `--when device-silent=...`")
        try:
            names.check_label(device, "device")
        except names.BadName as error:
            raise ConfigError(f"{names.display(device)!r} is no device: {error.what}") from None
    report = Report()
    with connect() as client:
        wire(client, block, wanted, report)
    for what, lines in (("made", report.made), ("changed", report.changed), ("kept", report.kept)):
        for line in lines:
            print(f"{what:8}{line}")


@notify.command("list")
def notify_list(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List what is told, and through which block."""
    from deployments.bootstrap import connect
    from deployments.notifications import wired
    from deployments.told import print_json

    with connect() as client:
        found = wired(client)
    if as_json:
        keys = ("when", "block", "job", "device", "enabled")
        print_json({"notifications": [{k: getattr(w, k) for k in keys} for w in found]})
        return
    for w in found:
        of = f" of job {w.job}" if w.job else f" of device {w.device}" if w.device else ""
        print(f"{w.when}{of}  {w.block}" + ("" if w.enabled else "  (switched off)"))
    if not found:
        print("nobody is told anything; `onblock notify add --block TYPE/NAME --when job-failed` changes that")


@notify.command()
def remove(
    block: Annotated[str | None, typer.Option(help="Those through this block.")] = None,
    when: Annotated[list[str] | None, typer.Option(help="job-failed, device-silent or nothing-delivered.")] = None,
    job: Job = None, device: Device = None,
    everything: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
) -> None:  # fmt: skip
    """Have it told no more: what fits all that is said."""
    from blocks.errors import ConfigError
    from deployments.bootstrap import connect
    from deployments.notifications import What, unwire

    given = [w.partition("=")[0] for w in when or []]
    if unknown := [w for w in given if w not in list(What)]:
        raise ConfigError(f"{unknown[0]!r} is no condition; there are {', '.join(What)}")
    if not (block or given or job or device or everything):
        raise ConfigError("say which: --block, --when, --job, --device, or --all")
    with connect() as client:
        for gone in unwire(client, [What(w) for w in given], block, job, device):
            print(f"removed {gone.name.removeprefix('onblock: ')}")


@notify.command()
def test(block: Block) -> None:
    """Have the Prefect server send a message through a block, and say whether it could."""
    from deployments.bootstrap import connect
    from deployments.notifications import try_out

    with connect() as client:
        try_out(client, block)
    print(f"the server has sent a message through {block}")
