"""One process at a time in a run's folder.

The lock is the operating system's, on an open file, so it ends with the process however that ends;
what the file says is only for people.
"""
import contextlib
import errno
import json
import os
import socket
import stat
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

_FAR = 1 << 30  # the byte that is locked on Windows: behind all that others may want to read


class Lock:
    """A lock on a file, taken with `with`; ValueError, which names the holder, if it is taken."""

    def __init__(self, path):
        self.path, self.handle = path, None

    def __enter__(self):
        # note: without O_NOFOLLOW, a link in a stranger's folder would have its target overwritten
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            if os.path.islink(self.path):
                raise OSError(errno.ELOOP, "it is a link")
            self.handle = os.open(self.path, flags, 0o666)
            about = os.fstat(self.handle)
            if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
                self._close()
                raise OSError(errno.EINVAL, "it is no file of its own")
        except OSError as error:
            raise ValueError(f"{self.path} cannot be opened to lock the run: {error.strerror}"
                             ) from None
        try:
            self._take()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                return self  # a file system without locks, as some that are shared over a network
            holder = self._holder()
            self._close()
            raise ValueError(f"the run {os.path.dirname(self.path)} is in use by {holder}; wait "
                             "for it, or stop it, or give this one another --name") from None
        about = {"pid": os.getpid(), "host": socket.gethostname(),
                 "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(self.handle, 0)
            os.write(self.handle, json.dumps(about).encode("utf-8"))
        return self

    def __exit__(self, *_):
        self._close()

    def _take(self):
        if fcntl:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(self.handle, _FAR, os.SEEK_SET)
            msvcrt.locking(self.handle, msvcrt.LK_NBLCK, 1)
            os.lseek(self.handle, 0, os.SEEK_SET)

    def _close(self):
        os.close(self.handle)  # which gives up the lock
        self.handle = None

    def _holder(self):
        """Returns who holds the lock, as far as the file says it."""
        try:
            os.lseek(self.handle, 0, os.SEEK_SET)
            about = json.loads(os.read(self.handle, 1000))
            return (f"process {int(about['pid'])} on {str(about['host'])[:60]}, since "
                    f"{str(about['since'])[:30]}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"
