"""What the benchmarks share: contestants as processes that take turns, and how a turn is timed.

Every contestant is a process of its own, with its own garbage and its own peak of memory. It
answers each line on its standard input, a number of steps, with a line of JSON:

    {"calibration": seconds of a fixed loop, "peak_mb": ..., and what its `take(steps)` returned}

No two ever work at once. Machines swing 2 x, so the fixed loop is timed before each turn, and a
turn on a slowed machine is scaled back by it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPYTHON = sys.implementation.name == "cpython"


# ---- in a contestant's process ------------------------------------------------------------------

def import_microgpt():
    """The file, imported without leaving its folder on the path, where it would hide packages."""
    sys.path.insert(0, str(ROOT))
    try:
        import microgpt
    finally:
        sys.path.remove(str(ROOT))
    return microgpt


def calibrate():
    """Seconds for a fixed piece of work, the best of three: how fast the machine is right now."""
    def work():
        began = time.perf_counter()
        total = 0.0
        for i in range(100_000):
            total += i * 0.5
        return time.perf_counter() - began
    return min(work() for _ in range(3))


def peak_mb():
    """The most memory this process ever held, in MB; None where Python cannot tell (Windows)."""
    try:  # note: first, since Linux hands the ru_maxrss of a parent on to its children
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024)  # bytes there, KiB elsewhere


def say(answer):
    """One line to the referee."""
    print(json.dumps(answer), flush=True)


def serve(take):
    """Answer each line of standard input with what take(steps), a dict, says of these steps."""
    for line in sys.stdin:
        calibration = calibrate()
        answer = take(int(line))
        say({"calibration": calibration, "peak_mb": peak_mb(), **answer})


# ---- the referee --------------------------------------------------------------------------------

class Child:
    """The running process of a contestant: `python script arguments`, on one thread."""

    def __init__(self, python, script, *arguments):
        command = [str(part) for part in (python, script, *arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        universal_newlines=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1"})

    def hear(self):
        """The next answer; None if the process has ended."""
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, steps):
        """The answer to `steps`; None if the process has ended."""
        try:
            print(steps, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return None
        return self.hear()

    def close(self):
        self.process.kill()  # to give back a textbook's graph in good order can take a minute
        self.process.communicate()


def scaled_seconds(turns):
    """Seconds of each turn, each as on a machine of these turns' usual speed."""
    usual = statistics.median(turn["calibration"] for turn in turns)
    return [turn["seconds"] * usual / turn["calibration"] for turn in turns]


def calibration_line(whose, turns):
    """What the fixed loop took before these turns, as a sentence; whose: "textbook's"."""
    loops = [1000 * turn["calibration"] for turn in turns]
    return (f"calibration loop of the {whose} Python: {statistics.median(loops):.2f} ms, "
            f"{min(loops):.2f} to {max(loops):.2f}")


def python_of(executable):
    """Which Python an executable is: 'CPython 3.11.7'."""
    code = "import platform as p; print(p.python_implementation(), p.python_version())"
    return subprocess.check_output([executable, "-c", code], universal_newlines=True).strip()


def circumstances(benchmark, pythons):
    """Where a benchmark runs, for its JSON. pythons: what runs -> python_of it."""
    command = " ".join([os.path.basename(sys.executable)] + sys.argv)
    return {"benchmark": benchmark, "command": command, "machine": platform.platform(),
            "cores": os.cpu_count(), "python": pythons}


def print_heading(where):
    """Print circumstances() for a reader."""
    pythons = ", ".join(f"the {what} on {python}" for what, python in where["python"].items())
    print(f"{where['machine']}, {where['cores']} cores; {pythons}\n{where['command']}\n",
          flush=True)


def whole(text):
    """A number of 1 or more, as the type of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, needs 1 or more")
    return number


def exit_with(main):
    """Ends the process with what main() returns, and after Ctrl-C as a shell expects it."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
