#!/usr/bin/env python3
"""A complete GPT in one file of plain Python, nothing to install; all the rest is only speed.

    python3 microgpt.py --data my.txt     learns from your text and writes more lines of its kind

Read it from top to bottom: data, tokenizer, autograd, model, optimizer, training, sampling.
"""
import argparse, collections, gc, math, operator, os, random, re, sys

# ---- Data: a list of documents, here one a line --------------------------------------------------

def load_docs(path=None):
    """Returns the lines of path, or else of the first text at hand, and where they are from."""
    bundled = os.path.join(__path__[0], "corpus", "data", "names.txt")
    path = path or next(filter(os.path.exists, ("input.txt", bundled)), None)
    if path is None:  # this file is all there is, but every Python brings its own manual
        from pydoc_data.topics import topics
        words = re.findall("[a-z]{3,}", " ".join(topics.values()).lower())
        return sorted(set(words)), "the words of Python's manual"
    try:
        with open(path, encoding="utf-8-sig") as file:
            docs = [line.strip() for line in file.read().split("\n") if line.strip()]
        if not docs:
            raise ValueError("it holds no text")
    except (OSError, ValueError) as error:  # a file that is not text raises a kind of ValueError
        raise ValueError(f"--data {path}: {error}; give UTF-8 text, a document a line") from None
    return docs, path

# ---- Tokenizer: text to whole numbers and back ---------------------------------------------------

class CharTokenizer:
    """A token a character, and one more, BOS, which stands before and behind every document."""

    def __init__(self, docs):
        self.chars = sorted(set("".join(docs)))
        self.ids = {char: i for i, char in enumerate(self.chars)}
        self.bos = len(self.chars)
        self.vocab_size = self.bos + 1

    def encode(self, text): return [self.ids[char] for char in text]
    def decode(self, tokens): return "".join(self.chars[token] for token in tokens)

# ---- Autograd: numbers that remember how they were made, so that the chain rule can walk back ----

class Value:
    """A number that knows its parents, the Values it was made from, and its derivative by each."""

    __slots__ = ("data", "grad", "parents", "local_grads", "mark")  # lighter than a __dict__

    def __init__(self, data, parents=(), local_grads=()):
        self.data, self.grad, self.mark = data, 0.0, None
        self.parents, self.local_grads = parents, local_grads

    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, n):  # n is a plain number
        return Value(self.data ** n, (self,), (n * self.data ** (n - 1) if n else 0.0,))

    def log(self):
        x = self.data
        return Value(math.log(x) if x else -math.inf, (self,), (1 / x if x else math.inf,))

    def exp(self): return Value(out := math.exp(self.data), (self,), (out,))
    def relu(self): return Value(max(self.data, 0.0), (self,), (float(self.data > 0),))
    __radd__, __rmul__ = __add__, __mul__
    def __neg__(self): return self * -1.0
    def __sub__(self, other): return self + -other
    def __rsub__(self, other): return -self + other
    def __truediv__(self, other): return self * other ** -1.0
    def __rtruediv__(self, other): return self ** -1.0 * other
    def __repr__(self): return f"Value(data={self.data:.6g}, grad={self.grad:.6g})"

    def backward(self):
        """Adds d self / d leaf to the grad of each leaf below self (a Value without parents)."""
        order, stack, walk = [], [self], object()  # order: parents come before their children
        while stack:  # a list of our own, so no depth of graph meets Python's recursion limit
            node = stack.pop()
            if node is None:  # all that the node beneath was made from is in order by now
                order.append(stack.pop())
            elif node.parents and node.mark is not walk:
                node.mark, node.grad = walk, 0.0
                stack += node, None, *[p for p in node.parents if p.parents and p.mark is not walk]
        self.grad += 1.0
        for node in reversed(order):  # each grad is complete when its turn to be handed on comes
            grad = node.grad  # 0 behind a relu that is off: then there is nothing to hand on
            for parent, local_grad in zip(node.parents, node.local_grads if grad else ()):
                parent.grad += local_grad * grad

def linear(x, w):
    """Returns the inner product of x with each row of w, each as one node with 2n parents."""
    xs, out = [value.data for value in x], []
    for row in w:
        ws = [value.data for value in row]
        if len(ws) != len(xs):
            raise ValueError(f"lists of {len(ws)} and {len(xs)}; they must be equally long")
        out.append(Value(sum(map(operator.mul, ws, xs)), (*row, *x), xs + ws))
    return out

def dot(a, b): return linear(b, [a])[0]  # 2n - 1 nodes would turn seconds of training to minutes

# ---- Model: GPT-2 with RMSNorm for LayerNorm, ReLU for GELU, and no biases -----------------------

# V tokens there are, C numbers for each; H heads of C / H numbers; L layers; T tokens in view.
Config = collections.namedtuple("Config", "vocab_size n_embd n_head n_layer block_size")

def init_weights(config, rng):
    """Returns name -> rows of random Values; a row holds the weights that make one output."""
    V, C, T = config.vocab_size, config.n_embd, config.block_size
    shapes = {"wte": (V, C), "wpe": (T, C), "lm_head": (V, C)}
    for i in range(config.n_layer):
        shapes.update({f"layer{i}.attn_{name}": (C, C) for name in ("wq", "wk", "wv", "wo")})
        shapes.update({f"layer{i}.mlp_fc1": (4 * C, C), f"layer{i}.mlp_fc2": (C, 4 * C)})
    std = 0.32 / C ** 0.5  # the longer a row, the more its products add up to
    return {name: [[Value(rng.gauss(0, std)) for _ in range(n_in)] for _ in range(n_out)]
            for name, (n_out, n_in) in shapes.items()}

def softmax(logits):
    shift = Value(-max(logit.data for logit in logits))  # cancels out, but exp() cannot overflow
    exps = [(logit + shift).exp() for logit in logits]
    inverse = sum(exps) ** -1.0
    return [e * inverse for e in exps]

def rmsnorm(x):
    scale = (dot(x, x) / len(x) + 1e-5) ** -0.5
    return [xi * scale for xi in x]

def gpt(token, pos, cache, weights, config):
    """Returns the logits of the next token, V Values. cache has, for each layer, a list of keys and
    one of values: tokens leave there what later ones find them by and take. None sees ahead."""
    D = config.n_embd // config.n_head  # the size of a head
    x = [t + p for t, p in zip(weights["wte"][token], weights["wpe"][pos])]
    x = rmsnorm(x)  # not redundant: x itself runs on past every layer, and starts out normal here
    for i, (keys, values) in enumerate(cache):
        normed = rmsnorm(x)  # attention: look at the tokens so far and gather
        query = linear(normed, weights[f"layer{i}.attn_wq"])
        keys.append(linear(normed, weights[f"layer{i}.attn_wk"]))
        values.append(linear(normed, weights[f"layer{i}.attn_wv"]))
        heads = []
        for j in range(0, config.n_embd, D):
            att = softmax([dot(query[j:j + D], key[j:j + D]) / D ** 0.5 for key in keys])
            heads += [dot(att, column) for column in zip(*[value[j:j + D] for value in values])]
        x = [xi + yi for xi, yi in zip(x, linear(heads, weights[f"layer{i}.attn_wo"]))]
        hidden = [h.relu() for h in linear(rmsnorm(x), weights[f"layer{i}.mlp_fc1"])]  # the MLP
        x = [xi + yi for xi, yi in zip(x, linear(hidden, weights[f"layer{i}.mlp_fc2"]))]
    return linear(x, weights["lm_head"])

def mean_loss(batch, weights, config):
    """Returns the mean of -log(probability of the next token), in nats, over lists of tokens."""
    losses = []
    for tokens in batch:
        cache = [([], []) for _ in range(config.n_layer)]
        for pos, (token, target) in enumerate(zip(tokens, tokens[1:])):
            losses.append(-softmax(gpt(token, pos, cache, weights, config))[target].log())
    return sum(losses) / len(losses)

# ---- Optimizer -----------------------------------------------------------------------------------

class Adam:
    """Adam (Kingma and Ba, 2015): steps by the mean gradient, m, over its usual size, root of v."""

    def __init__(self, params, beta1=0.85, beta2=0.99, eps=1e-8):
        self.params, self.beta1, self.beta2, self.eps = params, beta1, beta2, eps
        self.m, self.v, self.t = [0.0] * len(params), [0.0] * len(params), 0

    def step(self, learning_rate):
        self.t += 1
        m, v, beta1, beta2, eps, sqrt = self.m, self.v, self.beta1, self.beta2, self.eps, math.sqrt
        m_scale = learning_rate / (1 - beta1 ** self.t)  # m and v start at 0: this makes up for it
        v_scale, fresh1, fresh2 = 1 / (1 - beta2 ** self.t), 1 - beta1, 1 - beta2
        for i, p in enumerate(self.params):
            grad, p.grad = p.grad, 0.0
            m[i] = mean = beta1 * m[i] + fresh1 * grad
            v[i] = square = beta2 * v[i] + fresh2 * grad * grad
            p.data -= m_scale * mean / (sqrt(v_scale * square) + eps)

# ---- Training: guess each next token, measure how wrong, nudge every weight, repeat --------------

def train(docs, tokenizer, weights, config, num_steps=1000, learning_rate=0.01, seed=42):
    """Yields the loss before each step: a document a step, at a learning rate that falls to 0."""
    optimizer = Adam([p for rows in weights.values() for row in rows for p in row])
    for step in range(num_steps):
        tokens = [tokenizer.bos, *tokenizer.encode(docs[step % len(docs)]), tokenizer.bos]
        spare = max(0, len(tokens) - config.block_size)  # of a long document, take a random part
        start = spare and random.Random(f"{seed} {step}").randrange(spare)
        loss = mean_loss([tokens[start:start + config.block_size + 1]], weights, config)
        loss.backward()
        optimizer.step(learning_rate * (1 - step / num_steps))
        loss = loss.data  # and the graph is gone, before the next is built
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} at step {step + 1}; lower --learning-rate")
        yield loss

# ---- Sampling: guess, believe the guess, repeat --------------------------------------------------

def choose(logits, temperature, rng):
    """Returns a token drawn from softmax(logits / temperature); at temperature 0, the likeliest."""
    biggest = max(logits)
    if temperature == 0:
        return logits.index(biggest)
    odds = (math.exp((logit - biggest) / temperature) for logit in logits)
    return rng.choices(range(len(logits)), list(odds))[0]

def sample(tokenizer, weights, config, temperature, rng):
    """Returns a new document: what follows BOS until BOS comes again, block_size tokens at most."""
    cache, token, tokens = [([], []) for _ in range(config.n_layer)], tokenizer.bos, []
    for pos in range(config.block_size):
        token = choose([v.data for v in gpt(token, pos, cache, weights, config)], temperature, rng)
        if token == tokenizer.bos:
            break
        tokens.append(token)
    return tokenizer.decode(tokens)

# ---- The command ---------------------------------------------------------------------------------

_here = os.path.dirname(os.path.abspath(__file__))  # beside it: microgpt.engine, or _microgpt
__path__ = [p for p in (os.path.join(_here, "_microgpt"), _here) if os.path.isdir(p)][:1]

FLAGS = (("n_embd", 16, "numbers a token"), ("n_head", 4, "heads"), ("n_layer", 1, "layers"),
         ("block_size", 16, "tokens in view"), ("num_steps", 1000, "documents to learn from"),
         ("learning_rate", 0.01, "falls to 0"), ("temperature", 0.5, "0: always the likeliest"),
         ("num_samples", 20, "documents to write"), ("seed", 42, "the same seed, the same run"))

def make_parser():
    parser = argparse.ArgumentParser("microgpt", allow_abbrev=False)
    parser.error = lambda message: parser.exit(
        2, f"microgpt: {message}: a typo, or it needs the full repository (see --help)\n")
    parser.add_argument("--data", metavar="FILE", help="text to learn from, a document a line")
    parser.add_argument("--tokenizer", choices=["char"], default="char", help="a token a character")
    for name, default, text in FLAGS:
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default,
                            metavar="N", help=f"{text} (default: {default})")
    return parser

def run(args):
    for name, value in vars(args).items():
        if name not in ("data", "tokenizer") and not (name in Config._fields) <= value < math.inf:
            raise ValueError(f"{name} is {value}; sizes begin at 1 and all other numbers at 0")
    if args.n_embd % args.n_head:
        raise ValueError(f"n_embd, {args.n_embd}, is not a multiple of n_head, {args.n_head}")
    docs, source = load_docs(args.data)
    rng = random.Random(args.seed)
    rng.shuffle(docs)
    tokenizer = CharTokenizer(docs)
    config = Config(tokenizer.vocab_size, args.n_embd, args.n_head, args.n_layer, args.block_size)
    weights = init_weights(config, rng)
    print(f"num docs: {len(docs)} ({source})\nvocab size: {config.vocab_size}")
    print(f"num params: {sum(len(rows) * len(rows[0]) for rows in weights.values())}")
    steps = train(docs, tokenizer, weights, config, args.num_steps, args.learning_rate, args.seed)
    for step, loss in enumerate(steps, 1):
        print(f"step {step:4d} / {args.num_steps:4d} | loss {loss:.4f}", flush=True,
              end="\r" if sys.stdout.isatty() and step < args.num_steps else "\n")
    for i in range(args.num_samples):
        print(f"sample {i + 1:2d}: {sample(tokenizer, weights, config, args.temperature, rng)}")
    print("this model ends here; the full repository of microgpt keeps its models")

def main(argv=None, parser=None, run=run):
    if parser is None and os.path.isdir(os.path.join(__path__[0], "cli")):  # the full repository
        from microgpt.cli import main as toolkit
        return toolkit(argv)  # which comes back here with a larger parser and run
    parser = parser or make_parser()
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a console that lacks a character shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.implementation.name == "cpython":
        gc.disable()  # it looks for cycles, graphs have none: a fifth of the time for nothing
    try:
        return run(args)
    except ValueError as error:
        parser.exit(2, f"microgpt: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted; nothing was kept\n")
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

if __name__ == "__main__":
    sys.modules.setdefault("microgpt", sys.modules["__main__"])  # or there were two classes Value
    sys.exit(main())
