"""Evaluation predicts every held-out token once, and says the same on every backend."""
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt.backends import load
from microgpt.nn import GPTConfig, init_weights
from microgpt.training.evaluation import evaluate
from strategies import some

documents = st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=30), min_size=1, max_size=6)


class Listener:
    """A backend that keeps the windows it is given; the loss of each is 1."""

    name, config, rank, size = "matrix", GPTConfig(9, block_size=4), 0, 1

    def __init__(self):
        self.windows = []

    def loss(self, batch):
        self.windows += batch
        return 1.0

    def summed(self, numbers):
        return numbers


@given(documents)
@some
def test_every_token_but_the_first_is_predicted_once(held_out):
    for is_stream in (False, True):
        listener, sequences = Listener(), [held_out[0]] if is_stream else held_out
        found = evaluate(listener, held_out[0] if is_stream else held_out, is_stream)
        assert all(2 <= len(window) <= 5 for window in listener.windows)
        predicted = [token for window in listener.windows for token in window[1:]]
        assert predicted == [token for tokens in sequences for token in tokens[1:]]
        assert found.tokens == len(predicted) and found.whole and found.loss == 1.0


@given(documents, st.integers(1, 40))
@some
def test_a_cap_takes_whole_windows_in_order(held_out, most):
    everything, capped = Listener(), Listener()
    evaluate(everything, held_out, False)
    found = evaluate(capped, held_out, False, most)
    remaining = iter(everything.windows)
    assert capped.windows and all(window in remaining for window in capped.windows)
    assert found.whole == (capped.windows == everything.windows)
    assert found.tokens == sum(len(window) - 1 for window in capped.windows)
    if sum(len(window) - 1 for window in everything.windows) <= most:
        assert found.whole


@pytest.mark.parametrize("is_stream", [False, True])
def test_every_backend_evaluates_alike(is_stream):
    rng = random.Random(1)
    config = GPTConfig(9, n_embd=8, n_head=2, block_size=6)
    weights = init_weights(config, rng)
    held_out = [[rng.randrange(9) for _ in range(rng.randint(2, 20))] for _ in range(7)]
    held_out = held_out[0] if is_stream else held_out
    found = []
    for name in ("scalar", "matrix", "torch"):
        options = {}
        if name == "torch":
            pytest.importorskip("torch")
            options = {"dtype": "float64", "device": "cpu"}
        found.append(evaluate(load(name)(config, weights, **options), held_out, is_stream))
    assert all(one.loss == pytest.approx(found[0].loss, rel=1e-9) for one in found)
    assert len({(one.tokens, one.whole) for one in found}) == 1


def test_what_a_cap_leaves_out_is_said():
    config = GPTConfig(9, n_embd=8, n_head=2, block_size=6)
    backend = load("matrix")(config, init_weights(config, random.Random(1)))
    found = evaluate(backend, [[1, 2, 3, 4, 5]] * 10, False, tokens_at_most=20)
    assert str(found).endswith("on 20 tokens, of windows evenly spaced (--eval-tokens)")
    assert str(evaluate(backend, [[1, 2, 3]], False)).endswith("nats a token, lossy, on 2 tokens")
