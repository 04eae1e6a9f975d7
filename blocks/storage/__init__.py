"""The storages. `AnyStorage` is what a job may name; a new storage is one file, its lines here and the contract suite."""

from blocks.storage.base import Storage
from blocks.storage.hadoop_cli import HadoopCliStorage
from blocks.storage.local import LocalStorage
from blocks.storage.rclone import RcloneStorage
from blocks.storage.rsync import RsyncStorage
from blocks.storage.s3 import S3Storage
from blocks.storage.scp import ScpStorage
from blocks.storage.sftp import SftpStorage
from blocks.storage.webhdfs import WebHdfsStorage

AnyStorage = (
    LocalStorage
    | SftpStorage
    | ScpStorage
    | S3Storage
    | WebHdfsStorage
    | HadoopCliStorage
    | RcloneStorage
    | RsyncStorage
)
STORAGES: dict[str, type[Storage]] = {
    "local-storage": LocalStorage,
    "sftp-storage": SftpStorage,
    "scp-storage": ScpStorage,
    "s3-storage": S3Storage,
    "webhdfs-storage": WebHdfsStorage,
    "hadoop-cli-storage": HadoopCliStorage,
    "rclone-storage": RcloneStorage,
    "rsync-storage": RsyncStorage,
}
"""By the `type` that a JOB.yaml gives: the slug of the block type."""

__all__ = [
    "STORAGES",
    "AnyStorage",
    "HadoopCliStorage",
    "LocalStorage",
    "RcloneStorage",
    "RsyncStorage",
    "S3Storage",
    "ScpStorage",
    "SftpStorage",
    "WebHdfsStorage",
]
