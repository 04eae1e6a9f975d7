"""The storages. `AnyStorage` is what a job may name; a new storage is one file, its lines here and the contract suite."""

from blocks.storage.base import Storage
from blocks.storage.local import LocalStorage
from blocks.storage.sftp import SftpStorage
from blocks.storage.webhdfs import WebHdfsStorage

AnyStorage = LocalStorage | SftpStorage | WebHdfsStorage
STORAGES: dict[str, type[Storage]] = {
    "local-storage": LocalStorage,
    "sftp-storage": SftpStorage,
    "webhdfs-storage": WebHdfsStorage,
}
"""By the `type` that a JOB.yaml gives: the slug of the block type."""

__all__ = ["STORAGES", "AnyStorage", "LocalStorage", "SftpStorage", "WebHdfsStorage"]
