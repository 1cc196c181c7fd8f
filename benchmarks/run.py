"""All benchmarks, one after another, and one table: what to reach, and what was measured.

    python3 benchmarks/run.py --quick                 a few minutes, fewer turns, rough; or
                                                      `python3 microgpt.py bench --quick`
    python3 benchmarks/run.py --data FILE             all of it; FILE: Tiny Shakespeare
    python3 benchmarks/run.py --only startup core     some of it
    python3 benchmarks/run.py --data FILE --gpu       and a GPU's, with --only gpu nothing else

Each benchmark is a process of its own, and its last line is JSON. One that fails is named, and the
others go on; then the exit code is 1. A figure that was not reached is no failure: machines differ,
and so do their ratios. What lacks its data, package or interpreter is "not measured".
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import turns

HERE = Path(__file__).resolve().parent
FILE = turns.ROOT / "microgpt.py"

# A benchmark: the script and its flags, those for --quick (None: left out then), and what it needs.
Case = namedtuple("Case", "script full quick needs", defaults=((),))
CASES = {
    "startup": Case("run.py", ["--startup", "7"], ["--startup", "3"]),
    "core": Case("core.py", [], ["--rounds", "2", "--steps", "5", "--warmup", "2"]),
    "backends": Case("backends.py", [], ["--only", "default", "--rounds", "2", "--textbook-steps",
                                         "5", "--warmup", "0.2"]),
    "pypy": Case("backends.py", ["--only", "default"], None, ("pypy",)),
    "sampling": Case("sampling.py", [], ["--only", "default", "--rounds", "2", "--warmup", "0.2"]),
    "checkpoints": Case("checkpoints.py", [], ["--rounds", "2", "--numbers", "1000000"]),
    "tokenizing": Case("tokenizing.py", [], ["--rounds", "2", "--textbook-merges", "5"],
                       ("data",)),
    "torch_speed": Case("torch_speed.py", ["--to", "1.88", "--own-steps", "500"],
                        ["--rounds", "2", "--turn", "5"], ("data",)),
    "torch_loss": Case("torch_speed.py", ["--no-reference", "--only", "muon", "--to", "1e-9",
                                          "--every", "2000", "--rounds", "2"], None, ("data",)),
    "gpu": Case("torch_speed.py", ["--setting", "shakespeare-gpu", "--device", "cuda", "--to",
                                   "1.4697"], ["--setting", "shakespeare-gpu", "--device", "cuda",
                                               "--rounds", "2"], ("data", "gpu")),
}


# ---- What is read out of a benchmark: a number, or None where it is not there --------------------

def engine_of(engine, batch):
    """Times the tokens a second of the textbook, as a script, of a backend on the default model."""
    def read(found):
        rows = [row for row in found["results"] if row["model"].startswith("C16")
                and (row["engine"], row["batch"]) == (engine, batch)]
        return rows[0].get("x_script") if rows else None
    return read


def peak_of_the_file(found):
    return found["results"]["file"]["peak_mb_first_last"][1]


def growth_of_the_file(found):
    first, last = found["results"]["file"]["peak_mb_first_last"]
    return last - first if last else None


def checkpoint(what):
    """Seconds for 10 million parameters, as lists of floats, there and back."""
    return lambda found: (found["results"][f"lists: {what}"]["seconds"] * 1e7 / found["numbers"])


def cached_to_recomputed(found):
    return min((row["x_recomputed"] for row in found["results"]
                if row.get("way") == "cached" and row.get("x_recomputed")), default=None)


def rows_of(found):
    return {row["name"]: row for row in found["rows"]}


def speed_of(name):
    return lambda found: rows_of(found).get(name, {}).get("x")


def share_of(name):
    return lambda found: rows_of(found).get(name, {}).get("share")


def time_ratio(name):
    """How many times the reference's time to the loss; what never got there counts as its whole."""
    def read(found):
        rows = rows_of(found)
        reference = next((row for key, row in rows.items() if key.startswith("reference")), {})
        own = rows.get(name, {})
        return reference["seconds"] / own["seconds"] if own.get("reached") and (
            "seconds" in reference) else None
    return read


def last_loss(name):
    return lambda found: rows_of(found)[name]["losses"][-1][1]


# A figure: its benchmark, what it is, its unit, what to reach ("25+": 25 or more, "30-": 30 or
# less, "": nothing was set), and how to read it.
Figure = namedtuple("Figure", "case what unit reach read")
FIGURES = [
    Figure("startup", "--help answers", "s", "0.2-", lambda found: found["help"]),
    Figure("startup", "first loss of the default run", "s", "1-", lambda found: found["first"]),
    Figure("core", "the file, a step, against the textbook as a script", "x", "25+",
           lambda found: found["results"]["script"]["ratio_to_file"]),
    Figure("core", "the file, peak of memory", "MB", "30-", peak_of_the_file),
    Figure("core", "the file, memory from first to last turn", "MB", "1-", growth_of_the_file),
    Figure("backends", "matrix, 1 document a step, against the textbook", "x", "75+",
           engine_of("matrix", 1)),
    Figure("backends", "matrix, 16 documents a step", "x", "125+", engine_of("matrix", 16)),
    Figure("backends", "torch, one core, 64 documents a step", "x", "5000+",
           engine_of("torch", 64)),
    Figure("pypy", "the file on PyPy, against the textbook on CPython", "x", "60+",
           engine_of("scalar", 1)),
    Figure("pypy", "matrix on PyPy", "x", "250+", engine_of("matrix", 1)),
    Figure("sampling", "writing with a cache, against without, at least", "x", "",
           cached_to_recomputed),
    Figure("checkpoints", "10 M parameters written", "s", "2-", checkpoint("write")),
    Figure("checkpoints", "10 M parameters read", "s", "2-", checkpoint("read as lists")),
    Figure("tokenizing", "5,000 merges, against Rust's time", "x", "4-",
           lambda found: found["results"]["learn_to_rust"]),
    Figure("tokenizing", "encoding", "MB/s", "2+",
           lambda found: found["results"]["encode_mb_per_second"]),
    Figure("torch_speed", "torch, bfloat16, one core, against a usual trainer", "x", "3+",
           speed_of("adamw bfloat16")),
    Figure("torch_speed", "torch, float32, one core", "x", "1.1+", speed_of("adamw float32")),
    Figure("torch_speed", "time to validation 1.88, less", "x", "8+", time_ratio("muon bfloat16")),
    Figure("torch_loss", "validation loss after 2000 steps", "nats", "1.65-",
           last_loss("muon bfloat16")),
    Figure("gpu", "GPU, time to validation 1.4697, less", "x", "10+", time_ratio("muon bfloat16")),
    Figure("gpu", "GPU, share of its rate of products", "", "0.4+", share_of("adamw bfloat16")),
]


# ---- Start-up, measured here ---------------------------------------------------------------------

def seconds_to(flags, sign):
    """Returns seconds until the program with these flags has printed a line that begins so."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, str(FILE), *flags], cwd=folder,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            for line in child.stdout:
                if line.startswith(sign):
                    return time.perf_counter() - began
        finally:
            child.kill()
            child.communicate()
    raise RuntimeError(f"python3 microgpt.py {' '.join(flags)} never printed {sign!r}")


def startup(rounds):
    """Prints the median of some rounds, which take turns, as a benchmark's last line."""
    found = [(seconds_to(["--help"], b"usage"), seconds_to(["--no-save"], b"step    1 "))
             for _ in range(rounds + 1)][1:]  # the first compiles
    answer = {name: round(statistics.median(times), 3)
              for name, times in zip(("help", "first"), zip(*found))}
    print(json.dumps({"benchmark": "startup", **answer}))


# ---- The benchmarks ------------------------------------------------------------------------------

def lacks(case, args):
    """Returns what a benchmark needs and has not got, in words, or None."""
    there = {"data": args.data, "gpu": args.gpu, "pypy": args.pypy}
    words = {"data": "needs --data, Tiny Shakespeare", "gpu": "needs --gpu",
             "pypy": "needs pypy3, or --pypy PATH"}
    missing = [words[need] for need in case.needs if not there[need]]
    return missing[0] if missing else ("not with --quick" if args.quick and case.quick is None
                                       else None)


def command_of(case, args):
    python = args.pypy if "pypy" in case.needs else sys.executable
    command = [python, str(HERE / case.script), *(case.quick if args.quick else case.full)]
    command += ["--data", str(args.data)] if "data" in case.needs else []
    return command + (["--textbook-python", sys.executable] if "pypy" in case.needs else [])


def measure(name, args):
    """Returns the JSON of a benchmark, and in words why it failed or was left out, or None."""
    case = CASES[name]
    reason = lacks(case, args)
    print(f"==> {name}" + (f": left out, {reason}" if reason else ""), flush=True)
    if reason:
        return None, f"left out: {reason}"
    child = subprocess.Popen(command_of(case, args), stdout=subprocess.PIPE,
                             universal_newlines=True, encoding="utf-8",
                             env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    last = ""
    try:
        for line in child.stdout:
            if last and not last.startswith("{"):
                print("  " + last, end="", flush=True)
            last = line
        code = child.wait()
    finally:
        child.kill()
        child.communicate()
    try:
        found = json.loads(last)
    except ValueError:
        found = None
    if code or not isinstance(found, dict):
        return None, f"failed: exit code {code}" + ("" if found else ", no JSON at its end")
    return found, None


def row_of(figure, found, reason):
    """Returns what the table says of a figure; measured is None where there is no number."""
    measured = None
    if found is not None:
        try:
            measured = figure.read(found)
        except (KeyError, IndexError, TypeError) as error:
            reason = f"no such figure in its JSON: {error!r}"
    row = {"benchmark": figure.case, "figure": figure.what, "unit": figure.unit,
           "reach": figure.reach, "measured": measured, "reached": None}
    if measured is None:
        return {**row, "why": reason or "not measured by this form of it"}
    limit = float(figure.reach[:-1] or 0) if figure.reach else None
    if limit is not None:
        row["reached"] = measured >= limit if figure.reach[-1] == "+" else measured <= limit
    return row


def in_words(reach, unit):
    """Returns what is to be reached, as the table has it.

    >>> in_words("25+", "x"), in_words("0.4+", ""), in_words("", "x")
    ('25 x or more', '0.4 or more', '-')
    """
    if not reach:
        return "-"
    return " ".join(filter(None, [reach[:-1], unit, {"+": "or more", "-": "or less"}[reach[-1]]]))


def print_table(rows):
    print(f"\n{'figure':56}{'to reach':>16}{'measured':>12}  reached")
    for row in rows:
        reach = in_words(row["reach"], row["unit"])
        if row["measured"] is None:
            measured, reached = "-", f"not measured ({row['why']})"
        else:
            measured = f"{row['measured']:,.4g}" if row["measured"] < 1000 else (
                f"{row['measured']:,.0f}")
            reached = {True: "yes", False: "no", None: "-"}[row["reached"]]
        print(f"{row['figure']:56}{reach:>16}{measured:>12}  {reached}")


def add_flags(parser):
    """Adds the flags to a parser: to this script's own, and to that of the command `bench`."""
    add = parser.add_argument
    add("--only", nargs="+", choices=CASES, metavar="NAME", default=list(CASES),
        help=f"some of {', '.join(CASES)}")
    add("--quick", action="store_true", help="fewer turns, in minutes, and rough")
    add("--data", type=Path, metavar="FILE", help="Tiny Shakespeare, for those that need it")
    add("--gpu", action="store_true", help="measure torch on a GPU too")
    add("--pypy", default=shutil.which("pypy3"), metavar="PATH", help="(pypy3, where there is one)")


def run(args):
    """Runs the benchmarks, and prints the table; returns the exit code."""
    if args.data and not args.data.is_file():
        raise ValueError(f"--data {args.data}: no such file")
    where = turns.circumstances("run", {"benchmarks": turns.python_of(sys.executable)})
    turns.print_heading(where)
    results = {name: measure(name, args) for name in args.only}
    rows = [row_of(figure, *results[figure.case]) for figure in FIGURES if figure.case in results]
    print_table(rows)
    failed = {name: reason for name, (_, reason) in results.items()
              if reason and reason.startswith("failed")}
    for name, reason in failed.items():
        print(f"{name} {reason}; python3 benchmarks/{CASES[name].script} says more")
    print(json.dumps({**where, "quick": args.quick, "figures": rows, "failed": failed}))
    return 1 if failed else 0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser)
    parser.add_argument("--startup", type=turns.whole, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.startup:  # the benchmark that stands in this file
        return startup(args.startup)
    try:
        return run(args)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    turns.exit_with(main)
