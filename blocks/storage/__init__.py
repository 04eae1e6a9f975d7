"""The storages. `AnyStorage` is what a job may name; a new storage is one file, one line here and the contract suite."""

from blocks.storage.local import LocalStorage

AnyStorage = LocalStorage
STORAGES: dict[str, type[LocalStorage]] = {"local-storage": LocalStorage}
"""By the `type` that a JOB.yaml gives: the slug of the block type."""

__all__ = ["STORAGES", "AnyStorage", "LocalStorage"]
