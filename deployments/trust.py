"""Whose certificates are believed, and what to do where one is not.

For Prefect's API that is what Prefect's own client is told; the ledger's is in its address (`flows/ledger/database.py`).
"""

from __future__ import annotations

import ssl
import sys
from typing import TYPE_CHECKING

from blocks.errors import ConfigError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

API_CA = "PREFECT_API_SSL_CERT_FILE"


def context(ca: str | None, variable: str = API_CA) -> ssl.SSLContext:
    """For who has a certificate that this CA signed; without one, those of the system. ConfigError for a file that is none."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        why = "it is no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"the CA cannot be read: {why}", path=ca or "", remedy=f"correct {variable}") from None


def api_ca() -> str | None:
    """The CA of Prefect's API, if it is not a public one. ConfigError for a file that is none."""
    from prefect.settings import get_current_settings

    ca = get_current_settings().api.ssl_cert_file
    if ca:
        context(ca)
    return ca or None


def client() -> SyncPrefectClient:
    """Prefect's client. ConfigError where its CA is no CA."""
    from prefect.client.orchestration import get_client

    api_ca()
    return get_client(sync_client=True)


def told_if_refused() -> bool:
    """Whether Prefect's API is one that we do not believe; said in one line then. Where none answers: not."""
    try:
        with client() as asked:
            trouble = asked.api_healthcheck()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return True
    if refused(trouble):
        print(f"the Prefect server is not believed: {trouble} ({remedy(trouble, '')})", file=sys.stderr)
    return refused(trouble)


def refused(trouble: object) -> bool:
    """Whether this is about a certificate that is not believed."""
    return "CERTIFICATE_VERIFY_FAILED" in str(trouble)


def remedy(trouble: object, otherwise: str) -> str:
    """What to do about a server of Prefect that does not answer."""
    if refused(trouble):
        return f"name the CA that signed its certificate in {API_CA}, and take the name that stands in it for PREFECT_API_URL"
    return otherwise
