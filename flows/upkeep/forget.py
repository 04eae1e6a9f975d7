"""What somebody has removed by hand at the source is forgotten, because he says so: backups that are not there any more,
and files that a killed cleanup had in hand and that no cleanup finds.

Nobody else decides this: that something is not there now may mean that another card is in.
"""

from __future__ import annotations

import logging

from blocks import names
from blocks.errors import ConfigError, NotFound
from flows.upkeep.remove import hidden
from flows.upkeep.shift import Shift

log = logging.getLogger("onblock.upkeep")


def forget_missing(shift: Shift) -> int:
    """Take what is missing out of the books; how many files. Raises ConfigError, and forgets nothing, if it seems that
    it is the source that is missing."""
    ledger = shift.ledger
    remedy = "put in the card or disk that had them; if the folder was removed by hand, make an empty one"
    if shift.source_is_away:
        raise ConfigError("the source is away: nobody can say what is missing there", remedy=remedy)
    backups = [p for p in ledger.backups(shift.routes) if not _is_there(shift, p.backup or "")]
    missed = [p for p in ledger.missed(shift.routes) if not _is_there(shift, hidden(p), p.path)]
    folder = shift.job.cleanup.backup_folder
    if backups and (folder is None or not _is_folder(shift, folder)):
        raise ConfigError(
            f"{names.display(backups[0].backup or '')} is missing, and so is the whole backup folder", remedy=remedy
        )
    if not shift.dry:
        ledger.backup_gone(backups)
        ledger.forget_missed(missed)
    gone = {p.backup or p.path for p in [*backups, *missed]}
    for path in sorted(gone):
        log.info("%s is not there any more, and is forgotten", names.display(path))
    return len(gone)


def _is_there(shift: Shift, *paths: str) -> bool:
    for path in paths:
        try:
            shift.source.stat(path)
        except NotFound:
            continue
        return True
    return False


def _is_folder(shift: Shift, path: str) -> bool:
    try:
        next(iter(shift.source.scan(path, enter=lambda _: False)), None)
    except NotFound:
        return False
    return True
