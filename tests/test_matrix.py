"""Matrix: every op against finite differences and torch, and the graph that they make."""
import ast
import doctest
import gc
import inspect
import math
import operator
import random
import sys
from typing import Callable, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from microgpt.backends.matrix import MatrixBackend
from microgpt.engine import matrix
from microgpt.engine.gradcheck import derivative, relative_errors
from microgpt.engine.matrix import Matrix
from microgpt.nn import GPTConfig, init_weights
from strategies import few, some
from tolerances import FLOAT64

# ---- The ops, each with arguments and with torch's way to compute it -----------------------------


class OpCase(NamedTuple):
    """An op, its matrices by name, and two ways to call it: with Matrix leaves, with tensors."""

    op: Callable
    leaves: dict      # name -> rows
    call: Callable    # of (op, a Matrix for each leaf)
    torch: Callable   # of (torch, a tensor for each leaf)


def numbers(rng, rows, columns):
    """Returns rows of random numbers, none of them near 0, where relu bends."""
    return [[rng.choice((-1, 1)) * rng.uniform(0.2, 1.5) for _ in range(columns)]
            for _ in range(rows)]


def multipliers(rng, rows, columns):
    """Returns rows of 0 and 1.25, as for a dropout of 0.2, though a half is dropped."""
    return [[rng.choice((0.0, 1.25)) for _ in range(columns)] for _ in range(rows)]


def embed_case(rng, size):
    table, ids = size("V"), [rng.randrange(size("V")) for _ in range(size("N"))]
    return OpCase(matrix.embed, {"table": numbers(rng, table, size("C"))},
                  lambda op, table: op(table, ids), lambda torch, table: table[ids])


def add_case(rng, size):
    return OpCase(matrix.add, {name: numbers(rng, size("N"), size("C")) for name in "xy"},
                  lambda op, x, y: op(x, y), lambda torch, x, y: x + y)


def linear_case(rng, size):
    return OpCase(matrix.linear, {"x": numbers(rng, size("N"), size("C")),
                                  "w": numbers(rng, size("V"), size("C"))},
                  lambda op, x, w: op(x, w), lambda torch, x, w: x @ w.T)


def relu_case(rng, size):
    return OpCase(matrix.relu, {"x": numbers(rng, size("N"), size("C"))},
                  lambda op, x: op(x), lambda torch, x: x.relu())


def rmsnorm_case(rng, size):
    def theirs(torch, x):
        return torch.nn.functional.rms_norm(x, x.shape[1:], eps=1e-5)
    return OpCase(matrix.rmsnorm, {"x": numbers(rng, size("N"), size("C"))},
                  lambda op, x: op(x), theirs)


def dropout_case(rng, size):
    masks = multipliers(rng, size("N"), size("C"))
    return OpCase(matrix.dropout, {"x": numbers(rng, size("N"), size("C"))},
                  lambda op, x: op(x, masks), lambda torch, x: x * torch.tensor(masks))


def cross_entropy_case(rng, size):
    targets = [rng.randrange(size("V")) for _ in range(size("N"))]

    def theirs(torch, logits):
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets))
        return loss.reshape(1, 1)
    return OpCase(matrix.cross_entropy, {"logits": numbers(rng, size("N"), size("V"))},
                  lambda op, logits: op(logits, targets), theirs)


def torch_attention(torch, q, k, v, n_head, lengths, masks):
    """Returns attention as the papers write it, one sequence and one head after another."""
    out = []
    for index, (qs, ks, vs) in enumerate(zip(q.split(lengths), k.split(lengths),
                                             v.split(lengths))):
        T, heads = len(qs), []
        for head, (qh, kh, vh) in enumerate(zip(qs.chunk(n_head, 1), ks.chunk(n_head, 1),
                                                vs.chunk(n_head, 1))):
            scores = qh @ kh.T / qh.shape[1] ** 0.5
            ahead = torch.ones(T, T).triu(1).bool()
            weights = scores.masked_fill(ahead, -math.inf).softmax(1)
            if masks:
                weights = weights * torch.tensor(masks[index, head])
            heads.append(weights @ vh)
        out.append(torch.cat(heads, 1))
    return torch.cat(out)


def attention_case(rng, size, masked=False):
    n_head, lengths = size("H"), size("lengths")
    C = n_head * size("D")
    masks = {(index, head): multipliers(rng, T, T) for index, T in enumerate(lengths)
             for head in range(n_head)} if masked else None
    look_up = masked and (lambda index, head, T: masks[index, head])
    return OpCase(matrix.attention, {name: numbers(rng, sum(lengths), C) for name in "qkv"},
                  lambda op, q, k, v: op(q, k, v, n_head, lengths, look_up),
                  lambda torch, q, k, v: torch_attention(torch, q, k, v, n_head, lengths, masks))


def masked_attention_case(rng, size):
    return attention_case(rng, size, masked=True)


CASES = {"embed": embed_case, "add": add_case, "linear": linear_case, "relu": relu_case,
         "rmsnorm": rmsnorm_case, "dropout": dropout_case, "attention": attention_case,
         "attention with dropout": masked_attention_case, "cross_entropy": cross_entropy_case}
SIZES = {"N": 5, "V": 4, "C": 3, "H": 2, "D": 2, "lengths": [3, 1, 4]}

every_op = pytest.mark.parametrize("name", CASES)
sizes = st.fixed_dictionaries({
    "N": st.integers(1, 6), "V": st.integers(1, 6), "C": st.integers(1, 6), "H": st.integers(1, 3),
    "D": st.integers(1, 3), "lengths": st.lists(st.integers(1, 5), min_size=1, max_size=3)})


def make_case(name, drawn, seed):
    return CASES[name](random.Random(f"{name} {seed}"), drawn.__getitem__)


def test_every_op_has_a_case():
    """An op is a function that makes a Matrix with parents."""
    tree = ast.parse((ROOT / "engine" / "matrix.py").read_text(encoding="utf-8"))
    ops = {function.name for function in tree.body if isinstance(function, ast.FunctionDef)
           for call in ast.walk(function)
           if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Matrix"
           and len(call.args) > 1}
    assert ops == {name.split()[0] for name in CASES}


# ---- What an op computes, and its gradients ------------------------------------------------------


def factors_of(rows):
    """Returns a random factor for each entry, so that no two can stand in for each other."""
    return numbers(random.Random(len(rows)), len(rows), len(rows[0]))


def weighted_sum(rows):
    """Returns the entries, each times its factor, summed up."""
    return sum(f * a for pair in zip(factors_of(rows), rows) for f, a in zip(*pair))


def backward_gradients(case, op=None):
    """Returns name -> rows: by backward(), d weighted_sum(output) / d each leaf."""
    leaves = {name: Matrix(rows) for name, rows in case.leaves.items()}
    output = case.call(op or case.op, *leaves.values())
    output.backward(factors_of(output.rows))
    return {name: leaf.grad for name, leaf in leaves.items()}


def difference_gradients(case):
    """Returns name -> rows: the same by finite differences."""
    rows_of = {name: [list(row) for row in rows] for name, rows in case.leaves.items()}

    def slope(row, column):
        home = row[column]

        def moved(x):
            row[column] = x
            return weighted_sum(case.call(case.op, *map(Matrix, rows_of.values())).rows)
        found, _ = derivative(moved, home)
        row[column] = home
        return found
    return {name: [[slope(row, column) for column in range(len(row))] for row in rows]
            for name, rows in rows_of.items()}


def torch_gradients(case):
    """Returns the rows that torch computes in float64, and its gradients as name -> rows."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    tensors = {name: torch.tensor(rows, dtype=torch.float64, requires_grad=True)
               for name, rows in case.leaves.items()}
    output = case.torch(torch, *tensors.values())
    factors = torch.tensor(factors_of(output.tolist()), dtype=torch.float64)
    (factors * output).sum().backward()
    return output.tolist(), {name: tensor.grad.tolist() for name, tensor in tensors.items()}


def error(got, expected):
    """Returns the largest error of any leaf's gradient.

    A gradient below a hundredth counts as that large: that of rmsnorm of one number is 1e-5 of its
    terms, which cancel, and differences of a sum of some such terms see no more than 1e-12.
    """
    return max(relative_errors(got, expected, floor=0.01).values())


@every_op
@given(drawn=sizes, seed=st.integers(0, 999))
@some
def test_gradients_are_those_of_finite_differences(name, drawn, seed):
    case = make_case(name, drawn, seed)
    got, expected = backward_gradients(case), difference_gradients(case)
    assert error(got, expected) < FLOAT64["op differences"], (got, expected)


@every_op
@given(drawn=sizes, seed=st.integers(0, 999))
@some
def test_output_and_gradients_are_those_of_torch(name, drawn, seed):
    case = make_case(name, drawn, seed)
    output, expected = torch_gradients(case)
    ours = case.call(case.op, *map(Matrix, case.leaves.values())).rows
    assert relative_errors({"output": ours}, {"output": output})["output"] < FLOAT64["oracle"]
    got = backward_gradients(case)
    assert error(got, expected) < FLOAT64["oracle"], (got, expected)


@every_op
def test_the_arguments_are_left_as_they_were(name):
    case = make_case(name, SIZES, 0)
    before = repr(case.leaves)
    backward_gradients(case)
    assert repr(case.leaves) == before


# ---- The check of the checks ---------------------------------------------------------------------


def scaled(rows, factor=1.001):
    return [[factor * a for a in row] for row in rows]


def wrong_backward(op):
    """Returns the op with a backward that is off by a thousandth."""
    def wrong(*arguments):
        node = op(*arguments)
        push = node.push
        node.push = lambda grad: push(scaled(grad))
        return node
    return wrong


def wrong_for_one_parent(op, index):
    """Returns the op with a backward that is off by a thousandth for one of its arguments."""
    def wrong(*arguments):
        node = op(*arguments)
        push = node.push

        def push_wrong(grad):
            push(grad)
            node.parents[index].grad = scaled(node.parents[index].grad)
        node.push = push_wrong
        return node
    return wrong


@every_op
def test_backward_off_by_a_thousandth_is_caught_by_differences(name):
    case = make_case(name, SIZES, 1)
    expected = difference_gradients(case)
    assert error(backward_gradients(case), expected) < FLOAT64["op differences"]
    assert 1e-4 < error(backward_gradients(case, wrong_backward(case.op)), expected) < 1.1e-3
    for index in range(len(case.leaves)):
        wrong = wrong_for_one_parent(case.op, index)
        assert 1e-4 < error(backward_gradients(case, wrong), expected) < 1.1e-3, index


@every_op
def test_backward_off_by_a_thousandth_is_caught_by_torch(name):
    case = make_case(name, SIZES, 2)
    _, expected = torch_gradients(case)
    assert error(backward_gradients(case), expected) < FLOAT64["oracle"]
    assert 1e-4 < error(backward_gradients(case, wrong_backward(case.op)), expected) < 1.1e-3
    for index in range(len(case.leaves)):
        wrong = wrong_for_one_parent(case.op, index)
        assert 1e-4 < error(backward_gradients(case, wrong), expected) < 1.1e-3, index


# ---- Inner products ------------------------------------------------------------------------------

FORMS = {"plain": lambda length: matrix.plain_products, "unrolled": matrix.unrolled_products,
         "distance": lambda length: matrix.distance_products,
         "chosen": lambda length: matrix.products}
if hasattr(math, "sumprod"):
    FORMS["sumprod"] = lambda length: matrix.sumprod_products


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [*range(1, 71), 96, 128, 257])
def test_all_forms_of_inner_products_agree(form, length):
    rng = random.Random(length)
    form = FORMS[form](length)
    a, b = numbers(rng, 13, length), numbers(rng, 14, length)
    a[3], b[5] = [0.0] * length, [0.0] * length
    a[4], b[6] = [1e-9 * x for x in a[4]], [1e9 * y for y in b[6]]
    b[7] = [3.0 * x for x in a[1]]  # in the same direction
    got = form(a, b)
    assert [len(row) for row in got] == [14] * 13
    bound = (length + 8) * sys.float_info.epsilon  # roundings, of numbers up to |x| |y|
    for x, row in zip(a, got):
        for y, product in zip(b, row):
            exact = math.fsum(map(operator.mul, x, y))
            assert abs(product - exact) <= bound * math.hypot(*x) * math.hypot(*y)
    assert form(matrix.columns(list(zip(*a))), tuple(b)) == got  # rows may be tuples


@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"distance", "chosen"}))
@pytest.mark.parametrize("length", range(1, 71))
def test_inner_products_of_whole_numbers_are_exact(form, length):
    rng = random.Random(length)
    rows = [[float(rng.randrange(-9, 10)) for _ in range(length)] for _ in range(7)]
    a, b = rows[:3], rows[3:]
    exact = [[math.fsum(map(operator.mul, x, y)) for y in b] for x in a]
    assert FORMS[form](length)(a, b) == exact


@pytest.fixture
def fresh_choice():
    matrix.products_for.cache_clear()
    yield
    matrix.products_for.cache_clear()


def test_the_form_follows_from_the_length(monkeypatch, fresh_choice):
    monkeypatch.setattr(matrix, "HAS_SUMPROD", False)
    last = matrix.UNROLL_UP_TO
    assert matrix.products_for(last + 1) is matrix.plain_products
    assert matrix.products_for(last).__name__ == "products"
    assert matrix.products_for(last) is matrix.products_for(last)  # compiled once


def test_where_python_has_sumprod_long_rows_use_it(monkeypatch, fresh_choice):
    monkeypatch.setattr(matrix, "HAS_SUMPROD", True)
    monkeypatch.setattr(matrix, "FAST_DIST", False)
    monkeypatch.setattr(math, "sumprod", lambda x, y: math.fsum(map(operator.mul, x, y)),
                        raising=False)
    first = matrix.SUMPROD_FROM
    assert matrix.products_for(first) is matrix.sumprod_products
    assert matrix.products_for(first - 1) is not matrix.sumprod_products
    assert matrix.products([[2.0] * first], [[3.0] * first]) == [[6.0 * first]]


@pytest.mark.parametrize("fast", [True, False])
def test_where_dist_is_fast_many_long_rows_use_it(monkeypatch, fresh_choice, fast):
    monkeypatch.setattr(matrix, "FAST_DIST", fast)
    monkeypatch.setattr(matrix, "distance_products", lambda a, b: "distances")
    length = matrix.DISTANCE_FROM
    assert (matrix.products([[1.0] * length] * 99, [[1.0] * length] * 99) == "distances") == fast
    assert matrix.products([[1.0] * length], [[1.0] * length] * 99) == [[float(length)] * 99]
    assert matrix.products([[1.0]] * 99, [[1.0]] * 99) == [[1.0] * 99] * 99


# ---- The graph -----------------------------------------------------------------------------------


def test_uses_of_a_node_add_up():
    """x goes three ways and h two: their gradients are sums, and handed on when complete."""
    def tower(op, x, w):
        h = matrix.relu(matrix.linear(x, w))
        return matrix.add(matrix.add(h, matrix.linear(matrix.rmsnorm(h), w)), x)
    rng = random.Random(5)
    case = OpCase(None, {"x": numbers(rng, 3, 4), "w": numbers(rng, 4, 4)}, tower, None)
    assert error(backward_gradients(case), difference_gradients(case)) < FLOAT64["op differences"]


@pytest.mark.parametrize("call", [
    lambda op, x: matrix.add(x, x), lambda op, x: matrix.linear(x, x),
    lambda op, x: matrix.attention(x, x, x, 2, [1, 3])], ids=["add", "linear", "attention"])
def test_one_node_for_several_arguments(call):
    case = OpCase(None, {"x": numbers(random.Random(6), 4, 4)}, call, None)
    assert error(backward_gradients(case), difference_gradients(case)) < FLOAT64["op differences"]


def test_gradients_that_share_rows_do_not_change_each_other():
    x, y = Matrix([[1.0, 2.0]]), Matrix([[3.0, 4.0]])
    matrix.add(matrix.add(x, y), x).backward([[1.0, 10.0]])
    assert (x.grad, y.grad) == ([[2.0, 20.0]], [[1.0, 10.0]])


def test_leaves_collect_the_gradients_of_every_backward():
    x, w = Matrix([[1.0, -2.0]]), Matrix([[3.0, 4.0], [5.0, -6.0]])
    y = matrix.relu(matrix.linear(x, w))
    y.backward([[1.0, 1.0]])
    once = [list(row) for row in w.grad]
    y.backward([[1.0, 1.0]])
    assert w.grad == scaled(once, 2.0)
    matrix.linear(x, w).backward([[1.0, 0.0]])
    assert w.grad == [[2 * a + b for a, b in zip(*rows)] for rows in zip(once, [x.rows[0], [0, 0]])]


def test_the_gradient_of_what_was_not_used_stays_none():
    x, unused = Matrix([[1.0]]), Matrix([[2.0]])
    matrix.relu(x).backward()
    assert (x.grad, unused.grad) == ([[1.0]], None)


def test_a_chain_of_100000_nodes():
    start = x = Matrix([[1.0]])
    one = Matrix([[1e-5]])
    for _ in range(100_000):
        x = matrix.add(x, one)
    x.backward()
    assert math.isclose(x.rows[0][0], 2.0) and start.grad[0][0] == 1.0
    assert one.grad == [[100_000.0]]
    del x  # and freeing it is no recursion either


def test_a_training_step_leaves_nothing_for_the_garbage_collector():
    config = GPTConfig(7, n_embd=8, n_head=2, n_layer=2, block_size=8, dropout=0.1)
    backend = MatrixBackend(config, init_weights(config, random.Random(0)))
    backend.step([[0, 1, 2, 3], [4, 5]], 0.01, dropout_seed=1)
    gc.collect()
    gc.disable()
    try:
        backend.step([[6, 5, 4, 3], [2, 1]], 0.01, dropout_seed=2)
        assert not any(type(thing) is Matrix for thing in gc.get_objects())
        assert gc.collect() == 0 or sys.implementation.name != "cpython"
    finally:
        gc.enable()


# ---- Edges ---------------------------------------------------------------------------------------


@given(drawn=sizes, seed=st.integers(0, 999))
@few
def test_attend_is_the_last_row_of_attention(drawn, seed):
    T, rng = max(drawn["lengths"]), random.Random(seed)
    q, k, v = (numbers(rng, T, drawn["D"]) for _ in range(3))
    full = matrix.attention(Matrix(q), Matrix(k), Matrix(v), 1, [T]).rows
    for t in range(T):
        query = [x * drawn["D"] ** -0.5 for x in q[t]]
        got = matrix.attend(query, k[:t + 1], matrix.columns(v[:t + 1]))
        assert relative_errors({"row": got}, {"row": full[t]})["row"] < FLOAT64["formula"]


@given(drawn=sizes, seed=st.integers(0, 999))
@few
def test_sequences_do_not_see_each_other(drawn, seed):
    """Packed end to end, each comes out as it does alone, and past tokens see no later ones."""
    rng, H, lengths = random.Random(seed), drawn["H"], drawn["lengths"]
    q, k, v = (numbers(rng, sum(lengths), H * drawn["D"]) for _ in range(3))
    packed = matrix.attention(Matrix(q), Matrix(k), Matrix(v), H, lengths).rows
    start = 0
    for T in lengths:
        for end in range(start + 1, start + T + 1):
            part = slice(start, end)
            alone = matrix.attention(Matrix(q[part]), Matrix(k[part]), Matrix(v[part]), H,
                                     [end - start]).rows
            assert error({"rows": packed[part]}, {"rows": alone}) < FLOAT64["formula"]
        start += T


def test_with_one_position_attention_does_not_depend_on_queries_and_keys():
    q, k, v = (Matrix(numbers(random.Random(i), 2, 4)) for i in range(3))
    matrix.attention(q, k, v, 2, [1, 1]).backward([[1.0] * 4] * 2)
    assert q.grad == k.grad == [[0.0] * 4] * 2
    assert v.grad == [[1.0] * 4] * 2


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=6), st.floats(-1000, 1000))
@few
def test_softmax_ignores_shifts(scores, shift):
    T = len(scores)
    rows = matrix.causal_softmax([scores] * T)
    shifted = matrix.causal_softmax([[score + shift for score in scores]] * T)
    for t, (row, other) in enumerate(zip(rows, shifted), 1):
        assert row[t:] == [0.0] * (T - t)
        assert math.isclose(sum(row), 1.0)
        assert all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(row, other))


@pytest.mark.parametrize("size", [1e3, 1e100, 1e300])
def test_large_numbers_do_not_overflow(size):
    logits = Matrix([[size, -size, 0.0], [0.0, size, size]])
    loss = matrix.cross_entropy(logits, [0, 2])
    loss.backward()
    assert loss.rows[0][0] == pytest.approx(0.5 * math.log(2))
    assert logits.grad[0] == [0.0, 0.0, 0.0]
    assert logits.grad[1] == pytest.approx([0.0, 0.25, -0.25])
    rows = matrix.causal_softmax([[size, size], [size, -size]])
    assert rows == [[1.0, 0.0], [1.0, 0.0]]


def test_rmsnorm_of_zeros():
    x = Matrix([[0.0, 0.0]])
    y = matrix.rmsnorm(x)
    y.backward([[1.0, -2.0]])
    assert y.rows == [[0.0, 0.0]]
    assert x.grad[0] == pytest.approx([1e-5 ** -0.5, -2 * 1e-5 ** -0.5])


def test_relu_at_zero_has_slope_zero():
    x = Matrix([[0.0, -0.0, 1e-300]])
    matrix.relu(x).backward([[1.0, 1.0, 1.0]])
    assert x.grad == [[0.0, 0.0, 1.0]]


@every_op
def test_nan_stays_nan(name):
    """A loss that has become nan must show, not turn into a number on its way."""
    case = make_case(name, SIZES, 3)
    for leaf in case.leaves:
        rows = {name: [list(row) for row in rows] for name, rows in case.leaves.items()}
        rows[leaf] = [[math.nan] * len(row) for row in rows[leaf]]
        out = case.call(case.op, *map(Matrix, rows.values())).rows
        assert all(math.isnan(a) for row in out for a in row), leaf


def test_examples_in_docstrings():
    results = doctest.testmod(matrix)
    assert results.attempted > 0 and results.failed == 0


def test_ops_say_what_comes_back():
    for name in CASES:
        op = getattr(matrix, name.split()[0])
        assert inspect.getdoc(op).startswith("Returns ")
