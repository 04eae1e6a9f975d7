"""`python -m tests.console.hung FOLDER PROGRAM [ARGUMENT ...]`: the program, for which FOLDER is a mount that hangs.

A FUSE file system whose server says nothing, not even a welcome: who asks about it waits, and may be killed, as with NFS
whose server is gone. The program holds the server's end, unread, so the mount dies with it; run it in a mount namespace
of its own (`unshare -m`).
"""

from __future__ import annotations

import ctypes
import os
import sys

LIBC = ctypes.CDLL(None, use_errno=True)


def hang(folder: str) -> int:
    """Mount it; the descriptor that holds it. Raises OSError."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    if LIBC.mount(b"hung", os.fsencode(folder), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "cannot mount", folder)
    os.set_inheritable(device, True)
    return device


if __name__ == "__main__":
    hang(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
