"""Writing and reading a checkpoint: training/checkpoint.py against json, and against struct used
number by number.

    python3 benchmarks/checkpoints.py

The baselines have a smaller share of the numbers, and their times are scaled up to all. All take
turns. What was read must be what was written, or the exit code is 1. A disk is written to, and
flushed: the same bytes alone, without any format, show how much of the time is the disk's.
"""
import argparse
import json
import os
import random
import statistics
import struct
import sys
import tempfile
import time
from array import array
from pathlib import Path

import turns

COLUMNS = 384


def timed(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - began, result


# ---- the baselines -------------------------------------------------------------------------------

def struct_write(path, rows):
    with open(path, "wb") as file:
        for row in rows:
            for number in row:
                file.write(struct.pack("<d", number))
        file.flush()
        os.fsync(file.fileno())


def struct_read(path):
    content = path.read_bytes()
    numbers = [struct.unpack("<d", content[i:i + 8])[0] for i in range(0, len(content), 8)]
    return [numbers[i:i + COLUMNS] for i in range(0, len(numbers), COLUMNS)]


def json_write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")


def json_read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def disk_write(path, content):
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


# ---- the turns -----------------------------------------------------------------------------------

def ours(checkpoint, path, rows):
    """Returns the seconds of writing, of reading, and of reading as lists; and whether equal."""
    if path.exists():
        path.unlink()  # to free the blocks of the last file is not part of writing this one
    written, _ = timed(checkpoint.write, path, {"weights": rows})
    taken, (tensors, _) = timed(checkpoint.read, path)
    listed, lists = timed(lambda: [row.tolist() for row in tensors["weights"]])
    return [written, taken, taken + listed], lists == [list(row) for row in rows]


def one_round(checkpoint, folder, rows, share):
    """Returns name -> seconds, and whether all read what they wrote."""
    seconds, same = {}, True
    forms = {"lists": rows, "packed F64": [array("d", row) for row in rows],
             "packed F32": [array("f", row) for row in rows]}
    for name, form in forms.items():
        times, equal = ours(checkpoint, folder / name, form)
        for what, taken in zip(("write", "read", "read as lists"), times):
            seconds[f"{name}: {what}"] = taken
        same &= equal
    content = b"".join(forms["packed F64"])
    seconds["disk alone: write"], _ = timed(disk_write, folder / "disk", content)
    few = rows[:max(1, int(share * len(rows)))]
    for name, write, read in (("struct", struct_write, struct_read),
                              ("json", json_write, json_read)):
        written, _ = timed(write, folder / name, few)
        taken, found = timed(read, folder / name)
        seconds[f"{name}: write"] = written * len(rows) / len(few)
        seconds[f"{name}: read as lists"] = taken * len(rows) / len(few)
        same &= found == few
    return seconds, same


def report(rounds):
    """Prints the table; returns its figures."""
    figures = {}
    print(f"{'':28}{'seconds':>9}{'spread':>17}{'struct takes':>14}")
    for name in rounds[0]:
        taken = [seconds[name] for seconds in rounds]
        median, plain = statistics.median(taken), "struct: " + ("write" if "write" in name
                                                               else "read as lists")
        ratio = statistics.median(seconds[plain] / seconds[name] for seconds in rounds)
        spread = f"{min(taken):.3f} to {max(taken):.3f}"
        print(f"{name:28}{median:9.3f}{spread:>17}{ratio:13.1f}x")
        figures[name] = {"seconds": round(median, 4), "spread": [round(min(taken), 4),
                                                                 round(max(taken), 4)],
                         "struct_takes": round(ratio, 2)}
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--numbers", default=10_000_000, type=turns.whole, help="parameters (10 million)")
    add("--share", default=0.05, type=float, help="of them, for struct and json (0.05)")
    add("--rounds", default=5, type=turns.whole, help="turns of each (5)")
    add("--folder", metavar="PATH", help="where to write (the system's temporary folder)")
    args = parser.parse_args()
    turns.import_microgpt()
    from microgpt.training import checkpoint

    rng = random.Random(1)
    rows = [[rng.uniform(-1, 1) for _ in range(COLUMNS)]
            for _ in range(-(-args.numbers // COLUMNS))]
    where = turns.circumstances("checkpoints", {"checkpoint": turns.python_of(sys.executable)})
    turns.print_heading(where)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        one_round(checkpoint, Path(folder), rows[:100], args.share)  # warms up
        rounds = [one_round(checkpoint, Path(folder), rows, args.share)
                  for _ in range(args.rounds)]
    figures = report([seconds for seconds, _ in rounds])
    equal = all(same for _, same in rounds)
    print(f"\n{len(rows)} rows of {COLUMNS}, {args.rounds} turns; struct and json scaled up from "
          f"{args.share:.0%}\n{'all' if equal else 'NOT all'} read what was written")
    print(json.dumps({**where, "numbers": len(rows) * COLUMNS, "results": figures,
                      "equal": equal}))
    return 0 if equal else 1


if __name__ == "__main__":
    turns.exit_with(main)
