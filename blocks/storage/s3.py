"""S3 and what speaks like it: AWS, DigitalOcean Spaces, Cloudflare R2, Backblaze B2, MinIO, SeaweedFS, Ceph.

Here: the block, with its presets. What a session does is in `s3_session.py`, files on their way in `s3_reader.py` and
`s3_upload.py`, evidence about their bytes in `s3_proof.py`, requests on a bucket in `s3_bucket.py`, and what goes over
the wire, with the table of failures, in `s3_wire.py`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlencode, urlsplit

from prefect.blocks.core import Block
from pydantic import Field, PrivateAttr, SecretStr, WithJsonSchema, field_validator, model_validator

from blocks import names
from blocks.errors import AuthError, ConfigError
from blocks.storage.base import Storage
from blocks.storage.s3_bucket import MIB, Ability, Bucket, Rules
from blocks.storage.s3_session import S3Session
from blocks.storage.s3_wire import Keys, Server


class Preset(NamedTuple):
    """What is known about a service: how its address is made, and what it can."""

    endpoint: str  # with {region} and {account}
    region: str = ""
    addressing: Literal["virtual", "path"] = "virtual"
    checksums: bool | None = None  # x-amz-checksum-*: kept, ignored, or learnt from its first answer
    conditional: bool | None = None  # If-None-Match on writes: honoured by both kinds, refused, or not known


PRESETS: dict[str, Preset] = {
    "aws": Preset("https://s3.{region}.amazonaws.com", checksums=True, conditional=True),
    "digitalocean": Preset("https://{region}.digitaloceanspaces.com"),
    "r2": Preset("https://{account}.r2.cloudflarestorage.com", region="auto", addressing="path"),
    "b2": Preset("https://s3.{region}.backblazeb2.com", checksums=False, conditional=False),
    "minio": Preset("", region="us-east-1", addressing="path"),
    "other": Preset("", region="us-east-1", addressing="path"),
}

_CREDENTIALS = {"aws-credentials": "AwsCredentials", "minio-credentials": "MinIOCredentials"}
_FORM = {"anyOf": [
    {"title": "AWS Credentials", "type": "object", "block_type_slug": "aws-credentials"},
    {"title": "MinIO Credentials", "type": "object", "block_type_slug": "minio-credentials"},
    {"type": "null"},
]}  # fmt: skip


def _clear(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""


def _schema(schema: dict[str, Any], model: type[Block]) -> None:
    """The schema of a block, where all that is inside `credentials` counts as secret."""
    inherited: Any = Block.model_config.get("json_schema_extra")
    inherited(schema, model)
    schema["secret_fields"] = [*schema.get("secret_fields", []), "credentials.*"]


class S3Storage(Storage):
    """A bucket, or a folder in one, of AWS S3 or a service that speaks like it."""

    _block_type_name = "S3 Storage"
    _block_type_slug = "s3-storage"
    _description = "A bucket, or a folder in one, of AWS S3 or a service that speaks like it."

    model_config: ClassVar[Any] = {"json_schema_extra": _schema}

    bucket: str = Field(min_length=1, description="The bucket. It has to be there.")
    prefix: str = Field(default="", description="Folder in the bucket under which all files lie; empty is the bucket.")
    preset: Literal["aws", "digitalocean", "r2", "b2", "minio", "other"] = Field(
        default="aws",
        description="The service: how its address is made and what it can. MinIO and `other` need an `endpoint`.",
    )
    endpoint: str = Field(
        default="",
        description="Address of the server, as https://host:port. http:// sends files unencrypted. "
        "Empty: made from the preset, `region` and `account`.",
    )
    region: str = Field(default="", description="Region, as eu-central-1 (AWS), fra1 (Spaces), us-west-004 (B2).")
    account: str = Field(default="", description="Account id: Cloudflare R2 has it in its address.")
    addressing: Literal["auto", "virtual", "path"] = Field(
        default="auto", description="Whether the bucket stands in the host's name or in the path."
    )
    credentials: Annotated[Any, WithJsonSchema(_FORM)] = Field(
        default=None, description="An AwsCredentials or MinIOCredentials block of prefect-aws."
    )
    access_key: str = Field(
        default="",
        description="Access key, in place of `credentials`. With neither, what boto3 finds on the machine is used; "
        "`anonymous` signs nothing.",
    )
    secret_key: SecretStr | None = Field(default=None, description="Secret that belongs to `access_key`.")
    session_token: SecretStr | None = Field(default=None, description="Token of a temporary `access_key`.")
    verify_tls: bool = Field(default=True, description="Check the server's certificate. Off, anybody may answer.")
    ca_file: str = Field(
        default="", description="File with the certificates (PEM) to trust, for a server of one's own."
    )
    storage_class: str = Field(
        default="", description="Storage class of new objects, as STANDARD_IA; empty: the bucket's."
    )
    encryption: Literal["", "AES256", "aws:kms"] = Field(default="", description="Encryption at the server.")
    kms_key_id: str = Field(default="", description="The key for aws:kms; empty: the account's own.")
    object_lock_mode: Literal["", "GOVERNANCE", "COMPLIANCE"] = Field(
        default="", description="Write once: nobody changes or removes new objects for `object_lock_days`."
    )
    object_lock_days: int = Field(default=0, ge=0, le=36500, description="Days for which new objects are locked.")
    tags: dict[str, str] = Field(default_factory=dict, max_length=10, description="Tags of new objects.")
    part_size_mib: Literal[5, 8, 16, 32] = Field(
        default=8, description="MiB of one part of a large file; what a resumed upload may have to send again."
    )
    multipart_from_mib: int = Field(default=16, ge=1, le=32, description="Files above so many MiB are sent in parts.")
    conditional_writes: bool | None = Field(
        default=None,
        description="Whether the server honours `If-None-Match: *` on PutObject and CompleteMultipartUpload, so that a file "
        "never overwrites another, even in a race. Empty: as the preset says.",
    )
    checksums: Literal["auto", "off"] = Field(
        default="auto", description="`off` for a server that fails with x-amz-checksum-*: Content-MD5 is used instead."
    )
    etags: Literal["md5", "opaque"] = Field(
        default="md5", description="`opaque` for a server whose ETags are no MD5: they are then no evidence."
    )
    timeout_s: float = Field(default=60, gt=0, le=3600, description="Seconds without a byte until the server is away.")

    _ability: Ability = PrivateAttr()

    @field_validator("prefix")
    @classmethod
    def _legal_prefix(cls, value: str) -> str:
        value = value.strip("/")
        try:
            return names.check_path(value) if value else value
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @field_validator("credentials", mode="before")
    @classmethod
    def _known_credentials(cls, value: Any) -> Any:
        """A dict becomes its block; prefect-aws, which takes a second to load, is loaded only then."""
        if value is None:
            return None
        slug = value.get("block_type_slug", "aws-credentials") if isinstance(value, dict) else ""
        if slug in _CREDENTIALS:
            import prefect_aws.credentials

            return getattr(prefect_aws.credentials, _CREDENTIALS[slug]).model_validate(value)
        if isinstance(value, Block) and value.get_block_type_slug() in _CREDENTIALS:
            return value
        raise ValueError("must be an AwsCredentials or MinIOCredentials block")

    @model_validator(mode="after")
    def _complete(self) -> S3Storage:
        preset = PRESETS[self.preset]
        if self.credentials is not None and self.access_key:
            raise ValueError("give either `credentials` or `access_key`")
        if self.access_key not in ("", "anonymous") and not _clear(self.secret_key):
            raise ValueError("`access_key` needs a `secret_key`")
        if bool(self.object_lock_mode) != bool(self.object_lock_days):
            raise ValueError("`object_lock_mode` and `object_lock_days` go together")
        if self.kms_key_id and self.encryption != "aws:kms":
            raise ValueError("`kms_key_id` needs `encryption: aws:kms`")
        if self.multipart_from_mib < self.part_size_mib:
            raise ValueError("`multipart_from_mib` is at least `part_size_mib`")
        if not self.endpoint and not self._from_credentials("endpoint_url"):
            if not preset.endpoint:
                raise ValueError(f"preset `{self.preset}` needs an `endpoint`")
            for name in ("region", "account"):
                if f"{{{name}}}" in preset.endpoint and not (getattr(self, name) or self._from_credentials(name)):
                    raise ValueError(f"preset `{self.preset}` needs `{name}`")
        address = urlsplit(self.address())
        if address.scheme not in ("http", "https") or not address.hostname or address.path.strip("/") or address.query:
            raise ValueError(f"endpoint {self.address()!r} must be https://host or https://host:port")
        self._ability = Ability(False if self.checksums == "off" else preset.checksums)
        return self

    def _from_credentials(self, name: str) -> str:
        if self.credentials is None:
            return ""
        if name == "region":
            return self.credentials.region_name or ""
        return getattr(self.credentials.aws_client_parameters, name, None) or ""

    def address(self) -> str:
        """The server's URL, without the bucket."""
        known = self.endpoint or self._from_credentials("endpoint_url")
        return known or PRESETS[self.preset].endpoint.format(region=self.signing_region(), account=self.account)

    def signing_region(self) -> str:
        """The region that signatures name."""
        return self.region or self._from_credentials("region") or PRESETS[self.preset].region or "us-east-1"

    def place(self) -> str:
        return f"s3:{urlsplit(self.address()).netloc.rpartition('@')[2]}/{self.bucket}" + (
            f"/{names.display(self.prefix)}" if self.prefix else ""
        )

    def server(self) -> Server:
        """Where requests go. Raises ConfigError, AuthError."""
        address = urlsplit(self.address())
        secure, host = address.scheme == "https", address.hostname or ""
        addressing = self.addressing
        if addressing == "auto":
            addressing = "path" if self.endpoint or "." in self.bucket else PRESETS[self.preset].addressing
        tls = None
        if secure:
            try:
                tls = ssl.create_default_context(cafile=self.ca_file or None)
            except OSError as error:
                raise ConfigError(f"cannot use the certificates: {error}", path=self.ca_file) from error
            if not self.verify_tls:
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        virtual = addressing == "virtual"
        return Server(
            f"{self.bucket}.{host}" if virtual else host, address.port or (443 if secure else 80),
            "" if virtual else f"/{self.bucket}", self.signing_region(), tls, self._keys(), self.timeout_s,
        )  # fmt: skip

    def _keys(self) -> Callable[[], Keys]:
        """How to get at the keys: botocore renews those that end."""
        if self.access_key == "anonymous":
            return lambda: Keys("", "")
        if self.access_key:
            fixed = Keys(self.access_key, _clear(self.secret_key), _clear(self.session_token))
            return lambda: fixed
        import botocore.exceptions

        try:
            if self.credentials is None:
                import boto3

                found = boto3.Session().get_credentials()
            else:
                found = self.credentials.get_boto3_session().get_credentials()
            if found is None:
                raise AuthError(
                    "there are no credentials", path=self.place(),
                    remedy="give the storage's block `credentials`, or `access_key` and `secret_key`",
                )  # fmt: skip
            found.get_frozen_credentials()
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise AuthError(f"cannot get credentials: {error}", path=self.place()) from error

        def keys() -> Keys:
            frozen = found.get_frozen_credentials()
            return Keys(frozen.access_key or "", frozen.secret_key or "", frozen.token or "")

        return keys

    def rules(self) -> Rules:
        """What new objects are given and what the server can."""
        encryption = {"x-amz-server-side-encryption": self.encryption} if self.encryption else {}
        if self.kms_key_id:
            encryption["x-amz-server-side-encryption-aws-kms-key-id"] = self.kms_key_id
        objects = {"x-amz-storage-class": self.storage_class} if self.storage_class else {}
        if self.tags:
            objects["x-amz-tagging"] = urlencode(self.tags)
        preset, said = PRESETS[self.preset], self.conditional_writes
        return Rules(
            self.place(), self.bucket, f"{self.prefix}/" if self.prefix else "", self.part_size_mib * MIB,
            self.multipart_from_mib * MIB, preset.conditional if said is None else said, self.etags == "md5",
            self._ability, encryption, objects, self.object_lock_mode, self.object_lock_days,
        )  # fmt: skip

    def open(self) -> S3Session:
        bucket = Bucket(self.server(), self.rules())
        try:
            bucket.check()
        except BaseException:
            bucket.close()
            raise
        return S3Session(bucket)
