"""Private temporary folders on this machine. A later process removes those of processes that were killed."""

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

_PREFIX = "xlr-"
_LOCK = ".xlr-lock"  # also tells these folders from others of a similar name
_LONGEST_BASE = 30  # characters; Ray puts Unix sockets into the folder, whose paths have at most 107
_NEW_SECONDS = 60  # a folder this young may not be locked yet
_REMOVALS = 50


class PrivateFolder:
    """A new folder that only this user can enter, under an unpredictable name. Removed at the end of the process."""

    def __init__(self) -> None:
        base = tempfile.gettempdir()
        base = base if len(base) <= _LONGEST_BASE else "/tmp"
        remove_stale(Path(base))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        # The kernel releases the lock when this process ends, however it ends.
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: then no other process can lock it either
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        atexit.register(self.remove)

    def remove(self) -> None:
        """Remove the folder. Ray's last processes may still write to it, so this is repeated for a few seconds."""
        atexit.unregister(self.remove)
        for _ in range(_REMOVALS):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
            time.sleep(0.1)
        os.close(self._lock)


def remove_stale(base: Path) -> None:
    """Remove this user's private folders whose processes have ended."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # not one of these folders, in use, or no longer there
            found = folder.lstat()
            young = time.time() - found.st_mtime < _NEW_SECONDS
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or young:
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
