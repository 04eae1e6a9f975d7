"""The tables of the ledger. How they are read and written is in `store.py` and its neighbours; how they came to be in
`migrations/`.

Times ending in `_at` are milliseconds since the epoch, UTC; those of runs by the clock of the database. Paths are text as `blocks.names.to_text` writes them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER column


class Base(DeclarativeBase):
    """Names constraints alike on every database, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Identity(Base):
    """One row: which ledger this is. A new database is another ledger, whatever Prefect has cached."""

    __tablename__ = "identity"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)


class Route(Base):
    """One job's way to one destination: what dedup is decided over. A job that gets another destination sends again."""

    __tablename__ = "routes"
    __table_args__ = (UniqueConstraint("job", "destination"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(String(100))
    destination: Mapped[str] = mapped_column(Text)  # Storage.place()
    created_at: Mapped[int] = mapped_column(BigInteger)


class Run(Base):
    """One run of a job. Its heartbeat is the lease of all rows it holds: one write, however many files.

    What is counted of many runs stands beside the summary, of transfers that told what became of them: `well` is NULL of
    all others."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    job: Mapped[str] = mapped_column(String(100))
    flight: Mapped[str | None] = mapped_column(String(100))
    device: Mapped[str | None] = mapped_column(String(100))
    worker: Mapped[str] = mapped_column(String(255))  # machine:pid:start of the process, to tell a dead one at once
    flow_run_id: Mapped[str | None] = mapped_column(String(36))
    started_at: Mapped[int] = mapped_column(BigInteger)
    heartbeat_at: Mapped[int] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
    summary: Mapped[str | None] = mapped_column(Text)  # JSON, as `onblock run --json` prints it
    delivered: Mapped[int | None] = mapped_column(BigInteger)  # files
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    well: Mapped[bool | None] = mapped_column(Boolean)  # nothing failed
    leader_id: Mapped[str | None] = mapped_column(String(36))  # the run that this one helps

    _told = text("well IS NOT NULL")
    _helps = text("leader_id IS NOT NULL")
    __table_args__ = (
        Index(
            "ix_runs_told", "ended_at", "job", "device", "well", "delivered", "bytes",
            sqlite_where=_told, postgresql_where=_told,
        ),
        Index("ix_runs_leader_id", "leader_id", sqlite_where=_helps, postgresql_where=_helps),
    )  # fmt: skip


class Manifest(Base):
    """One `checksums.sha256`, which several jobs may share. `version` counts changes in the ledger, `written` is the
    last one that is in the file."""

    __tablename__ = "manifests"
    __table_args__ = (UniqueConstraint("destination", "path"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    destination: Mapped[str] = mapped_column(Text)
    path: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(BigInteger, default=0)
    written: Mapped[int] = mapped_column(BigInteger, default=0)
    writer: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))


class Berth(Base):
    """A run at work at a place, and the bytes it has reserved there. Runs that have ended or died count for nothing."""

    __tablename__ = "berths"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    place: Mapped[str] = mapped_column(Text, primary_key=True)
    reserved: Mapped[int] = mapped_column(BigInteger, default=0)


class Offer(Base):
    """A shipment that a run has planned, and that the runs which help it may take. It goes when its leader has counted
    what became of its files, or has ended."""

    __tablename__ = "offers"

    leader_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    files: Mapped[str] = mapped_column(Text)  # JSON: ids of rows
    large: Mapped[bool] = mapped_column(Boolean)
    taker_id: Mapped[str | None] = mapped_column(String(36))  # the run that moves them
    done: Mapped[bool] = mapped_column(Boolean, default=False)  # it has moved them, or written down why not


class Turn(Base):
    """A run that holds slots of tags, and since when it waits for one more (`turns.py`). Those of runs that have ended or
    died count for nothing."""

    __tablename__ = "turns"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    tags: Mapped[str] = mapped_column(Text, primary_key=True)  # JSON, sorted
    held: Mapped[int] = mapped_column(Integer, default=0)
    since: Mapped[int | None] = mapped_column(BigInteger)
    asked_at: Mapped[int | None] = mapped_column(BigInteger)


class Hold(Base):
    """A job that somebody has paused."""

    __tablename__ = "holds"

    job: Mapped[str] = mapped_column(String(100), primary_key=True)
    who: Mapped[str] = mapped_column(String(100))
    since: Mapped[int] = mapped_column(BigInteger)


class Override(Base):
    """Somebody takes it on himself that files pass in spite of a finding. Rows are never changed: one that ends
    another before its time `revokes` it."""

    __tablename__ = "overrides"
    __table_args__ = (UniqueConstraint("revokes"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    revokes: Mapped[int | None] = mapped_column(ForeignKey("overrides.id"))
    job: Mapped[str] = mapped_column(String(100))
    rule: Mapped[str] = mapped_column(String(100))  # which finding
    path: Mapped[str] = mapped_column(Text)  # a pattern, as `include` has them
    who: Mapped[str] = mapped_column(String(100))
    why: Mapped[str] = mapped_column(Text)
    made_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)


class Product(Base):
    """What steps made of a file: `product_id` is the row of what is delivered, `origin_id` that of what it was made of.
    A stitched clip has two origins; a clip with a thumbnail is two products."""

    __tablename__ = "products"
    __table_args__ = (Index("ix_products_product_id", "product_id"),)

    origin_id: Mapped[int] = mapped_column(ForeignKey("files.id"), primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("files.id"), primary_key=True)


class Hook(Base):
    """One message from outside, kept before anything is done about it: a webhook, or a device that came. What it starts
    is started once, however often it is told."""

    __tablename__ = "hooks"
    __table_args__ = (
        UniqueConstraint("sender", "key"),
        UniqueConstraint("sender", "signature"),
        Index(
            "ix_hooks_open",
            "received_at",
            sqlite_where=text("done_at IS NULL"),
            postgresql_where=text("done_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    sender: Mapped[str] = mapped_column(String(100))
    key: Mapped[str] = mapped_column(String(255))  # what makes two messages one
    signature: Mapped[str | None] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(100))
    flight: Mapped[str | None] = mapped_column(String(100))
    events: Mapped[str] = mapped_column(Text)  # JSON: what to tell Prefect, with ids
    answer: Mapped[str] = mapped_column(Text)  # JSON, as the sender got it
    received_at: Mapped[int] = mapped_column(BigInteger)
    done_at: Mapped[int | None] = mapped_column(BigInteger)  # when Prefect had taken all of it


class File(Base):
    """One file version on one route."""

    __tablename__ = "files"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    route_id: Mapped[int] = mapped_column(ForeignKey("routes.id"))
    path: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    etag: Mapped[str] = mapped_column(Text, default="")

    state: Mapped[str] = mapped_column(String(16))
    kind: Mapped[str | None] = mapped_column(String(16))  # blocks.errors.Kind of the last failure
    stage: Mapped[str | None] = mapped_column(String(16))  # scan, gate, read, write, verify, commit
    message: Mapped[str | None] = mapped_column(Text)
    dest_path: Mapped[str | None] = mapped_column(Text)
    sha256: Mapped[str | None] = mapped_column(String(64))
    verified_by: Mapped[str | None] = mapped_column(String(16))  # how the delivery was proven
    bytes_done: Mapped[int] = mapped_column(BigInteger, default=0)
    journal: Mapped[str | None] = mapped_column(Text)  # JSON: what a resume needs

    attempt: Mapped[int] = mapped_column(Integer, default=0)  # fencing token: each claim adds one
    run_id: Mapped[str | None] = mapped_column(String(36))  # who holds it, or saw it last
    tries: Mapped[int] = mapped_column(Integer, default=0)  # failures since it was queued
    priority: Mapped[int] = mapped_column(Integer, default=0)  # -1 low, 0, 1 high, 2 urgent
    wish: Mapped[str | None] = mapped_column(String(8))  # pause or cancel, to whoever holds it
    findings: Mapped[str | None] = mapped_column(Text)  # JSON: what the gate found
    next_attempt_at: Mapped[int | None] = mapped_column(BigInteger)

    flight: Mapped[str | None] = mapped_column(String(100))
    device: Mapped[str | None] = mapped_column(String(100))
    manifest_id: Mapped[int | None] = mapped_column(ForeignKey("manifests.id"))
    queued_at: Mapped[int] = mapped_column(BigInteger)
    done_at: Mapped[int | None] = mapped_column(BigInteger)
    verify_passes: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # since the delivery
    proven_at: Mapped[int | None] = mapped_column(BigInteger)  # the last of them
    updated_at: Mapped[int] = mapped_column(BigInteger)
    lineage: Mapped[str | None] = mapped_column(Text)  # JSON, of products: what they were made of, and how

    _hashed = text("sha256 IS NOT NULL")
    _wished = text("wish IS NOT NULL")
    __table_args__ = (
        UniqueConstraint("route_id", "path", "size", "mtime_ns", "etag", name="uq_files_version"),
        Index("ix_files_state", "route_id", "state"),
        Index("ix_files_sha256", "sha256", sqlite_where=_hashed, postgresql_where=_hashed),
        Index("ix_files_manifest", "manifest_id"),
        Index("ix_files_wish", "wish", sqlite_where=_wished, postgresql_where=_wished),
    )
