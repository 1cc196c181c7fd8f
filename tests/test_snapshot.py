"""What a backend stores and takes back, and steps in parts: the same numbers, whatever the form."""
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt.backends import load
from microgpt.backends.base import micro_batches
from microgpt.backends.proof import relative_errors
from microgpt.engine.optim import OPTIMIZERS
from strategies import cases, some
from tolerances import FLOAT64

ENGINES = ["scalar", "matrix", pytest.param("torch", marks=pytest.mark.torch)]


def make(name, config, weights, **settings):
    if name == "torch":
        pytest.importorskip("torch")
        settings = {"dtype": "float64", "device": "cpu", **settings}
    return load(name)(config, weights, **settings)


@pytest.mark.parametrize("name, dtype", [
    ("scalar", "float64"), ("matrix", "float64"),
    *(pytest.param("torch", dtype, marks=pytest.mark.torch) for dtype in ("float32", "float64"))])
@given(case=cases(), optimizer=st.sampled_from(sorted(OPTIMIZERS)))
@some
def test_a_snapshot_taken_back_goes_on_bit_for_bit(name, dtype, case, optimizer):
    settings = {"dtype": dtype} if name == "torch" else {}
    first = make(name, case.config, case.weights, optimizer=optimizer, **settings)
    first.step(case.batch, 0.01)
    weights, state = first.snapshot()
    second = make(name, case.config, weights, optimizer=optimizer, **settings)
    second.load_optimizer_state(state)
    assert second.weights() == first.weights()
    assert second.optimizer_state() == first.optimizer_state()
    assert first.step(case.batch, 0.01) == second.step(case.batch, 0.01)
    assert second.weights() == first.weights()


@pytest.mark.torch
def test_torch_packs_what_it_holds_and_others_read_it():
    pytest.importorskip("torch")
    from microgpt.nn import GPTConfig, init_weights
    config = GPTConfig(9, n_embd=8, n_head=2, block_size=4)
    backend = make("torch", config, init_weights(config, random.Random(1)), dtype="float32")
    backend.step([[1, 2, 3, 4]], 0.01)
    weights, state = backend.snapshot()
    assert {row.format for rows in weights.values() for row in rows} == {"f"}
    matrix = make("matrix", config, weights)
    matrix.load_optimizer_state(state)
    assert matrix.weights() == backend.weights()
    assert matrix.optimizer_state() == backend.optimizer_state()
    matrix.step([[1, 2, 3, 4]], 0.01)  # its rows are lists of its own, which it can change
    assert backend.snapshot()[0] == weights


@given(case=cases(), size=st.integers(1, 5))
@some
def test_the_parts_of_a_batch_are_all_of_it(case, size):
    parts = [*micro_batches(case.batch, size)]
    assert [tokens for _, part, _ in parts for tokens in part] == case.batch
    assert sum(share for *_, share in parts) == pytest.approx(1)
    assert all(len(part) <= size for _, part, _ in parts)


@pytest.mark.parametrize("name", ENGINES)
@given(case=cases(), size=st.integers(1, 3))
@some
def test_a_step_in_parts_is_the_step(name, case, size):
    """SGD, so that the weights show the gradient: Adam would hide its size."""
    whole, parts = (make(name, case.config, case.weights, optimizer="sgd") for _ in range(2))
    losses = whole.step(case.batch, 1.0), parts.step(case.batch, 1.0, micro_batch=size)
    assert losses[0] == pytest.approx(losses[1], rel=FLOAT64["between backends"])
    errors = relative_errors(parts.weights(), whole.weights())
    assert max(errors.values()) <= FLOAT64["between backends"]


@pytest.mark.parametrize("name", ["matrix", pytest.param("torch", marks=pytest.mark.torch)])
def test_dropout_in_parts_follows_from_the_seed_and_differs_by_part(name):
    from microgpt.nn import GPTConfig, init_weights
    config = GPTConfig(5, n_embd=8, n_head=2, block_size=4, dropout=0.5)
    batch, results = [[1, 2, 3, 4], [1, 2, 3, 4]], []
    for size in (1, 1, None):
        backend = make(name, config, init_weights(config, random.Random(1)), optimizer="sgd")
        results.append((backend.step(batch, 0.1, "seed", size), backend.weights()))
    assert results[0] == results[1]
    backend = make(name, config, init_weights(config, random.Random(1)), optimizer="sgd")
    assert backend.step(batch[:1], 0.1, "seed") != results[0][0], "both parts had one mask"
