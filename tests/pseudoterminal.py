"""A command on a pseudo-terminal, for tests: what is typed to it, and what its screen shows."""
import os
import re
import select
import struct
import subprocess
import sys
import time

from conftest import ROOT

TIMEOUT = 90  # seconds, on a machine that is busy with other things


class Session:
    """A command that runs on a terminal of so many columns."""

    def __init__(self, *words, columns=80, rows=50, **env):
        import fcntl
        import pty
        import termios
        self.end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        settings = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8",
                    "OMP_NUM_THREADS": "1", **env}
        settings.pop("COLUMNS", None)

        def own_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C arrives as a signal
        self.process = subprocess.Popen([sys.executable, str(ROOT / "microgpt.py"), *words],
                                        stdin=inner, stdout=inner, stderr=inner, env=settings,
                                        preexec_fn=own_terminal)
        os.close(inner)
        self.seen, self.columns = "", columns
        self.read_up_to = 0

    def _read(self, seconds):
        """Returns whether something came within so many seconds, before the end."""
        if not select.select([self.end], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.end, 65536)
        except OSError:  # the other end is closed
            data = b""
        self.seen += data.decode("utf-8", "replace")
        return bool(data)

    def expect(self, pattern):
        """Returns the match of a pattern in what has come since the last one."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            match = re.compile(pattern).search(self.seen, self.read_up_to)
            if match:
                self.read_up_to = match.end()
                return match
            if not self._read(1) and self.process.poll() is not None and not self._read(0):
                break
        raise AssertionError(f"no {pattern!r} in {self.seen[self.read_up_to:]!r}")

    def type(self, text):
        if text[0] < " ":  # Ctrl-C and its like: readline misses them in its first moment
            time.sleep(0.5)
        os.write(self.end, text.encode("utf-8"))

    def finish(self):
        """Returns the exit code, after all that was still to come."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            if not self._read(0.2) and self.process.poll() is not None:
                break
        code = self.process.wait(1)
        os.close(self.end)
        return code

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def screen(self):
        """Returns the lines that are on the screen, and which of them ran over its edge."""
        return screen(self.seen, self.columns)


def screen(text, columns):
    """Returns (lines, those that ran over the edge) of what a terminal was sent.

    >>> screen("ab\\bc\\r\\nde", 10)
    (['ac', 'de'], [])
    """
    lines, over, column = [[]], [], 0
    for unit in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", text, re.DOTALL):
        if unit == "\n":
            lines.append([])
        elif unit == "\r":
            column = 0
        elif unit == "\b":
            column -= 1
        elif len(unit) == 1:
            line = lines[-1]
            line[column:column + 1] = unit
            column += 1
            if column > columns:
                over.append("".join(line))
    return ["".join(line).rstrip() for line in lines], over
