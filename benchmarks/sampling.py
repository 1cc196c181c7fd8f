"""Tokens a second that each backend writes, with its cache and by recomputing the whole window.

    python3 benchmarks/sampling.py                       all of it, two minutes
    python3 benchmarks/sampling.py --only default        without torch's large model
    pypy3 benchmarks/sampling.py --only default

Two models with random weights: the default one on every backend, and L6 H6 C384 T256 on torch, in
float32. A contestant writes unending text at temperature 0.5 (nn/sampling.py, BOS left out), so
nearly all of it beyond block_size, on one thread of the CPU, in one of three ways:

    cached       keys and values are kept, and the view moves on by half of itself
    recomputed   for each token a fresh decoder reads the last block_size tokens, in one forward
                 pass without a graph that makes logits for the last of them alone
    at once      cached, so many texts together

They take turns (turns.py). Before that, each writes the first tokens of the same text: unless all
of one model are equal, the exit code is 1.
"""
import argparse
import gc
import json
import random
import statistics
import sys
import time

import turns
from turns import CPYTHON

MODELS = {"default": ("C16 L1 H4 T16", {}, ("scalar", "matrix", "torch")),
          "large": ("C384 L6 H6 T256", {"n_embd": 384, "n_head": 6, "n_layer": 6,
                                        "block_size": 256}, ("torch",))}
VOCABULARY = {"default": 27, "large": 65}
AT_ONCE = 16         # texts
CHECKED_TOKENS = 12  # from the beginning of a text, within block_size
TURN_SECONDS = 1.0


# ---- a contestant, in its own process: a function that takes the next `count` steps -------------

class Bytes:
    """All that generation asks of a tokenizer: a number for BOS, and a newline."""

    def __init__(self, vocab_size):
        self.bos = vocab_size - 1

    def encode(self, text):
        return [0 for _ in text]


def endless_texts(backend, tokenizer, count):
    """Yield a token of each of `count` texts that grow together, again and again."""
    from microgpt.nn import sampling
    settings = sampling.SamplingSettings(max_tokens=10**9)
    rngs = [sampling.sample_rng(42, i) for i in range(count)]
    while True:
        drawn = sampling.draws(backend, tokenizer, [], settings, rngs, is_stream=True)
        for step in zip(*[drawn] * count):
            yield [draw.token for draw in step]


def recomputed_text(backend, tokenizer, full):
    """Yield a token after another, each from the last block_size tokens, read anew.

    full: begin with as many tokens as that; else with a newline, as the others do.
    """
    from microgpt.nn import sampling
    settings, rng = sampling.SamplingSettings(), sampling.sample_rng(42, 0)
    size = backend.config.block_size
    text = [0] * size if full else [0]
    while True:
        logits = backend.decoder()(*text[-size:])
        logits[tokenizer.bos] = float("-inf")
        text.append(sampling.choose(logits, settings, rng))
        yield text[-1:]


def timed(steps, count):
    """Seconds of the next `count` steps, and all their tokens."""
    began = time.perf_counter()
    tokens = [token for _ in range(count) for token in next(steps)]
    return time.perf_counter() - began, tokens


def warm_up(steps, seconds):
    """Take steps for so many seconds; how long one took."""
    until, taken, spent = time.perf_counter() + seconds, 0, 0.0
    while taken < 2 or time.perf_counter() < until:
        spent += timed(steps, 1)[0]
        taken += 1
    return spent / taken


def serve(args):
    """Be the contestant that --serve names."""
    model, name, way = args.serve
    turns.import_microgpt()
    from microgpt import backends
    from microgpt.nn import GPTConfig, init_weights
    try:
        backends.load(name)
    except backends.NotInstalled:
        return turns.say({"left_out": f"not installed: pip install {name}"})
    settings, version = {}, {}
    if name == "torch":
        import torch
        torch.set_num_threads(1)
        settings, version = {"device": "cpu", "dtype": "float32"}, {"torch": torch.__version__}
    if CPYTHON:
        gc.disable()
    config = GPTConfig(VOCABULARY[model], **MODELS[model][1])
    backend = backends.load(name)(config, init_weights(config, random.Random(42)), **settings)
    tokenizer = Bytes(config.vocab_size)

    def steps(full):
        if way == "recomputed":
            return recomputed_text(backend, tokenizer, full)
        return endless_texts(backend, tokenizer, AT_ONCE if way == "at once" else 1)
    first = [next(tokens)[0] for tokens in [steps(False)] for _ in range(CHECKED_TOKENS)]
    endless = steps(True)
    count = max(1, round(TURN_SECONDS / warm_up(endless, args.warmup)))

    def turn(count):
        seconds, tokens = timed(endless, count)
        return {"seconds": seconds, "tokens": len(tokens)}
    turns.say({"steps": count, "first": first, **version})
    turns.serve(turn)


# ---- the referee --------------------------------------------------------------------------------

class Contestant:
    """A row of the table: a model, a backend, a way to write, and its turns."""

    def __init__(self, model, backend, way, args):
        self.model, self.backend, self.way, self.turns = model, backend, way, []
        self.child = turns.Child(sys.executable, __file__, "--serve", model, backend, way,
                                 "--warmup", args.warmup)
        self.ready = self.child.hear() or {"left_out": "ended early, see above"}

    def take_turn(self):
        answer = "left_out" not in self.ready and self.child.ask(self.ready["steps"])
        if answer:
            self.turns.append(answer)

    def speeds(self):
        """Tokens a second, a number a turn, each as on a machine of this run's usual speed."""
        return [turn["tokens"] / seconds
                for turn, seconds in zip(self.turns, turns.scaled_seconds(self.turns))]

    def row(self, baseline):
        row = {"model": MODELS[self.model][0], "backend": self.backend, "way": self.way}
        if not self.turns:
            return {**row, "left_out": self.ready.get("left_out", "ended early, see above")}
        speeds = self.speeds()
        speed = statistics.median(speeds)
        return {**row, "tokens_per_s": round(speed, 1), "turns": len(speeds),
                "spread": [round(min(speeds), 1), round(max(speeds), 1)],
                "x_recomputed": round(speed / baseline, 1) if baseline else None,
                "peak_mb": self.turns[-1]["peak_mb"]}


def compete(model, args):
    """The contestants of a model, after all have taken their turns."""
    contestants = []
    try:
        for backend in MODELS[model][2]:
            for way in ("recomputed", "cached") + ("at once",) * (backend == "torch"):
                contestants.append(Contestant(model, backend, way, args))
        for _ in range(args.rounds):
            for contestant in contestants:
                contestant.take_turn()
    finally:
        for contestant in contestants:
            contestant.child.close()
    return contestants


def report(contestants):
    """Print the rows of a model, and return them."""
    rows, baselines = [], {}
    for contestant in contestants:
        if contestant.way == "recomputed" and contestant.turns:
            baselines[contestant.backend] = statistics.median(contestant.speeds())
        row = contestant.row(baselines.get(contestant.backend))
        rows.append(row)
        way = f"{AT_ONCE} at once" if row["way"] == "at once" else row["way"]
        start = f"{row['model']:17}{row['backend']:9}{way:12}"
        if "left_out" in row:
            print(start + "left out: " + row["left_out"])
            continue
        low, high = row["spread"]
        print(f"{start}{row['tokens_per_s']:>10,.0f}{f'{low:,.0f} to {high:,.0f}':>20}"
              f"{row['x_recomputed'] or '-':>14}{row['peak_mb'] or 0:>9.0f}", flush=True)
    return rows


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", choices=MODELS, help="one of the two models")
    add("--rounds", default=7, type=turns.whole, help="turns of each contestant (7)")
    add("--warmup", default=1.0 if CPYTHON else 8.0, type=float, metavar="SECONDS",
        help="of writing before the clock starts (1 on CPython, 8 elsewhere)")
    add("--serve", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse()
    if args.serve:
        return serve(args)
    where = turns.circumstances("sampling", {"backends": turns.python_of(sys.executable)})
    turns.print_heading(where)
    print(f"{'model':17}{'backend':9}{'way':12}{'tokens/s':>10}{'spread':>20}{'x recomputed':>14}"
          f"{'peak MB':>9}", flush=True)
    rows, well, every = [], True, []
    for model in [args.only] if args.only else MODELS:
        contestants = compete(model, args)
        every += contestants
        rows += report(contestants)
        texts = {tuple(c.ready["first"]) for c in contestants if "first" in c.ready}
        equal = len(texts) <= 1
        print(f"first {CHECKED_TOKENS} tokens: "
              f"{'the same for all' if equal else 'NOT the same text'}\n", flush=True)
        well &= equal and not any("ended early" in row.get("left_out", "") for row in rows)
    versions = {c.ready["torch"] for c in every if "torch" in c.ready}
    where["torch"] = versions.pop() if versions else None
    print(f"median of {args.rounds} turns of {TURN_SECONDS:g} s, lowest to highest turn; "
          f"torch {where['torch']}, float32, one thread")
    print(turns.calibration_line("backends'", [turn for c in every for turn in c.turns]))
    print(json.dumps({**where, "results": rows, "well": well}))
    return 0 if well else 1


if __name__ == "__main__":
    turns.exit_with(main)
