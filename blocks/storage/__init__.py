"""The storages. `AnyStorage` is what a job may name; a new storage is one file, its lines here and the contract suite."""

from blocks.storage.base import Storage
from blocks.storage.local import LocalStorage
from blocks.storage.sftp import SftpStorage

AnyStorage = LocalStorage | SftpStorage
STORAGES: dict[str, type[Storage]] = {
    "local-storage": LocalStorage,
    "sftp-storage": SftpStorage,
}
"""By the `type` that a JOB.yaml gives: the slug of the block type."""

__all__ = ["STORAGES", "AnyStorage", "LocalStorage", "SftpStorage"]
