"""Where fetched and learned things are kept between runs, and files that are never half there."""
import os
import sys
import tempfile
import time
from pathlib import Path

# seconds between tries: elsewhere than on Windows nobody's reading stands in the way
WAITS = (0.01, 0.1, 0.5, 1.0) if os.name == "nt" else ()


def cache_folder():
    """Returns the user's folder for what can be fetched or computed again; it need not exist yet.

    The environment variable MICROGPT_CACHE names another. Else it is where the platform keeps such
    things: %LOCALAPPDATA%\\microgpt, ~/Library/Caches/microgpt, or microgpt in $XDG_CACHE_HOME,
    which is ~/.cache unless set.
    """
    chosen = os.environ.get("MICROGPT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = Path("~").expanduser()  # unlike Path.home(), no error where there is no home
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or ""
        if not os.path.isabs(base):  # the XDG specification: a relative one is to be ignored
            base = home / ".cache"
    return Path(base) / "microgpt"


def write_atomically(path, content):
    """Writes bytes, or text as UTF-8, to path; whoever reads sees the old file or the new one.

    The content goes to a temporary file beside it, is flushed to the disk, and takes the name only
    then, so that neither a crash nor a full disk leaves half a file. Folders that are missing are
    made. Raises OSError where that fails, and leaves nothing behind.

    content: bytes, text, or an iterable of such pieces of bytes as a file's write() takes, so that
    what is large need not be in memory twice.
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode("utf-8")
    pieces = [content] if isinstance(content, (bytes, bytearray, memoryview)) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        # note: mkstemp made it for the owner alone; a new file elsewhere obeys the umask
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask())
        replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def replace(temporary, path):
    """Renames a file over another; on Windows, tries again while somebody has that one open."""
    for wait in WAITS:
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            time.sleep(wait)
    os.replace(temporary, path)


def umask():
    """Returns the process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
