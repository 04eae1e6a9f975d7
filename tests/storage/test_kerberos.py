"""What Kerberos' complaints mean. Tickets against a real KDC are in `test_webhdfs.py` and `test_hadoop_cli.py`."""

from __future__ import annotations

import pytest

from blocks.errors import AuthError, ConfigError, NetworkError, OnblockError, UnknownError
from blocks.storage.kerberos import failure

COMPLAINTS: list[tuple[str, type[OnblockError]]] = [
    ("kinit: Client 'x@R' not found in Kerberos database while getting initial credentials", AuthError),
    ("kinit: Preauthentication failed while getting initial credentials", AuthError),
    ("kinit: Password incorrect while getting initial credentials", AuthError),
    ("kinit: Keytab contains no suitable keys for x@R while getting initial credentials", AuthError),
    ("kinit: Client's entry in database has expired while getting initial credentials", AuthError),
    ("kinit: Client's credentials have been revoked while getting initial credentials", AuthError),
    ("kinit: Key table file '/none' not found while getting initial credentials", ConfigError),
    ('kinit: Cannot find KDC for realm "R" while getting initial credentials', ConfigError),
    ("kinit: Clock skew too great while getting initial credentials", ConfigError),
    ("kinit: Cannot contact any KDC for realm 'R' while getting initial credentials", NetworkError),
    ("Major (720896): The referenced credential has expired, Minor: Ticket expired", AuthError),
    ("Minor (2529639053): No Kerberos credentials available (default cache: FILE:/none)", AuthError),
    ("Minor: Server HTTP/nn@R not found in Kerberos database", ConfigError),
    ("kinit: something nobody has seen", UnknownError),
]


@pytest.mark.parametrize(("complaint", "kind"), COMPLAINTS)
def test_what_a_complaint_means(complaint: str, kind: type[OnblockError]) -> None:
    error = failure(complaint + "\n", "x@R")
    assert type(error) is kind
    assert "x@R" in str(error)
    assert str(error).isprintable()
