"""`python offline.py COMMAND...`: run a command without a network.

It gets a network namespace of its own, in which only localhost works.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def isolate() -> None:
    """Leave the machine's network; OSError where that is not permitted."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if user else 0)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if user:  # keep the same user in the namespace
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14x", b"lo", IFF_UP)
        fcntl.ioctl(handle, SIOCSIFFLAGS, request)


if __name__ == "__main__":
    try:
        isolate()
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        sys.exit(str(error))
