"""Every op of the catalogue: its value, its derivatives against two oracles, and its edges."""
import doctest
import importlib
import inspect
import math
import pkgutil
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
import microgpt.engine
from conftest import ROOT
from microgpt import Value
from microgpt.engine import CATALOGUE, ops
from microgpt.engine.gradcheck import gradcheck, relative_errors
from strategies import as_leaves, few, flat, op_cases, same, some, torch_call
from tolerances import FLOAT64

all_ops = pytest.mark.parametrize("op", CATALOGUE.values(), ids=list(CATALOGUE))

# ---- What the catalogue promises, op by op -------------------------------------------------------


@all_ops
@given(data=st.data())
@some
def test_value_is_that_of_the_formula(op, data):
    setting, arguments = data.draw(op_cases(op))
    scope = {**vars(math), **dict(zip("xy", arguments)), **setting}
    expected = flat(eval(op.formula, scope))
    got = [value.data for value in flat(op.call(as_leaves(arguments), setting))]
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert same(a, b, FLOAT64["formula"])


@all_ops
@given(data=st.data())
@few
def test_derivatives_are_those_of_finite_differences(op, data):
    setting, arguments = data.draw(op_cases(op))
    report = gradcheck(lambda *inputs: op.call(inputs, setting), arguments,
                       FLOAT64["op differences"], names="xy"[:len(arguments)])
    assert report.ok, f"{op.name} {setting}\n{report}"


@all_ops
@given(data=st.data())
@few
def test_value_and_derivatives_are_those_of_torch(op, data):
    torch = pytest.importorskip("torch")
    setting, arguments = data.draw(op_cases(op))
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arguments]
    theirs = torch_call(op, tensors, setting).reshape(-1)
    leaves = as_leaves(arguments)
    ours = flat(op.call(leaves, setting))
    factors = [1.0, -0.7, 0.4, 1.3, -1.1, 0.9][:len(ours)]  # each output must matter
    (theirs * torch.tensor(factors, dtype=torch.float64)).sum().backward()
    Value(0.0, tuple(ours), tuple(factors)).backward()
    got = {name: [x.grad for x in flat(leaf)] for name, leaf in zip("xy", leaves)}
    expected = {name: flat(tensor.grad.tolist()) for name, tensor in zip("xy", tensors)}
    got["value"], expected["value"] = [value.data for value in ours], theirs.tolist()
    # a gradient that is exactly 0, as that of softmax of one number, comes out of torch as 1e-17
    errors = relative_errors(got, expected, floor=1e-6)
    assert max(errors.values()) < FLOAT64["oracle"], (op.name, setting, got, expected)


# The file's dot and rmsnorm, and methods of Value such as exp, are for Values alone.
TAKE_NUMBERS = [op for op in CATALOGUE.values() if op.function.__module__ == ops.__name__
                or op.name in ("add", "sub", "mul", "div")]


@pytest.mark.parametrize("op", TAKE_NUMBERS, ids=[op.name for op in TAKE_NUMBERS])
def test_op_takes_plain_numbers(op):
    """Of two arguments of an operator one is a Value, or it would be Python's own."""
    setting = op.settings[-1]
    rng = random.Random(1)
    numbers = [rng.uniform(*domain[0]) for domain in op.domain]
    if op.lists:
        numbers = [[number, number + 0.5] for number in numbers]
    expected = [value.data for value in flat(op.call(as_leaves(numbers), setting))]
    mixed = [[Value(a), b] for a, b in numbers] if op.lists else [Value(numbers[0]), *numbers[1:]]
    assert [value.data for value in flat(op.call(mixed, setting))] == expected
    if op.function.__module__ == ops.__name__:
        assert [value.data for value in flat(op.call(numbers, setting))] == expected


@all_ops
def test_function_of_values_is_a_method_too(op):
    if op.lists or op.function.__module__ != ops.__name__:
        assert op.name in ("exp", "log", "relu") or not hasattr(Value, op.name)
        return
    values = [Value(sum(domain[-1]) / 2) for domain in op.domain]
    setting = op.settings[-1].values()
    by_method = getattr(values[0], op.name)(*values[1:], *setting)
    assert by_method.data == op.function(*values, *setting).data
    assert by_method.parents[0] is values[0]


def test_catalogue_lists_every_function():
    helpers = {"as_value", "as_values", "require", "logistic", "shifted_logsumexp"}
    functions = {name for name, item in vars(ops).items()
                 if inspect.isfunction(item) and item.__module__ == ops.__name__}
    assert functions - helpers == {op.function.__name__ for op in CATALOGUE.values()
                                   if op.function.__module__ == ops.__name__}
    own = {"__add__", "__mul__", "__pow__", "__neg__", "__sub__", "__truediv__", "log", "exp",
           "relu"}
    rest = {"__init__", "__repr__", "backward", "__radd__", "__rmul__", "__rsub__", "__rtruediv__",
            "__abs__"}
    attached = {op.name for op in CATALOGUE.values() if op.function.__module__ == ops.__name__}
    methods = {name for name, item in vars(Value).items() if inspect.isfunction(item)}
    assert methods == own | rest | attached - {op.name for op in CATALOGUE.values() if op.lists}


# ---- Operators with a plain number on either side ------------------------------------------------

MIXED = {
    "x + 2": lambda x: x + 2, "2 + x": lambda x: 2 + x, "x - 2": lambda x: x - 2,
    "2 - x": lambda x: 2 - x, "x * 3": lambda x: x * 3, "3 * x": lambda x: 3 * x,
    "x / 4": lambda x: x / 4, "4 / x": lambda x: 4 / x, "x ** 0": lambda x: x ** 0,
    "abs(x)": lambda x: abs(x), "sum": lambda x: sum([x, x, 1.0]),
}


@pytest.mark.parametrize("text", MIXED)
@pytest.mark.parametrize("x", [-1.3, 0.7])
def test_operators_with_plain_numbers(text, x):
    value = Value(x)
    out = MIXED[text](value)
    assert out.data == pytest.approx(MIXED[text](x), rel=1e-15)
    report = gradcheck(MIXED[text], [x], FLOAT64["op differences"])
    assert report.ok, report


# ---- Large numbers, kinks, nan -------------------------------------------------------------------

SATURATING = ["tanh", "sigmoid", "log_sigmoid", "softplus", "silu", "gelu", "leaky_relu", "elu",
              "erf", "atan"]


@pytest.mark.parametrize("name", SATURATING)
@pytest.mark.parametrize("x", [-1e300, -1000.0, -40.0, -20.0, 20.0, 40.0, 1000.0, 1e300])
def test_large_numbers_neither_overflow_nor_lose_the_limit(name, x):
    torch = pytest.importorskip("torch")
    op = CATALOGUE[name]
    value = Value(x)
    out = op.call([value], op.settings[0])
    out.backward()
    tensor = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    expected = torch_call(op, [tensor], op.settings[0])
    expected.backward()
    assert same(out.data, expected.item(), FLOAT64["formula"])
    theirs = tensor.grad.item()
    # torch's own gelu has 0 x inf beyond 1e154
    assert same(value.grad, theirs, FLOAT64["formula"]) or (math.isnan(theirs) and name == "gelu")


@pytest.mark.parametrize("x", [-700.0, -300.0, -40.0, -3.0, 3.0])
def test_small_slopes_keep_their_digits(x):
    """Where torch's 1 - tanh(x)^2 has become 0, the slope of tanh and sigmoid here has not."""
    value = Value(x)
    value.sigmoid().backward()
    assert math.isclose(value.grad, 1 / (math.exp(x) + 2 + math.exp(-x)), rel_tol=1e-13)
    value = Value(x / 2)
    value.tanh().backward()
    assert math.isclose(value.grad, 1 / math.cosh(x / 2) ** 2, rel_tol=1e-13)


def test_small_values_keep_their_digits():
    # 10 x the tail of the normal distribution beyond 10, from a table
    assert math.isclose(ops.gelu(-10.0).data, -7.61985302416052e-23, rel_tol=1e-13)
    assert math.isclose(ops.log_softmax([1000.0, 980.0])[0].data, -math.log1p(math.exp(-20.0)),
                        rel_tol=1e-6)  # torch: the same to 8 digits, by log(1 + 2e-9)
    assert math.isclose(ops.log1p(1e-20).data, 1e-20) and math.isclose(ops.expm1(1e-20).data, 1e-20)
    assert math.isclose(ops.softplus(-50.0).data, math.exp(-50.0), rel_tol=1e-13)
    assert math.isclose(ops.log_sigmoid(50.0).data, -math.exp(-50.0), rel_tol=1e-13)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy"])
@pytest.mark.parametrize("x", [[1000.0, -1000.0, 999.0], [-1000.0, -1000.0], [1e300, 0.0],
                               [1000.0, 990.0], [0.0, -math.inf]])
def test_softmax_and_its_relatives_at_large_numbers(name, x):
    torch = pytest.importorskip("torch")
    op = CATALOGUE[name]
    leaves = as_leaves([x])
    ours = flat(op.call(leaves, op.settings[0]))
    tensor = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    theirs = torch_call(op, [tensor], op.settings[0]).reshape(-1)
    ours[0].backward()
    theirs[0].backward()
    for value, expected in zip(ours, theirs.tolist()):
        assert same(value.data, expected, FLOAT64["formula"])
    for leaf, expected in zip(leaves[0], tensor.grad.tolist()):
        assert same(leaf.grad, expected, FLOAT64["formula"])


@pytest.mark.parametrize("name, arguments", [
    ("relu", [0.0]), ("abs", [0.0]), ("leaky_relu", [0.0]), ("elu", [0.0]), ("clip", [1.0]),
    ("clip", [-1.0]), ("maximum", [0.5, 0.5]), ("minimum", [0.5, 0.5]), ("sqrt", [0.0]),
    ("asin", [1.0]), ("acos", [-1.0])])
def test_slope_at_a_kink_is_the_one_torch_chose(name, arguments):
    torch = pytest.importorskip("torch")
    op = CATALOGUE[name]
    leaves = as_leaves(arguments)
    op.call(leaves, op.settings[0]).backward()
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arguments]
    torch_call(op, tensors, op.settings[0]).backward()
    assert [x.grad for x in leaves] == [x.grad.item() for x in tensors]


@all_ops
def test_nan_stays_nan(op):
    """A loss that has become nan must show, not turn into a number on its way."""
    nan = [math.nan, 1.0, 1.5] if op.lists else math.nan
    rest = [[1.0, 2.0, 3.0] if op.lists else 2.0] * (len(op.domain) - 1)  # 1 ** nan is 1
    for arguments in ([nan, *rest], [*rest, nan]):
        out = flat(op.call(as_leaves(arguments), op.settings[0]))
        assert all(math.isnan(value.data) for value in out)


def test_product_has_right_slopes_with_zeros():
    for numbers in ([0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [2.0, 5.0, 0.0]):
        values = [Value(x) for x in numbers]
        ops.product(values).backward()
        for i, value in enumerate(values):
            assert value.grad == math.prod(numbers[:i] + numbers[i + 1:])


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("call, message", [
    (lambda: Value(-1.0).sqrt(), r"sqrt needs a number that is not negative, got -1\.0"),
    (lambda: ops.reciprocal(0), r"reciprocal needs a number other than 0, got 0"),
    (lambda: ops.power(-2.0, 2), r"power needs a base above 0 \(x \*\* n takes any\), got -2\.0"),
    (lambda: ops.log1p(-1.0), r"log1p needs a number above -1, got -1\.0"),
    (lambda: ops.expm1(1000.0), r"expm1 needs a number up to 709, got 1000\.0"),
    (lambda: ops.sinh(-1000.0), r"sinh needs at most 709 in size, got -1000\.0"),
    (lambda: ops.cosh(1000.0), r"cosh needs at most 709 in size, got 1000\.0"),
    (lambda: ops.asin(1.5), r"asin needs a number from -1 to 1, got 1\.5"),
    (lambda: ops.acos(-1.5), r"acos needs a number from -1 to 1, got -1\.5"),
    (lambda: ops.sin(math.inf), r"sin needs a finite number, got inf"),
    (lambda: ops.cos(-math.inf), r"cos needs a finite number, got -inf"),
    (lambda: ops.tan(math.inf), r"tan needs a finite number, got inf"),
    (lambda: ops.clip(0.0, 1, -1), r"clip needs low <= high, got \(1, -1\)"),
    (lambda: ops.variance([1.0], correction=1), r"variance needs more than 1 Values, got 1"),
    (lambda: ops.cross_entropy([1.0, 2.0], 2), r"cross_entropy needs a target from 0 to 1, got 2"),
    (lambda: microgpt.dot([Value(1.0)], []), r"\b1 and 0\b"),
])
def test_outside_the_domain(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", [name for name, op in CATALOGUE.items()
                                  if op.lists and op.function.__module__ == ops.__name__])
def test_empty_list(name):
    op = CATALOGUE[name]
    with pytest.raises(ValueError, match=f"{name} needs at least one Value, got an empty list"):
        op.call([[]], op.settings[0])


def test_what_is_no_number():
    with pytest.raises(TypeError, match="expected a Value or a number, got '1'"):
        ops.tanh("1")
    with pytest.raises(TypeError, match="expected a Value or a number, got None"):
        ops.mean([1.0, None])


# ---- The package ---------------------------------------------------------------------------------


def test_core_is_the_files_own():
    for name in ("Value", "dot", "Adam", "linear", "rmsnorm"):
        assert getattr(microgpt.engine, name) is getattr(microgpt, name)


def test_all_is_complete():
    exported = microgpt.engine.__all__
    assert exported == sorted(exported) and len(set(exported)) == len(exported)
    functions = {op.name for op in CATALOGUE.values() if not hasattr(op.function, "__self__")
                 and op.function.__module__ in ("microgpt", "microgpt.engine.ops")}
    # abs is left out, for a star import would hide Python's; methods and operators need no import
    assert functions - set(exported) == {"abs", "exp", "log", "relu"}
    for name in exported:
        assert getattr(microgpt.engine, name) is not None


def test_import_prints_nothing_and_draws_nothing():
    code = ("import random; random.seed(5); state = random.getstate()\n"
            "import microgpt.engine, microgpt.engine.gradcheck, microgpt.engine.graph\n"
            "import microgpt.engine.optim, sys\n"
            "assert random.getstate() == state\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


MODULES = ["microgpt.engine"] + [f"microgpt.engine.{module.name}" for module
                                 in pkgutil.iter_modules(microgpt.engine.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0 and results.failed == 0
