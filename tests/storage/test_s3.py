"""What is S3's own, against SeaweedFS and a MinIO of 2021: uploads in parts, their journal, evidence, names, listings."""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect_aws.credentials import AwsCredentials, MinIOCredentials
from pydantic import ValidationError

from blocks.errors import ConfigError, Conflict, NetworkError, OnblockError, SourceChanged, UnknownError
from blocks.storage.s3 import PRESETS, S3Storage
from blocks.storage.s3_bucket import rclone_time
from blocks.storage.s3_proof import KINDS, NeedsPartSize, Proof, b64, combined, crc64nvme, evidence, new
from blocks.storage.s3_session import S3Session
from blocks.storage.s3_upload import HELD, _Allowance, held, part_size_for
from blocks.storage.s3_wire import Answer
from tests.contract.data import HOSTILE, MIB, begin, fetch, payload, send
from tests.servers.base import program
from tests.servers.s3 import Meddled, OldMinIO, S3Front, SeaweedFS

S3 = SeaweedFS | OldMinIO


def storage(server: S3, **options: object) -> S3Storage:
    values = {
        "bucket": server.bucket, "prefix": secrets.token_hex(6), "preset": "other", "endpoint": server.info["endpoint"],
        "access_key": server.info["access_key"], "secret_key": server.info["secret_key"],
        "conditional_writes": True if isinstance(server, SeaweedFS) else None,
        "part_size_mib": 5, "multipart_from_mib": 5, **options,
    }  # fmt: skip
    return S3Storage(**values)  # type: ignore[arg-type]


@pytest.fixture(params=["seaweedfs", "old_minio"])
def server(request: pytest.FixtureRequest) -> S3:
    return request.getfixturevalue(request.param)


@pytest.fixture
def session(server: S3) -> Iterator[S3Session]:
    left = held._left  # tests elsewhere leave uploads without an end
    with storage(server).open() as one:
        yield one
    assert held._left == left, "memory is held for uploads that have ended"


@pytest.fixture
def front(server: S3) -> Iterator[S3Front]:
    with S3Front(server) as one:
        yield one


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unfinished(session: S3Session) -> list[str]:
    return [one.key for one in session.abandoned(-60)]


# -- the block ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "host", "base", "region"),
    [
        ({"region": "eu-central-1"}, "b.s3.eu-central-1.amazonaws.com", "", "eu-central-1"),
        ({"region": "eu-central-1", "bucket": "a.dot"}, "s3.eu-central-1.amazonaws.com", "/a.dot", "eu-central-1"),
        ({"region": "us-east-1", "addressing": "path"}, "s3.us-east-1.amazonaws.com", "/b", "us-east-1"),
        ({"preset": "digitalocean", "region": "fra1"}, "b.fra1.digitaloceanspaces.com", "", "fra1"),
        ({"preset": "r2", "account": "0a1b"}, "0a1b.r2.cloudflarestorage.com", "/b", "auto"),
        ({"preset": "b2", "region": "us-west-004"}, "b.s3.us-west-004.backblazeb2.com", "", "us-west-004"),
        ({"preset": "minio", "endpoint": "https://nas:9000"}, "nas", "/b", "us-east-1"),
    ],
)
def test_where_a_preset_leads(fields: dict[str, str], host: str, base: str, region: str) -> None:
    block = S3Storage(**{"bucket": "b", "access_key": "a", "secret_key": "s", **fields})  # type: ignore[arg-type]
    where = block.server()
    assert (where.host, where.base, where.region) == (host, base, region)
    assert where.tls is not None
    assert where.tls.verify_mode is ssl.CERT_REQUIRED
    assert set(PRESETS) == {"aws", "digitalocean", "r2", "b2", "minio", "other"}


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"preset": "minio"}, {"preset": "r2"}, {"region": "x", "access_key": "a"}, {"endpoint": "nas:9000"},
        {"endpoint": "ftp://nas"}, {"endpoint": "http://nas/path"}, {"region": "x", "object_lock_days": 3},
        {"region": "x", "object_lock_mode": "COMPLIANCE"}, {"region": "x", "kms_key_id": "k"},
        {"region": "x", "prefix": "../x"}, {"region": "x", "credentials": {"block_type_slug": "other"}},
        {"region": "x", "credentials": "aws-credentials/x"}, {"region": "x", "bucket": ""},
        {"region": "x", "part_size_mib": 32},
    ],
)  # fmt: skip
def test_a_block_that_cannot_work_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        S3Storage(**{"bucket": "b", **fields})  # type: ignore[arg-type]


def test_credentials_of_prefect_aws(seaweedfs: SeaweedFS) -> None:
    """As blocks, and as the JSON that a flow's parameters are."""
    info = seaweedfs.info
    keys = AwsCredentials(aws_access_key_id=info["access_key"], aws_secret_access_key=info["secret_key"])
    minio = MinIOCredentials(minio_root_user=info["access_key"], minio_root_password=info["secret_key"])
    for credentials in (keys, minio):
        block = storage(seaweedfs, credentials=credentials, access_key="", secret_key=None)
        again = S3Storage.model_validate(block.model_dump())
        assert type(again.credentials) is type(credentials)
        for one in (block, again):
            with one.open() as session:
                assert send(session, "f", b"x") == "f"
                session.delete("f")
        assert info["secret_key"] not in repr(block) + str(block) + block.model_dump_json()


def test_secrets_are_masked_in_the_form() -> None:
    assert set(S3Storage.model_json_schema()["secret_fields"]) == {"secret_key", "session_token", "credentials.*"}


def test_the_signature_is_botocores(seaweedfs: SeaweedFS) -> None:
    """The same request, signed by the other: also of names that nobody wants to send."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    from blocks.storage.s3_wire import Wire, quoted

    block = storage(seaweedfs)
    where = block.server()
    wire = Wire(where)
    signer = S3SigV4Auth(Credentials(*where.keys()[:2]), "s3", where.region)
    for name in HOSTILE:
        path, query = quoted(f"{where.base}/{name}"), "list-type=2&prefix=a%20b%2Fc"
        ours = {"host": where.netloc, "x-amz-meta-mtime": "1.5"}
        wire._sign("PUT", path, query, ours, sha256(b"data"))
        theirs = AWSRequest("PUT", f"http://{where.netloc}{path}?{query}", {"x-amz-meta-mtime": "1.5"}, b"data")
        theirs.context["timestamp"] = ours["x-amz-date"]
        theirs.headers["X-Amz-Date"] = ours["x-amz-date"]
        theirs.headers["X-Amz-Content-SHA256"] = sha256(b"data")
        said = signer.signature(signer.string_to_sign(theirs, signer.canonical_request(theirs)), theirs)
        assert f"Signature={said}" in ours["authorization"], name


# -- evidence -------------------------------------------------------------------------------------------------------


def test_crc64nvme_is_the_standards() -> None:
    assert crc64nvme(b"123456789").hex() == "ae8b14860a799888"  # its check value in the catalogue of CRCs


@pytest.mark.parametrize("cut", [1, 7, 100, 999, 1000])
def test_checksums_of_parts_and_of_the_whole(cut: int) -> None:
    data = payload(1000)
    parts = [data[at : at + cut] for at in range(0, 1000, cut)]
    assert combined([(crc64nvme(p), len(p)) for p in parts]) == crc64nvme(data)
    for kind in (*KINDS, "md5"):
        whole, of_parts = new(kind), new(kind)
        whole.update(data)
        for part in parts:
            one = new(kind)
            one.update(part)
            of_parts.update(one.digest())
        for expected, part_size in ((whole.digest(), 0), (of_parts.digest(), cut)):
            for step in (1, 13, 1000):
                right, wrong = Proof(kind, expected, part_size), Proof(kind, expected, part_size)
                for at in range(0, 1000, step):
                    right.update(memoryview(data)[at : at + step])
                    wrong.update(memoryview(data[:500] + bytes([data[500] ^ 1]) + data[501:])[at : at + step])
                assert right.holds()
                assert not wrong.holds()


MD5 = hashlib.md5(b"x").hexdigest()


@pytest.mark.parametrize(
    ("headers", "size", "found"),
    [
        ({"etag": f'"{MD5}"'}, 1, "MD5 of the whole"),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption": "AES256"}, 1, "MD5 of the whole"),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption": "aws:kms"}, 1, None),
        ({"etag": f'"{MD5}-1"'}, 1, "MD5 of its parts"),
        ({"etag": f'"{MD5}-3"'}, 30, "needs a part size"),
        ({"etag": f'"{MD5}-3"', "x-amz-meta-onblock-part-size": "10"}, 30, "MD5 of its parts"),
        ({"etag": f'"{MD5}-3"', "x-amz-meta-onblock-part-size": "99"}, 30, None),  # that cannot be
        ({"etag": '"anything"'}, 1, None),
        ({"etag": f'"{MD5}"', "x-amz-checksum-crc64nvme": b64(b"8 bytes.")}, 1, "CRC64NVME of the whole"),
        ({"etag": f'"{MD5}-3"', "x-amz-checksum-sha256": b64(b"x" * 32)}, 30, "SHA256 of the whole"),
        ({"x-amz-checksum-crc32": b64(b"1234") + "-3", "x-amz-meta-onblock-part-size": "10"}, 30, "CRC32 of its parts"),
        ({}, 1, None),
    ],
)
def test_which_evidence_is_taken(headers: dict[str, str], size: int, found: str | None) -> None:
    try:
        proof = evidence(headers, size)
        assert (proof.of if proof else None) == found
    except NeedsPartSize:
        assert found == "needs a part size"
    if "etag" in headers and not any(k.startswith("x-amz-checksum") for k in headers):
        assert evidence(headers, size, etags_are_md5=False) is None


# -- parts and their journal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5 * MIB, 5 * MIB + 1, 10 * MIB, 23 * MIB + 7])
def test_a_large_file_arrives_in_parts(server: S3, session: S3Session, size: int) -> None:
    data = payload(size)
    upload = begin(session, "f", data, key="k", mtime_ns=1_234_567_890_123_456_789)
    assert unfinished(session) == ([] if size == 5 * MIB else [f"{session._prefix}f"] * len(unfinished(session)))
    upload.commit()
    found = server.client().head_object(Bucket=server.bucket, Key=f"{session._prefix}f")
    assert found["ETag"].strip('"').partition("-")[2] == ("" if size == 5 * MIB else str(-(-size // (5 * MIB))))
    assert found["Metadata"]["mtime"] == "1234567890.123456789"
    assert fetch(session, "f", step=MIB) == data
    assert session.checksum("f") == session.checksum("f", fresh=True) == sha256(data)
    assert unfinished(session) == []


def test_what_was_sent_here_is_proven_without_reading_it_back(seaweedfs: SeaweedFS, fault_proxy) -> None:
    proxy = fault_proxy(seaweedfs.info["port"])
    with storage(seaweedfs, endpoint=f"http://127.0.0.1:{proxy.port}").open() as session:
        for size in (100, 5000, 11 * MIB):
            data = payload(size)
            send(session, "f", data)
            before = proxy.bytes_down
            assert session.checksum("f") == sha256(data)
            assert proxy.bytes_down - before < 5000
            assert session.checksum("f", fresh=True) == sha256(data)
            assert proxy.bytes_down - before > size
            session.delete("f")


@pytest.mark.parametrize("with_journal", [True, False])
def test_a_killed_upload_goes_on(session: S3Session, server: S3, with_journal: bool) -> None:
    """The process is gone: only what lies at the server, and perhaps the journal, is left."""
    data = payload(23 * MIB)
    killed = storage(server, prefix=session._prefix.strip("/")).open()
    upload = killed.upload("d/f", len(data), key="k")
    upload.write(memoryview(data)[: 17 * MIB])
    journal = upload.journal
    assert upload._multi is not None  # type: ignore[attr-defined]
    upload._multi.wait()  # type: ignore[attr-defined]
    upload._multi._let_go()  # type: ignore[attr-defined]
    killed.close()

    assert [f.path for f in session.scan()] == []
    upload = session.upload("d/f", len(data), key="k", resume=True, journal=journal if with_journal else "")
    assert upload.offset == 15 * MIB
    upload.write(memoryview(data)[upload.offset :])
    upload.commit()
    assert fetch(session, "d/f", step=MIB) == data
    assert [f.path for f in session.scan()] == ["d/f"]
    assert unfinished(session) == []


@pytest.mark.parametrize("with_journal", [True, False])
def test_discard_removes_all_of_a_killed_upload(session: S3Session, with_journal: bool) -> None:
    upload = begin(session, "d/f", payload(11 * MIB), key="k")
    journal = upload.journal
    upload.keep()
    assert unfinished(session)
    session.discard("d/f", "another key")
    assert unfinished(session)
    session.discard("d/f", "k", journal if with_journal else "")
    assert unfinished(session) == []
    session.discard("d/f", "k", journal)
    assert session.upload("d/f", 11 * MIB, key="k", resume=True, journal=journal).offset == 0


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("ends", ["abort", "commit", "never"])
def test_who_was_taken_for_dead_does_the_other_no_harm(session: S3Session, server: S3, taken: bool, ends: str) -> None:
    """It wakes when another has its upload, which goes on; also where the name was taken from the beginning."""
    data = payload(16 * MIB)
    if taken:
        send(session, "f", b"was here first")
    with storage(server, prefix=session._prefix.strip("/")).open() as asleep:
        old = asleep.upload("f", len(data), key="1")
        old.write(memoryview(data)[: 11 * MIB])
        assert old.rewind(10 * MIB) == 10 * MIB
        session.rekey("f", "1", "2")
        upload = session.upload("f", len(data), key="2", resume=True, journal=old.journal)
        assert upload.offset == 10 * MIB
        old.write(memoryview(data)[10 * MIB :])
        if ends == "commit":
            with pytest.raises(UnknownError, match="another run"):
                old.commit(replace=taken)
            old.keep()
        elif ends == "abort":
            old.abort()
        upload.write(memoryview(data)[upload.offset :])
        assert upload.commit(replace=taken) == "f"
        assert fetch(session, "f", step=MIB) == data
        if ends == "never":
            old.abort()
    assert fetch(session, "f", step=MIB) == data
    assert [f.path for f in session.scan()] == ["f"]
    assert unfinished(session) == []


def test_what_tells_of_an_upload_may_be_lost(session: S3Session) -> None:
    """Somebody has cleaned up: who goes on writes it down again."""
    data = payload(11 * MIB)
    upload = begin(session, "f", data, key="1")
    for key, *_ in list(session._bucket.listing(session._prefix)):
        session._bucket.drop_object(key, "f")
    with pytest.raises(UnknownError, match="another run"):
        upload.commit()
    journal = upload.journal
    upload.keep()
    upload = session.upload("f", len(data), key="1", resume=True, journal=journal)
    upload.write(memoryview(data)[upload.offset :])
    assert upload.commit() == "f"
    assert fetch(session, "f", step=MIB) == data
    assert unfinished(session) == []


def test_abandoned_uploads_are_listed_and_removed(session: S3Session) -> None:
    begin(session, "a", payload(6 * MIB), key="1").keep()
    begin(session, "d/b", payload(6 * MIB), key="2").keep()
    assert list(session.abandoned(3600)) == []
    assert {one.key.removeprefix(session._prefix) for one in session.abandoned(-60)} == {"a", "d/b"}
    assert session.abort_abandoned(3600) == 0
    assert session.abort_abandoned(-60) == 2
    assert unfinished(session) == []
    client, prefix = session._bucket, session._prefix
    assert list(client.listing(prefix)) == []


@pytest.mark.parametrize(("size", "base", "expected"), [
    (0, 8 * MIB, 8 * MIB), (78 << 30, 8 * MIB, 8 * MIB), (79 << 30, 8 * MIB, 16 * MIB), (156 << 30, 8 * MIB, 16 * MIB),
    (1 << 40, 8 * MIB, 128 * MIB), (5 << 40, 5 * MIB, 640 * MIB),
])  # fmt: skip
def test_parts_grow_with_the_file(size: int, base: int, expected: int) -> None:
    assert part_size_for(size, base) == expected
    assert size <= expected * 10_000


def test_a_large_file_whose_name_is_taken_gets_another(session: S3Session, server: S3) -> None:
    data = payload(11 * MIB)
    send(session, "f", b"was here first")
    upload = begin(session, "f", data, key="k")
    with pytest.raises(Conflict):
        upload.commit()
    assert fetch(session, "f") == b"was here first"
    assert upload.commit("f~2") == "f~2"
    assert fetch(session, "f~2", step=MIB) == data
    upload = begin(session, "f", data, key="k")
    assert upload.commit(replace=True) == "f"
    assert fetch(session, "f", step=MIB) == data
    assert sorted(f.path for f in session.scan()) == ["f", "f~2"]
    assert unfinished(session) == []


def test_a_name_taken_meanwhile_by_a_file_too_large_to_hold(session: S3Session) -> None:
    """S3 cannot rename: the one case in which the whole file is sent again, and it is said."""
    upload = begin(session, "f", payload(HELD + 6 * MIB), key="k")
    send(session, "f", b"quicker")
    with pytest.raises(Conflict):
        upload.commit()
    with pytest.raises(OnblockError, match="sent again"):
        upload.commit("f~2")
    upload.abort()
    assert [f.path for f in session.scan()] == ["f"]
    assert fetch(session, "f") == b"quicker"
    assert unfinished(session) == []


def test_what_was_sent_in_vain_is_not_gone_on_with(session: S3Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt begins anew under a name of its own, and gets the other name at once."""
    monkeypatch.setattr("blocks.storage.s3_upload.held", _Allowance(0))
    data = payload(11 * MIB)
    upload = begin(session, "f", data, key="k")
    send(session, "f", b"quicker")
    with pytest.raises(OnblockError, match="sent again"):
        upload.commit("f~2")
    journal = upload.journal
    upload.keep()
    assert unfinished(session) == []
    upload = session.upload("f", len(data), key="k", resume=True, journal=journal)
    assert upload.offset == 0
    upload.write(memoryview(data))
    with pytest.raises(Conflict):
        upload.commit()
    assert upload.commit("f~2") == "f~2"
    assert fetch(session, "f~2", step=MIB) == data
    assert sorted(f.path for f in session.scan()) == ["f", "f~2"]
    assert unfinished(session) == []


def test_every_object_comes_with_a_checksum(front: S3Front) -> None:
    """As Amazon asks of buckets that lock what is put there: it refuses a PutObject without."""
    without: list[str] = []

    def strict(method: str, path: str, headers: Mapping[str, str]) -> Meddled:
        stated = "content-md5" in headers or any(name.startswith("x-amz-checksum-") for name in headers)
        if method != "PUT" or "partNumber" in path or stated or "x-amz-copy-source" in headers:
            return None
        without.append(path)
        return (
            400,
            b"<Error><Code>InvalidRequest</Code><Message>Content-MD5 OR x-amz-checksum- is required</Message></Error>",
        )

    front.meddle = strict
    data = payload(11 * MIB)
    with storage(front.behind, endpoint=front.info["endpoint"], conditional_writes=None).open() as session:
        begin(session, "large", data, key="1").keep()
        session.rekey("large", "1", "2")
        upload = session.upload("large", len(data), key="2", resume=True)
        upload.write(memoryview(data)[upload.offset :])
        upload.commit()
        send(session, "small", data[:100])
        assert fetch(session, "large", step=MIB) == data
    assert without == []


# -- reading what others wrote ------------------------------------------------------------------------------------------


def test_listing_shows_files_only(server: S3, session: S3Session) -> None:
    client, prefix = server.client(), session._prefix
    for key in ("a/", "a/b", "a-b", "c/d/"):
        client.put_object(Bucket=server.bucket, Key=prefix + key, Body=b"")
    found = {f.path for f in session.scan()}
    assert found == {"a/b", "a-b"}


def test_an_object_changed_while_it_is_read(server: S3, session: S3Session) -> None:
    first, second = payload(48 * MIB, 1), payload(48 * MIB, 2)
    send(session, "f", first)
    with session.read("f") as reader:
        assert reader.readinto(bytearray(MIB)) == MIB
        server.client().put_object(Bucket=server.bucket, Key=f"{session._prefix}f", Body=second)
        with pytest.raises(OnblockError) as caught:
            while reader.readinto(bytearray(MIB)):
                pass
        assert caught.value.kind in ("SOURCE_CHANGED", "NETWORK")


def test_rclone_reads_our_times_and_we_its_files(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    info, stamp = seaweedfs.info, 1_234_567_890_123_456_789
    config = tmp_path / "rclone.conf"
    config.write_text(
        f"[s3]\ntype = s3\nprovider = SeaweedFS\naccess_key_id = {info['access_key']}\n"
        f"secret_access_key = {info['secret_key']}\nendpoint = {info['endpoint']}\nregion = us-east-1\n"
    )
    rclone = program("rclone")
    assert rclone is not None
    with storage(seaweedfs).open() as session:
        place = f"s3:{seaweedfs.bucket}/{session._prefix}"
        send(session, "small", payload(10), mtime_ns=stamp)
        send(session, "large", payload(11 * MIB), mtime_ns=stamp)
        told = subprocess.run([rclone, "--config", str(config), "lsjson", place], capture_output=True, check=True)
        times = {o["Name"]: o["ModTime"] for o in json.loads(told.stdout)}
        assert set(times) == {"small", "large"}
        for text in times.values():
            assert text == datetime.fromtimestamp(1_234_567_890, UTC).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
        (tmp_path / "theirs").write_bytes(data := payload(300 * 1024, 3))
        subprocess.run(
            [rclone, "--config", str(config), "copyto", str(tmp_path / "theirs"), f"{place}theirs"], check=True
        )
        assert fetch(session, "theirs") == data


@pytest.mark.parametrize(("ns", "text"), [
    (0, "0"), (1_500_000_000, "1.5"), (1_234_567_890_123_456_789, "1234567890.123456789"), (-1, "-1.999999999"),
])  # fmt: skip
def test_times_as_rclone_writes_them(ns: int, text: str) -> None:
    assert rclone_time(ns) == text


def test_what_the_block_says_about_new_objects() -> None:
    block = S3Storage(
        bucket="b", region="x", access_key="a", secret_key="s", storage_class="STANDARD_IA", encryption="aws:kms",  # type: ignore[arg-type]
        kms_key_id="key", object_lock_mode="GOVERNANCE", object_lock_days=2, tags={"flight": "A 1", "x": "ü"},
    )  # fmt: skip
    from blocks.storage.s3_bucket import Bucket

    headers = Bucket(block.server(), block.rules()).object_headers(5_000_000_000)
    until = datetime.fromisoformat(headers.pop("x-amz-object-lock-retain-until-date"))
    assert abs(until.timestamp() - time.time() - 2 * 86400) < 60
    assert headers == {
        "content-type": "application/octet-stream", "x-amz-meta-mtime": "5", "x-amz-storage-class": "STANDARD_IA",
        "x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "key",
        "x-amz-object-lock-mode": "GOVERNANCE", "x-amz-tagging": "flight=A+1&x=%C3%BC",
    }  # fmt: skip


def test_tags_and_storage_class_reach_the_server(seaweedfs: SeaweedFS) -> None:
    with storage(seaweedfs, tags={"flight": "A 1"}, storage_class="STANDARD_IA").open() as session:
        client = seaweedfs.client()
        for name, size in (("small", 10), ("large", 6 * MIB)):
            send(session, name, payload(size))
            where = {"Bucket": seaweedfs.bucket, "Key": f"{session._prefix}{name}"}
            assert client.get_object_tagging(**where)["TagSet"] == [{"Key": "flight", "Value": "A 1"}], name
            assert client.head_object(**where)["StorageClass"] == "STANDARD_IA", name


def test_a_backslash_is_refused_where_the_server_would_take_it_for_a_slash(seaweedfs: SeaweedFS) -> None:
    with storage(seaweedfs).open() as session, pytest.raises(ConfigError, match="backslash"):
        session.upload("a\\b", 1)


def test_a_closed_port_is_known_at_once(seaweedfs: SeaweedFS, fault_proxy) -> None:
    proxy = fault_proxy(seaweedfs.info["port"])
    proxy.down()
    with pytest.raises(NetworkError, match="refused"):
        storage(seaweedfs, endpoint=f"http://127.0.0.1:{proxy.port}").open()


# -- removing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["delete_seen", "move"])
def test_what_was_written_in_the_last_moment_is_not_removed(server: S3, session: S3Session, step: str) -> None:
    """Between the look and the removal somebody writes: SeaweedFS sees it; the MinIO of 2021 passes over conditions."""
    key = session._bucket.key("a")
    client = server.client()
    client.put_object(Bucket=server.bucket, Key=key, Body=b"one")
    seen = session.stat("a")
    look, looked = session._bucket.head, list[str]()

    def head(path: str, **options: bool) -> Answer:
        answer = look(path, **options)
        looked.append(path)
        if looked == (["a"] if step == "delete_seen" else ["a", "b"]):  # the last look before it
            client.put_object(Bucket=server.bucket, Key=key, Body=b"two")
        return answer

    session._bucket.head = head
    if isinstance(server, SeaweedFS):
        with pytest.raises(SourceChanged):
            session.delete_seen(seen) if step == "delete_seen" else session.move("a", "b")
        assert fetch(session, "a") == b"two"
        assert [f.path for f in session.scan()] == ["a"]
    else:
        session.delete_seen(seen) if step == "delete_seen" else session.move("a", "b")
        assert [f.path for f in session.scan()] == ([] if step == "delete_seen" else ["b"])
