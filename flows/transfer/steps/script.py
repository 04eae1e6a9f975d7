"""The step `script`: a program of the operator's, run on each file.

It is started by prefect-shell's ShellOperation, which the house asks for: it gives a session (and process group) of its
own, the environment and the working folder, and ends the group. That block takes a shell script, so this step writes one
of a single line: the quoted argument list, with `exec`. Nothing of a file's name is read by a shell as anything but a word.
What ShellOperation leaves open is done here: its output would be kept in memory without end, so it goes into pipes of
which the last part is kept; its waiting knows neither a limit nor a cancel; a child in a session of its own would
outlive its group, so what still carries this run's mark in its environment is ended as well.

This is order, not a sandbox: a script has all rights of the account that runs onblock. Hence the allowed folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shlex
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from blocks import names
from blocks.errors import ConfigError, NotFound, PermissionRefused, ToolMissing, UnknownError
from blocks.home import home
from flows.transfer.form import Duration
from flows.transfer.steps.base import Ask, Step

FOLDER = "ONBLOCK_SCRIPTS"
"""Environment variable with the allowed folder; without it, `scripts` in ONBLOCK_HOME. A job cannot set it."""
KEPT = 1 << 16
"""Bytes of standard output and of standard error that are kept: the last ones."""
MARK = "ONBLOCK_STEP"
"""Environment variable by which children that left the process group are found."""
TOKENS = ("input", "name", "stem", "flight", "device", "job", "work")
FILES_MAX = 10_000


def allowed_folder() -> Path:
    """Where scripts must lie."""
    return Path(os.environ.get(FOLDER) or home() / "scripts").expanduser().resolve()


class Script(Step):
    """Run a program of yours on each file. It gets the file's path as its argument and works in an empty folder; the
    files it leaves there replace the input. If the last line it prints is a path in that folder, it is that file only."""

    PRIVATE = frozenset({"program", "args"})
    MAY_HURT = True

    kind: Literal["script"] = "script"
    program: str
    """The program, in the folder for scripts of the machine that runs it (`scripts` in ONBLOCK_HOME, or what the
    environment variable ONBLOCK_SCRIPTS says)."""
    args: list[str] = Field(default=["{input}"], max_length=64)
    """Its arguments, each handed over as it is, no shell reads them. {input} {name} {stem} {flight} {device} {job} {work}
    are filled in."""
    time_limit: Duration = timedelta(hours=1)
    """It is ended after this long."""
    keep_input: bool = False
    """The input is delivered as well; the program may then leave nothing."""
    retry: bool = False
    """A failure may pass: run it again later, instead of giving the file up."""

    @field_validator("program")
    @classmethod
    def _program(cls, value: str) -> str:
        if not value or "\0" in value or value.startswith("-"):
            raise ValueError("give the name of a program in the folder for scripts")
        if ".." in value.split("/"):
            raise ValueError("the program lies in the folder for scripts: no `..`")
        return value

    @field_validator("args")
    @classmethod
    def _args(cls, value: list[str]) -> list[str]:
        for arg in value:
            if "\0" in arg:
                raise ValueError("an argument cannot hold a NUL byte")
        return value

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        source = inputs[0]
        program = self._found()
        argv = [str(program), *(self._filled(arg, source, work, ask) for arg in self.args)]
        env = {
            "ONBLOCK_WORK": str(work), "ONBLOCK_FLIGHT": ask.flight or "",
            "ONBLOCK_DEVICE": ask.device or "", "ONBLOCK_JOB": ask.job or "",
        }  # fmt: skip
        run = _Run(argv, source, work, env, ask, self.time_limit.total_seconds())
        code = run.to_the_end()
        if run.too_late:
            raise self._failed(
                f"had not ended after {self.time_limit}, and was ended", run, "raise `time_limit`, or mend it"
            )
        if code:
            how = f"exited with {code}" if code > 0 else f"was ended by signal {-code}"
            raise self._failed(how, run, "mend the script, then `onblock transfers retry`")
        ask.progress(1.0)
        return self._outputs(inputs, work, run)

    def _found(self) -> Path:
        """The program, if it may be run."""
        folder = allowed_folder()
        path = (folder / self.program).resolve()
        shown = names.display(str(folder / self.program))
        if not path.is_relative_to(folder):
            raise ConfigError(
                f"lies outside the folder for scripts, {folder}", path=shown, remedy=f"put it there, or set {FOLDER}"
            )
        if not path.is_file():
            raise ToolMissing("there is no such script", path=shown, remedy=f"put it into {folder} on this machine")
        if not os.access(path, os.X_OK):
            raise PermissionRefused("may not be run", path=shown, remedy="make it executable (chmod +x)")
        return path

    def _filled(self, arg: str, source: Path, work: Path, ask: Ask) -> str:
        stem = source.name.rpartition(".")[0] or source.name
        values: dict[str, str | None] = dict(
            zip(TOKENS, (str(source), source.name, stem, ask.flight, ask.device, ask.job, str(work)), strict=True)
        )
        out, rest = "", arg
        while rest:  # not str.format: a script's arguments may hold braces
            at = min(((rest.find(f"{{{t}}}"), t) for t in TOKENS if f"{{{t}}}" in rest), default=None)
            if at is None:
                return out + rest
            out += rest[: at[0]] + (values[at[1]] or "")
            rest = rest[at[0] + len(at[1]) + 2 :]
        return out

    def _failed(self, how: str, run: _Run, remedy: str) -> Exception:
        said = names.display(" ".join(run.errors().split())[-300:])
        kind = UnknownError if self.retry else ConfigError
        return kind(f"the script {self.program} {how}" + (f": {said}" if said else ""), remedy=remedy)

    def _outputs(self, inputs: list[Path], work: Path, run: _Run) -> list[Path]:
        found = list(_files(work, self.program))
        if (line := run.last_line()).startswith("/"):
            named = Path(line)
            real = named.parent.resolve() / named.name
            if named in inputs:
                found = [*inputs]
            elif real.is_relative_to(work.resolve()) and work / real.relative_to(work.resolve()) in found:
                found = [work / real.relative_to(work.resolve())]
            elif real.is_relative_to(work.resolve()):
                raise NotFound(f"the script {self.program} names an output that is not there", path=names.display(line))
            else:
                raise ConfigError(
                    f"the script {self.program} names an output outside its folder: refused", path=names.display(line),
                    remedy="let it write into the folder it is started in",
                )  # fmt: skip
        if self.keep_input:
            found = [*inputs, *(path for path in found if path not in inputs)]
        if not found:
            raise ConfigError(
                f"the script {self.program} left no file in its folder",
                remedy="let it write into the folder it is started in, or say `keep_input: true`",
            )
        return found


def _files(work: Path, program: str) -> Iterator[Path]:
    """The plain files in the folder. ConfigError for links and devices: what they lead to is not the script's to give."""
    count = 0
    for base, folders, files in os.walk(work):
        for name in sorted(folders + files):
            path = Path(base, name)
            there = path.lstat()
            if stat.S_ISDIR(there.st_mode):
                continue
            if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
                raise ConfigError(
                    f"the script {program} left a link or device in its folder: refused",
                    path=names.display(str(path.relative_to(work))), remedy="let it leave plain files only",
                )  # fmt: skip
            count += 1
            if count > FILES_MAX:
                raise ConfigError(f"the script {program} left more than {FILES_MAX} files in its folder")
            yield path


def quoted(arg: str) -> str:
    """One word of a bash script; bytes that are no ASCII as escapes, since the script is written as UTF-8."""
    if arg.isascii():
        return shlex.quote(arg)
    return "$'" + "".join(f"\\x{b:02x}" for b in os.fsencode(arg)) + "'"


class _Run:
    """One run of the program, to its end or ours."""

    def __init__(self, argv: list[str], source: Path, work: Path, env: dict[str, str], ask: Ask, limit: float):
        self.argv, self.source, self.work, self.env = argv, source, work, env
        self.ask, self.limit = ask, limit
        self.too_late = False
        self._mark = secrets.token_hex(16)
        self._tails = [bytearray(), bytearray()]

    def to_the_end(self) -> int:
        """Its exit code, negative for a signal. Raises what `ask.check` raises; nothing of it runs afterwards."""
        from prefect_shell import ShellOperation

        with tempfile.TemporaryDirectory(prefix="onblock-script-") as folder, contextlib.ExitStack() as stack:
            pipes = []
            for name in ("out", "err"):
                os.mkfifo(pipe := Path(folder, name), 0o600)
                pipes.append(os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
                stack.callback(os.close, pipes[-1])
            line = " ".join(quoted(arg) for arg in self.argv)
            to = f"</dev/null >{quoted(folder + '/out')} 2>{quoted(folder + '/err')}"
            commands = [
                "set -e",
                "unset ${!PREFECT_@} ONBLOCK_LEDGER_URL",  # keys of the server and the ledger are not the script's
                f"export ONBLOCK_INPUT={quoted(str(self.source))}",
                f"exec {line} {to}",
            ]
            env = self.env | {MARK: self._mark}
            operation = ShellOperation(commands=commands, env=env, working_dir=self.work, stream_output=False)
            with operation:
                process: Any = cast(Any, operation).trigger(_sync=True)
                try:
                    self._watch(process.pid, pipes)
                finally:
                    # the leader is not reaped yet: its group's number cannot be somebody else's
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    self._end_marked()
                    with contextlib.suppress(RuntimeError):  # how it tells an exit code
                        process.wait_for_completion(_sync=True)
                self._read(pipes)
                return int(process.return_code)

    def _watch(self, pid: int, pipes: list[int]) -> None:
        """Until it has ended, too late or not."""
        until = time.monotonic() + self.limit
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self.ask.check()
            if time.monotonic() > until:
                self.too_late = True
                return
            select.select(pipes, [], [], 0.05)
            self._read(pipes)

    def _read(self, pipes: list[int]) -> None:
        """What it has printed since; of a flood only the end is kept."""
        for pipe, tail in zip(pipes, self._tails, strict=True):
            for _ in range(16):
                try:
                    data = os.read(pipe, KEPT)
                except BlockingIOError:
                    break
                tail += data
                del tail[:-KEPT]

    def _end_marked(self) -> None:
        """End children that went into a session of their own; again, until there is none that could start another."""
        mark = f"{MARK}={self._mark}".encode()
        for _ in range(20):
            found = False
            for entry in os.scandir("/proc"):
                if entry.name.isdecimal():
                    with contextlib.suppress(OSError):
                        if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                            os.kill(int(entry.name), signal.SIGKILL)
                            found = found or _runs(entry.path)
            if not found:
                return
            time.sleep(0.01)

    def last_line(self) -> str:
        """The last line on its standard output that is not empty."""
        lines = [line for line in self._tails[0].split(b"\n") if line.strip()]
        return os.fsdecode(bytes(lines[-1])) if lines else ""

    def errors(self) -> str:
        """The end of its standard error, else of its output."""
        return bytes(self._tails[1] or self._tails[0]).decode("utf-8", "replace")


def _runs(process: str) -> bool:
    """Whether a process is there, and no zombie."""
    return Path(process, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
