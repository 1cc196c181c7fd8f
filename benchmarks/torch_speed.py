"""The torch backend against a usual trainer, in one run: speed, and time to a validation loss.

    python3 benchmarks/torch_speed.py --data tinyshakespeare.txt                       on the CPU
    python3 benchmarks/torch_speed.py --data tinyshakespeare.txt --setting shakespeare-gpu

Contestants are processes that take turns (turns.py): the reference, and this backend with AdamW and
with Muon, in float32 and in what --dtype names. The CPU has one thread. The reference is a plain
eager loop as people write it: LayerNorm, GELU, torch's own attention, AdamW, clipped gradients,
random windows, and 400 batches of random windows to estimate a loss; on CUDA it is compiled and
runs under bfloat16 autocast.

How to read the figures:

- tokens/s are of training steps alone, the median of the turns; `x` is the median over rounds of
  the ratio to the reference's turn beside it. On a CPU seconds are those of the process, so that
  others at work on the machine do less harm.
- `share` is the rate of the model's products, 6 for each weight and token and 12 L T C of attention
  a token, over the rate that a large product reached in this run, in the same dtype.
- With --to LOSS, each contestant then trains anew, --steps at most, until its validation loss is
  below. The learning rate falls over all of these steps, so one that needs fewer is to be told so
  beforehand: --own-steps. The loss is this project's for all: exact, over all that is held out.
  `seconds` are those of the steps and of the evaluations by which the contestant itself would have
  known: 2 x 200 batches for the reference, one exact loss for this backend, every --every steps.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
import warnings
from pathlib import Path

import turns

SETTINGS = {
    "shakespeare-cpu": dict(n_layer=4, n_head=4, n_embd=128, block_size=64, batch=12, dropout=0.0,
                            steps=2000, rate=1e-3),
    "shakespeare-gpu": dict(n_layer=6, n_head=6, n_embd=384, block_size=256, batch=64, dropout=0.2,
                            steps=5000, rate=1e-3),
}
RATES = {"adamw": 3e-3, "muon": 0.02}
WARM_UP = 100  # steps of the reference's schedule


# ---- the reference -------------------------------------------------------------------------------

def reference_model(torch, vocab_size, n_layer, n_head, n_embd, block_size, dropout):
    """The usual GPT, as a module: tokens, targets -> logits, loss."""
    nn, F = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = (nn.LayerNorm(n_embd, bias=False) for _ in range(2))
            self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
            self.out = nn.Linear(n_embd, n_embd, bias=False)
            self.up = nn.Linear(n_embd, 4 * n_embd, bias=False)
            self.down = nn.Linear(4 * n_embd, n_embd, bias=False)
            self.drop = nn.Dropout(dropout)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = (y.view(B, T, n_head, C // n_head).transpose(1, 2)
                       for y in self.qkv(self.ln1(x)).split(C, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True,
                                               dropout_p=dropout if self.training else 0.0)
            x = x + self.drop(self.out(y.transpose(1, 2).reshape(B, T, C)))
            return x + self.drop(self.down(F.gelu(self.up(self.ln2(x)))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = (nn.Embedding(n, n_embd) for n in (vocab_size, block_size))
            self.blocks = nn.ModuleList(Block() for _ in range(n_layer))
            self.ln, self.drop = nn.LayerNorm(n_embd, bias=False), nn.Dropout(dropout)
            self.head = nn.Linear(n_embd, vocab_size, bias=False)
            self.head.weight = self.wte.weight
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    deep = name.endswith(("out.weight", "down.weight"))
                    nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer) if deep else 0.02)

        def forward(self, tokens, targets):
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            x = self.drop(self.wte(tokens) + self.wpe(positions))
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.ln(x))
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return Model()


class Reference:
    """The reference's training: step() and the estimate of its loss."""

    def __init__(self, torch, setting, data, device, steps):
        torch.manual_seed(1337)
        self.torch, self.setting, self.device, self.steps = torch, setting, device, steps
        sizes = {key: setting[key] for key in ("n_layer", "n_head", "n_embd", "block_size",
                                               "dropout")}
        self.plain = reference_model(torch, data["vocab_size"], **sizes).to(device)
        self.model = torch.compile(self.plain) if device == "cuda" else self.plain
        self.parts = [torch.tensor(data[name]) for name in ("train", "validation")]
        matrices = [p for p in self.plain.parameters() if p.dim() > 1]
        others = [p for p in self.plain.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
            lr=setting["rate"], betas=(0.9, 0.99), fused=device == "cuda")
        self.done = 0

    def windows(self, part):
        T = self.setting["block_size"]
        starts = self.torch.randint(len(part) - T, (self.setting["batch"],)).tolist()
        x = self.torch.stack([part[i:i + T] for i in starts])
        y = self.torch.stack([part[i + 1:i + T + 1] for i in starts])
        return x.to(self.device), y.to(self.device)

    def loss(self, x, y):
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.device == "cuda"):
            return self.model(x, y)

    def step(self):
        top, least = self.setting["rate"], self.setting["rate"] / 10
        past = min(1.0, max(0, self.done - WARM_UP) / max(1, self.steps - WARM_UP))
        rate = least + 0.5 * (1 + math.cos(math.pi * past)) * (top - least)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.done + 1) / WARM_UP)
        loss = self.loss(*self.windows(self.parts[0]))
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.plain.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return loss

    def evaluate(self):
        """The usual estimate: 200 random batches of each part."""
        self.model.eval()
        with self.torch.no_grad():
            losses = [self.loss(*self.windows(part)).item() for part in self.parts
                      for _ in range(200)]
        self.model.train()
        return sum(losses[200:]) / 200

    def exact_loss(self):
        """The loss on all that is held out, each token predicted once, for comparison."""
        T, part, total = self.setting["block_size"], self.parts[1], 0.0
        count = (len(part) - 1) // T
        x = part[:count * T].view(count, T)
        y = part[1:count * T + 1].view(count, T)
        self.plain.eval()
        with self.torch.no_grad():
            for first in range(0, count, 64):
                xs, ys = (z[first:first + 64].to(self.device) for z in (x, y))
                total += self.plain(xs, ys).item() * len(xs)
        self.plain.train()
        return total / count


# ---- this backend --------------------------------------------------------------------------------

class Ours:
    """The torch backend's training, set up as the command does."""

    def __init__(self, setting, data, device, steps, optimizer, dtype):
        from microgpt.backends import load
        from microgpt.corpus.batches import stream_batch
        from microgpt.nn import GPTConfig, init_weights
        sizes = {key: setting[key] for key in ("n_layer", "n_head", "n_embd", "block_size",
                                               "dropout")}
        config = GPTConfig(data["vocab_size"], **sizes)
        self.backend = load("torch")(config, init_weights(config, random.Random(42)), optimizer,
                                     device=device, dtype=dtype)
        self.data, self.setting, self.steps, self.done = data, setting, steps, 0
        self.rate, self.batch = RATES[optimizer], stream_batch

    def step(self):
        batch = self.batch(self.data["train"], self.done, self.setting["batch"],
                           self.setting["block_size"], 42)
        rate = self.rate * (1 - min(self.done / self.steps, 1))
        self.done += 1
        return self.backend.step(batch, rate, f"42 {self.done} dropout")

    def exact_loss(self):
        from microgpt.training.evaluation import evaluate
        return evaluate(self.backend, self.data["validation"], True).loss

    evaluate = exact_loss


# ---- a contestant's process ----------------------------------------------------------------------

def read_data(path):
    """The characters of a text as numbers: what is learned from, what is held out, how many."""
    text = Path(path).read_text(encoding="utf-8")
    ids = {char: i for i, char in enumerate(sorted(set(text)))}
    tokens, cut = [ids[char] for char in text], int(0.9 * len(text))
    return {"train": tokens[:cut], "validation": tokens[cut:], "vocab_size": len(ids)}


def product_rate(torch, device, dtype):
    """Operations a second of a large product."""
    size = 8192 if device == "cuda" else 1536
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        (a @ a).flatten()[0].item()
        times.append(time.perf_counter() - began)
    return 2 * size ** 3 / min(times)


def serve(args):
    """Be the contestant that --serve names: answer with seconds of steps, or of a whole run."""
    turns.import_microgpt()
    with warnings.catch_warnings():  # torch works without NumPy, and nothing here asks for it
        warnings.filterwarnings("ignore", "Failed to initialize NumPy")
        import torch
    if args.device == "cpu":
        torch.set_num_threads(1)
    name, dtype = args.serve
    setting, data = SETTINGS[args.setting], read_data(args.data)
    clock = time.process_time if args.device == "cpu" else time.perf_counter

    def fresh():
        if name == "reference":
            return Reference(torch, setting, data, args.device, args.steps)
        return Ours(setting, data, args.device, args.own_steps, name, dtype)

    def timed(function):
        began = clock()
        loss = function()
        if torch.is_tensor(loss):
            loss.item()  # waits for a GPU
        return clock() - began
    runner, kind = fresh(), getattr(torch, dtype)

    def take(count):
        if count == 1:
            return whole_run(fresh(), timed, args)
        seconds = timed(lambda: [runner.step() for _ in range(count)][-1])
        return {"seconds": seconds, "steps": count, "rate": product_rate(torch, args.device, kind)}
    turns.say({"torch": torch.__version__})
    turns.serve(take)


def whole_run(runner, timed, args):
    """Train until the validation loss is below --to; how long it took, and the losses on the way"""
    seconds, losses = 0.0, []
    while runner.done < runner.steps and not (losses and losses[-1][1] < args.to):
        count = min(args.every, runner.steps - runner.done)
        seconds += timed(lambda: [runner.step() for _ in range(count)][-1])
        seconds += timed(runner.evaluate)
        losses.append((runner.done, round(runner.exact_loss(), 4), round(seconds, 2)))
    return {"seconds": seconds, "losses": losses, "reached": losses[-1][1] < args.to}


# ---- the referee ---------------------------------------------------------------------------------

def compete(args, contestants):
    """Contestant -> its turns, and its run to --to."""
    children, results = {}, {name: [] for name in contestants}
    try:
        for name in contestants:
            children[name] = turns.Child(
                sys.executable, __file__, "--serve", *name, "--data", args.data, "--device",
                args.device, "--setting", args.setting, "--steps", args.steps, "--own-steps",
                args.own_steps, "--to", args.to, "--every", args.every)
            children[name].hear()
            children[name].ask(args.turn)  # warms up
        for _ in range(args.rounds):
            for name in contestants:
                results[name].append(children[name].ask(args.turn))
        runs = {name: children[name].ask(1) for name in contestants} if args.to else {}
    finally:
        for child in children.values():
            child.close()
    return results, runs


def row_of(name, results, runs, setting, vocab_size):
    """What the table says of a contestant."""
    mine, first = results[name], results[next(iter(results))]
    tokens = setting["batch"] * setting["block_size"]
    L, C, T = setting["n_layer"], setting["n_embd"], setting["block_size"]
    work = tokens * (6 * (12 * L * C * C + vocab_size * C) + 12 * L * T * C)
    speeds = [tokens * turn["steps"] / turn["seconds"] for turn in mine]
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(first, mine)]
    share = [work / tokens * speed / turn["rate"] for speed, turn in zip(speeds, mine)]
    row = {"name": " ".join(name), "tokens_per_s": round(statistics.median(speeds)),
           "spread": [round(min(speeds)), round(max(speeds))],
           "x": round(statistics.median(ratios), 2), "share": round(statistics.median(share), 3)}
    if name in runs:
        row.update(seconds=round(runs[name]["seconds"], 1), reached=runs[name]["reached"],
                   losses=runs[name]["losses"])
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="a text, such as Tiny Shakespeare")
    parser.add_argument("--setting", choices=SETTINGS, default="shakespeare-cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", help="beside float32 (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=["adamw", "muon"],
                        help="optimizers of this backend")
    parser.add_argument("--reference", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=turns.whole, default=10)
    parser.add_argument("--turn", type=turns.whole, default=10, help="steps a turn, 2 or more")
    parser.add_argument("--to", type=float, default=0.0, help="validation loss to reach")
    parser.add_argument("--steps", type=turns.whole, help="at most, for --to (the setting's)")
    parser.add_argument("--own-steps", type=turns.whole,
                        help="of this backend's contestants, which may need fewer (--steps)")
    parser.add_argument("--every", type=turns.whole, default=250, help="steps between evaluations")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    setting = SETTINGS[args.setting]
    args.device = args.device or ("cuda" if args.setting == "shakespeare-gpu" else "cpu")
    args.steps, args.turn = args.steps or setting["steps"], max(2, args.turn)
    args.own_steps = args.own_steps or args.steps
    if args.serve:
        return serve(args)
    where = turns.circumstances("torch_speed", {"contestants": turns.python_of(sys.executable)})
    turns.print_heading(where)
    contestants = [("reference", "bfloat16" if args.device == "cuda" else "float32")]
    contestants = contestants * args.reference + [
        (name, dtype) for name in args.only for dtype in dict.fromkeys(("float32", args.dtype))]
    results, runs = compete(args, contestants)
    vocab_size = read_data(args.data)["vocab_size"]
    rows = [row_of(name, results, runs, setting, vocab_size) for name in contestants]
    print(f"{args.setting} on {args.device}; x: times the tokens/s of {rows[0]['name']}")
    print(f"{'':22}{'tokens/s':>10}{'spread':>18}{'x':>7}{'share':>8}"
          + f"{f'seconds to {args.to}':>20}" * bool(args.to))
    for row in rows:
        spread = "{:,} to {:,}".format(*row["spread"])
        last = (f"{row['seconds']:>14}" + (f" at {row['losses'][-1][0]}" if row["reached"]
                else f" not: {row['losses'][-1][1]}")) if args.to else ""
        print(f"{row['name']:22}{row['tokens_per_s']:>10,}{spread:>18}{row['x']:>7.2f}"
              f"{row['share']:>8.0%}{last}")
    print(json.dumps({**where, "setting": args.setting, "device": args.device, "rows": rows}))
    return 0


if __name__ == "__main__":
    turns.exit_with(main)
