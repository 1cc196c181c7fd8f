"""A GPT on scalar autograd, as a textbook writes it: the plain baseline of every speed figure.

One number is one node, one operation is one node, an inner product is a chain of multiplies and
adds. It serves twice:

- as the baseline: a speed elsewhere in this project is a multiple of this one;
- as the oracle: written from the formulas alone, importing nothing of `microgpt.py`, it writes the
  golden run that the rest must repeat digit for digit (`tests/golden.json`).

Left out on purpose is whatever makes the same mathematics fast: fused nodes, `__slots__`, a sort
without recursion, no work on constants, a training loop that minds the garbage collector. Please
do not improve it.

    python3 benchmarks/textbook.py                             train, then sample
    python3 benchmarks/textbook.py --golden tests/golden.json  write the golden run (minutes)
"""

import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path

NAMES = Path(__file__).resolve().parent.parent / "corpus" / "data" / "names.txt"


# ---- autograd -----------------------------------------------------------------------------------

class Value:
    """A number that remembers which numbers it came from, and its derivative by each of them."""

    def __init__(self, data, parents=(), derivatives=()):
        self.data = data
        self.grad = 0.0
        self.parents = parents
        self.derivatives = derivatives

    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, exponent):
        slope = exponent * self.data ** (exponent - 1)
        return Value(self.data ** exponent, (self,), (slope,))

    def exp(self):
        result = math.exp(self.data)
        return Value(result, (self,), (result,))

    def log(self):
        return Value(math.log(self.data), (self,), (1 / self.data,))

    def relu(self):
        return Value(max(self.data, 0.0), (self,), (1.0 if self.data > 0 else 0.0,))

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __truediv__(self, other):
        return self * other ** -1

    __radd__ = __add__  # so that sum() works, which starts with 0 + its first term

    def backward(self):
        """Add d self / d node to the grad of every node that self was computed from."""
        order, visited = [], set()

        def build_topo(node):
            if node not in visited:
                visited.add(node)
                for parent in node.parents:
                    build_topo(parent)
                order.append(node)

        build_topo(self)
        self.grad = 1.0
        for node in reversed(order):
            for parent, derivative in zip(node.parents, node.derivatives):
                parent.grad += derivative * node.grad


# ---- the model ----------------------------------------------------------------------------------

def init_weights(rng, vocab_size, n_embd=16, n_layer=1, block_size=16):
    """Weight name -> rows of Values, a row an output, drawn in this order from a normal."""
    std = 0.32 / math.sqrt(n_embd)  # 0.08 at 16
    shapes = {
        "wte": (vocab_size, n_embd),
        "wpe": (block_size, n_embd),
        "lm_head": (vocab_size, n_embd),
    }
    for layer in range(n_layer):
        for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
            shapes[f"layer{layer}.{name}"] = (n_embd, n_embd)
        shapes[f"layer{layer}.mlp_fc1"] = (4 * n_embd, n_embd)
        shapes[f"layer{layer}.mlp_fc2"] = (n_embd, 4 * n_embd)
    return {
        name: [[Value(rng.gauss(0, std)) for _ in range(columns)] for _ in range(rows)]
        for name, (rows, columns) in shapes.items()
    }


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def linear(rows, x):
    return [dot(row, x) for row in rows]


def add(a, b):
    return [x + y for x, y in zip(a, b)]


def rmsnorm(x):
    """x / sqrt(mean(x^2) + 1e-5)"""
    scale = (dot(x, x) * (1 / len(x)) + 1e-5) ** -0.5
    return [value * scale for value in x]


def softmax(logits):
    highest = max(logit.data for logit in logits)  # a constant shift: exp cannot overflow
    exps = [(logit - highest).exp() for logit in logits]
    total = sum(exps)
    return [e / total for e in exps]


def attention(query, keys, values, n_head):
    """The heads' weighted means of the values so far, side by side."""
    head_size = len(query) // n_head
    out = []
    for start in range(0, len(query), head_size):
        part = slice(start, start + head_size)
        scores = [dot(query[part], key[part]) * head_size ** -0.5 for key in keys]
        shares = softmax(scores)
        out += [dot(shares, column) for column in zip(*(value[part] for value in values))]
    return out


def gpt(token, position, keys, values, weights, n_head):
    """The logits of the token that follows; keys and values (a list a layer) grow by one each."""
    x = rmsnorm(add(weights["wte"][token], weights["wpe"][position]))
    for layer in range(len(keys)):
        def project(name, x):
            return linear(weights[f"layer{layer}.{name}"], x)

        normed = rmsnorm(x)
        keys[layer].append(project("attn_wk", normed))
        values[layer].append(project("attn_wv", normed))
        mixed = attention(project("attn_wq", normed), keys[layer], values[layer], n_head)
        x = add(x, project("attn_wo", mixed))

        hidden = [h.relu() for h in project("mlp_fc1", rmsnorm(x))]
        x = add(x, project("mlp_fc2", hidden))
    return linear(weights["lm_head"], x)


def empty_cache(weights):
    """No keys and no values yet, a list for each layer."""
    n_layer = sum(name.endswith("attn_wq") for name in weights)
    return [[] for _ in range(n_layer)], [[] for _ in range(n_layer)]


def loss_of(tokens, weights, n_head):
    """The mean of -log softmax(logits)[target] over a document, cut to what the context holds."""
    keys, values = empty_cache(weights)
    n = min(len(weights["wpe"]), len(tokens) - 1)
    losses = []
    for position in range(n):
        logits = gpt(tokens[position], position, keys, values, weights, n_head)
        losses.append(-softmax(logits)[tokens[position + 1]].log())
    return sum(losses) * (1 / n)


# ---- training -----------------------------------------------------------------------------------

class Adam:
    """Adam (Kingma and Ba, 2014) with a learning rate that falls linearly to 0."""

    def __init__(self, parameters, num_steps, learning_rate=0.01, beta1=0.85, beta2=0.99):
        self.parameters, self.num_steps, self.learning_rate = parameters, num_steps, learning_rate
        self.beta1, self.beta2, self.eps = beta1, beta2, 1e-8
        self.mean = [0.0] * len(parameters)
        self.square = [0.0] * len(parameters)
        self.steps_done = 0

    def step(self):
        rate = self.learning_rate * (1 - self.steps_done / self.num_steps)
        self.steps_done += 1
        for i, p in enumerate(self.parameters):
            self.mean[i] = self.beta1 * self.mean[i] + (1 - self.beta1) * p.grad
            self.square[i] = self.beta2 * self.square[i] + (1 - self.beta2) * p.grad ** 2
            mean = self.mean[i] / (1 - self.beta1 ** self.steps_done)
            square = self.square[i] / (1 - self.beta2 ** self.steps_done)
            p.data -= rate * mean / (math.sqrt(square) + self.eps)
            p.grad = 0.0


class Training:
    """One run: shuffled documents, their characters, weights and optimizer. A step, a document.

    `rng` draws the shuffle, then the weights, then (by `samples`) the samples.
    """

    def __init__(self, documents, num_steps=1000, n_embd=16, n_head=4, n_layer=1, block_size=16,
                 rng=None):
        sys.setrecursionlimit(max(100_000, sys.getrecursionlimit()))  # build_topo goes deep
        self.rng = rng or random.Random(42)
        self.documents = list(documents)
        self.rng.shuffle(self.documents)
        self.chars = sorted(set("".join(self.documents)))
        self.bos = len(self.chars)
        self.n_head = n_head
        self.weights = init_weights(self.rng, self.bos + 1, n_embd, n_layer, block_size)
        parameters = [p for rows in self.weights.values() for row in rows for p in row]
        self.adam = Adam(parameters, num_steps)

    def next_tokens(self):
        """The document of the coming step as tokens, BOS around it."""
        document = self.documents[self.adam.steps_done % len(self.documents)]
        return [self.bos] + [self.chars.index(char) for char in document] + [self.bos]

    def step(self):
        """The loss on the next document, after which the weights have learnt from it."""
        loss = loss_of(self.next_tokens(), self.weights, self.n_head)
        loss.backward()
        self.adam.step()
        return loss.data


def samples(training, count=20, temperature=0.5):
    """Yield `count` texts that the model makes up."""
    weights, bos = training.weights, training.bos
    for _ in range(count):
        keys, values = empty_cache(weights)
        token, text = bos, ""
        for position in range(len(weights["wpe"])):
            logits = gpt(token, position, keys, values, weights, training.n_head)
            probs = softmax([logit * (1 / temperature) for logit in logits])
            token, = training.rng.choices(range(bos + 1), weights=[p.data for p in probs])
            if token == bos:
                break
            text += training.chars[token]
        yield text


# ---- the clock ----------------------------------------------------------------------------------

def function_step_times(training, count):
    """(seconds, losses) of the next `count` steps, each inside a function.

    When the function returns, nothing but the sort's own reference cycle holds the step's graph.
    """
    times, losses = [], []
    for _ in range(count):
        began = time.perf_counter()
        losses.append(training.step())
        times.append(time.perf_counter() - began)
    return times, losses


# The same step at the top level of a script. There `loss` is a global: it keeps the last graph
# alive until the next one is complete, and the garbage collector walks both.
SCRIPT = compile("""
for _ in range(count):
    began = time.perf_counter()
    loss = loss_of(training.next_tokens(), training.weights, training.n_head)
    loss.backward()
    training.adam.step()
    times.append(time.perf_counter() - began)
    losses.append(loss.data)
""", "<textbook script>", "exec")


def script_step_times(training, count):
    """(seconds, losses) of the next `count` steps, in a loop at the top level of a script."""
    script = {"time": time, "loss_of": loss_of, "training": training, "count": count}
    script.update(times=[], losses=[])
    exec(SCRIPT, script)
    return script["times"], script["losses"]


# ---- the golden run -----------------------------------------------------------------------------

def read_documents(path):
    """The lines of a file that are not blank, without the space around them."""
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    return [line.strip() for line in lines if line.strip()]


def golden_run(training, losses, texts, data):
    """The whole run, with a sentence that says how to repeat it."""
    return {
        "what": f"golden run of benchmarks/textbook.py on {data}, {len(training.documents)} "
                "lines: Python's random seeded with 42; lines shuffled; weights drawn gauss(0, "
                "0.08) in the order wte, wpe, lm_head, then per layer attn_wq, attn_wk, attn_wv, "
                f"attn_wo, mlp_fc1, mlp_fc2, row by row; {training.bos + 1} tokens (the sorted "
                f"characters, then BOS = {training.bos}); n_layer 1, n_embd 16, n_head 4, "
                f"block_size 16; one document a step; Adam lr 0.01 decayed linearly to 0 over "
                f"{len(losses)} steps, betas 0.85 and 0.99, eps 1e-8; then {len(texts)} samples "
                "at temperature 0.5 drawn with random.choices from the same generator",
        "losses": [round(loss, 4) for loss in losses],
        "samples": texts,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=NAMES, type=Path, help="text, one document a line")
    parser.add_argument("--num-steps", default=1000, type=int)
    parser.add_argument("--golden", metavar="FILE", type=Path,
                        help="write losses and samples as JSON")
    args = parser.parse_args()
    if not args.data.is_file():
        parser.error(f"--data {args.data}: no such file")
    if args.golden:
        args.golden.parent.mkdir(parents=True, exist_ok=True)  # before the minutes, not after

    training = Training(read_documents(args.data), args.num_steps)
    losses = []
    for step in range(1, args.num_steps + 1):
        losses.append(training.step())
        print(f"step {step:4d} / {args.num_steps:4d} | loss {losses[-1]:.4f}", flush=True)
    texts = []
    for number, text in enumerate(samples(training), 1):
        texts.append(text)
        print(f"sample {number:2d}: {text}", flush=True)

    if args.golden:
        run = golden_run(training, losses, texts, args.data.name)
        unfinished = args.golden.with_name(args.golden.name + ".tmp")
        unfinished.write_text(json.dumps(run, indent=0) + "\n", encoding="utf-8")
        os.replace(unfinished, args.golden)


if __name__ == "__main__":
    main()
