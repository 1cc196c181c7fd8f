"""The architecture apart from the engines: sizes, names, first weights, dropout's masks."""
import dataclasses
import doctest
import importlib
import math
import pkgutil
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
import microgpt.nn
from microgpt import CharTokenizer
from microgpt.nn import GPTConfig, count_parameters, init_weights, weight_shapes
from microgpt.nn.dropout import DropoutMasks
from microgpt.nn.weights import check_weights
from strategies import configs, some

# ---- The config ----------------------------------------------------------------------------------


def test_sizes_left_out_are_those_of_the_file():
    config, defaults = GPTConfig(27), {name: default for name, default, _ in microgpt.FLAGS}
    for name in ("n_embd", "n_head", "n_layer", "block_size"):
        assert getattr(config, name) == defaults[name]
    assert (config.model, config.dropout, config.init_std) == ("gpt", 0.0, None)


@pytest.mark.parametrize("changes, message", [
    ({"vocab_size": 0}, r"vocab_size is 0: it takes a whole number, 1 or more"),
    ({"n_embd": -16}, r"n_embd is -16: it takes a whole number"),
    ({"n_head": 0}, r"n_head is 0: it takes a whole number"),
    ({"n_layer": 1.5}, r"n_layer is 1\.5: it takes a whole number"),
    ({"block_size": "16"}, r"block_size is '16': it takes a whole number"),
    ({"n_embd": 10, "n_head": 4}, r"n_embd, 10, is not a multiple of n_head, 4: the heads share"),
    ({"n_embd": 4, "n_head": 8}, r"n_embd, 4, is not a multiple of n_head, 8"),
    ({"model": "rnn"}, r"model is 'rnn': it takes gpt or bigram"),
    ({"dropout": 1.0}, r"dropout is 1\.0: it takes a share, 0 or more, below 1"),
    ({"dropout": -0.1}, r"dropout is -0\.1: it takes a share"),
    ({"dropout": math.nan}, r"dropout is nan: it takes a share"),
    ({"init_std": 0.0}, r"init_std is 0\.0: it takes a number above 0"),
    ({"init_std": math.inf}, r"init_std is inf: it takes a number above 0"),
    ({"init_std": math.nan}, r"init_std is nan: it takes a number above 0"),
])
def test_sizes_that_make_no_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{"vocab_size": 27, **changes})


def test_config_is_frozen_and_compares_by_its_fields():
    config = GPTConfig(27, n_embd=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_embd = 16
    assert config == GPTConfig(27, 8) and hash(config) == hash(GPTConfig(27, 8))
    with pytest.raises(ValueError, match="n_head"):  # a changed copy is checked as well
        dataclasses.replace(config, n_head=3)


@given(config=configs())
@some
def test_heads_share_the_numbers_of_a_token(config):
    assert config.head_size * config.n_head == config.n_embd


def test_standard_deviation_of_the_weights():
    assert GPTConfig(27).std == 0.08
    assert GPTConfig(27, n_embd=64).std == 0.04
    assert GPTConfig(27, init_std=0.5).std == 0.5


# ---- Weights -------------------------------------------------------------------------------------


@given(config=configs(), seed=st.integers(0, 99))
@some
def test_weights_are_those_of_the_file(config, seed):
    """The same names in the same order, and the same draws from the same generator."""
    ours, theirs = random.Random(seed), random.Random(seed)
    weights, expected = init_weights(config, ours), microgpt.init_weights(config, theirs)
    assert list(weights) == list(expected)
    for name, rows in expected.items():
        assert weights[name] == [[value.data for value in row] for row in rows], name
    assert ours.getstate() == theirs.getstate()


@given(config=configs(model=st.sampled_from(["gpt", "bigram"])))
@some
def test_shapes_and_count_are_those_of_the_weights(config):
    weights, shapes = init_weights(config, random.Random(0)), weight_shapes(config)
    assert list(weights) == list(shapes)
    assert {name: (len(rows), len(rows[0])) for name, rows in weights.items()} == shapes
    assert count_parameters(config) == sum(len(row) for rows in weights.values() for row in rows)
    check_weights(config, weights)


def test_shapes_of_a_model_of_two_layers():
    shapes = weight_shapes(GPTConfig(11, n_embd=6, n_head=2, n_layer=2, block_size=5))
    layer = {"attn_wq": (6, 6), "attn_wk": (6, 6), "attn_wv": (6, 6), "attn_wo": (6, 6),
             "mlp_fc1": (24, 6), "mlp_fc2": (6, 24)}
    assert shapes == {"wte": (11, 6), "wpe": (5, 6), "lm_head": (11, 6),
                      **{f"layer{i}.{name}": size for i in (0, 1) for name, size in layer.items()}}
    assert weight_shapes(GPTConfig(11, model="bigram")) == {"bigram": (11, 11)}


def test_numbers_of_parameters():
    assert count_parameters(GPTConfig(27)) == 4192  # what the published script prints
    assert count_parameters(GPTConfig(65, 384, 6, 6, 256)) == 65 * 768 + 256 * 384 + 72 * 384 ** 2
    assert count_parameters(GPTConfig(27, model="bigram")) == 27 * 27


@pytest.mark.parametrize("init_std", [None, 0.5])
def test_first_weights_are_spread_as_the_config_says(init_std):
    config = GPTConfig(50, n_embd=32, init_std=init_std)
    for name, rows in init_weights(config, random.Random(1)).items():
        numbers = [x for row in rows for x in row]
        error = config.std / len(numbers) ** 0.5  # of the mean; of the std it is less
        assert abs(statistics.fmean(numbers)) < 4 * error, name
        assert abs(statistics.pstdev(numbers) - config.std) < 4 * error, name


def missing(weights):
    del weights["layer0.attn_wk"], weights["wpe"]


def extra(weights):
    weights["layer1.attn_wq"] = weights["layer0.attn_wq"]


def short(weights):
    weights["wte"].pop()


def ragged(weights):
    weights["lm_head"][1] = weights["lm_head"][1] + [0.0]


def turned(weights):
    weights["layer0.mlp_fc2"] = list(map(list, zip(*weights["layer0.mlp_fc2"])))


@pytest.mark.parametrize("damage, message", [
    (missing, r"another model: missing \['layer0\.attn_wk', 'wpe'\], extra \[\]"),
    (extra, r"another model: missing \[\], extra \['layer1\.attn_wq'\]"),
    (short, r"wte must be 5 x 4, got 4 rows of \[4\]"),
    (ragged, r"lm_head must be 5 x 4, got 5 rows of \[4, 5\]"),
    (turned, r"layer0\.mlp_fc2 must be 4 x 16, got 16 rows of \[4\]"),
])
def test_weights_of_another_model_are_refused(damage, message):
    config = GPTConfig(5, n_embd=4, n_head=2)
    weights = init_weights(config, random.Random(0))
    damage(weights)
    with pytest.raises(ValueError, match=message):
        check_weights(config, weights)


# ---- The file takes a GPTConfig for its Config ---------------------------------------------------


def test_the_file_trains_and_samples_with_it():
    docs = ["anna", "bela", "carla"]
    tokenizer = CharTokenizer(docs)
    sizes = (tokenizer.vocab_size, 8, 2, 2, 6)

    def everything(config):
        rng = random.Random(3)
        weights = microgpt.init_weights(config, rng)
        losses = list(microgpt.train(docs, tokenizer, weights, config, num_steps=4))
        loss = microgpt.mean_loss([[0, 1, 2]], weights, config).data
        text = microgpt.sample(tokenizer, weights, config, 0.5, rng)
        cache = [([], []) for _ in range(config.n_layer)]
        logits = [value.data for value in microgpt.gpt(1, 0, cache, weights, config)]
        return losses, loss, text, logits
    assert everything(GPTConfig(*sizes)) == everything(microgpt.Config(*sizes))


# ---- Dropout -------------------------------------------------------------------------------------

ask = st.tuples(st.floats(0.01, 0.9), st.integers(), st.sampled_from(["embedding", "layer0.x"]),
                st.lists(st.integers(0, 3), min_size=1, max_size=2).map(tuple))


@given(ask)
@some
def test_masks_follow_from_seed_and_place_alone(question):
    rate, seed, site, place = question
    state = random.getstate()
    masks, again = DropoutMasks(rate, seed), DropoutMasks(rate, seed)
    again.rows("elsewhere", place, 2, 2)  # what was asked before does not matter
    rows = masks.rows(site, place, 8, 16)
    assert rows == masks.rows(site, place, 8, 16) == again.rows(site, place, 8, 16)
    assert random.getstate() == state
    assert len(rows) == 8 and {len(row) for row in rows} == {16}
    assert {x for row in rows for x in row} <= {0.0, 1 / (1 - rate)}


def test_other_seeds_sites_and_places_have_other_masks():
    asked = [(1, "a", (0,)), (2, "a", (0,)), (1, "b", (0,)), (1, "a", (1,)), (1, "a", (0, 0)),
             (1, "a", (0, 1)), (1, "a", (1, 0))]
    masks = [DropoutMasks(0.5, seed).rows(site, place, 8, 8) for seed, site, place in asked]
    assert len({str(rows) for rows in masks}) == len(asked)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_right_share_is_dropped_and_the_mean_kept(rate):
    numbers = sum(DropoutMasks(rate, 1).rows("site", (0,), 200, 100), [])
    error = (rate * (1 - rate) / len(numbers)) ** 0.5
    assert abs(numbers.count(0.0) / len(numbers) - rate) < 4 * error
    assert abs(statistics.fmean(numbers) - 1) < 4 * error / (1 - rate)


def test_without_dropout_nothing_is_dropped():
    assert DropoutMasks(0.0, 1).rows("site", (0,), 3, 4) == [[1.0] * 4] * 3


# ---- The package ---------------------------------------------------------------------------------


def test_all_is_complete():
    exported = microgpt.nn.__all__
    assert exported == sorted(exported)
    for name in exported:
        assert getattr(microgpt.nn, name) is not None


MODULES = ["microgpt.nn"] + [f"microgpt.nn.{module.name}" for module
                             in pkgutil.iter_modules(microgpt.nn.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_in_docstrings():
    for name in ("microgpt.nn.config", "microgpt.nn.sampling", "microgpt.nn.weights"):
        assert doctest.testmod(importlib.import_module(name)).attempted > 0
