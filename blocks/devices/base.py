"""What a device owes beyond a storage: it comes and goes, it has a name, and nothing is ever put on it.

How each kind of device is reached is in the file of its name; who looks after several of them, and tells when one
comes, is in `watch.py`.
"""

from __future__ import annotations

import threading
from abc import abstractmethod

from pydantic import Field, PrivateAttr, field_validator

from blocks import names
from blocks.errors import ConfigError, OnblockError
from blocks.storage.base import Session, Storage, Upload

PATIENCE_S = 5.0
"""So long `presence` waits at most: a dead network mount or name server may hang for minutes."""


class Live:
    """What a block knows while it is in use, and no copy of it shares: neither copied, nor pickled, nor compared."""

    def __deepcopy__(self, memo: object) -> Live:
        return type(self)()

    def __reduce__(self) -> tuple[type[Live], tuple[()]]:
        return type(self), ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    __hash__ = object.__hash__


class Glance(Live):
    """The last look whether a device is there."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.said = ""


class Device(Storage):
    """A storage that comes and goes: a camera, a card. A source only."""

    device: str = Field(
        description="The device's name: letters, digits, '.', '-', '_'. Its tag `device:NAME` limits how many tasks "
        "read from it at a time."
    )
    _glance: Glance = PrivateAttr(default_factory=Glance)

    @field_validator("device")
    @classmethod
    def _label(cls, value: str) -> str:
        try:
            return names.check_label(value, "device")
        except names.BadName as error:
            raise ValueError(error.what) from None

    @property
    def tag(self) -> str:
        """The concurrency tag of tasks that read from it."""
        return f"device:{self.device}"

    @abstractmethod
    def look(self) -> None:
        """See whether it is there, with one cheap question. Raises OnblockError that says why it is not."""

    def presence(self) -> str:
        """Why the device is not there now, in a sentence; empty if it is. Never raises for that, never waits long."""
        glance = self._glance
        looking = glance.thread
        if looking is None or not looking.is_alive():  # where one hangs, no other is sent after it
            glance.said = ""
            looking = glance.thread = threading.Thread(target=self._look, name=f"onblock-{self.tag}", daemon=True)
            looking.start()
        looking.join(PATIENCE_S)
        return f"{self.place()} did not answer within {PATIENCE_S:g} s" if looking.is_alive() else glance.said

    def _look(self) -> None:
        try:
            self.look()
        except OnblockError as error:
            self._glance.said = error.what
        except Exception as error:  # noqa: BLE001 - a device that nobody could look for is not there
            self._glance.said = f"could not be looked for ({type(error).__name__}: {error})"

    def connected(self) -> bool:
        """Whether the device is there now. Cheap; never raises because it is away."""
        return not self.presence()

    def release(self) -> None:
        """A run is done with the device, and its sessions are closed: let go of it. Raises OnblockError."""
        return


class DeviceSession(Session):
    """A live connection to a device: it reads, and deletes for a cleanup. `features` say `writable=False`."""

    def upload(
        self,
        path: str,
        size: int,
        *,
        key: str = "",
        resume: bool = False,
        journal: str = "",
        mtime_ns: int | None = None,
    ) -> Upload:
        names.check_path(path)
        raise refused(path)

    def discard(self, path: str, key: str, journal: str = "") -> None:
        """Nothing was ever left there."""

    def move(self, path: str, to: str) -> None:
        names.check_path(path)
        names.check_path(to)
        raise ConfigError(
            "the device cannot rename files", path=path, remedy="use `cleanup: {action: delete}` for this device"
        )


def refused(path: str) -> ConfigError:
    """What `upload` of a device says."""
    return ConfigError(
        "a device is only read from; nothing is put on it", path=path, remedy="choose a storage as destination"
    )
