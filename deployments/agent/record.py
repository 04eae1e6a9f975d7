"""`python -m deployments.agent.record FOLDER`: one recording, in a process of its own; told and asked as `recording.py` says.

The first line of standard input is a `CaptureSpec` as JSON. Another line, or its end, seals the recording, and so does
SIGTERM. Then it is merged, at a low priority: another one may be running by then.

`python -m deployments.agent.record --mend FOLDER` puts in order, merges and announces what a kill or a power cut has left.

The event that a recording is complete goes into the outbox of the agent from here: the agent may be gone by then. Until it
lies there, a file in the recording's folder says that it is owed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.errors import ConfigError, DiskFull, OnblockError, as_onblock
from blocks.hardware.battery import ToldBattery
from blocks.home import home
from deployments.agent.outbox import Outbox
from deployments.agent.recording import failed
from flows.transfer.form import explain

if TYPE_CHECKING:
    from flows.capture.manifest import Manifest
    from flows.capture.recorder import Recorder

HEALTH_EVERY_S = 1.0
LOOK_EVERY_S = 0.1
NICE = 10
"""Of merging: the one who records goes first."""
ASKED = ("asked to stop", "the duration is over", "all inputs have ended")
"""Ends that were meant, of those that `Recorder` tells."""


def agent_folder() -> Path:
    """Where the agent keeps its status and its events."""
    return home() / "agent"


def status_file() -> Path:
    """Where the agent tells how the device is."""
    return agent_folder() / "status.json"


def say(**told: Any) -> None:
    """A line for whoever started us; nothing where he is gone."""
    try:
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def announce_segments(folder: Path) -> None:
    """The disk is too full to merge: announce the recording as it is, once, so that a transfer takes it off the disk. The
    event with the file is still owed. Raises OnblockError, OSError."""
    from flows.capture import announce

    if (manifest := announce.as_it_is(folder)) is None:
        return
    Outbox(agent_folder() / "outbox", lambda event: None).put(announce.event(manifest, announce.SEGMENTS))
    announce.settled(folder, announce.SEGMENTS)


def announced(folder: Path, manifest: Manifest) -> None:
    """Put the event of a complete recording into the outbox, and tell. Raises OSError; it is owed then."""
    from flows.capture import announce

    told = announce.event(manifest)
    Outbox(agent_folder() / "outbox", lambda event: None).put(told)
    announce.settled(folder)
    say(state="complete", recorded=told["payload"])


def record(folder: Path, text: str, stop: threading.Event) -> int:
    """Record, seal, merge; the exit code."""
    from pydantic import ValidationError

    from flows.capture.recorder import Recorder
    from flows.capture.spec import CaptureSpec

    try:
        spec = CaptureSpec.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f"this cannot be recorded: {explain(error, 'capture')}", remedy="correct `capture` in the agent's settings"
        ) from error
    recorder = Recorder(spec, folder, battery=ToldBattery(status_file()))
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(recorder, over, stop), name="onblock-health", daemon=True)
    teller.start()
    try:
        manifest = recorder.run(stop)
    finally:
        over.set()
        teller.join(5)
    because = manifest.stopped_because
    say(state="sealed", id=manifest.id, because=because, meant=because in ASKED, problems=manifest.problems)
    return _merge(recorder.folder)


def _merge(folder: Path) -> int:
    from flows.capture.recover import finished

    os.nice(NICE)
    try:
        announced(folder, finished(folder))
    except (OnblockError, OSError) as error:
        _unmerged(folder, error)
        return 1
    return 0


def _unmerged(folder: Path, error: Exception) -> None:
    """Tell it; what a full disk does not let merge is announced as it is."""
    failure = as_onblock(error, str(folder))
    if isinstance(failure, DiskFull):
        try:
            announce_segments(folder)
        except (OnblockError, OSError) as again:  # still owed: the next mending tries once more
            logging.error("%s could not be announced: %s", folder.name, again)
    say(state="unmerged", id=folder.name, what=str(failure))


def mend(root: Path) -> int:
    """Put in order and announce what was left; 0 also where some of it could not be: that is told."""
    from flows.capture import announce
    from flows.capture.manifest import Manifest, load
    from flows.capture.recover import recover_all

    os.nice(NICE)
    # before: whoever ends us while the second one is merged must not lose the first one's event
    for folder in announce.left(root):
        _owe(folder)
    for found in recover_all(root):
        if isinstance(found, Manifest):
            _owe(root / found.id)
        else:
            _unmerged(announce.folder_of(root, found), found)
    for folder in announce.owed(root):
        try:
            if announce.is_due(manifest := load(folder)):
                announced(folder, manifest)
        except (OnblockError, OSError) as error:
            say(state="unmerged", id=folder.name, what=str(as_onblock(error, str(folder))))
    return 0


def _owe(folder: Path) -> None:
    """Note that a recording is to be announced. One that cannot be touched does not stand in the way of the others."""
    from flows.capture import announce

    try:
        announce.owe(folder)
    except OSError as error:
        say(state="unmerged", id=folder.name, what=str(as_onblock(error, str(folder))))


def _tell(recorder: Recorder, over: threading.Event, stop: threading.Event) -> None:
    """How it is, each second; that it has begun, once something arrives; or, if nothing does in time, its end."""
    begun, ticks = False, 0
    while not over.wait(LOOK_EVERY_S):
        health = recorder.health()
        if not begun and any(s["captured"] for s in health["streams"].values()):
            begun = True
            say(state="recording", id=health["id"])
        if not begun and health["seconds"] > recorder.spec.ready_within.total_seconds() + 1:
            stop.set()  # `run` then says what the first one said
        if begun and ticks % round(HEALTH_EVERY_S / LOOK_EVERY_S) == 0:
            say(health=health)
        ticks += 1


def main() -> int:
    """See the top."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    if sys.argv[1] == "--mend":
        return mend(Path(sys.argv[2]))
    stop = threading.Event()
    # waited for in a thread: `Event.set` in a signal handler could wait for the very thread that it interrupts
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    text = sys.stdin.readline()

    def by_signal() -> None:
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        stop.set()

    def by_word() -> None:
        sys.stdin.readline()
        stop.set()

    for wait in (by_signal, by_word):
        threading.Thread(target=wait, name="onblock-stop", daemon=True).start()
    try:
        return record(Path(sys.argv[1]), text, stop)
    except Exception as error:
        failure = as_onblock(error)
        if failure is not error:
            logging.exception("the recording broke off")
        say(**failed(failure))
        return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the thread that reads standard input may hold its lock for ever
