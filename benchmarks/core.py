"""One training step of microgpt.py against the textbook: how many times faster, at equal losses.

    python3 benchmarks/core.py
    pypy3 benchmarks/core.py --textbook-python python3    the file on PyPy, the textbook on CPython

The contestants take turns (turns.py), on the same documents, from the same weights. The losses
must agree step by step to 1e-9, or the exit code is 1: a faster step that computes something else
is no step at all.

Expect a wide spread for the textbook. Most of its time goes to the garbage collector, which walks
memory, and a busy machine slows that far more than the arithmetic of the fixed loop.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from pathlib import Path

import textbook
import turns
from turns import CPYTHON

TOLERANCE = 1e-9  # the largest difference of two losses
SIZES = {"n_embd": 16, "n_head": 4, "n_layer": 1, "block_size": 16}  # the default model


# ---- a contestant, in its own process: a function that takes the next `count` steps -------------

def textbook_steps(documents, num_steps, times_of):
    training = textbook.Training(documents, num_steps, **SIZES)

    def take(count):
        times, losses = times_of(training, count)
        return sum(times), losses
    return take


def script_steps(documents, num_steps):
    return textbook_steps(documents, num_steps, textbook.script_step_times)


def function_steps(documents, num_steps):
    return textbook_steps(documents, num_steps, textbook.function_step_times)


def file_steps(documents, num_steps):
    """The file's own training loop, set up as its main() and run() do."""
    microgpt = turns.import_microgpt()
    if CPYTHON:
        gc.disable()
    rng = random.Random(42)
    documents = list(documents)
    rng.shuffle(documents)
    tokenizer = microgpt.CharTokenizer(documents)
    config = microgpt.Config(vocab_size=tokenizer.vocab_size, **SIZES)
    weights = microgpt.init_weights(config, rng)
    losses = microgpt.train(documents, tokenizer, weights, config, num_steps)

    def take(count):
        began = time.perf_counter()
        taken = [next(losses) for _ in range(count)]
        return time.perf_counter() - began, taken
    return take


CONTESTANTS = {
    "script": ("textbook, as a script", script_steps),
    "function": ("textbook, in a function", function_steps),
    "file": ("microgpt.py", file_steps),
}


def serve(name, data, num_steps, warmup):
    """Warm up, then take as many steps as each line of standard input says, and answer in JSON."""
    # A document beyond the context is left out: the textbook cuts it, the file trains on any part.
    documents = [doc for doc in textbook.read_documents(data) if len(doc) < SIZES["block_size"]]
    _, steps = CONTESTANTS[name]
    steps(documents, max(warmup, 1))(warmup)  # a run that is thrown away
    take = steps(documents, num_steps)

    def turn(count):
        seconds, losses = take(count)
        return {"seconds": seconds, "losses": losses}
    turns.serve(turn)


# ---- the referee --------------------------------------------------------------------------------

class Contestant:
    """A child process that takes steps when told to, and what its turns gave."""

    def __init__(self, name, python, args, num_steps, warmup):
        self.label, _ = CONTESTANTS[name]
        self.turns = []
        self.child = turns.Child(python, __file__, "--serve", name, "--data", args.data,
                                 "--num-steps", num_steps, "--warmup", warmup)

    def take_turn(self, steps):
        answer = self.child.ask(steps)
        if answer is None:
            sys.exit(f"core.py: {self.label} ended early, see above")
        self.turns.append(answer)

    def step_ms(self):
        """Milliseconds a step, a number a turn, each as on a machine of this run's usual speed."""
        return [1000 * seconds / len(turn["losses"])
                for turn, seconds in zip(self.turns, turns.scaled_seconds(self.turns))]

    def losses(self):
        return [loss for turn in self.turns for loss in turn["losses"]]


def compete(args):
    """Name -> Contestant, after all have taken their turns."""
    num_steps = max(1000, 1 + args.rounds * args.steps)
    textbook_python = args.textbook_python or sys.executable
    contestants = {}
    try:
        for name in CONTESTANTS:
            python = sys.executable if name == "file" else textbook_python
            warmup = args.warmup if name == "file" else min(args.warmup, 200)
            contestants[name] = Contestant(name, python, args, num_steps, warmup)
            contestants[name].take_turn(1)  # waits until it is warm: no two ever work at once
        for _ in range(args.rounds):
            for contestant in contestants.values():
                contestant.take_turn(args.steps)
    finally:
        for contestant in contestants.values():
            contestant.child.close()
    return contestants


def largest_difference(contestants):
    """(largest difference of a textbook's loss to the file's, the first step out of tolerance)."""
    largest, first = 0.0, None
    file_losses = contestants["file"].losses()
    for name in ("script", "function"):
        for step, (a, b) in enumerate(zip(contestants[name].losses(), file_losses), 1):
            largest = max(largest, abs(a - b))
            if not abs(a - b) <= TOLERANCE:  # note: not `>`, so that a NaN fails as well
                first = min(first or step, step)
    return largest, first


def report(contestants, args):
    """Print the table; what it says, as a dict."""
    file_ms = contestants["file"].step_ms()[1:]
    rows = {}
    print(f"{'':24}{'ms/step':>9}{'spread':>17}{'file is':>9}{'spread':>15}{'peak MB':>16}")
    for name, contestant in contestants.items():
        ms = contestant.step_ms()[1:]  # the first turn was the waiting
        median, ratio = statistics.median(ms), statistics.median(ms) / statistics.median(file_ms)
        ratios = [a / b for a, b in zip(ms, file_ms)]  # the same documents in each turn
        peaks = [turn["peak_mb"] for turn in contestant.turns]
        peak = f"{peaks[1]:.1f} to {peaks[-1]:.1f}" if peaks[-1] else "unknown"
        spread = f"{min(ms):.2f} to {max(ms):.2f}"
        ratio_spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        print(f"{contestant.label:24}{median:9.2f}{spread:>17}{ratio:8.1f}x{ratio_spread:>15}"
              f"{peak:>16}")
        rows[name] = {"step_ms": round(median, 3), "ratio_to_file": round(ratio, 2),
                      "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
                      "peak_mb_first_last": [peaks[1], peaks[-1]]}
    print(f"\nmedian of {args.rounds} turns of {args.steps} steps, and lowest to highest turn; "
          "peak after the first and the last turn")
    for python, names in (("file's", ["file"]), ("textbook's", ["script", "function"])):
        print(turns.calibration_line(python, [turn for name in names
                                              for turn in contestants[name].turns]))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default=textbook.NAMES, type=Path, help="a text file, one document a line")
    add("--rounds", default=5, type=turns.whole, help="turns of each contestant (5)")
    add("--steps", default=40, type=turns.whole, help="training steps a turn (40)")
    add("--warmup", default=10 if CPYTHON else 3000, type=turns.whole,
        help="steps before the clock starts (10 on CPython, 3000 elsewhere)")
    add("--textbook-python", metavar="PATH", help="run the textbook in this other interpreter")
    add("--serve", choices=CONTESTANTS, help=argparse.SUPPRESS)
    add("--num-steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.data, args.num_steps, args.warmup)
    if not args.data.is_file():
        parser.error(f"--data {args.data}: no such file")

    where = turns.circumstances("core", {
        "file": turns.python_of(sys.executable),
        "textbook": turns.python_of(args.textbook_python or sys.executable)})
    turns.print_heading(where)
    contestants = compete(args)
    rows = report(contestants, args)
    difference, first_bad = largest_difference(contestants)
    print(f"largest difference of two losses {difference:.1e}"
          + (f": NOT the same run, from step {first_bad} on" if first_bad else ""))
    print(json.dumps({**where, "results": rows, "largest_loss_difference": difference,
                      "equal": not first_bad}))
    return 1 if first_bad else 0


if __name__ == "__main__":
    turns.exit_with(main)
