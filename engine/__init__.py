"""Autograd in pure Python: the file's `Value`, more functions of it, and tools to look at them.

    ops.py        functions of Values, all listed in one CATALOGUE
    gradcheck.py  are the derivatives right? backward() against finite differences
    graph.py      what did I compute? a graph as text, as Graphviz DOT, as SVG
    optim.py      SGD, Adam, AdamW, Muon, for rows of floats and for Values

`Value`, `dot` and the rest of the core are those of microgpt.py, not copies. Importing this
package also makes each function of one or two Values a method:

>>> from microgpt.engine import Value, tanh
>>> x = Value(0.5)
>>> y = x.tanh()  # or tanh(x)
>>> y.backward()
>>> print(f"{y.data:.4f} {x.grad:.4f}")
0.4621 0.7864
"""
from microgpt import Adam, Value, dot, linear, rmsnorm
from microgpt.engine.ops import (
    CATALOGUE, Op, acos, asin, atan, clip, cos, cosh, cross_entropy, elu, erf, expm1, gelu,
    leaky_relu, log1p, log_sigmoid, log_softmax, logsumexp, maximum, mean, minimum, power, product,
    reciprocal, sigmoid, silu, sin, sinh, softmax, softplus, sqrt, square, tan, tanh, total,
    variance)

__all__ = [
    "Adam", "CATALOGUE", "Op", "Value", "acos", "asin", "atan", "clip", "cos", "cosh",
    "cross_entropy", "dot", "elu", "erf", "expm1", "gelu", "leaky_relu", "linear", "log1p",
    "log_sigmoid", "log_softmax", "logsumexp", "maximum", "mean", "minimum", "power", "product",
    "reciprocal", "rmsnorm", "sigmoid", "silu", "sin", "sinh", "softmax", "softplus", "sqrt",
    "square", "tan", "tanh", "total", "variance"]


def _attach_methods():
    """Makes x.tanh(), x.maximum(y) and abs(x) work, without touching what Value has of its own."""
    for op in CATALOGUE.values():
        ours = getattr(op.function, "__module__", "") == "microgpt.engine.ops"
        if ours and not op.lists and not hasattr(Value, op.name):
            setattr(Value, op.name, op.function)
    Value.__abs__ = CATALOGUE["abs"].function


_attach_methods()
