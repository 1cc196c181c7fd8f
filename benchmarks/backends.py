"""Tokens a second of the backends scalar, matrix and torch, as multiples of the textbook's.

    python3 benchmarks/backends.py                     all of it, six to ten minutes
    python3 benchmarks/backends.py --only default --batches 1 16
    pypy3 benchmarks/backends.py --textbook-python python3    the textbook stays on CPython

Two models: the default one, on names, and a wide one, C64 L2 H4 T64, on the same names joined into
documents that fill its context. On each, every backend trains with 1, 16 and 64 documents a step,
on one thread of the CPU, through the loop that the command uses, garbage collector off as there.
The textbook learns from one document a step, as it must, in two forms: its loop at the top level,
as in a published script, and in a function (textbook.py says what differs).

How to read the figures:

- The contestants take turns (turns.py). The textbook's time is mostly garbage collection, whose
  full rounds come in phases: a step of the script form can take three times as long as in the
  turn before. So each of its turns is a fresh process of many steps, and its figure is the median
  of the processes' means. Of the wide model it takes two steps in all, in the function form: a
  minute each, and 5 GB of memory.
- Peak memory is that of the contestant's process, Python and torch included.
- torch computes in float32 here, as it does unless told otherwise, plain Python in float64.
- Each backend, torch in float64, also takes the textbook's first steps, one document a step: the
  losses must agree to 1e-9, or the exit code is 1.
- Left out is torch where it is not installed, and what takes more than --limit seconds a step: the
  scalar engine with 16 documents of the wide model would want 5 to 10 GB as well.
"""

import argparse
import collections
import gc
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path

import textbook
import turns
from turns import CPYTHON

ENGINES = ("scalar", "matrix", "torch")
TEXTBOOK = {"script": textbook.script_step_times, "function": textbook.function_step_times}
TOLERANCE = 1e-9    # the largest difference of two losses
CHECKED_STEPS = 20  # whose losses are compared, at most
NUM_STEPS = 10**6   # of the run that is begun: the learning rate hardly falls
TURN_SECONDS = 1.0  # of a backend; a slow one takes a single step


# ---- the models and their documents -------------------------------------------------------------

def short_documents(lines, block_size):
    """The lines that fit the context: of others, textbook and backends take different parts."""
    return [line for line in lines if len(line) < block_size]


def long_documents(lines, block_size):
    """The lines joined, and cut so that each document, BOS around it, fills the context."""
    text, size = " ".join(lines), block_size - 1
    return [text[i:i + size] for i in range(0, len(text) - size + 1, size)]


# forms: of the textbook; it takes at most so many steps a turn, and so many turns
Case = collections.namedtuple("Case", "label sizes documents forms most_steps most_turns")
CASES = {
    "default": Case("C16 L1 H4 T16", {"n_embd": 16, "n_head": 4, "n_layer": 1, "block_size": 16},
                    short_documents, ("script", "function"), math.inf, math.inf),
    "wide": Case("C64 L2 H4 T64", {"n_embd": 64, "n_head": 4, "n_layer": 2, "block_size": 64},
                 long_documents, ("function",), 2, 1),
}


def documents_of(case, data):
    return case.documents(textbook.read_documents(data), case.sizes["block_size"])


# ---- a contestant, in its own process: a function that takes the next `count` steps -------------

def textbook_run(form, case, documents):
    """A fresh run of the textbook: (its documents in order, take)."""
    training = textbook.Training(documents, NUM_STEPS, **case.sizes)

    def take(count):
        times, losses = TEXTBOOK[form](training, count)
        return sum(times), losses
    return training.documents, take


def engine_run(name, dtype, case, documents, batch_size):
    """A fresh run of a backend, set up as the command does: (its documents in order, take)."""
    microgpt = turns.import_microgpt()
    from microgpt import backends
    from microgpt.corpus.batches import document_batch
    from microgpt.nn import GPTConfig, init_weights
    from microgpt.training.schedules import learning_rate
    rng = random.Random(42)
    documents = list(documents)
    rng.shuffle(documents)
    tokenizer = microgpt.CharTokenizer(documents)
    config = GPTConfig(tokenizer.vocab_size, **case.sizes)
    settings = {"device": "cpu", "dtype": dtype} if name == "torch" else {}
    backend = backends.load(name)(config, init_weights(config, rng), **settings)
    tokens = [[tokenizer.bos, *tokenizer.encode(doc), tokenizer.bos] for doc in documents]

    def batch_of(step):
        return document_batch(tokens, step, batch_size, config.block_size, 42)
    losses = (backend.step(batch_of(step), learning_rate(step, NUM_STEPS, 0.01),
                           f"42 {step} dropout") for step in range(NUM_STEPS))

    def take(count):
        began = time.perf_counter()
        taken = [float(next(losses)) for _ in range(count)]
        return time.perf_counter() - began, taken
    return documents, take


def warm_up(take, seconds):
    """Take steps, one at least, for so many seconds; how long the last of them took."""
    until = time.perf_counter() + seconds
    while True:
        last, _ = take(1)
        if time.perf_counter() >= until:
            return last


def counting(documents, take, batch_size):
    """What turns.serve() asks for: count -> a dict, with the tokens that were learnt from."""
    first = 0

    def turn(count):
        nonlocal first
        seconds, losses = take(count)
        beyond = first + count * batch_size
        tokens = sum(len(documents[i % len(documents)]) + 1 for i in range(first, beyond))
        first = beyond
        return {"seconds": seconds, "tokens": tokens, "losses": losses[:CHECKED_STEPS]}
    return turn


def serve_textbook(form, case, documents, args):
    if not CPYTHON:  # there is nothing to warm up in CPython, and each turn is a fresh process
        warm_up(textbook_run(form, case, documents)[1], args.warmup)
    turns.say({})
    turns.serve(counting(*textbook_run(form, case, documents), 1))


def serve_engine(name, dtype, batch_size, case, documents, args):
    """Warm up on one document a step; if a batch would be too slow, say so; if not, serve."""
    turns.import_microgpt()
    from microgpt import backends
    try:
        backends.load(name)
    except backends.NotInstalled:
        return turns.say({"left_out": f"not installed: pip install {name}"})
    if name == "torch":
        import torch
        torch.set_num_threads(1)
    if CPYTHON:
        gc.disable()

    def run(batch_size):
        return engine_run(name, dtype, case, documents, batch_size)
    step_seconds = batch_size * warm_up(run(1)[1], args.warmup)
    if step_seconds > args.limit:
        return turns.say({"left_out": f"about {step_seconds:.0f} s a step"})
    if batch_size > 1:
        step_seconds = warm_up(run(batch_size)[1], args.warmup)
    turns.say({"steps": max(1, round(TURN_SECONDS / step_seconds))})
    turns.serve(counting(*run(batch_size), batch_size))


def serve(args):
    """Be the contestant that --serve names."""
    case_name, name, batch_size, dtype = args.serve
    case = CASES[case_name]
    documents = documents_of(case, args.data)
    if name in TEXTBOOK:
        serve_textbook(name, case, documents, args)
    else:
        serve_engine(name, dtype, int(batch_size), case, documents, args)


# ---- the referee --------------------------------------------------------------------------------

class Contestant:
    """A row of the table: an engine, or a form of the textbook, at a batch size, and its turns.

    steps: a turn, None to let a backend choose. left_out: why it has no turns, else None.
    """

    def __init__(self, args, case_name, engine, batch_size=1, dtype="float32", steps=None):
        self.args, self.engine, self.batch_size, self.steps = args, engine, batch_size, steps
        self.case_name, self.dtype = case_name, dtype
        self.turns, self.child, self.left_out, self.failed = [], None, None, False
        self.rounds = CASES[case_name].most_turns if engine in TEXTBOOK else math.inf

    def start(self):
        """Start the process, and wait until it is warm."""
        python = self.args.textbook_python if self.engine in TEXTBOOK else sys.executable
        self.child = turns.Child(
            python, __file__, "--serve", self.case_name, self.engine, self.batch_size, self.dtype,
            "--data", self.args.data, "--warmup", self.args.warmup, "--limit", self.args.limit)
        ready = self.told(self.child.hear())
        self.left_out = self.left_out or ready.get("left_out")
        self.steps = self.steps or ready.get("steps")

    def told(self, answer):
        """An answer of the process; {} if it has ended, which leaves the contestant out."""
        if answer is None:
            self.left_out, self.failed = "ended early, see above", True
        return answer or {}

    def take_turn(self):
        if self.left_out or len(self.turns) >= self.rounds:
            return
        if self.child is None:
            self.start()
        answer = {} if self.left_out else self.told(self.child.ask(self.steps))
        if answer:
            self.turns.append(answer)
        if self.engine in TEXTBOOK:
            self.close()

    def close(self):
        if self.child:
            self.child.close()
            self.child = None

    def speeds(self):
        """Tokens a second, a number a turn, each as on a machine of this run's usual speed."""
        return [turn["tokens"] / seconds
                for turn, seconds in zip(self.turns, turns.scaled_seconds(self.turns))]


def compete(case_name, args):
    """The contestants on a model, after all have taken their turns."""
    case = CASES[case_name]
    steps = min(args.textbook_steps, case.most_steps)
    contestants = [Contestant(args, case_name, form, steps=steps) for form in case.forms]
    contestants += [Contestant(args, case_name, engine, batch_size)
                    for batch_size in args.batches for engine in ENGINES]
    try:
        for contestant in contestants:
            if contestant.engine in ENGINES:
                contestant.start()
        for _ in range(args.rounds):
            for contestant in contestants:
                contestant.take_turn()
    finally:
        for contestant in contestants:
            contestant.close()
    return contestants


def loss_differences(case_name, reference, args):
    """Backend -> the largest difference of a loss to the textbook's.

    Instead of it, why the backend was left out, or None: it failed, or there is no such number.
    """
    found = {}
    for engine in ENGINES:
        contestant = Contestant(args, case_name, engine, dtype="float64", steps=len(reference))
        try:
            contestant.start()
            contestant.take_turn()
        finally:
            contestant.close()
        found[engine] = None if contestant.failed else contestant.left_out
        for turn in contestant.turns:
            differences = [abs(a - b) for a, b in zip(turn["losses"], reference)]
            found[engine] = max(differences) if all(map(math.isfinite, differences)) else None
    return found


# ---- the report ---------------------------------------------------------------------------------

HEADER = (f"{'model':15}{'batch':>5}  {'engine':20}{'tokens/s':>9}{'spread':>19}{'x script':>10}"
          f"{'x function':>11}{'peak MB':>9}")


def short(number):
    """A number with three digits or more: '4,321', '321', '32.1'."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def row_of(contestant, baselines):
    """What the table says of a contestant. baselines: form of the textbook -> tokens a second."""
    row = {"model": CASES[contestant.case_name].label, "batch": contestant.batch_size,
           "engine": contestant.engine}
    if contestant.left_out:
        return {**row, "left_out": contestant.left_out}
    speeds = contestant.speeds()
    speed = statistics.median(speeds)
    return {**row, "tokens_per_s": round(speed, 2), "turns": len(speeds),
            "spread": [round(min(speeds), 2), round(max(speeds), 2)],
            **{f"x_{form}": round(speed / baseline, 2) for form, baseline in baselines.items()},
            "peak_mb": contestant.turns[-1]["peak_mb"]}


def print_row(row):
    engine = ("textbook, " if row["engine"] in TEXTBOOK else "") + row["engine"]
    start = f"{row['model']:15}{row['batch']:5}  {engine:20}"
    if "left_out" in row:
        return print(start + "left out: " + row["left_out"])
    ratios = [short(row[f"x_{form}"]) if f"x_{form}" in row else "-" for form in TEXTBOOK]
    spread = " to ".join(map(short, row["spread"]))
    peak = f"{row['peak_mb']:.0f}" if row["peak_mb"] else "unknown"
    print(f"{start}{short(row['tokens_per_s']):>9}{spread:>19}{ratios[0]:>10}{ratios[1]:>11}"
          f"{peak:>9}")


def report(contestants):
    """Print the rows of one model, and return them."""
    baselines = {contestant.engine: statistics.median(contestant.speeds())
                 for contestant in contestants if contestant.engine in TEXTBOOK
                 and not contestant.left_out}
    rows = [row_of(contestant, baselines) for contestant in contestants]
    for row in rows:
        print_row(row)
    return rows


def print_differences(differences, count):
    """Print what loss_differences() found; is all of it within the tolerance?"""
    parts, equal = [], True
    for engine, found in differences.items():
        if isinstance(found, str):
            parts.append(f"{engine} left out")
            continue
        within = found is not None and found <= TOLERANCE
        size = "unknown" if found is None else f"{found:.1e}"
        parts.append(f"{engine} {size}" + ("" if within else ", NOT the same run"))
        equal &= within
    print(f"largest difference to the textbook's first {count} losses, in float64: "
          f"{', '.join(parts)}\n", flush=True)
    return equal


def measure(name, args):
    """(contestants, rows of the table, backend -> loss difference, did all go well) on a model."""
    contestants = compete(name, args)
    rows = report(contestants)
    well = not any(contestant.failed for contestant in contestants)
    for contestant in contestants:
        if contestant.engine in TEXTBOOK and contestant.turns:
            reference = contestant.turns[0]["losses"][:CHECKED_STEPS]
            differences = loss_differences(name, reference, args)
            return contestants, rows, differences, (
                print_differences(differences, len(reference)) and well)
    return contestants, rows, {}, False


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", choices=CASES, help="one of the two models")
    add("--batches", type=turns.whole, nargs="+", default=[1, 16, 64], metavar="N",
        help="documents a step (1 16 64)")
    add("--data", default=textbook.NAMES, type=Path, help="a text file, one document a line")
    add("--rounds", default=5, type=turns.whole, help="turns of each contestant (5)")
    add("--textbook-steps", default=40, type=turns.whole, metavar="N",
        help="steps a turn of the textbook, on the default model (40)")
    add("--warmup", default=1.0 if CPYTHON else 10.0, type=float, metavar="SECONDS",
        help="of steps before the clock starts, one at least (1 on CPython, 10 elsewhere)")
    add("--limit", default=8.0, type=float, metavar="SECONDS",
        help="leave a backend's batch out if a step takes longer (8)")
    add("--textbook-python", default=sys.executable, metavar="PATH",
        help="run the textbook in this other interpreter")
    add("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.data.is_file():
        parser.error(f"--data {args.data}: no such file")
    args.cases = [args.only] if args.only else list(CASES)
    for name in args.cases:
        if not documents_of(CASES[name], args.data):
            parser.error(f"--data {args.data}: it has no text for the model {name}")
    return args


def main():
    args = parse()
    if args.serve:
        return serve(args)
    where = turns.circumstances("backends", {"backends": turns.python_of(sys.executable),
                                             "textbook": turns.python_of(args.textbook_python)})
    turns.print_heading(where)
    print(HEADER, flush=True)
    measured = {name: measure(name, args) for name in args.cases}

    print(f"median of {args.rounds} turns, lowest to highest turn; a turn is {TURN_SECONDS:g} s "
          f"or a step of a backend,\n{args.textbook_steps} steps of a fresh process of the "
          "textbook; of the wide model, 2 steps of one process")
    for python, names in (("backends'", ENGINES), ("textbook's", TEXTBOOK)):
        print(turns.calibration_line(python, [
            turn for contestants, *_ in measured.values() for contestant in contestants
            if contestant.engine in names for turn in contestant.turns]))
    well = all(well for *_, well in measured.values())
    print(json.dumps({**where, "results": [row for _, rows, *_ in measured.values()
                                           for row in rows],
                      "loss_differences": {name: m[2] for name, m in measured.items()},
                      "well": well}))
    return 0 if well else 1


if __name__ == "__main__":
    turns.exit_with(main)
