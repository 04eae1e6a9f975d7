"""Imported jobs as JOB.yaml files in a folder: all of them, or none. What is in them is made in `fileflow.py`."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from blocks.errors import ConfigError, Conflict
from blocks.storage.local import os_failure
from deployments.deploy import block_name
from deployments.imports.fileflow import Translated


def text_of(made: Translated, *, deployed: bool) -> str:
    """The JOB.yaml of a job. Once it is deployed, storages with secrets are blocks, and named."""
    document = dict(made.document or {})
    if deployed:
        for key, role in (("source", "source"), ("destination", "destination-1")):
            if any(isinstance(value, dict) for value in document[key].values()):
                document[key] = f"{document[key]['type']}/{block_name(made.name, role)}"
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
    names = "".join(f"# needs the environment variable {name}\n" for name in ([] if deployed else made.secrets))
    return f"# FileFlow's job {made.job_id!a}\n{names}{body}"


def check_folder(folder: Path, files: Sequence[tuple[Path, str]], *, replace: bool) -> None:
    """Refuse to write over what is there and says something else. Raises ConfigError, Conflict."""
    if folder.exists() and not folder.is_dir():
        raise Conflict("is a file, not a folder", path=str(folder), remedy="give a folder with --to")
    for path, text in files:
        try:
            if not replace and os.path.lexists(path) and path.read_text("utf-8") != text:
                raise Conflict(
                    "is there already, and says something else",
                    path=str(path),
                    remedy="give another --to, or --replace",
                )
        except UnicodeDecodeError as error:
            raise Conflict("is there already, and is no job", path=str(path), remedy="give another --to") from error
        except OSError as error:
            raise os_failure(error, "cannot look at it", str(path)) from error


def write_all(folder: Path, files: Sequence[tuple[Path, str]]) -> None:
    """Write all files, each under a name of its own first; once all are written, give them their names. Raises the class
    of what failed; no file that is half written stays."""
    staged: list[tuple[Path, Path]] = []
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files:
            draft = folder / f".{path.name}.{secrets.token_hex(4)}"
            staged.append((draft, path))
            with draft.open("x", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
        for draft, path in staged:
            draft.replace(path)
    except OSError as error:
        raise os_failure(error, "cannot write the job", str(path)) from error
    except UnicodeEncodeError as error:
        raise ConfigError("a name in it is no Unicode", path=str(path)) from error
    finally:
        for draft, _ in staged:
            with contextlib.suppress(OSError):
                draft.unlink()


def file_of(folder: Path, made: Translated) -> Path:
    """Where the job goes. Its name is a label: no path."""
    return folder / f"{made.name}.yaml"


def as_json(made: Translated, path: Path | None, deployed: bool) -> dict[str, Any]:
    """One job, for programs."""
    return {
        "job_id": made.job_id, "name": made.name if made.document else None,
        "file": str(path) if path and made.document else None, "deployed": deployed and made.document is not None,
        "environment": sorted(made.secrets),
        "findings": [{"about": f.about, "how": f.how.value, "text": f.text} for f in made.findings],
    }  # fmt: skip
