"""Sessions that wait for their next use, so that a shipment need not log in again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from blocks.errors import NetworkError
from blocks.storage.base import Session, Storage


class SessionPool:
    """Idle sessions of storages, so that a shipment need not log in again. Thread-safe; one borrower per session."""

    def __init__(self) -> None:
        self._idle: dict[int, tuple[Storage, list[Session]]] = {}  # holds the storage: its id is its own while it lives
        self._spoilt: set[int] = set()
        self._lock = Lock()

    @contextmanager
    def session(self, storage: Storage) -> Iterator[Session]:
        """A session of `storage`, put back afterwards unless the network failed under it."""
        with self._lock:
            _, idle = self._idle.setdefault(id(storage), (storage, []))
            session = idle.pop() if idle else None
        session = session or storage.open()
        try:
            yield session
        except NetworkError:
            self.spoil(session)
            raise
        finally:
            self._put(storage, session)

    def spoil(self, session: Session) -> None:
        """The network failed under a session that is in use: nobody gets it after its borrower."""
        with self._lock:
            self._spoilt.add(id(session))

    def _put(self, storage: Storage, session: Session) -> None:
        with self._lock:
            spoilt = id(session) in self._spoilt
            self._spoilt.discard(id(session))
        if spoilt:
            session.close()
            return
        with self._lock:
            self._idle.setdefault(id(storage), (storage, []))[1].append(session)

    def close(self) -> None:
        """End all idle sessions."""
        with self._lock:
            sessions = [s for _, idle in self._idle.values() for s in idle]
            self._idle.clear()
        for session in sessions:
            session.close()
