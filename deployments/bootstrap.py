"""Makes a Prefect server ready for onblock: blocks, limits, work pool, deployments. `python -m deployments.bootstrap`.

    register_blocks     every storage as a block type, and the two blocks of the demo
    create_limits       the tags `onblock`, `device:<name>`, `destination:<block>`: how many tasks run at a time
    create_pool         the work pool `onblock`, for process workers
    create_automations  a run that is cut off is marked so, and started again
    deploy_file         the deployments of prefect.yaml
    deploy_job          a JOB.yaml as the deployment `transfer/<job>`

It may run as often as you like. What people changed in the UI stays: limits, demo blocks, and any deployment whose
file has not changed since it was deployed (its `version` is the fingerprint of what was deployed). Blocks made from
storages written inline in a JOB.yaml follow the JOB.yaml. The parts are in `server.py` and `deploy.py`.
Starting a server or a worker is not here, see `up.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.errors import ConfigError, NetworkError, OnblockError
from deployments import trust
from deployments.deploy import deploy_file, deploy_job
from deployments.server import Report, create_automations, create_limits, create_pool, register_blocks

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from flows.transfer.job import TransferJob

PREFECT_YAML = Path(__file__).parents[1] / "prefect.yaml"


def bootstrap(jobs: Iterable[Path | str | TransferJob] = (), prefect_yaml: Path = PREFECT_YAML) -> Report:
    """Bring the server of PREFECT_API_URL to where it should be, and deploy jobs, read or to be read. Raises ConfigError,
    NetworkError."""
    from flows.transfer.job import TransferJob, load_job

    report = Report()
    names: dict[str, Path | str | TransferJob] = {}
    with connect() as client:
        register_blocks(report)
        create_limits(client, [], report)  # before anything can run: a missing limit is silently no limit
        create_pool(client, report)
        create_automations(client, report)
        if prefect_yaml != PREFECT_YAML or prefect_yaml.exists():  # an installed wheel comes without the examples
            deploy_file(client, prefect_yaml, report)
        for path in jobs:
            job = path if isinstance(path, TransferJob) else load_job(path)
            if (other := names.setdefault(job.name, path)) is not path and other != path:
                raise ConfigError(f"has the name {job.name!r} of {other}; each job needs its own", path=str(path))
            deploy_job(client, job, report)
    return report


@contextmanager
def connect() -> Iterator[SyncPrefectClient]:
    """A client of the server at PREFECT_API_URL, which Prefect's own functions use meanwhile, too: each would make another,
    with certificates that are read anew. ConfigError where that is not set, NetworkError where none answers."""
    from prefect.context import SyncClientContext
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:  # without it Prefect would start a server of its own, and drop it with all that was made
        raise ConfigError(
            "PREFECT_API_URL is not set: there is no Prefect server to set up",
            remedy="start one with `onblock up`, or set it, such as `export PREFECT_API_URL=http://127.0.0.1:4200/api`",
        )
    os.environ.setdefault("PREFECT_API_URL", url)  # may come from a profile; `load_job` looks at the environment
    with trust.client() as client:
        if (trouble := client.api_healthcheck()) is not None:
            raise NetworkError(
                f"no Prefect server answers at {url}: {trouble}",
                remedy=trust.remedy(trouble, "start it (`onblock up` starts one here), or correct PREFECT_API_URL"),
            ) from trouble
    with SyncClientContext.get_or_create() as shared:
        yield shared.client


def main(argv: Sequence[str] | None = None) -> int:
    """The command: JOB.yaml files as arguments. 0, or 2 with a message where something is not as it should be."""
    try:
        report = bootstrap(sys.argv[1:] if argv is None else argv)
    except OnblockError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 2
    for what, lines in (("made", report.made), ("changed", report.changed)):
        for line in lines:
            print(f"{what:8}{line}")
    print(f"{'kept':8}{len(report.kept)} as they were")
    return 0


if __name__ == "__main__":
    sys.exit(main())
