"""The backends: one proof that they are the same function, and what their contract promises.

The proof: for random models and ragged batches, in float64, logits, loss, every gradient of every
weight, and the weights after some steps of each optimizer agree. It is checked itself: with any op
of any engine spoiled by a thousandth on its way back, it fails.
"""
import ast
import contextlib
import dataclasses
import doctest
import importlib
import inspect
import itertools
import math
import random
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import microgpt
from conftest import ROOT
from microgpt import CharTokenizer, Value
from microgpt.backends import BACKENDS, NotInstalled, load, proof as measure
from microgpt.backends.base import Backend, check_batch
from microgpt.backends.matrix import MatrixOps
from microgpt.engine.optim import OPTIMIZERS
from microgpt.nn import GPTConfig, init_weights
from microgpt.nn.dropout import DropoutMasks
from strategies import Case, cases, configs, few, many
from tolerances import FLOAT64

each_backend = pytest.mark.parametrize("name", BACKENDS)
# the scalar backend is the specification; the others are held to it
each_other = pytest.mark.parametrize("name", [name for name in BACKENDS if name != "scalar"])
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def make(name, config, weights, **options):
    """Returns a backend that computes in float64; skips the test where its package is missing."""
    if name == "torch":
        pytest.importorskip("torch").set_num_threads(1)
        options = {"device": "cpu", "dtype": "float64", **options}
    return load(name)(config, weights, **options)


def both(name, case, **options):
    """Returns the scalar backend and another with the weights of a case."""
    return [make(each, case.config, case.weights, **options) for each in ("scalar", name)]


# ---- The proof -----------------------------------------------------------------------------------


def failures(expected, got, tolerance=FLOAT64["between backends"]):
    """Returns a line for each tensor whose error is above the tolerance: where, got, expected."""
    found = []
    for name, error in measure.relative_errors(got, expected).items():
        if not error <= tolerance:
            places = [(abs(a - b), i, j) for i, rows in enumerate(zip(expected[name], got[name]))
                      for j, (a, b) in enumerate(zip(*rows))]
            _, i, j = max(places, key=lambda place: (math.isnan(place[0]), place))
            found.append(f"{name}[{i}][{j}]: got {got[name][i][j]!r}, "
                         f"expected {expected[name][i][j]!r}, error {error:.1e}")
    return found


def outputs(backend, batch):
    """Returns logits and loss as name -> rows, so that one measure serves for all."""
    tensors = {f"logits of sequence {i}": rows for i, rows in enumerate(backend.logits(batch))}
    return {**tensors, "loss": [[backend.loss(batch)]]}


def proof(expected, got, batch):
    """Returns the failures of one backend held to another, by outputs and every gradient."""
    loss, gradients = expected.gradients(batch)
    other_loss, other_gradients = got.gradients(batch)
    assert list(gradients) == list(other_gradients)
    return (failures(outputs(expected, batch), outputs(got, batch))
            + failures({"loss, with gradients": [[loss]]}, {"loss, with gradients": [[other_loss]]})
            + failures(gradients, other_gradients))


def dropout_proof(expected, got, batch, masks):
    """Returns the failures of the gradients with the same activations dropped."""
    loss, gradients = expected.gradients(batch, masks)
    other_loss, other_gradients = got.gradients(batch, masks)
    return failures({"loss": [[loss]], **gradients}, {"loss": [[other_loss]], **other_gradients})


def slope_proof(backend, batch, rng, masks=None, count=3):
    """Returns the failures of a backend's gradients held to finite differences of its own loss, at
    `count` places of each weight."""
    _, gradients = backend.gradients(batch, masks)
    places = measure.sampled_places(backend.config, rng, count)
    slopes = measure.slopes(backend, batch, places, masks)
    found = []
    for name, error in measure.slope_errors(gradients, places, slopes).items():
        if not error <= FLOAT64["model differences"]:
            got = [gradients[name][i][j] for i, j in places[name]]
            found.append(f"{name}: at {places[name]} got {got}, expected {slopes[name]}, "
                         f"error {error:.1e}")
    return found


def check_proof(name, case):
    expected, got = both(name, case)
    assert proof(expected, got, case.batch) == []


bigrams = configs(model=st.just("bigram"))


# rows long enough for every form of inner product in engine/matrix.py
LARGE = Case(GPTConfig(40, n_embd=32, n_head=4, n_layer=1, block_size=16), (17, 9, 14, 4), 0.8, 1)


@each_other
@given(case=cases())
@example(case=LARGE)
@settings(few, max_examples=15)
def test_logits_loss_and_every_gradient_agree(name, case):
    check_proof(name, case)


@pytest.mark.slow
@each_other
@given(case=cases())
@many
def test_logits_loss_and_every_gradient_agree_in_many_cases(name, case):
    check_proof(name, case)


@each_other
@given(case=cases(configs(block_size=st.integers(1, 2))))
@few
def test_logits_loss_and_every_gradient_agree_on_one_or_two_positions(name, case):
    check_proof(name, case)


@each_other
@given(case=cases(bigrams))
@few
def test_logits_loss_and_every_gradient_of_bigram_agree(name, case):
    check_proof(name, case)


@each_backend
@given(case=cases(configs(block_size=st.integers(1, 8), n_embd=st.integers(4, 16))))
@few
def test_with_one_position_queries_and_keys_have_no_gradient(name, case):
    """Exactly 0, whatever their backward does: such a batch proves nothing about it."""
    case = case._replace(lengths=(2,) * len(case.lengths))
    _, gradients = make(name, case.config, case.weights).gradients(case.batch)
    for i in range(case.config.n_layer):
        for kind in ("attn_wq", "attn_wk"):
            assert not any(map(any, gradients[f"layer{i}.{kind}"]))
        assert any(map(any, gradients[f"layer{i}.attn_wv"]))


small = configs(block_size=st.integers(3, 8), n_embd=st.integers(4, 12), n_layer=st.integers(1, 2))


def check_slopes(name, case):
    backend = make(name, case.config, case.weights)
    assert slope_proof(backend, case.batch, random.Random(case.seed)) == []


@each_backend
@given(case=st.one_of(cases(small, max_sequences=2), cases(bigrams)))
@settings(few, max_examples=6)
def test_gradients_are_those_of_finite_differences(name, case):
    check_slopes(name, case)


@pytest.mark.slow
@each_other
@given(case=cases())
@few
def test_gradients_of_larger_models_are_those_of_finite_differences(name, case):
    check_slopes(name, case)


with_dropout = configs(block_size=st.integers(3, 16), dropout=st.floats(0.1, 0.6))


def check_dropout(case):
    matrix, torch = (make(name, case.config, case.weights) for name in ("matrix", "torch"))
    masks = DropoutMasks(case.config.dropout, case.seed)
    assert dropout_proof(matrix, torch, case.batch, masks) == []
    assert matrix.gradients(case.batch, masks)[0] != matrix.loss(case.batch)


@given(case=cases(with_dropout))
@settings(few, max_examples=20)
def test_every_gradient_agrees_when_the_same_is_dropped(case):
    check_dropout(case)


@pytest.mark.slow
@given(case=cases(with_dropout))
@many
def test_every_gradient_agrees_when_the_same_is_dropped_in_many_cases(case):
    check_dropout(case)


@given(case=cases(configs(block_size=st.integers(3, 5), n_embd=st.integers(4, 8),
                          n_layer=st.just(1), dropout=st.floats(0.1, 0.6)), max_sequences=2))
@settings(few, max_examples=5)
def test_gradients_with_dropout_are_those_of_finite_differences(case):
    backend, masks = make("matrix", case.config, case.weights), DropoutMasks(0.4, case.seed)
    assert slope_proof(backend, case.batch, random.Random(case.seed), masks) == []


# ---- Steps of the optimizers ---------------------------------------------------------------------

# Rates at which five steps change the weights visibly and no model of the cases diverges.
SETTINGS = {
    "sgd": (0.02, [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True},
                   {"weight_decay": 0.1}]),
    "adam": (0.01, [{}, {"beta1": 0.9, "beta2": 0.95}]),
    "adamw": (0.003, [{}, {"weight_decay": 0.1}]),
    "muon": (0.02, [{}, {"weight_decay": 0.1}, {"momentum": 0.9}]),
}


@st.composite
def optimizer_options(draw, optimizer):
    """Options of a backend: the optimizer, its settings, and sometimes clipping."""
    return {"optimizer": optimizer, "max_norm": draw(st.sampled_from([None, 0.5, 1e6])),
            **draw(st.sampled_from(SETTINGS[optimizer][1]))}


def train(backend, case, optimizer, steps):
    """Takes steps, each on a batch of its own, and returns their losses."""
    rate = SETTINGS[optimizer][0]
    return [backend.step(case._replace(seed=case.seed + step).batch, rate * (1 - step / 10))
            for step in steps]


def state_tensors(backend):
    """Returns what the optimizer remembers as name -> rows."""
    state = backend.optimizer_state()
    return {f"{slot} of {name}": rows for slot, tensors in state.items() if slot != "step"
            for name, rows in tensors.items()}


def check_steps(name, case, options):
    expected, got = both(name, case, **options)
    losses, other_losses = (train(backend, case, options["optimizer"], range(5))
                            for backend in (expected, got))
    assert failures({"losses": [losses]}, {"losses": [other_losses]}) == []
    assert failures(expected.weights(), got.weights()) == []
    assert expected.weights() != case.weights
    memory = state_tensors(expected)
    assert memory.keys() == state_tensors(got).keys()
    if memory:
        assert failures(memory, state_tensors(got)) == []


@each_optimizer
@each_other
@given(case=cases(small), data=st.data())
@settings(few, max_examples=10)
def test_weights_agree_after_five_steps(name, optimizer, case, data):
    check_steps(name, case, data.draw(optimizer_options(optimizer)))


@pytest.mark.slow
@each_optimizer
@each_other
@given(case=cases(), data=st.data())
@settings(few, max_examples=25)
def test_weights_of_larger_models_agree_after_five_steps(name, optimizer, case, data):
    check_steps(name, case, data.draw(optimizer_options(optimizer)))


@each_optimizer
@each_other
@given(case=cases(bigrams), data=st.data())
@settings(few, max_examples=8)
def test_weights_of_bigram_agree_after_five_steps(name, optimizer, case, data):
    check_steps(name, case, data.draw(optimizer_options(optimizer)))


@each_backend
def test_clipping_shrinks_the_step(name):
    case = Case(GPTConfig(7, n_embd=8, n_head=2, block_size=5), (6, 3), 0.5, 1)
    free, clipped, loose = (make(name, case.config, case.weights, optimizer="sgd", max_norm=norm)
                            for norm in (None, 0.01, 1e6))
    for backend in (free, clipped, loose):
        backend.step(case.batch, 1.0)
    before = case.weights

    def length(backend):
        after = backend.weights()
        return math.sqrt(sum((a - b) ** 2 for each in before
                             for rows in zip(after[each], before[each]) for a, b in zip(*rows)))
    assert length(free) > 0.1 and math.isclose(length(clipped), 0.01, rel_tol=1e-9)
    assert free.weights() == loose.weights()


@pytest.mark.parametrize("first, second", list(itertools.permutations(BACKENDS, 2)))
@each_optimizer
def test_a_run_moves_from_backend_to_backend(first, second, optimizer):
    """Three steps on one and two on the other are five on one."""
    case = Case(GPTConfig(9, n_embd=8, n_head=2, n_layer=2, block_size=6), (7, 5, 2), 0.6, 4)
    options = {"optimizer": optimizer, "max_norm": 1.0, **SETTINGS[optimizer][1][-1]}
    whole, half = (make(first, case.config, case.weights, **options) for _ in range(2))
    train(whole, case, optimizer, range(5))
    train(half, case, optimizer, range(3))
    rest = make(second, case.config, half.weights(), **options)
    rest.load_optimizer_state(half.optimizer_state())
    assert rest.optimizer_state() == half.optimizer_state()  # nothing is lost on the way
    assert rest.weights() == half.weights()
    train(rest, case, optimizer, range(3, 5))
    assert failures(whole.weights(), rest.weights()) == []
    assert failures(*({"none": [[0.0]], **state_tensors(each)} for each in (whole, rest))) == []
    assert rest.optimizer_state()["step"] == 5


@each_backend
@each_optimizer
def test_the_state_of_another_optimizer_is_refused(name, optimizer):
    case = Case(GPTConfig(5, n_embd=4, n_head=1, block_size=4), (5,), 0.5, 0)
    backend = make(name, case.config, case.weights, optimizer=optimizer)
    with pytest.raises(ValueError, match="it is another optimizer's"):
        backend.load_optimizer_state({"step": 3, "velocity": {}})


@each_backend
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
@pytest.mark.parametrize("change", [{"n_embd": 8}, {"vocab_size": 6}, {"n_layer": 2}])
def test_the_state_of_another_model_is_refused(name, optimizer, change):
    """When it is loaded, or at the latest by the first step, which then changes nothing."""
    case = Case(GPTConfig(5, n_embd=4, n_head=1, block_size=4), (5,), 0.5, 0)
    other = case._replace(config=dataclasses.replace(case.config, **change))
    stranger = make(name, other.config, other.weights, optimizer=optimizer)
    train(stranger, other, optimizer, range(2))
    backend = make(name, case.config, case.weights, optimizer=optimizer)
    with pytest.raises(ValueError, match="state is of another model"):
        backend.load_optimizer_state(stranger.optimizer_state())
        backend.step(case.batch, 0.01)
    assert backend.weights() == case.weights


@each_backend
@each_optimizer
def test_a_backend_can_go_back_to_the_start(name, optimizer):
    """Taking over weights and an optimizer's state leaves nothing of what was there before."""
    case = Case(GPTConfig(5, n_embd=4, n_head=1, block_size=4), (5, 3), 0.5, 0)
    options = {"optimizer": optimizer, **SETTINGS[optimizer][1][-1]}
    fresh, used = (make(name, case.config, case.weights, **options) for _ in range(2))
    start = fresh.optimizer_state()
    train(used, case, optimizer, range(7, 10))
    used.load(case.weights)
    used.load_optimizer_state(start)
    train(fresh, case, optimizer, range(4))
    train(used, case, optimizer, range(4))
    assert used.weights() == fresh.weights()
    assert used.optimizer_state() == fresh.optimizer_state()


@each_backend
def test_settings_of_another_optimizer_are_refused(name):
    config = GPTConfig(5, n_embd=4, n_head=1)
    weights = init_weights(config, random.Random(0))
    with pytest.raises(ValueError, match="sgd has no beta1; it takes momentum, nesterov"):
        make(name, config, weights, optimizer="sgd", beta1=0.9)
    with pytest.raises(ValueError, match="no optimizer 'adagrad'; there are adam, adamw"):
        make(name, config, weights, optimizer="adagrad")


# ---- The check of the checks ---------------------------------------------------------------------


def ops_of(cls):
    """Returns the names of the ops of a class of ops."""
    return [name for name, item in vars(cls).items()
            if not name.startswith("_") and callable(getattr(cls, name))]


def wrong_matrix(op):
    """Returns an op on Matrix whose backward is off by a thousandth."""
    def spoil(node):
        push = node.push
        node.push = lambda grad: push([[1.001 * g for g in row] for row in grad])

    def wrong(*arguments):
        out = op(*arguments)
        for node in out if isinstance(out, list) else [out]:
            if node not in arguments:  # as it is what dropout returns when there is none
                spoil(node)
        return out
    return wrong


def wrong_tensor(op):
    """Returns an op on tensors whose backward is off by a thousandth."""
    def wrong(*arguments):
        makers = [getattr(argument, "grad_fn", None) for argument in arguments]
        out = op(*arguments)
        for tensor in out if isinstance(out, tuple) else [out]:
            if tensor.requires_grad and not any(tensor.grad_fn is maker for maker in makers):
                tensor.register_hook(lambda grad: 1.001 * grad)
        return out
    return wrong


def wrong_value(op):
    """Returns an op on Values whose local derivatives are off by a thousandth."""
    def wrong(*arguments):
        out = op(*arguments)
        for value in out if isinstance(out, list) else [out]:
            value.local_grads = tuple(1.001 * slope for slope in value.local_grads)
        return out
    return wrong


@contextlib.contextmanager
def spoiled(owner, names, wrong):
    """While it lasts, a function of a class or module is wrong(function), by all its names."""
    with pytest.MonkeyPatch.context() as patch:
        replacement = wrong(getattr(owner, names[0]))
        if isinstance(inspect.getattr_static(owner, names[0]), staticmethod):
            replacement = staticmethod(replacement)
        for name in names:
            patch.setattr(owner, name, replacement)
        yield


# an op of the file: where it stands, and the names it is called by
VALUE_OPS = {"add": (Value, ("__add__", "__radd__")), "mul": (Value, ("__mul__", "__rmul__")),
             "pow": (Value, ("__pow__",)), "exp": (Value, ("exp",)), "log": (Value, ("log",)),
             "relu": (Value, ("relu",)), "linear": (microgpt, ("linear",))}
MATRIX_OPS = ops_of(MatrixOps)
TORCH_OPS = ["embed", "add", "linear", "linears", "rmsnorm", "relu", "cross_entropy", "attention",
             "attend", "dropout"]
ENGINES = [("scalar", op) for op in VALUE_OPS] + [("matrix", op) for op in MATRIX_OPS] + [
    ("torch", op) for op in TORCH_OPS]


def wrong_engine(name, op):
    """While it lasts, one op of one engine is off by a thousandth on its way back."""
    if name == "scalar":
        return spoiled(*VALUE_OPS[op], wrong_value)
    if name == "matrix":
        return spoiled(MatrixOps, [op], wrong_matrix)
    pytest.importorskip("torch")
    return spoiled(importlib.import_module("microgpt.backends.pytorch").TorchOps, [op],
                   wrong_tensor)


def test_every_op_of_the_file_is_spoiled():
    """An op is a function that makes a Value with parents."""
    tree = ast.parse((ROOT / "microgpt.py").read_text(encoding="utf-8"))
    makers = {function.name.strip("_") for function in ast.walk(tree)
              if isinstance(function, ast.FunctionDef)
              for call in ast.walk(function)
              if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Value"
              and len(call.args) > 1}
    assert makers == set(VALUE_OPS)


def test_every_op_of_torch_is_spoiled():
    pytest.importorskip("torch")
    module = importlib.import_module("microgpt.backends.pytorch")
    assert sorted(ops_of(module.TorchOps)) == sorted(TORCH_OPS)


EXAMPLE = Case(GPTConfig(7, n_embd=6, n_head=2, n_layer=2, block_size=6), (7, 4, 2), 0.6, 3)
TINY = Case(GPTConfig(5, n_embd=4, n_head=2, block_size=4), (5, 3), 0.8, 3)



def prove(name, witness, case, masks=None):
    """Returns the failures of one backend held to another or, as its own witness, to finite
    differences of its own loss."""
    backend = make(name, case.config, case.weights)
    if name == witness:
        return slope_proof(backend, case.batch, random.Random(0), masks, count=2)
    other = make(witness, case.config, case.weights)
    if masks:
        return dropout_proof(other, backend, case.batch, masks)
    return proof(other, backend, case.batch)


@pytest.mark.parametrize("name, op, witness", [
    (name, op, witness) for name, op in ENGINES for witness in BACKENDS
    if op != "dropout" or witness != "scalar"])
def test_the_proof_fails_with_an_op_off_by_a_thousandth(name, op, witness):
    case = TINY if name == witness else EXAMPLE  # finite differences take many losses
    masks = DropoutMasks(0.3, 1) if op == "dropout" else None
    assert prove(name, witness, case, masks) == []
    with wrong_engine(name, op):
        assert prove(name, witness, case, masks) != []


@pytest.mark.parametrize("name, op", [(name, op) for name, op in ENGINES if op != "dropout"])
@given(case=cases(small, max_sequences=3))
@settings(few, max_examples=3)
def test_the_proof_fails_on_any_model_with_an_op_off_by_a_thousandth(name, op, case):
    with wrong_engine(name, op):
        assert prove(name, "matrix" if name == "scalar" else "scalar", case) != []


@each_other
def test_the_proof_says_where_it_fails(name):
    expected, got = both(name, EXAMPLE)
    weights = got.weights()
    weights["layer1.mlp_fc1"][2][3] += 1e-6
    got.load(weights)
    lines = proof(expected, got, EXAMPLE.batch)
    assert lines and all("got " in line and "expected " in line for line in lines)
    assert any(line.startswith("layer1.mlp_fc2[") for line in lines)


def test_measure_of_errors():
    """Relative to the largest of a tensor, or to a thousandth of the largest of all."""
    expected = {"large": [[1000.0, 1.0]], "small": [[1e-6, 0.0], [0.5e-6, 0.0]]}
    got = {"large": [[1000.0, 2.0]], "small": [[1e-6, 0.0], [0.5e-6, 0.25]]}
    assert measure.relative_errors(got, expected) == {"large": 0.001, "small": 0.25}
    assert measure.relative_errors(expected, expected) == {"large": 0.0, "small": 0.0}
    assert measure.relative_errors({"w": [[0.0]]}, {"w": [[0.0]]}) == {"w": 0.0}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_infinitely_wrong(bad, place):
    got = [[1.0, 2.0, 3.0]]
    got[0][place] = bad
    assert measure.relative_errors({"w": got}, {"w": [[1.0, 2.0, 3.0]]}) == {"w": math.inf}
    assert failures({"w": [[1.0, 2.0, 3.0]]}, {"w": got})
    assert failures({"w": got}, {"w": [[1.0, 2.0, 3.0]]})


@pytest.mark.parametrize("got", [{}, {"w": [[1.0]]}, {"w": [[1.0, 2.0], [3.0, 4.0]]},
                                 {"w": [[1.0, 2.0]], "extra": [[0.0]]}])
def test_tensors_of_other_names_or_shapes_are_not_compared(got):
    with pytest.raises(ValueError):
        measure.relative_errors(got, {"w": [[1.0, 2.0]]})


def test_random_weights_are_never_near_zero():
    weights = measure.random_weights(GPTConfig(9, n_embd=8), random.Random(0))
    assert min(abs(x) for rows in weights.values() for row in rows for x in row) > 0.01


# ---- Decoding, and what a token can see ----------------------------------------------------------


@each_backend
@given(case=st.one_of(cases(configs(block_size=st.integers(1, 16), n_embd=st.integers(4, 16))),
                      cases(bigrams)))
@few
def test_cached_decoding_equals_the_full_forward_pass(name, case):
    backend = make(name, case.config, case.weights)
    for tokens, logits in zip(case.batch, backend.logits(case.batch)):
        decode = backend.decoder()
        got = [decode(token) for token in tokens[:-1]]
        assert failures({"logits": logits}, {"logits": got}) == []


@each_backend
def test_decoders_do_not_share_what_they_saw(name):
    backend = make(name, EXAMPLE.config, EXAMPLE.weights)
    one, other = backend.decoder(), backend.decoder()
    first = [one(token) for token in (1, 2, 3)]
    assert [other(token) for token in (1, 2, 3)] == first
    one(4), other(5)
    assert one(6) != other(6)


@each_backend
@pytest.mark.parametrize("model", ["gpt", "bigram"])
def test_a_decoder_has_block_size_positions(name, model):
    config = GPTConfig(5, n_embd=4, n_head=2, block_size=3, model=model)
    decode = make(name, config, init_weights(config, random.Random(0))).decoder()
    for token in (0, 1, 2):
        assert len(decode(token)) == 5
    with pytest.raises(ValueError, match="has seen 3 of block_size, 3, tokens: there is no"):
        decode(3)


@each_backend
@pytest.mark.parametrize("token", [-1, 7])
def test_a_decoder_takes_tokens_of_the_vocabulary(name, token):
    decode = make(name, EXAMPLE.config, EXAMPLE.weights).decoder()
    first = decode(1)
    with pytest.raises(ValueError, match=f"token is {token}: the vocabulary has 0 to 6"):
        decode(token)
    again = make(name, EXAMPLE.config, EXAMPLE.weights).decoder()
    assert again(1) == first and again(2) == decode(2)  # what was refused left no trace


@each_backend
@given(case=cases(configs(block_size=st.integers(3, 16), n_embd=st.integers(4, 16))),
       data=st.data())
@few
def test_the_future_never_changes_past_logits(name, case, data):
    backend, batch = make(name, case.config, case.weights), case.batch
    before = backend.logits(batch)
    which = data.draw(st.integers(0, len(batch) - 1))
    place = data.draw(st.integers(0, len(batch[which]) - 1))
    later = len(batch[which]) - place
    batch[which][place:] = data.draw(st.lists(st.integers(0, case.config.vocab_size - 1),
                                              min_size=later, max_size=later))
    after = backend.logits(batch)
    for i, (old, new) in enumerate(zip(before, after)):
        assert old[:place if i == which else None] == new[:place if i == which else None]


@each_backend
@given(case=cases(configs(block_size=st.integers(3, 16), n_embd=st.integers(4, 16))))
@few
def test_sequences_of_a_batch_do_not_see_each_other(name, case):
    backend = make(name, case.config, case.weights)
    for tokens, logits in zip(case.batch, backend.logits(case.batch)):
        assert len(logits) == len(tokens) - 1
        assert failures({"logits": backend.logits([tokens])[0]}, {"logits": logits}) == []


@each_backend
@given(case=cases(configs(block_size=st.integers(3, 16), n_embd=st.integers(4, 8))))
@few
def test_the_loss_is_the_mean_over_all_targets(name, case):
    backend = make(name, case.config, case.weights)
    total = sum(backend.loss([tokens]) * (len(tokens) - 1) for tokens in case.batch)
    targets = sum(len(tokens) - 1 for tokens in case.batch)
    assert math.isclose(backend.loss(case.batch), total / targets, rel_tol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_same_seed_writes_the_same_text_on_every_backend(temperature):
    texts = {}
    for name in BACKENDS:
        if name == "torch":
            pytest.importorskip("torch")
        rng, decode, token, texts[name] = random.Random(7), None, 0, []
        backend = make(name, EXAMPLE.config, EXAMPLE.weights)
        for position in range(60):
            if position % EXAMPLE.config.block_size == 0:
                decode = backend.decoder()
            token = microgpt.choose(decode(token), temperature, rng)
            texts[name].append(token)
    assert texts["scalar"] == texts["matrix"] == texts["torch"]


# ---- Weights in and out --------------------------------------------------------------------------


@each_backend
@given(case=st.one_of(cases(), cases(bigrams)))
@few
def test_weights_come_back_as_they_were_given(name, case):
    backend = make(name, case.config, case.weights)
    assert backend.weights() == case.weights
    assert list(backend.weights()) == list(case.weights)
    other = case._replace(seed=case.seed + 1).weights
    backend.load(other)
    assert backend.weights() == other


@each_backend
def test_weights_are_copied_both_ways(name):
    given_weights = EXAMPLE.weights
    backend = make(name, EXAMPLE.config, given_weights)
    for row in (given_weights["wte"][0], backend.weights()["wte"][0]):
        row[0] = 99.0
    assert backend.weights() == EXAMPLE.weights
    backend.step(EXAMPLE.batch, 0.01)
    assert given_weights["lm_head"] == EXAMPLE.weights["lm_head"]


@each_backend
def test_the_order_of_names_does_not_matter(name):
    turned = dict(reversed(list(EXAMPLE.weights.items())))
    straight, other = (make(name, EXAMPLE.config, weights) for weights in (EXAMPLE.weights, turned))
    for backend in (straight, other):
        backend.step(EXAMPLE.batch, 0.01)
    assert failures(straight.weights(), other.weights()) == []
    state = {slot: tensors if slot == "step" else dict(reversed(list(tensors.items())))
             for slot, tensors in straight.optimizer_state().items()}
    other.load_optimizer_state(state)
    for backend in (straight, other):
        backend.step(EXAMPLE.batch, 0.01)
    assert failures(straight.weights(), other.weights()) == []


@each_backend
def test_weights_of_another_model_are_refused(name):
    weights = EXAMPLE.weights
    del weights["wpe"]
    with pytest.raises(ValueError, match=r"another model: missing \['wpe'\], extra \[\]"):
        make(name, EXAMPLE.config, weights)
    backend = make(name, EXAMPLE.config, EXAMPLE.weights)
    weights = {**EXAMPLE.weights, "wte": [[0.0] * 6] * 8}
    with pytest.raises(ValueError, match=r"wte must be 7 x 6, got 8 rows of \[6\]"):
        backend.load(weights)
    assert backend.weights() == EXAMPLE.weights


@each_backend
def test_losses_and_gradients_change_nothing(name):
    backend = make(name, EXAMPLE.config, EXAMPLE.weights)
    first = backend.gradients(EXAMPLE.batch)
    backend.loss(EXAMPLE.batch)
    backend.logits(EXAMPLE.batch)
    assert backend.gradients(EXAMPLE.batch) == first
    assert backend.weights() == EXAMPLE.weights
    assert backend.optimizer_state()["step"] == 0
    assert backend.step(EXAMPLE.batch, 0.01) == first[0]


@each_other
def test_dropout_of_a_step_follows_from_its_seed(name):
    config = dataclasses.replace(EXAMPLE.config, dropout=0.5)

    def after(seed):
        backend = make(name, config, EXAMPLE.weights)
        return backend.step(EXAMPLE.batch, 0.01, dropout_seed=seed), backend.weights()
    state = random.getstate()
    assert after(1) == after(1) and after(1) != after(2)
    loss, _ = after(None)
    assert loss == make(name, config, EXAMPLE.weights).loss(EXAMPLE.batch) != after(1)[0]
    assert random.getstate() == state


@each_other
def test_without_dropout_its_seed_does_not_matter(name):
    one, other = (make(name, EXAMPLE.config, EXAMPLE.weights) for _ in range(2))
    assert one.step(EXAMPLE.batch, 0.01, 5) == other.step(EXAMPLE.batch, 0.01)
    assert one.weights() == other.weights()


# ---- The file behind the scalar backend ----------------------------------------------------------


def golden_setup(path):
    """Returns documents, tokenizer, config and weights, drawn as the golden run draws them."""
    docs, _ = microgpt.load_docs(path)
    rng = random.Random(42)
    rng.shuffle(docs)
    tokenizer = CharTokenizer(docs)
    config = GPTConfig(tokenizer.vocab_size)
    return docs, tokenizer, config, init_weights(config, rng)


def golden_losses(name, path, steps, num_steps=1000):
    """Returns the first losses of the golden run, taken by a backend, a document a step."""
    docs, tokenizer, config, weights = golden_setup(path)
    backend, losses = make(name, config, weights), []
    for step in range(steps):
        tokens = [tokenizer.bos, *tokenizer.encode(docs[step % len(docs)]), tokenizer.bos]
        tokens = tokens[:config.block_size + 1]
        losses.append(round(backend.step([tokens], 0.01 * (1 - step / num_steps)), 4))
    return losses


NAMES = ROOT / "corpus" / "data" / "names.txt"


@each_backend
def test_first_losses_of_the_golden_run(name, golden):
    assert golden_losses(name, NAMES, 100) == golden["losses"][:100]


@pytest.mark.slow
@each_backend
def test_the_whole_golden_run(name, golden):
    assert golden_losses(name, NAMES, 1000) == golden["losses"]


@pytest.mark.slow
@each_backend
def test_the_whole_reference_run(name, reference_golden, reference_names):
    assert golden_losses(name, reference_names, 1000) == reference_golden["losses"]


def test_the_scalar_backend_is_the_file_digit_for_digit():
    docs = ["anna", "bela", "carla", "dora"]
    tokenizer = CharTokenizer(docs)
    config = GPTConfig(tokenizer.vocab_size, 8, 2, 2, 8)
    values = microgpt.init_weights(config, random.Random(1))
    backend = make("scalar", config, init_weights(config, random.Random(1)))
    for step, loss in enumerate(microgpt.train(docs, tokenizer, values, config, num_steps=12)):
        tokens = [tokenizer.bos, *tokenizer.encode(docs[step % 4]), tokenizer.bos]
        assert backend.step([tokens], 0.01 * (1 - step / 12)) == loss
    assert backend.weights() == {name: [[value.data for value in row] for row in rows]
                                 for name, rows in values.items()}


def changed(function):
    """Returns the function with what it returns made a little larger."""
    def other(*arguments):
        out = function(*arguments)
        for value in out if isinstance(out, list) else [out]:
            value.data = value.data * 1.01 + 0.01
        return out
    return other


class SlowerAdam(microgpt.Adam):
    def step(self, learning_rate):
        super().step(0.5 * learning_rate)


class OtherValue(Value):
    __slots__ = ()

    def __init__(self, data, parents=(), local_grads=()):
        super().__init__(1.01 * data, parents, local_grads)


EDITS = {
    **{f"Value.{names[0]}" if owner is Value else names[0]: (owner, names, changed)
       for owner, names in VALUE_OPS.values()},
    **{name: (microgpt, (name,), changed)
       for name in ("gpt", "dot", "rmsnorm", "softmax", "mean_loss")},
    "Adam": (microgpt, ("Adam",), lambda cls: SlowerAdam),
    "Value": (microgpt, ("Value",), lambda cls: OtherValue),
    "Value.backward": (Value, ("backward",), lambda function: lambda self: None),
}


@pytest.mark.parametrize("edit", EDITS)
def test_who_edits_the_file_changes_the_scalar_backend(edit):
    def losses():
        backend = make("scalar", EXAMPLE.config, EXAMPLE.weights)
        return [backend.step(EXAMPLE.batch, 0.1) for _ in range(3)]
    before = losses()
    with spoiled(*EDITS[edit]):
        assert losses() != before
    assert losses() == before


def test_who_edits_the_model_of_the_file_changes_logits_and_decoding():
    backend = make("scalar", EXAMPLE.config, EXAMPLE.weights)
    logits, decoded = backend.logits(EXAMPLE.batch), backend.decoder()(1)
    with spoiled(microgpt, ["gpt"], changed):
        assert backend.logits(EXAMPLE.batch) != logits
        assert backend.decoder()(1) != decoded


def test_scalar_refuses_dropout_and_names_matrix():
    config = GPTConfig(5, n_embd=4, n_head=2, dropout=0.1)
    weights = init_weights(config, random.Random(0))
    with pytest.raises(ValueError, match=r"dropout is 0\.1: the scalar .*the matrix backend does"):
        make("scalar", config, weights)
    backend = make("scalar", dataclasses.replace(config, dropout=0.0), weights)
    with pytest.raises(ValueError, match="no dropout; the matrix backend does"):
        backend.gradients([[0, 1]], DropoutMasks(0.1, 1))


# ---- What is refused -----------------------------------------------------------------------------

BAD_BATCHES = [
    ([], r"the batch is empty: it takes a list of token sequences"),
    ([[0, 1], [2]], r"sequence 1 has 1 tokens: it takes 2 to block_size \+ 1, 4, since each"),
    ([[]], r"sequence 0 has 0 tokens"),
    ([[0, 1, 2, 3, 4]], r"sequence 0 has 5 tokens: it takes 2 to block_size \+ 1, 4"),
    ([[0, 1], [4, 5]], r"sequence 1 has tokens from 4 to 5: the vocabulary has 0 to 4"),
    ([[-1, 2]], r"sequence 0 has tokens from -1 to 2: the vocabulary has 0 to 4"),
]


@each_backend
@pytest.mark.parametrize("batch, message", BAD_BATCHES)
@pytest.mark.parametrize("model", ["gpt", "bigram"])
def test_bad_batches_are_refused(name, batch, message, model):
    config = GPTConfig(5, n_embd=4, n_head=2, block_size=3, model=model)
    backend = make(name, config, init_weights(config, random.Random(0)))
    for method in (backend.logits, backend.loss, backend.gradients,
                   lambda batch: backend.step(batch, 0.01)):
        with pytest.raises(ValueError, match=message):
            method(batch)
    assert backend.optimizer_state()["step"] == 0


def test_batches_within_the_limits_are_accepted():
    config = GPTConfig(5, n_embd=4, n_head=2, block_size=3)
    check_batch(config, [[0, 4], [1, 2, 3, 0]])


def test_backends_are_found_by_name():
    for name in BACKENDS:
        if name == "torch":
            pytest.importorskip("torch")
        assert load(name).name == name and issubclass(load(name), Backend)
    with pytest.raises(ValueError, match="backend is 'jax': it takes scalar, matrix, torch"):
        load("jax")


def test_without_torch_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "microgpt.backends.pytorch", raising=False)
    with pytest.raises(NotInstalled, match="pip install torch; --backend matrix works now"):
        load("torch")


def test_the_contract_names_what_is_missing():
    backend = Backend(EXAMPLE.config, EXAMPLE.weights)
    for method, arguments in (("logits", [[]]), ("loss", [[]]), ("gradients", [[]]),
                              ("step", [[], 0.1]), ("decoder", [])):
        with pytest.raises(NotImplementedError, match="Backend does not"):
            getattr(backend, method)(*arguments)


@pytest.mark.parametrize("module", ["base", "matrix", "scalar", "proof", "pytorch"])
def test_examples_in_docstrings(module):
    if module == "pytorch":
        pytest.importorskip("torch")
    assert doctest.testmod(importlib.import_module(f"microgpt.backends.{module}")).failed == 0
