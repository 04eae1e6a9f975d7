"""The names HDFS can hold, and those it cannot. What is true of every storage is in `blocks/names.py`."""

from __future__ import annotations

from blocks import names
from blocks.errors import ConfigError


def hdfs_root(value: str) -> str:
    """A legal root folder, as it is kept: from '/', no '/' at its end. For validators: raises ValueError."""
    if not value.startswith("/"):
        raise ValueError(f"{names.display(value)!r} is not an absolute path; write it from '/'")
    parts = [part for part in value.split("/") if part]
    if parts:
        try:
            hdfs_path("/".join(parts))
        except ConfigError as error:
            raise ValueError(error.what) from None
    return "/" + "/".join(parts)


def hdfs_path(path: str) -> str:
    """`path` itself if it is legal and HDFS can hold it. Raises ConfigError."""
    names.check_path(path)
    if path.isascii() and ":" not in path and "." not in path:
        return path
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise names.BadName(
            f"name {names.display(path)!r} is no UTF-8, and HDFS holds nothing else",
            remedy="rename it with the job's `path` template",
        ) from None
    for part in path.split("/"):
        if ":" in part or part in (".snapshot", ".reserved"):
            raise names.BadName(
                f"name {names.display(part)!r} cannot be held by HDFS, which forbids ':' and keeps .snapshot and "
                ".reserved for itself",
                remedy="rename it with the job's `path` template",
            )
    return path
