"""Buckets as places: of SeaweedFS, which has checksums and conditional writes, and of a MinIO of 2021, which has neither."""

from __future__ import annotations

import http.client
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from blocks.storage.s3 import S3Storage
from tests.contract.places import Place, place
from tests.servers.s3 import OldMinIO, SeaweedFS


class BucketPlace(Place):
    """A storage whose files lie in a bucket. Looked at with boto3, and where there are many by URLs that it signed."""

    many = 1001
    sequences = 12

    def __init__(self, storage: S3Storage, server: SeaweedFS | OldMinIO):
        super().__init__(storage)
        self.bucket, self.prefix = storage.bucket, f"{storage.prefix}/" if storage.prefix else ""
        self.server, self.client = server, server.client()
        self._connection = http.client.HTTPConnection(server.info["host"], server.info["port"], timeout=60)

    def _ask(self, method: str, operation: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        url = self.client.generate_presigned_url(operation, {"Bucket": self.bucket, "Key": self.prefix + path})
        self._connection.request(method, "/" + url.split("/", 3)[3], body)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def put(self, path: str, data: bytes, mtime_ns: int | None = None) -> None:
        status, said = self._ask("PUT", "put_object", path, data)
        assert status == 200, said

    def get(self, path: str) -> bytes | None:
        status, data = self._ask("GET", "get_object", path)
        assert status in (200, 404), data
        return data if status == 200 else None

    def everything(self) -> set[str]:
        """Objects, and uploads that nobody ended."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        keys = [o["Key"] for page in pages for o in page.get("Contents", [])]
        uploads = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix).get("Uploads", [])
        keys += [f"{u['Key']} unfinished {u['UploadId']}" for u in uploads]
        return {key.removeprefix(self.prefix) for key in keys if not key.endswith("/")}

    def remove(self, path: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + path)

    def holds(self, path: str) -> bool:
        return isinstance(self.server, OldMinIO) or "\\" not in path


def _s3(server: SeaweedFS | OldMinIO, **options: Any) -> BucketPlace:
    keys = {"access_key": server.info["access_key"], "secret_key": server.info["secret_key"]}
    options |= keys | {"bucket": server.bucket, "prefix": f"{secrets.token_hex(6)}/folder"}
    return BucketPlace(S3Storage(preset="other", endpoint=server.info["endpoint"], **options), server)


@place("s3")
def s3(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Files above 5 MiB go in parts."""
    server = request.getfixturevalue("seaweedfs")
    yield _s3(server, conditional_writes=True, part_size_mib=5, multipart_from_mib=5)


@place("s3-old-minio")
def s3_old_minio(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield _s3(request.getfixturevalue("old_minio"), part_size_mib=5, multipart_from_mib=5)
