"""When something runs by itself, as a form. What runs then is deployed by `deployments/deploy.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import available_timezones

from pydantic import field_validator

from flows.transfer.form import Form


class Schedule(Form):
    """When the job runs by itself."""

    cron: str
    """Five fields: minute, hour, day of month, month, day of week."""
    timezone: str = "UTC"
    """An IANA name, such as Europe/Berlin: the cron is read in it."""

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        from cronsim import CronSim, CronSimError  # what Prefect reads cron with

        try:
            CronSim(value, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(f"{value!r} is no cron expression ({error}); five fields, such as '0 */6 * * *'") from None
        if len(value.split()) != 5:
            raise ValueError(f"{value!r} has {len(value.split())} fields; write five, such as '0 */6 * * *'")
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"{value!r} is no IANA time zone, such as Europe/Berlin or UTC")
        return value
