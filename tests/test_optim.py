"""Optimizers against torch's, against the file's Adam, and against themselves interrupted."""
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
from microgpt import Value
from microgpt.engine import optim
from microgpt.engine.gradcheck import relative_errors
from strategies import few, flat, some
from tolerances import BFLOAT16, FLOAT64

SHAPES = {"wte": (5, 4), "layer0.attn_wq": (4, 4), "layer0.mlp_fc1": (16, 4),
          "layer0.mlp_fc2": (4, 16), "lm_head": (5, 4)}
SETTINGS = [("sgd", {}), ("sgd", {"momentum": 0.9}), ("sgd", {"weight_decay": 0.1}),
            ("sgd", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2}), ("adam", {}),
            ("adamw", {}), ("adamw", {"weight_decay": 0.1, "beta1": 0.8, "eps": 1e-3}),
            ("muon", {}), ("muon", {"momentum": 0.8, "weight_decay": 0.1, "beta2": 0.9})]
all_settings = pytest.mark.parametrize("name, settings", SETTINGS, ids=str)


def numbers(seed, shapes=None, size=1.0):
    """Returns name -> rows of random numbers."""
    rng = random.Random(seed)
    return {name: [[rng.gauss(0, size) for _ in range(n)] for _ in range(m)]
            for name, (m, n) in (shapes or SHAPES).items()}


def run(optimizer, weights, steps, first=0):
    """Does steps at changing learning rates, on gradients that follow from the step's number."""
    for step in range(first, first + steps):
        optimizer.step(weights, numbers(f"gradients {step}"), 0.02 / (1 + step))
    return weights


# ---- Against torch -------------------------------------------------------------------------------


def torch_optimizers(name, settings, params):
    """Returns torch's optimizers for the same rule, each with its share of the learning rate."""
    torch = pytest.importorskip("torch")
    settings = dict(settings)
    betas = (settings.pop("beta1", 0.85 if name == "adam" else 0.9), settings.pop("beta2", 0.99))
    if name == "sgd":
        return [(torch.optim.SGD(params.values(), lr=0.0, **settings), 1.0)]
    if name in ("adam", "adamw"):
        rule = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        settings.setdefault("weight_decay", 0.0)
        return [(rule(params.values(), lr=0.0, betas=betas, **settings), 1.0)]
    decay = settings.get("weight_decay", 0.0)
    by_muon = [p for key, p in params.items() if "attn" in key or "mlp" in key]
    others = [p for key, p in params.items() if "attn" not in key and "mlp" not in key]
    return [(torch_muon()(by_muon, settings.get("momentum", 0.95), decay), 1.0),
            (torch.optim.AdamW(others, lr=0.0, betas=betas, weight_decay=decay), 3e-3 / 0.02)]


def torch_muon():
    """Returns Muon for torch, written from Jordan's post, all in the weights' own precision."""
    torch = pytest.importorskip("torch")

    class Muon(torch.optim.Optimizer):
        def __init__(self, params, momentum, weight_decay):
            super().__init__(params, {"lr": 0.0, "mu": momentum, "decay": weight_decay})

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    past = state.setdefault("momentum", torch.zeros_like(p))
                    past.copy_(group["mu"] * past + (1 - group["mu"]) * p.grad)
                    x = group["mu"] * past + (1 - group["mu"]) * p.grad
                    x = x.T if p.shape[0] > p.shape[1] else x
                    x = x / (x.norm() + 1e-7)
                    for _ in range(5):
                        a = x @ x.T
                        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                    x = x.T if p.shape[0] > p.shape[1] else x
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.sub_(group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5 * x)

    return Muon


def torch_run(optimizers, params, steps):
    """Does in torch what run() does."""
    torch = pytest.importorskip("torch")
    for step in range(steps):
        for name, rows in numbers(f"gradients {step}").items():
            params[name].grad = torch.tensor(rows, dtype=torch.float64)
        for optimizer, share in optimizers:
            optimizer.param_groups[0]["lr"] = 0.02 / (1 + step) * share
            optimizer.step()
    return {name: p.tolist() for name, p in params.items()}


def parameters(weights):
    torch = pytest.importorskip("torch")
    return {name: torch.nn.Parameter(torch.tensor(rows, dtype=torch.float64))
            for name, rows in weights.items()}


@all_settings
def test_seven_steps_are_those_of_torch(name, settings):
    params = parameters(numbers(0))
    expected = torch_run(torch_optimizers(name, settings, params), params, 7)
    got = run(optim.make(name, **settings), numbers(0), 7)
    assert max(relative_errors(got, expected).values()) < FLOAT64["oracle"]
    # the steps are large enough to tell the rules apart
    assert max(relative_errors(got, numbers(0)).values()) > 1e-3


def test_muon_is_close_to_the_one_of_torch():
    """Close only: torch.optim.Muon orthogonalizes in bfloat16."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    start = {name: rows for name, rows in numbers(0).items() if optim.by_muon(name)}
    params = parameters(start)
    optimizer = torch.optim.Muon(params.values(), lr=0.02, momentum=0.95, weight_decay=0.1)
    weights, ours = {**start}, optim.Muon(weight_decay=0.1)
    before = {name: [list(row) for row in rows] for name, rows in start.items()}
    for step in range(5):
        grads = {name: rows for name, rows in numbers(step).items() if name in start}
        for name, rows in grads.items():
            params[name].grad = torch.tensor(rows, dtype=torch.float64)
        optimizer.step()
        ours.step(weights, grads, 0.02)
    moved = {name: [a - b for a, b in zip(flat(weights[name]), flat(before[name]))]
             for name in start}
    theirs = {name: [a - b for a, b in zip(flat(params[name].tolist()), flat(before[name]))]
              for name in start}
    errors = relative_errors(moved, theirs)
    assert 0 < max(errors.values()) < BFLOAT16["oracle"]


@given(seed=st.integers(0, 10**6), m=st.integers(1, 9), n=st.integers(1, 9))
@some
def test_orthogonalized_has_the_directions_and_no_lengths(seed, m, n):
    torch = pytest.importorskip("torch")
    rows = numbers(seed, {"w": (m, n)})["w"]
    u, s, v = torch.linalg.svd(torch.tensor(rows, dtype=torch.float64), full_matrices=False)
    small = s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s ** 3 + 2.0315 * s ** 5
    expected = (u * s @ v).tolist()
    got = optim.orthogonalize(rows)
    # the added 1e-7 shifts the norm a little
    assert relative_errors({"w": got}, {"w": expected})["w"] < 1e-5
    assert all(0.68 < x < 1.21 for x, y in zip(s.tolist(), small.tolist()) if y >= 0.002)


def test_orthogonalized_zero_is_zero():
    assert optim.orthogonalize([[0.0, 0.0]]) == [[0.0, 0.0]]


def test_inner_product_with_and_without_sumprod():
    a, b = numbers(3, {"w": (2, 50)})["w"]
    assert optim.inner(a, b) == pytest.approx(sum(x * y for x, y in zip(a, b)), rel=1e-12)


# ---- Against the file's Adam ---------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=8),
       st.floats(1e-4, 1.0))
@some
def test_adam_is_the_files_adam_digit_for_digit(steps, learning_rate):
    values = [Value(0.5), Value(-1.0), Value(2.0)]
    rows, ours, theirs = [[0.5, -1.0, 2.0]], optim.Adam(), microgpt.Adam(values)
    for grads in steps:
        for value, grad in zip(values, grads):
            value.grad = grad
        theirs.step(learning_rate)
        ours.step({"w": rows}, {"w": [grads]}, learning_rate)
        assert rows == [[value.data for value in values]]


# ---- Values --------------------------------------------------------------------------------------


@all_settings
def test_steps_of_values_are_those_of_rows(name, settings):
    rows = numbers(0)
    values = {key: [[Value(x) for x in row] for row in rows[key]] for key in rows}
    by_rows, by_values = optim.make(name, **settings), optim.make(name, **settings)
    for step in range(3):
        grads = numbers(step)
        for value, grad in zip(flat(list(values.values())), flat(list(grads.values()))):
            value.grad = grad
        by_rows.step(rows, grads, 0.02)
        by_values.step_values(values, 0.02)
        assert [p.data for p in flat(list(values.values()))] == flat(list(rows.values()))
        assert not any(p.grad for p in flat(list(values.values())))
    assert by_rows.state() == by_values.state()


def test_values_in_a_list_or_in_rows():
    for shape in (lambda values: values, lambda values: [values[:2], values[2:]],
                  lambda values: iter(values)):
        values = [Value(float(i)) for i in range(4)]
        for value in values:
            value.grad = value.data
        optim.SGD().step_values(shape(values), 0.5)
        assert [value.data for value in values] == [0.0, 0.5, 1.0, 1.5]
    with pytest.raises(ValueError, match="no parameters to update, got an empty list"):
        optim.SGD().step_values([], 0.1)


def test_values_are_clipped_on_demand():
    x, y = Value(0.0), Value(0.0)
    x.grad, y.grad = 3.0, 4.0
    optim.SGD().step_values([x, y], 1.0, max_norm=1.0)
    assert (x.data, y.data) == pytest.approx((-0.6, -0.8))


@pytest.mark.parametrize("name, learning_rate", [("sgd", 0.2), ("adam", 0.1), ("adamw", 0.1),
                                                 ("muon", 0.5)])
def test_a_small_network_learns_xor(name, learning_rate):
    rng = random.Random(3)
    weights = {"layer0.mlp_fc1": [[Value(rng.gauss(0, 1)) for _ in range(3)] for _ in range(4)],
               "head": [[Value(rng.gauss(0, 1)) for _ in range(5)]]}
    optimizer = optim.make(name)

    def loss():
        total = 0.0
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            inputs = [Value(2.0 * a - 1), Value(2.0 * b - 1), Value(1.0)]
            hidden = [h.tanh() for h in microgpt.linear(inputs, weights["layer0.mlp_fc1"])]
            out, = microgpt.linear([*hidden, Value(1.0)], weights["head"])
            total = total + (out - (1.0 if a != b else -1.0)).square()
        return total / 4

    first = loss().data
    for _ in range(200):
        loss().backward()
        optimizer.step_values(weights, learning_rate)
    assert loss().data < 0.05 * first


# ---- State ---------------------------------------------------------------------------------------


@all_settings
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_interrupted_and_resumed_is_digit_for_digit_the_same(name, settings, stop):
    whole = optim.make(name, **settings)
    expected = run(whole, numbers(0), 6)
    first = optim.make(name, **settings)
    weights = run(first, numbers(0), stop)
    state = first.state()
    saved = json.dumps(state)  # plain numbers, lists and names: anything can keep it
    run(first, numbers(1), 2)
    assert json.dumps(state) == saved  # what happens to the first one later does not matter
    second = optim.make(name, **settings)
    state = json.loads(saved)
    second.load_state(state)
    assert run(second, weights, 6 - stop, first=stop) == expected
    assert second.state() == whole.state()
    assert json.dumps(state) == saved  # the state that was loaded is nobody's working memory


def test_state_is_that_of_torch():
    """Another backend can go on from it: the slots are torch's, by other names."""
    params = parameters(numbers(0))
    (theirs, _), = torch_optimizers("adamw", {}, params)
    torch_run([(theirs, 1.0)], params, 3)
    ours = optim.AdamW()
    run(ours, numbers(0), 3)
    state = ours.state()
    assert set(state) == {"step", "m", "v"} and state["step"] == 3
    for name, p in params.items():
        assert theirs.state[p]["step"].item() == 3
        errors = relative_errors(
            {"m": state["m"][name], "v": state["v"][name]},
            {"m": theirs.state[p]["exp_avg"].tolist(), "v": theirs.state[p]["exp_avg_sq"].tolist()})
        assert max(errors.values()) < FLOAT64["oracle"]


def test_muon_keeps_what_each_tensor_needs():
    optimizer = optim.Muon()
    run(optimizer, numbers(0), 1)
    state = optimizer.state()
    assert set(state) == {"step", "momentum", "m", "v"}
    assert set(state["momentum"]) == {"layer0.attn_wq", "layer0.mlp_fc1", "layer0.mlp_fc2"}
    assert set(state["m"]) == set(state["v"]) == {"wte", "lm_head"}


def test_state_of_another_optimizer_or_model_is_refused():
    with pytest.raises(ValueError, match=r"AdamW keeps \['step', 'm', 'v'\], the state holds \["
                                         r"'momentum', 'step'\]: it is another optimizer's"):
        optim.AdamW().load_state({"step": 1, "momentum": {}})
    optimizer = optim.AdamW()
    run(optimizer, numbers(0), 1)
    weights = {name: rows[:-1] for name, rows in numbers(0).items()}
    with pytest.raises(ValueError, match="slot m of wte has another shape than its weights"):
        optimizer.step(weights, weights, 0.1)
    assert optimizer.t == 1


# ---- Steps ---------------------------------------------------------------------------------------


@all_settings
def test_step_changes_rows_in_place_and_leaves_gradients(name, settings):
    weights, grads = numbers(0), numbers(1)
    rows = {key: list(map(id, weights[key])) for key in weights}
    optim.make(name, **settings).step(weights, grads, 0.1)
    assert {key: list(map(id, weights[key])) for key in weights} == rows
    assert grads == numbers(1)
    assert all(a != b for a, b in zip(flat(list(weights.values())),
                                      flat(list(numbers(0).values()))))


def test_learning_rate_of_muon_moves_the_rest_in_proportion():
    weights = {"wte": [[0.0]], "layer0.attn_wq": [[0.0]]}
    for learning_rate in (0.02, 0.04):
        rows = {name: [[0.0]] for name in weights}
        optim.Muon().step(rows, {name: [[5.0]] for name in weights}, learning_rate)
        assert rows["wte"][0][0] == pytest.approx(-0.15 * learning_rate)
        size = -rows["layer0.attn_wq"][0][0] / learning_rate
        assert 0.65 < size < 1.25


@pytest.mark.parametrize("grads, message", [
    ({"a": [[1.0]], "c": [[1.0]]}, r"weights are named \['a', 'b'\], gradients \['a', 'c'\]"),
    ({"a": [[1.0]], "b": [[1.0, 2.0]]}, "the gradient of b has another shape than its weights"),
    ({"a": [[1.0]], "b": [[1.0], [2.0]]}, "the gradient of b has another shape than its weights")])
def test_gradients_of_other_names_or_shapes_are_refused(grads, message):
    weights = {"a": [[1.0]], "b": [[1.0]]}
    with pytest.raises(ValueError, match=message):
        optim.SGD().step(weights, grads, 0.1)
    assert weights == {"a": [[1.0]], "b": [[1.0]]}


@pytest.mark.parametrize("name, settings, message", [
    ("lion", {}, "there is no optimizer 'lion'; there are adam, adamw, muon, sgd"),
    ("adam", {"weight_decay": 0.1}, "adam has no weight_decay; it takes beta1, beta2, eps"),
    ("adamw", {"beta1": 1.0}, r"beta1 is 1\.0; it must be at least 0 and below 1"),
    ("adamw", {"beta2": -0.1}, r"beta2 is -0\.1; it must be at least 0 and below 1"),
    ("adamw", {"eps": 0.0}, r"eps is 0\.0; it must be above 0"),
    ("adamw", {"weight_decay": -1}, "weight_decay is -1; it must be at least 0"),
    ("sgd", {"weight_decay": math.nan}, "weight_decay is nan; it must be at least 0"),
    ("sgd", {"momentum": 1.5}, r"momentum is 1\.5; it must be at least 0 and below 1"),
    ("sgd", {"nesterov": True}, r"momentum is 0\.0; it must be above 0 for nesterov"),
    ("muon", {"momentum": math.nan}, "momentum is nan; it must be at least 0 and below 1")])
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        optim.make(name, **settings)


def test_base_class_has_no_rule():
    with pytest.raises(NotImplementedError, match="Optimizer has no rule for a step"):
        optim.Optimizer().step({"w": [[1.0]]}, {"w": [[1.0]]}, 0.1)


# ---- Clipping ------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), size=st.floats(1e-3, 1e3), max_norm=st.floats(0.01, 100))
@few
def test_clipping_is_that_of_torch(seed, size, max_norm):
    torch = pytest.importorskip("torch")
    grads = numbers(seed, size=size)
    params = parameters(numbers(0))
    for name, p in params.items():
        p.grad = torch.tensor(grads[name], dtype=torch.float64)
    # torch divides by norm + 1e-6, so it is asked for as much more
    norm = optim.gradient_norm(grads)
    asked = max_norm * (norm + 1e-6) / norm if norm > max_norm else max_norm
    theirs = torch.nn.utils.clip_grad_norm_(params.values(), asked).item()
    assert optim.clip_gradients(grads, max_norm) == pytest.approx(theirs, rel=1e-12)
    expected = {name: p.grad.tolist() for name, p in params.items()}
    assert max(relative_errors(grads, expected).values()) < FLOAT64["oracle"]
    assert optim.gradient_norm(grads) == pytest.approx(min(norm, max_norm), rel=1e-12)


def test_clipping_leaves_small_and_broken_gradients_alone():
    for row, norm in (([0.3, 0.4], 0.5), ([3.0, 4.0], 5.0), ([math.inf, 1.0], math.inf),
                      ([0.0, 0.0], 0.0)):
        grads = {"w": [list(row)]}
        assert optim.clip_gradients(grads, 5.0) == norm and grads == {"w": [row]}
    grads = {"w": [[math.nan, 1.0]]}
    assert math.isnan(optim.clip_gradients(grads, 0.1)) and grads["w"][0][1] == 1.0


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_norm_to_clip_to_must_be_positive(max_norm):
    with pytest.raises(ValueError, match=r"max_norm is .*; it must be above 0"):
        optim.clip_gradients({"w": [[1.0]]}, max_norm)
