"""The storages. `AnyStorage` is what a job may name; a new storage is one file, one line here and the contract suite."""

from blocks.storage.local import LocalStorage

AnyStorage = LocalStorage
STORAGES = {LocalStorage._block_type_slug: LocalStorage}

__all__ = ["STORAGES", "AnyStorage", "LocalStorage"]
