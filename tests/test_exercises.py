"""Solutions of the exercises in HOW_IT_WORKS.md: one test each, with the exercise's number.

They are written to be read. `model` is a small one; `names` are a few to learn from.
"""
import math
import random

import pytest

import microgpt
from microgpt import Adam, CharTokenizer, Config, Value, dot, linear, mean_loss, rmsnorm, softmax
from microgpt.engine.gradcheck import gradcheck, gradcheck_leaves
from microgpt.engine.graph import ancestors

NAMES = ["anna", "bela", "carla", "dana", "elba", "nadal"]


class Model:
    """A small model and its tokenizer, new and the same each time."""

    def __init__(self, n_embd=8, n_layer=1):
        self.tokenizer = CharTokenizer(NAMES)
        self.config = Config(self.tokenizer.vocab_size, n_embd, 2, n_layer, 6)
        self.weights = microgpt.init_weights(self.config, random.Random(1))

    def tokens(self, name="anna"):
        return [self.tokenizer.bos, *self.tokenizer.encode(name), self.tokenizer.bos]

    def loss(self):
        return mean_loss([self.tokens()], self.weights, self.config)

    def train(self, num_steps=60, learning_rate=0.01):
        """Returns the losses of some steps."""
        return list(microgpt.train(NAMES, self.tokenizer, self.weights, self.config, num_steps,
                                   learning_rate))


@pytest.fixture
def model():
    return Model()


def mean(numbers):
    return sum(numbers) / len(numbers)


def test_exercise_01_count():
    V, C, T, L = 27, 32, 16, 2
    tables = V * C + T * C + V * C           # wte, wpe, lm_head
    attention = 4 * C * C                    # wq, wk, wv, wo
    mlp = 4 * C * C + C * 4 * C              # fc1, fc2
    by_hand = tables + L * (attention + mlp)
    weights = microgpt.init_weights(Config(V, C, 4, L, T), random.Random(0))
    assert by_hand == sum(len(rows) * len(rows[0]) for rows in weights.values()) == 26816


def test_exercise_02_temperature_0(model):
    """Without a draw there is no chance. At a tiny temperature all but the largest odds are 0."""
    def write(temperature, seed):
        return microgpt.sample(model.tokenizer, model.weights, model.config, temperature,
                               random.Random(seed))
    assert len({write(0, seed) for seed in range(5)}) == 1
    assert {write(1e-9, seed) for seed in range(5)} == {write(0, 0)}
    # e to the power of -1000 is 0, which is harmless; e to the power of 1000 is an error
    assert math.exp(-1000) == 0
    with pytest.raises(OverflowError):
        math.exp(1000)


def test_exercise_03_by_hand():
    """(a b + c) a = a^2 b + a c: the slopes are 2 a b + c, a^2 and a."""
    a, b, c = Value(2.0), Value(-3.0), Value(10.0)
    ((a * b + c) * a).backward()
    assert (a.grad, b.grad, c.grad) == (2 * 2 * -3 + 10, 2 ** 2, 2) == (-2, 4, 2)


def test_exercise_04_a_new_function():
    def tanh(x):
        out = math.tanh(x.data)
        return Value(out, (x,), (1 - out * out,))
    report = gradcheck(lambda x, y: tanh(x * y) + tanh(x), [0.7, -1.2], tolerance=1e-9)
    assert report.ok


def test_exercise_05_the_prettiest_gradient():
    logits, target = [Value(x) for x in (0.5, -1.0, 2.0)], 1
    probabilities = softmax(logits)
    (-probabilities[target].log()).backward()
    for i, (logit, p) in enumerate(zip(logits, probabilities)):
        assert logit.grad == pytest.approx(p.data - (i == target), abs=1e-15)


def test_exercise_06_break_it(monkeypatch):
    """Training does not notice. gradcheck does."""
    right = Model().train()

    def wrong_exp(x):
        out = math.exp(x.data)
        return Value(out, (x,), (1.001 * out,))
    assert gradcheck(lambda x: x.exp(), [0.5]).ok
    monkeypatch.setattr(Value, "exp", wrong_exp)
    wrong = Model().train()
    assert mean(wrong[-10:]) == pytest.approx(mean(right[-10:]), abs=0.05)
    assert mean(wrong[-10:]) < mean(wrong[:10]) - 0.2
    assert not gradcheck(lambda x: x.exp(), [0.5]).ok


def test_exercise_07_without_the_first_norm(monkeypatch):
    """What is added is as large as before; what it is added to is a seventh."""
    def size(x):
        return math.sqrt(mean([v.data ** 2 for v in x]))

    def added_by_the_mlp(first_norm):
        """Returns the size of what the MLP adds, and that of x after the first norm, or without."""
        config = Config(27, 16, 4, 1, 16)
        weights = microgpt.init_weights(config, random.Random(5))
        sizes, calls = [], []

        def norm(x):
            calls.append(x)
            if len(calls) > 1:
                return rmsnorm(x)
            x = rmsnorm(x) if first_norm else x  # the call right after the embeddings
            sizes.append(size(x))
            return x

        def watched(x, w):
            out = linear(x, w)
            if w is weights["layer0.mlp_fc2"]:
                sizes.append(size(out))
            return out
        monkeypatch.setattr(microgpt, "rmsnorm", norm)
        monkeypatch.setattr(microgpt, "linear", watched)
        microgpt.gpt(3, 0, [([], [])], weights, config)
        monkeypatch.undo()
        return sizes
    stream, added = added_by_the_mlp(first_norm=True)
    bare_stream, bare_added = added_by_the_mlp(first_norm=False)
    assert stream == pytest.approx(1, abs=0.01) and added < 0.2 * stream
    assert bare_stream < 0.2 and bare_added > 0.5 * bare_stream


def test_exercise_08_another_activation(model, monkeypatch):
    """relu is a method, so there is one place to change. By the chain rule the slope is 2 relu."""
    relu = Value.relu
    monkeypatch.setattr(Value, "relu", lambda x: relu(x) ** 2)
    x = Value(3.0)
    x.relu().backward()
    assert x.grad == 2 * 3.0
    assert gradcheck_leaves(model.loss, {"fc1": model.weights["layer0.mlp_fc1"]}).ok
    losses = model.train()
    assert mean(losses[-10:]) < mean(losses[:10]) - 0.2


class SGD:
    def __init__(self, params):
        self.params = params

    def step(self, learning_rate):
        for p in self.params:
            p.data -= learning_rate * p.grad
            p.grad = 0.0


def test_exercise_09_another_optimizer(model, monkeypatch):
    x = Value(5.0)
    (x ** 2).backward()
    SGD([x]).step(0.1)
    assert (x.data, x.grad) == (5.0 - 0.1 * 10.0, 0.0)
    monkeypatch.setattr(microgpt, "Adam", SGD)
    losses = model.train(learning_rate=0.5)  # its steps are as small as the gradients
    assert mean(losses[-10:]) < mean(losses[:10]) - 0.1


def test_exercise_10_tied_weights():
    """The gradients of both uses add up. train() now hands each shared weight to Adam twice, which
    does no harm: the first visit leaves a gradient of 0, and the second has seen nothing else."""
    tied, untied = Model(), Model()
    for weights in (tied.weights, untied.weights):
        for row, other in zip(weights["wte"], weights["lm_head"]):
            for p, q in zip(row, other):
                q.data = p.data
    tied.weights["lm_head"] = tied.weights["wte"]
    tied.loss().backward()
    untied.loss().backward()
    for row, one, two in zip(tied.weights["wte"], untied.weights["wte"],
                             untied.weights["lm_head"]):
        for p, q, r in zip(row, one, two):
            assert p.grad == pytest.approx(q.grad + r.grad, abs=1e-12)

    once, twice = Value(1.0), Value(1.0)
    once.grad = twice.grad = 1.0
    Adam([once]).step(0.01)
    Adam([twice, twice]).step(0.01)
    assert twice.data == once.data == pytest.approx(0.99)
    losses = tied.train()
    assert mean(losses[-10:]) < mean(losses[:10]) - 0.2


def masked_attention(queries, keys, values):
    """Returns what each of T tokens gathers: all at once, no cache, the future masked away.

    A score of minus infinity has e to its power 0, so a later token's share is exactly 0.
    """
    T, D = len(queries), len(queries[0])
    out = []
    for t in range(T):
        scores = [dot(queries[t], keys[s]) / D ** 0.5 if s <= t else Value(-math.inf)
                  for s in range(T)]
        shares = softmax(scores)
        assert all(share.data == 0 for share in shares[t + 1:])
        out.append([dot(shares, column) for column in zip(*values)])
    return out


def test_exercise_11_no_peeking(model):
    tokens, cache = model.tokens(), [([], [])]
    logits = [microgpt.gpt(token, pos, cache, model.weights, model.config)
              for pos, token in enumerate(tokens)]
    t = 2
    sum(logits[t]).backward()
    moved = [any(p.grad for p in row) for row in model.weights["wpe"]]
    assert moved == [pos <= t for pos in range(model.config.block_size)]

    rng = random.Random(2)
    queries, keys, values = ([[Value(rng.gauss(0, 1)) for _ in range(4)] for _ in range(5)]
                             for _ in range(3))
    for t, got in enumerate(masked_attention(queries, keys, values)):
        seen_keys, seen_values = keys[:t + 1], values[:t + 1]  # what the cache holds by then
        shares = softmax([dot(queries[t], key) / 4 ** 0.5 for key in seen_keys])
        expected = [dot(shares, column) for column in zip(*seen_values)]
        assert [x.data for x in got] == pytest.approx([x.data for x in expected], abs=1e-15)


def cross_entropy(logits, target):
    """Returns -log softmax(logits)[target] as one node; its slopes are exercise 5's."""
    biggest = max(logit.data for logit in logits)
    exps = [math.exp(logit.data - biggest) for logit in logits]
    total = sum(exps)
    slopes = [e / total - (i == target) for i, e in enumerate(exps)]
    return Value(math.log(total) + biggest - logits[target].data, tuple(logits), slopes)


def test_exercise_12_fuse_the_loss(model):
    def fused_loss():
        tokens, cache, losses = model.tokens(), [([], [])], []
        for pos, (token, target) in enumerate(zip(tokens, tokens[1:])):
            logits = microgpt.gpt(token, pos, cache, model.weights, model.config)
            losses.append(cross_entropy(logits, target))
        return sum(losses) / len(losses)

    def gradients(loss):
        params = [p for rows in model.weights.values() for row in rows for p in row]
        for p in params:
            p.grad = 0.0
        loss.backward()
        return [p.grad for p in params]
    plain, fused = model.loss(), fused_loss()
    assert fused.data == pytest.approx(plain.data, abs=1e-14)
    assert gradients(fused) == pytest.approx(gradients(plain), abs=1e-14)
    # a guess: of V logits, a difference, an exp, a sum each, and the target's p, log and minus,
    # with the constants that go into them. All but 3V are few
    saved = len(ancestors(plain)) - len(ancestors(fused))
    V, guesses = model.config.vocab_size, len(model.tokens()) - 1
    assert 3 * V * guesses <= saved <= (3 * V + 7) * guesses
