"""Graphs of Values: backward() walks them right, whatever their shape, and they can be drawn."""
import gc
import random
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given

import microgpt
from microgpt import Value, dot
from microgpt.engine import ops
from microgpt.engine.gradcheck import relative_errors
from microgpt.engine.graph import ancestors, depths, to_dot, to_svg, to_text
from strategies import flat, programs, run_program, some, tensor_call, value_call
from tolerances import FLOAT64

CPYTHON = sys.implementation.name == "cpython"

# ---- Expressions against torch -------------------------------------------------------------------


@given(program=programs(max_steps=14))
@some
def test_random_expressions_agree_with_torch(program):
    """Data and gradient of every number on the way, not only of the leaves."""
    torch = pytest.importorskip("torch")
    ours = run_program(program, [Value(x) for x in program.leaves], value_call)
    ops.total(ours).backward()
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in program.leaves]
    theirs = run_program(program, tensors, tensor_call)
    for tensor in theirs:
        tensor.retain_grad()
    torch.stack(theirs).sum().backward()
    errors = relative_errors(
        {"data": [x.data for x in ours], "grad": [x.grad for x in ours]},
        {"data": [x.item() for x in theirs], "grad": [x.grad.item() for x in theirs]})
    assert max(errors.values()) < FLOAT64["oracle"]


# ---- backward() ----------------------------------------------------------------------------------


def shared_graph():
    """Returns leaves, inner nodes and the end of a graph in which most nodes are used twice."""
    x, y = Value(2.0), Value(-3.0)
    a = x * y
    b = a + x
    c = (a * b).tanh()
    d = a * 0.1 + b * 0.2 + c
    return [x, y], [a, b, c], d


def grads(values):
    return [value.grad for value in values]


def test_second_backward_adds_to_leaves_and_not_to_inner_nodes():
    leaves, inner, end = shared_graph()
    end.backward()
    first, first_inner = grads(leaves), grads(inner)
    end.backward()
    assert grads(leaves) == [2 * grad for grad in first]
    assert grads(inner) == first_inner and end.grad == 1.0
    for leaf in leaves:
        leaf.grad = 0.0
    end.backward()
    assert (grads(leaves), grads(inner)) == (first, first_inner)


def test_second_backward_of_torch_is_the_same():
    torch = pytest.importorskip("torch")
    leaves, _, end = shared_graph()
    x, y = (torch.tensor(leaf.data, dtype=torch.float64, requires_grad=True) for leaf in leaves)
    a = x * y
    b = a + x
    theirs = a * 0.1 + b * 0.2 + (a * b).tanh()
    for _ in range(3):
        end.backward()
        theirs.backward(retain_graph=True)
        assert grads(leaves) == pytest.approx([x.grad.item(), y.grad.item()], rel=1e-12)


def test_two_ends_of_one_graph():
    """The gradients of two losses add up at the leaves, though they share inner nodes."""
    leaves, inner, end = shared_graph()
    other = inner[1] * inner[2]
    end.backward()
    of_end = grads(leaves)
    other.backward()
    both = grads(leaves)
    leaves, inner, end = shared_graph()
    (inner[1] * inner[2]).backward()
    assert both == pytest.approx([a + b for a, b in zip(of_end, grads(leaves))], rel=1e-15)


def test_backward_from_within_and_from_a_leaf():
    leaves, inner, end = shared_graph()
    end.backward()
    leaves[0].grad = leaves[1].grad = 0.0
    inner[0].backward()  # x * y alone
    assert grads(leaves) == [-3.0, 2.0]
    leaf = Value(1.0)
    leaf.backward()
    assert leaf.grad == 1.0


def test_every_path_counts():
    """Thirty doublings have 2^30 paths: each node is visited once, and all paths count."""
    x = node = Value(1.0)
    for _ in range(30):
        node = node + node
    node.backward()
    assert node.data == x.grad == 2.0 ** 30


def test_same_value_as_several_arguments():
    x = Value(3.0)
    out = dot([x, x, x], [x, x, 2.0 * x])
    out.backward()
    assert out.data == 36.0 and x.grad == 24.0  # 4 x^2 and 8 x


class Stop(Exception):
    pass


class Trap(float):
    """A local derivative at which a walk ends, as by Ctrl-C."""

    armed = True

    def __mul__(self, other):
        if Trap.armed:
            raise Stop
        return float(self) * other


@pytest.mark.parametrize("place", range(6))
def test_interrupted_walk_leaves_nothing_behind(place):
    leaves, inner, end = shared_graph()
    end.backward()
    expected, expected_inner = grads(leaves), grads(inner)
    nodes = [node for node in ancestors(end) if node.parents]
    node = nodes[place % len(nodes)]
    kept = node.local_grads
    node.local_grads = (Trap(kept[0]), *kept[1:])
    Trap.armed = True
    with pytest.raises(Stop):
        end.backward()
    Trap.armed = False
    for leaf in leaves:  # what got to the leaves is there, as with any second call
        leaf.grad = 0.0
    end.backward()
    assert (grads(leaves), grads(inner)) == (expected, expected_inner)


def values_alive():
    gc.collect()
    return sum(type(item) is Value for item in gc.get_objects())


def test_long_chain_goes_backward_and_away():
    """100,000 Values in a row: no recursion in the walk, nor when the last name is gone."""
    before = values_alive()
    x = node = Value(1.0)
    for i in range(100_000):
        node = node * 1.0001 if i % 2 else node.tanh() + x
    node.backward()
    assert x.grad > 1.0
    del node
    assert values_alive() <= before + 1


def test_graph_has_no_cycles():
    """Without the collector, a graph goes as soon as its end does."""
    if not CPYTHON:
        pytest.skip("only CPython counts references")
    before = values_alive()
    gc.disable()
    try:
        for _ in range(5):
            leaves, inner, end = shared_graph()
            ops.log_softmax([*leaves, *inner, end])[0].backward()
            end.backward()
        del leaves, inner, end
        assert sum(type(item) is Value for item in gc.get_objects()) == before
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_model_of_forty_layers_goes_backward():
    config = microgpt.Config(vocab_size=3, n_embd=2, n_head=1, n_layer=40, block_size=4)
    weights = microgpt.init_weights(config, random.Random(0))
    loss = microgpt.mean_loss([[2, 0, 1, 1, 2]], weights, config)
    assert max(depths(ancestors(loss)).values()) > sys.getrecursionlimit()
    loss.backward()
    assert all(p.grad for p in flat(weights["lm_head"]))


# ---- Looking at graphs ---------------------------------------------------------------------------


def example():
    """Returns names and the graph of the module's docstring: d = a * b + a."""
    a, b = Value(2.0), Value(-3.0)
    c = a * b
    d = c + a
    d.backward()
    return {"a": a, "b": b, "c": c, "d": d}, d


def test_ancestors_come_once_and_parents_first():
    names, d = example()
    assert ancestors(d) == [names[name] for name in "abcd"]
    assert ancestors(names["a"]) == [names["a"]]
    with pytest.raises(TypeError, match=r"a graph begins at a Value, got 1\.0"):
        ancestors(1.0)


@given(program=programs())
@some
def test_ancestors_are_in_order_in_any_graph(program):
    end = ops.total(run_program(program, [Value(x) for x in program.leaves], value_call))
    place = {id(node): i for i, node in enumerate(ancestors(end))}
    depth = depths(ancestors(end))
    assert len(place) == len(ancestors(end)) and place[id(end)] == len(place) - 1
    for node in ancestors(end):
        assert all(place[id(parent)] < place[id(node)] for parent in node.parents)
        assert depth[id(node)] == max([depth[id(p)] + 1 for p in node.parents], default=0)


def test_text_of_a_small_graph():
    a, b = Value(2.0), Value(-3.0)
    c = a * b
    c.backward()
    assert to_text(c, names={"a": a, "b": b, "c": c}).splitlines() == [
        "          data       grad      slope",
        "c           -6          1",
        "  a          2         -3         -3",
        "  b         -3          2          2"]


def test_text_names_what_has_no_name_and_writes_shared_nodes_once():
    x = Value(1.5)
    y = x * 2.0
    out = y * y
    out.backward()
    lines = [line.split() for line in to_text(out).splitlines()]
    assert lines == [["data", "grad", "slope"], ["v4", "9", "1"], ["v3", "3", "6", "3"],
                     ["v1", "1.5", "12", "2"], ["v2", "2", "9", "1.5"], ["v3", "(above)", "3"]]


def test_names_may_be_rows_and_hold_other_things():
    weights = {"w": [[Value(1.0), Value(2.0)], [Value(3.0), Value(4.0)]]}
    out = microgpt.linear([Value(1.0), Value(0.5)], weights["w"])[1]
    text = to_text(out, names={"len": len, "n": 3, **weights, "out": out})
    assert [line.split()[0] for line in text.splitlines()[1:]] == [
        "out", "w[1][0]", "w[1][1]", "v1", "v2"]


def test_text_of_a_deep_graph_stops_and_counts_the_rest():
    node = Value(1.0)
    for _ in range(100_000):
        node = node.exp() if node.data < 1 else node * 0.5
    lines = to_text(node, limit=50).splitlines()
    assert len(lines) == 52 and max(map(len, lines)) < 120
    assert lines[-1].startswith("... and ") and lines[-1].endswith(" more nodes (limit=50)")
    shown = 50
    assert lines[-1].split()[2] == f"{len(ancestors(node)) - shown:,}"


def test_pictures_of_a_large_graph_are_refused():
    out = ops.total([Value(1.0) for _ in range(1000)])
    for draw, name in ((to_dot, "DOT"), (to_svg, "SVG")):
        with pytest.raises(ValueError, match=f"has 1,001 nodes and {name} shows up to 300: give"):
            draw(out)
        assert draw(out, limit=1001)


def test_dot():
    names, d = example()
    lines = to_dot(d, names).splitlines()
    assert lines[0] == "digraph {" and lines[-1] == "}"
    assert '  n0 [label="a\\ndata 2\\ngrad -2", fillcolor=lightgrey]' in lines
    assert '  n3 [label="d\\ndata -4\\ngrad 1"]' in lines
    edges = [line.strip() for line in lines if "->" in line]
    assert edges == ['n0 -> n2 [label="-3"]', 'n1 -> n2 [label="2"]', 'n2 -> n3 [label="1"]',
                     'n0 -> n3 [label="1"]']


def test_dot_escapes_names():
    x = Value(1.0)
    assert r'label="say \"a\\b\" now\ndata 1\ngrad 0"' in to_dot(x, {'say "a\\b"\nnow': x})


SVG = "{http://www.w3.org/2000/svg}"


def boxes(svg):
    """Returns the text of each box -> its x, y, width, height, all checked to be in the picture."""
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    found = {}
    for group in root.iter(SVG + "g"):
        rect = group.find(SVG + "rect")
        x, y, w, h = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
        assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
        found[tuple(text.text for text in group.iter(SVG + "text"))] = (x, y, w, h)
    return found


def test_svg():
    names, d = example()
    svg = to_svg(d, names)
    found = boxes(svg)
    assert list(found) == [("a", "data 2", "grad -2"), ("b", "data -3", "grad 2"),
                           ("c", "data -6", "grad 1"), ("d", "data -4", "grad 1")]
    (ax, ay, *_), (bx, by, *_), (cx, *_), (dx, *_) = found.values()
    assert ax == bx < cx < dx and ay < by
    assert len(list(ElementTree.fromstring(svg).iter(SVG + "path"))) == 4


@given(program=programs())
@some
def test_svg_of_any_graph_is_well_formed_and_nothing_overlaps(program):
    end = ops.total(run_program(program, [Value(x) for x in program.leaves], value_call))
    nodes = ancestors(end)
    names = {f"<{i} & co>": node for i, node in enumerate(nodes)}
    svg = to_svg(end, names, limit=10_000)
    found = sorted(boxes(svg).values())
    assert len(found) == len(nodes)
    for (x0, y0, _, height), (x1, y1, *_) in zip(found, found[1:]):
        assert x0 < x1 or y0 + height < y1
    paths = ElementTree.fromstring(svg).iter(SVG + "path")
    assert len(list(paths)) == sum(len(node.parents) for node in nodes)
