"""The checker of derivatives: it passes what is right, catches what is wrong by a thousandth, and
says so in a table and by its exit code."""
import math
import random
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import microgpt
from conftest import ROOT
from microgpt import Config, Value, dot
from microgpt.engine import CATALOGUE, gradcheck as module, ops
from microgpt.engine.gradcheck import (
    Report, check_op, derivative, gradcheck, gradcheck_leaves, main, relative_errors)
from strategies import flat, programs, run_program, some, value_call
from tolerances import FLOAT64

all_ops = pytest.mark.parametrize("op", CATALOGUE.values(), ids=list(CATALOGUE))


def broken(function, factor=1.001, parent=None):
    """Returns the function with a wrong derivative: by all parents, or by the one at a place."""
    def wrong(*arguments):
        output = function(*arguments)
        for node in flat(output):
            node.local_grads = tuple(
                slope * factor if parent in (None, i) else slope
                for i, slope in enumerate(node.local_grads))
        return output
    return wrong


# ---- The check of the checks ---------------------------------------------------------------------


@all_ops
def test_op_passes(op):
    report = check_op(op, points=10, seed=1)
    assert report.ok, report


@all_ops
def test_derivative_off_by_a_thousandth_is_caught(op):
    report = check_op(op._replace(function=broken(op.function)))
    assert not report.ok
    # the measure is relative, so it is the thousandth that shows
    assert 1e-4 < report.error < 1.1e-3


@all_ops
def test_each_derivative_off_by_a_thousandth_is_caught(op):
    """For ops of several inputs: one right derivative does not hide the other, wrong one."""
    inputs = [Value(domain[-1][0] + 0.1 * i) for domain in op.domain for i in (1, 2)]
    arguments = [inputs[:2], inputs[2:]][:len(op.domain)] if op.lists else inputs[::2]
    output = flat(op.call(arguments, op.settings[0]))[0]
    leaves = [i for i, parent in enumerate(output.parents) if not parent.parents]
    assert leaves or op.name in ("sub", "div", "softmax", "rmsnorm"), "made of other ops"
    for i in leaves:
        if output.parents[i] in flat(arguments) and output.local_grads[i]:
            wrong = broken(op.function, parent=i)
            assert not check_op(op._replace(function=wrong), points=10).ok, f"parent {i}"


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, 1.0 + 1e-7])
def test_other_wrong_derivatives_are_caught(wrong):
    op = CATALOGUE["tanh"]
    assert not check_op(op._replace(function=broken(op.function, wrong))).ok


@given(program=programs())
@some
def test_whole_expressions_pass(program):
    report = check_program(program, value_call)
    assert report.ok, report


@given(program=programs(), data=st.data())
@some
def test_whole_expressions_with_an_op_off_by_a_thousandth_fail(program, data):
    name = data.draw(st.sampled_from(sorted({step.op for step in program.steps})))

    def call(op, arguments, setting):
        if op.name == name:
            op = op._replace(function=broken(op.function))
        return op.call(arguments, setting)

    right, wrong = check_program(program, value_call), check_program(program, call)
    changes = relative_errors({"leaves": [row.got for row in wrong.rows]},
                              {"leaves": [row.got for row in right.rows]})
    assume(changes["leaves"] > 2 * FLOAT64["graph differences"])  # hardly any slope is so small
    assert not wrong.ok


def check_program(program, call):
    """Returns the report on the sum of all numbers of a program, so that each of them counts."""
    leaves = [Value(x) for x in program.leaves]
    return gradcheck_leaves(lambda: ops.total(run_program(program, leaves, call)), leaves,
                            FLOAT64["graph differences"])


# ---- A whole model -------------------------------------------------------------------------------


def tiny_model(seed=0):
    """Returns the loss of the file's model as a function of nothing, and its weights.

    Five tokens, so that attention has several positions to choose from: with one, the gradients
    of its queries and keys are 0 whatever they should be.
    """
    config = Config(vocab_size=5, n_embd=4, n_head=2, n_layer=1, block_size=4)
    weights = microgpt.init_weights(config, random.Random(seed))
    for rows in weights.values():  # larger than for training: gradients of all sizes alike
        for p in flat(rows):
            p.data *= 4
    return lambda: microgpt.mean_loss([[4, 0, 3, 1, 4], [4, 2, 4]], weights, config), weights


def test_model_passes_and_is_left_as_it_was():
    loss, weights = tiny_model()
    before = [p.data for p in flat(list(weights.values()))]
    for i, p in enumerate(flat(list(weights.values()))):
        p.grad = float(i)
    report = gradcheck_leaves(loss, weights)
    assert report.ok, report
    assert {row.argument for row in report.rows} == set(weights)
    assert len(report.rows) == len(before)
    assert [p.data for p in flat(list(weights.values()))] == before
    assert [p.grad for p in flat(list(weights.values()))] == list(map(float, range(len(before))))


@pytest.mark.parametrize("method", ["__add__", "__mul__", "__pow__", "log", "exp", "relu"])
def test_model_with_a_broken_op_fails(monkeypatch, method):
    loss, weights = tiny_model()
    few = {name: rows[:2] for name, rows in weights.items()}
    assert gradcheck_leaves(loss, few).ok
    wrong = broken(getattr(Value, method))
    monkeypatch.setattr(Value, method, wrong)
    assert not gradcheck_leaves(loss, few).ok


@pytest.mark.parametrize("function", ["dot", "linear", "softmax", "rmsnorm"])
def test_model_with_a_broken_function_fails(monkeypatch, function):
    loss, weights = tiny_model()
    monkeypatch.setattr(microgpt, function, broken(getattr(microgpt, function)))
    assert not gradcheck_leaves(loss, {"wte": weights["wte"]}).ok


# ---- What it takes -------------------------------------------------------------------------------


def test_shared_inputs_add_up():
    x = Value(1.5)
    report = gradcheck(lambda a, b: a * b, [x, x], names=["a", "b"])
    assert report.ok and [(row.argument, row.got) for row in report.rows] == [("a", 3.0)]
    values = [Value(1.0), Value(-2.0)]
    report = gradcheck(dot, [values, values])
    assert report.ok and [row.got for row in report.rows] == [2.0, -4.0]


def test_nested_lists_and_several_outputs():
    report = gradcheck(microgpt.linear, [[1.0, -2.0], [[0.5, 0.25], [2.0, 1.0], [0.0, -1.0]]],
                       FLOAT64["op differences"])
    assert report.ok
    assert [row.index for row in report.rows if row.argument == "w"] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]

    def swapped(x, w):
        a, b, c = microgpt.linear(x, w)
        return [Value(a.data, b.parents, b.local_grads), Value(b.data, a.parents, a.local_grads), c]
    # each output has a factor of its own, or gradients that swap places would go unseen
    assert not gradcheck(swapped, [[1.0, -2.0], [[0.5, 0.25], [2.0, 1.0], [0.0, -1.0]]]).ok


def test_output_may_be_an_input_and_an_input_unused():
    report = gradcheck(lambda x, y: [x, x * 2.0], [3.0, 4.0])
    assert report.ok and [row.expected for row in report.rows][1] == 0.0


def test_argument_names_come_from_the_function():
    def loss(weight, bias):
        return weight * 2.0 + bias
    assert [row.argument for row in gradcheck(loss, [1.0, 2.0]).rows] == ["weight", "bias"]
    assert [row.argument for row in gradcheck(lambda *all: all[0] * all[1], [1.0, 2.0]).rows] == [
        "arg0", "arg1"]


@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-5])
def test_kink_nearby_is_stepped_around(distance):
    for x in (distance, -distance):
        assert gradcheck(Value.relu, [x]).ok
        assert gradcheck(lambda x: x.relu() + x * 2.0, [x]).ok


def test_at_a_kink_the_report_says_so():
    report = gradcheck(lambda x: (x - 1.0).relu(), [1.0])
    assert not report.ok  # backward says 0, the differences 1/2
    report = gradcheck(lambda x: (x - 1.0).relu(), [1.0 + 1e-8])
    assert not report.ok and "a kink or jump is near" in str(report)


def test_edge_of_the_domain_is_not_stepped_over():
    """log(x - h) does not exist for the first of the steps."""
    for x in (1e-2, 1e-3, 1e-4):
        report = gradcheck(Value.log, [x])
        assert report.ok, report
    report = gradcheck(Value.log, [1e-9])
    assert not report.ok and "no value so near: try a smaller step" in str(report)
    assert gradcheck(Value.log, [1e-9], step=1e-11).ok


def test_large_and_small_numbers():
    assert gradcheck(lambda x, y: x * y, [1e8, 1e-8], FLOAT64["op differences"]).ok
    assert gradcheck(lambda x: x + 1e6, [1.0], FLOAT64["op differences"]).ok
    assert not gradcheck(broken(lambda x: x + 1e6), [1.0], FLOAT64["op differences"]).ok


# ---- What it says --------------------------------------------------------------------------------


def test_table_of_a_failure():
    report = gradcheck(lambda x, y: broken(ops.sin, 1.5)(x) + y, [0.5, 2.0])
    assert str(report).splitlines() == [
        "FAIL: 1 of 2 derivatives are wrong, largest error 3.3e-01, allowed 1e-06",
        "argument  index      at      expected           got    error",
        "x             -     0.5      0.877583       1.31637   3e-01 FAIL",
        "y             -       2             1             1   <1e-06"]


def test_long_table_shows_the_worst():
    values = [float(i + 1) for i in range(50)]
    report = gradcheck(broken(ops.total, 1.001, parent=37), [values], names=["values"])
    lines = str(report).splitlines()
    assert lines[0].startswith("FAIL: 1 of 50") and len(lines) == 2 + 20 + 1
    assert lines[2].split()[:3] == ["values", "37", "38"] and lines[2].endswith("FAIL")
    assert lines[-1] == "... and 30 with smaller errors"


def test_nothing_checked_is_no_pass():
    assert not Report(1e-6).ok
    assert not gradcheck(lambda: Value(1.0), []).ok


def test_relative_errors():
    got = {"a": [[1.0, 2.0]], "b": [1e-5, 0.0]}
    assert relative_errors(got, got) == {"a": 0.0, "b": 0.0}
    # b is measured by a thousandth of a's largest
    errors = relative_errors(got, {"a": [[1.0, 2.0]], "b": [2e-5, 0.0]})
    assert errors == {"a": 0.0, "b": pytest.approx(1e-5 / 2e-3)}
    assert relative_errors({"a": [math.nan]}, {"a": [1.0]}) == {"a": math.inf}
    with pytest.raises(ValueError, match=r"got has \['a'\], expected has \['b'\]"):
        relative_errors({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(ValueError, match="a: got 1 numbers, expected 2"):
        relative_errors({"a": [1.0]}, {"a": [1.0, 2.0]})


def test_derivative():
    for function, slope in ((math.sin, math.cos), (math.exp, math.exp), (math.atan,
                            lambda x: 1 / (1 + x * x)), (lambda x: 1e9, lambda x: 0.0)):
        for x in (-2.0, 0.0, 0.3, 5.0):
            estimate, doubt = derivative(function, x)
            assert abs(estimate - slope(x)) <= min(1e-9 * max(1, abs(slope(x))), 100 * doubt)
    estimate, doubt = derivative(lambda x: math.log(-1.0), 1.0)
    assert math.isnan(estimate) and doubt == math.inf


# ---- What it refuses -----------------------------------------------------------------------------


def test_function_that_is_not_the_same_each_time():
    rng = random.Random(0)
    with pytest.raises(ValueError, match="not the same each time.*seed its random numbers"):
        gradcheck(lambda x: x * rng.random(), [1.0])


def test_output_that_is_not_finite():
    with pytest.raises(ValueError, match=r"the output is not finite at these inputs: \[-inf\]"):
        gradcheck(Value.log, [0.0])


def test_input_that_is_no_leaf():
    x = Value(1.0)
    with pytest.raises(ValueError, match="^x is not a leaf"):
        gradcheck(lambda x: x * 2.0, [x * 2.0])
    with pytest.raises(TypeError, match=r"w\[1\] must be a Value, got 1\.0"):
        gradcheck_leaves(lambda: x * 2.0, {"w": [x, 1.0]})


@pytest.mark.parametrize("output", [1.0, None, [], [1.0]])
def test_output_that_is_no_value(output):
    with pytest.raises(TypeError, match="must return a Value or a list of Values, got"):
        gradcheck(lambda x: output, [1.0])


def test_inputs_that_are_no_list_or_have_other_names():
    with pytest.raises(TypeError, match="inputs must be a list with an item for each argument"):
        gradcheck(Value.exp, 1.0)
    with pytest.raises(ValueError, match="got 2 names for 1 arguments"):
        gradcheck(Value.exp, [1.0], names=["x", "y"])
    with pytest.raises(TypeError, match="expected a Value or a number, got 'x'"):
        gradcheck(Value.exp, ["x"])


def test_interrupt_leaves_the_inputs_as_they_were():
    x, calls = Value(0.5), []

    def function():
        calls.append(x.data)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return x.exp()

    x.grad = 7.0
    with pytest.raises(KeyboardInterrupt):
        gradcheck_leaves(function, [x])
    assert calls[-1] != 0.5 and (x.data, x.grad) == (0.5, 7.0)


# ---- The command ---------------------------------------------------------------------------------


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "microgpt.engine.gradcheck", *arguments],
                          cwd=ROOT, capture_output=True, text=True)


def test_command_checks_all_ops():
    done = command()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["PASS", name] for name in CATALOGUE]
    assert lines[-1] == f"{len(CATALOGUE)} ops, all derivatives within 1e-09"


def test_command_checks_the_named():
    done = command("gelu", "dot")
    assert done.returncode == 0 and "2 ops, all derivatives" in done.stdout


def test_command_refuses_an_unknown_name():
    done = command("tanh", "tahn")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gradcheck: there is no op 'tahn'; the catalogue has add sub")
    assert command("--all").returncode == 2


def test_command_fails_for_a_wrong_op(monkeypatch, capsys):
    op = CATALOGUE["tanh"]
    monkeypatch.setitem(module.CATALOGUE, "tanh", op._replace(function=broken(op.function)))
    assert main(["tanh", "sin"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  tanh" in out and "PASS  sin" in out
    assert out.endswith("1 of 2 ops have a wrong derivative: tanh\n")
