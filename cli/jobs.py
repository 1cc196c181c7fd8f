"""Commands as processes of their own, several at once, none of which outlives this one.

A child holds the reading end of a pipe that only we can write to, and never do. When it closes, the
child stops as after Ctrl-C: finishes its step, saves, ends. We close it to stop a child, and the
system closes it for us where we are killed, on every platform. Each child has a process group of
its own, so that a terminal's Ctrl-C reaches us alone.
"""
import os
import re
import signal
import subprocess
import sys
import threading
import time

import microgpt
from microgpt.cli.interrupts import Interrupts

LOOKED_AT = 4096  # bytes at the end of what a child has printed
STEP = re.compile(r"^step +(\d+) / +(\d+) \|", re.MULTILINE)
# What a child runs: its arguments are the checkout's folder and then the command's.
CHILD = ("import sys; sys.path.insert(0, sys.argv[1]); from microgpt.cli.jobs import obey; "
         "obey(sys.argv[2:])")


def obey(argv):
    """Runs a command, in a child, until it ends or the pipe on standard input closes."""
    from microgpt.cli import main
    # note: behind `nohup` and `&` it may be ignored, and so would we be
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=stop_with_parent, daemon=True).start()
    sys.exit(main(argv))


def stop_with_parent():
    """Waits until the pipe closes, then does to this process what Ctrl-C does."""
    try:
        os.read(0, 1)  # note: not sys.stdin, whose lock would be held when the interpreter ends
    except OSError:
        pass
    if os.name == "nt":
        import _thread
        _thread.interrupt_main()
    else:
        os.kill(os.getpid(), signal.SIGINT)


class Job:
    """A child that runs a command; what it prints goes to the end of a file.

    device: what --devices gave it, for whoever deals them out.
    """

    def __init__(self, name, argv, output, device=None):
        self.name, self.output, self.device = name, output, device
        self.first = None  # the step before its first
        self.started = time.monotonic()
        options = {"start_new_session": True}
        if os.name == "nt":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        root = os.path.dirname(os.path.abspath(microgpt.__file__))
        with open(output, "ab") as file:
            self.begin = file.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", CHILD, root, *argv], stdin=subprocess.PIPE,
                stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONIOENCODING": "utf-8"}, **options)

    def has_ended(self):
        return self.process.poll() is not None

    @property
    def exit_code(self):
        return self.process.returncode

    def stop(self):
        """Lets it finish its step and save."""
        self.process.stdin.close()

    def kill(self):
        """Ends it at once, with all that it has started itself."""
        try:
            if os.name == "nt":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:  # it has just ended
            pass

    # ---- what it printed

    def end_of_output(self):
        """Returns the last of what it has printed since it was started."""
        with open(self.output, "rb") as file:
            file.seek(max(self.begin, os.fstat(file.fileno()).st_size - LOOKED_AT))
            return file.read(LOOKED_AT).decode("utf-8", errors="replace")

    def last_line(self):
        """Returns the last line that is not empty, without the command's name; of none, why."""
        lines = self.end_of_output().split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        if self.exit_code < 0:
            return f"it was ended by signal {-self.exit_code}" + (
                ", perhaps for want of memory" if self.exit_code == -9 else "")
        line = lines[-1] if lines else f"it printed nothing, and ended with code {self.exit_code}"
        return line[len("microgpt: "):] if line.startswith("microgpt: ") else line

    def steps(self):
        """Returns (steps done since it was started, the step it is at, of how many)."""
        found = STEP.findall(self.end_of_output())
        if not found:
            return 0, self.first or 0, 0
        step, total = map(int, found[-1])
        if self.first is None:
            self.first = int(found[0][0]) - 1
        return step - self.first, step, total


class Stops(Interrupts):
    """Interrupts of one that has children: a second signal ends them at once, and us.

    jobs: a function that returns those that run.
    """

    def __init__(self, jobs):
        super().__init__()
        self.jobs = jobs

    def _handle(self, number, frame):
        if self.number is not None:
            for job in self.jobs():
                job.kill()
        super()._handle(number, frame)
