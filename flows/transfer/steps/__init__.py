"""The steps there are, as one union for the job's form. A new step is a file and a line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flows.transfer.steps.base import Ask, Step, kept_path, lineage, run_steps
from flows.transfer.steps.compress import Compress
from flows.transfer.steps.decompress import Decompress
from flows.transfer.steps.hls import Hls
from flows.transfer.steps.rename import Rename, Timestamp
from flows.transfer.steps.script import Script
from flows.transfer.steps.stitch import Stitch
from flows.transfer.steps.thumbnail import Thumbnail
from flows.transfer.steps.transcode import Remux, Transcode

AnyStep = Annotated[
    Compress | Decompress | Rename | Timestamp | Transcode | Remux | Hls | Stitch | Thumbnail | Script,
    Field(discriminator="kind"),
]
"""Any step, told apart by `kind`."""

__all__ = ["AnyStep", "Ask", "Step", "kept_path", "lineage", "run_steps"]
