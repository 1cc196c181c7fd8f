"""Functions of Values, each with its value and its local derivative side by side.

A node of the graph needs three things: its number, its parents, and its derivative by each of
them. That is all a new function has to hand to `Value(data, parents, local_grads)`; the class
itself stays as it is. All of them take plain numbers too, and what is outside the domain of a
function raises ValueError.

CATALOGUE, at the end, lists them together with the operators of microgpt.py. It is what the
gradient checker and the tests go through: an op that is listed there is tested.

Left out: tensors. The same functions for whole rows are what matrix.py and torch are for.

>>> x, y = Value(3.0), Value(4.0)
>>> distance = sqrt(square(x) + square(y))
>>> distance.backward()
>>> print(f"{distance.data:.1f} {x.grad:.1f} {y.grad:.1f}")
5.0 0.6 0.8
"""
import math
import numbers
import operator
from typing import Callable, NamedTuple

import microgpt
from microgpt import Value, dot, rmsnorm

# ---- Taking arguments ----------------------------------------------------------------------------


def as_value(x):
    """Returns x itself if it is a Value, and a new leaf for a plain number."""
    if isinstance(x, Value):
        return x
    if isinstance(x, numbers.Real):
        return Value(x)
    raise TypeError(f"expected a Value or a number, got {x!r}")


def as_values(name, values):
    """Returns a list of Values for a list (or any iterable) of Values and numbers, never empty."""
    values = [as_value(x) for x in values]
    if not values:
        raise ValueError(f"{name} needs at least one Value, got an empty list")
    return values


def require(condition, name, accepted, x):
    """Raises ValueError, which names the function, what it takes and what it got, or does not."""
    if not condition:
        raise ValueError(f"{name} needs {accepted}, got {x!r}")


# ---- Squashing functions and activations ---------------------------------------------------------


def tanh(x):
    """Returns the hyperbolic tangent: between -1 and 1, steepest (slope 1) at 0."""
    x = as_value(x)
    e = math.exp(-2 * math.fabs(x.data))  # of minus something, so it cannot overflow
    # the slope is 1 - tanh^2, written so that it does not cancel to 0 for large x
    return Value(math.tanh(x.data), (x,), (4 * e / (1 + e) ** 2,))


def logistic(x):
    """Returns, for a float, 1 / (1 + e^-x) and its slope, both exact to rounding at any size."""
    e = math.exp(-math.fabs(x))
    small, slope = e / (1 + e), e / (1 + e) ** 2
    return (1 / (1 + e) if x >= 0 else small), slope


def sigmoid(x):
    """Returns 1 / (1 + e^-x): any number to one between 0 and 1."""
    x = as_value(x)
    out, slope = logistic(x.data)
    return Value(out, (x,), (slope,))


def log_sigmoid(x):
    """Returns log(sigmoid(x)), finite where sigmoid(x) itself has become 0."""
    x = as_value(x)
    return Value(min(x.data, 0.0) - math.log1p(math.exp(-math.fabs(x.data))), (x,),
                 (logistic(-x.data)[0],))


def softplus(x):
    """Returns log(1 + e^x), a smooth relu."""
    x = as_value(x)
    return Value(max(x.data, 0.0) + math.log1p(math.exp(-math.fabs(x.data))), (x,),
                 (logistic(x.data)[0],))


def silu(x):
    """Returns x * sigmoid(x), also called swish."""
    x = as_value(x)
    gate, slope = logistic(x.data)
    return Value(x.data * gate, (x,), (gate + x.data * slope,))


def gelu(x):
    """Returns x * P(a standard normal number is below x): the exact form with erf, torch's default.

    GPT-2's own code has an approximation of it by tanh, which differs by up to 5e-4.
    """
    x = as_value(x)
    below = 0.5 * math.erfc(-x.data / math.sqrt(2))  # erfc keeps the digits that 1 + erf loses
    density = math.exp(-0.5 * x.data * x.data) / math.sqrt(2 * math.pi)
    return Value(x.data * below, (x,), (below + x.data * density,))


def leaky_relu(x, slope=0.01):
    """Returns x, or slope * x below 0, so that no unit is ever stuck at gradient 0."""
    x = as_value(x)
    factor = 1.0 if x.data > 0 else slope
    return Value(factor * x.data, (x,), (factor,))


def elu(x, alpha=1.0):
    """Returns x, or alpha * (e^x - 1) below 0."""
    x = as_value(x)
    if x.data > 0:
        return Value(x.data, (x,), (1.0,))
    return Value(alpha * math.expm1(x.data), (x,), (alpha * math.exp(x.data),))


# ---- Powers, roots, logarithms -------------------------------------------------------------------

LARGEST = 709.0  # e^709 is nearly the largest float


def square(x):
    """Returns x * x."""
    x = as_value(x)
    return Value(x.data * x.data, (x,), (2 * x.data,))


def sqrt(x):
    """Returns the square root. At 0 its slope is infinite, as in torch."""
    x = as_value(x)
    require(not x.data < 0, "sqrt", "a number that is not negative", x.data)
    root = math.sqrt(x.data)
    return Value(root, (x,), (0.5 / root if root else math.inf,))


def reciprocal(x):
    """Returns 1 / x."""
    x = as_value(x)
    require(x.data != 0, "reciprocal", "a number other than 0", x.data)
    inverse = 1 / x.data
    return Value(inverse, (x,), (-inverse * inverse,))


def power(x, y):
    """Returns x to the power of y, both Values; x ** n is enough where n is a plain number."""
    x, y = as_value(x), as_value(y)
    # a negative base has real powers only at whole exponents, and so no derivative by the exponent
    require(not x.data <= 0, "power", "a base above 0 (x ** n takes any)", x.data)
    out = x.data ** y.data
    return Value(out, (x, y), (y.data * x.data ** (y.data - 1), math.log(x.data) * out))


def expm1(x):
    """Returns e^x - 1, exact near 0."""
    x = as_value(x)
    require(not x.data > LARGEST, "expm1", f"a number up to {LARGEST:g}", x.data)
    return Value(math.expm1(x.data), (x,), (math.exp(x.data),))


def log1p(x):
    """Returns log(1 + x), exact near 0."""
    x = as_value(x)
    require(not x.data <= -1, "log1p", "a number above -1", x.data)
    return Value(math.log1p(x.data), (x,), (1 / (1 + x.data),))


# ---- Trigonometry and its relatives --------------------------------------------------------------


def sin(x):
    """Returns the sine of x radians."""
    x = as_value(x)
    require(not math.isinf(x.data), "sin", "a finite number", x.data)
    return Value(math.sin(x.data), (x,), (math.cos(x.data),))


def cos(x):
    """Returns the cosine of x radians."""
    x = as_value(x)
    require(not math.isinf(x.data), "cos", "a finite number", x.data)
    return Value(math.cos(x.data), (x,), (-math.sin(x.data),))


def tan(x):
    """Returns the tangent of x radians."""
    x = as_value(x)
    require(not math.isinf(x.data), "tan", "a finite number", x.data)
    out = math.tan(x.data)
    return Value(out, (x,), (1 + out * out,))


def asin(x):
    """Returns the angle in radians whose sine is x. At -1 and 1 its slope is infinite."""
    x = as_value(x)
    require(not math.fabs(x.data) > 1, "asin", "a number from -1 to 1", x.data)
    run = math.sqrt((1 - x.data) * (1 + x.data))
    return Value(math.asin(x.data), (x,), (1 / run if run else math.inf,))


def acos(x):
    """Returns the angle in radians whose cosine is x. At -1 and 1 its slope is infinite."""
    x = as_value(x)
    require(not math.fabs(x.data) > 1, "acos", "a number from -1 to 1", x.data)
    run = math.sqrt((1 - x.data) * (1 + x.data))
    return Value(math.acos(x.data), (x,), (-1 / run if run else -math.inf,))


def atan(x):
    """Returns the angle in radians whose tangent is x."""
    x = as_value(x)
    return Value(math.atan(x.data), (x,), (1 / (1 + x.data * x.data),))


def sinh(x):
    """Returns the hyperbolic sine, (e^x - e^-x) / 2."""
    x = as_value(x)
    require(not math.fabs(x.data) > LARGEST, "sinh", f"at most {LARGEST:g} in size", x.data)
    return Value(math.sinh(x.data), (x,), (math.cosh(x.data),))


def cosh(x):
    """Returns the hyperbolic cosine, (e^x + e^-x) / 2."""
    x = as_value(x)
    require(not math.fabs(x.data) > LARGEST, "cosh", f"at most {LARGEST:g} in size", x.data)
    return Value(math.cosh(x.data), (x,), (math.sinh(x.data),))


def erf(x):
    """Returns the error function, 2 P(a standard normal number is below sqrt(2) x) - 1."""
    x = as_value(x)
    slope = 2 / math.sqrt(math.pi) * math.exp(-x.data * x.data)
    return Value(math.erf(x.data), (x,), (slope,))


# ---- Functions with a kink: as in torch, a tie shares the slope, and nan stays nan ---------------


def abs(x):  # noqa: A001 - its name in every math library; abs(x) of Python itself comes here too
    """Returns x without its sign; slope 0 at 0."""
    x = as_value(x)
    return Value(math.fabs(x.data), (x,), (float((x.data > 0) - (x.data < 0)),))


def maximum(x, y):
    """Returns the larger of two; each has slope 1/2 where they are equal."""
    x, y = as_value(x), as_value(y)
    by_x = 1.0 if x.data > y.data else 0.5 if x.data == y.data else 0.0
    return Value(x.data if x.data >= y.data or math.isnan(x.data) else y.data,
                 (x, y), (by_x, 1.0 - by_x))


def minimum(x, y):
    """Returns the smaller of two; each has slope 1/2 where they are equal."""
    x, y = as_value(x), as_value(y)
    by_x = 1.0 if x.data < y.data else 0.5 if x.data == y.data else 0.0
    return Value(x.data if x.data <= y.data or math.isnan(x.data) else y.data,
                 (x, y), (by_x, 1.0 - by_x))


def clip(x, low, high):
    """Returns x, or the nearer of two plain numbers low and high if it is not between them."""
    x = as_value(x)
    require(low <= high, "clip", "low <= high", (low, high))
    return Value(min(max(x.data, low), high), (x,), (float(low <= x.data <= high),))


# ---- Functions of a list: one node, whatever the length ------------------------------------------


def total(values):
    """Returns the sum, as one node; sum(values) would make one for each."""
    values = as_values("total", values)
    return Value(sum(x.data for x in values), tuple(values), (1.0,) * len(values))


def mean(values):
    """Returns the sum divided by the number of Values."""
    values = as_values("mean", values)
    n = len(values)
    return Value(sum(x.data for x in values) / n, tuple(values), (1 / n,) * n)


def product(values):
    """Returns the product of all; the slopes are right even where some of them are 0."""
    values = as_values("product", values)
    before, after = [1.0], [1.0]  # the products of all before each value, and of all after it
    for x, y in zip(values, reversed(values)):
        before.append(before[-1] * x.data)
        after.append(after[-1] * y.data)
    return Value(before[-1], tuple(values),
                 tuple(map(operator.mul, before, reversed(after[:-1]))))


def variance(values, correction=0):
    """Returns the mean squared distance from the mean; correction 1 divides by n - 1, not n."""
    values = as_values("variance", values)
    n = len(values) - correction
    require(n > 0, "variance", f"more than {correction} Values", len(values))
    middle = sum(x.data for x in values) / len(values)
    middle += sum(x.data - middle for x in values) / len(values)  # what rounding left over
    offsets = [x.data - middle for x in values]
    return Value(sum(d * d for d in offsets) / n, tuple(values), tuple(2 * d / n for d in offsets))


def shifted_logsumexp(values):
    """Returns the largest number, and log(sum of e^(x - largest)) with the slopes, as floats."""
    largest = max(x.data for x in values)
    exps = [math.exp(x.data - largest) for x in values]  # at most 1 each, so no overflow
    scale = sum(exps)
    return largest, math.log(scale), tuple(e / scale for e in exps)


def logsumexp(values):
    """Returns log(sum of e^x), a smooth maximum, at any size; the slopes are softmax(values)."""
    values = as_values("logsumexp", values)
    largest, rest, slopes = shifted_logsumexp(values)
    return Value(largest + rest, tuple(values), slopes)


def softmax(values):
    """Returns e^x / (sum of e^x) for each x, a list that adds up to 1, by the file's softmax."""
    return microgpt.softmax(as_values("softmax", values))


def log_softmax(values):
    """Returns the logarithm of softmax(values), a list; finite where a probability has become 0."""
    values = as_values("log_softmax", values)
    largest, rest, slopes = shifted_logsumexp(values)
    norm = Value(largest + rest, tuple(values), slopes)
    # x - largest - rest has more correct digits than x - norm.data
    return [Value(x.data - largest - rest, (x, norm), (1.0, -1.0)) for x in values]


def cross_entropy(logits, target):
    """Returns -log(softmax(logits)[target]), in nats, as one node; target is a whole number."""
    logits = as_values("cross_entropy", logits)
    require(0 <= target < len(logits), "cross_entropy", f"a target from 0 to {len(logits) - 1}",
            target)
    largest, rest, slopes = shifted_logsumexp(logits)
    slopes = tuple(p - (i == target) for i, p in enumerate(slopes))
    return Value(rest - (logits[target].data - largest), tuple(logits), slopes)


# ---- The catalogue -------------------------------------------------------------------------------


class Op(NamedTuple):
    """A function of Values, and what it takes to test it."""

    name: str
    function: Callable  # takes Values, or lists of them, then settings; returns Value or list
    formula: str        # the same in Python's own floats and math, of x, y and the settings
    domain: tuple       # for each argument, the intervals in which it is smooth, as (low, high)
    lists: bool = False         # whether the arguments are lists
    settings: tuple = ({},)     # plain arguments that come after the others: the sets to try
    torch: str = ""             # the same in torch, where that is not torch.name(x, y)

    def call(self, arguments, setting):
        """Returns function(arguments, then the numbers of one of the settings)."""
        return self.function(*arguments, *setting.values())


# note: 0.2 away from every kink and pole, because finite differences look to both sides.
LINE = ((-3.0, 3.0),)
OFF_ZERO = ((-3.0, -0.2), (0.2, 3.0))
POSITIVE = ((0.2, 3.0),)
OUTER, INNER = ((-3.0, -1.2), (1.2, 3.0)), ((-0.8, 0.8),)
ANGLE = ((-1.2, 1.2),)

_OPS = (
    # the operators of microgpt.py
    Op("add", operator.add, "x + y", (LINE, LINE)),
    Op("sub", operator.sub, "x - y", (LINE, LINE)),
    Op("mul", operator.mul, "x * y", (LINE, LINE)),
    Op("div", operator.truediv, "x / y", (LINE, OFF_ZERO)),
    Op("neg", operator.neg, "-x", (LINE,)),
    Op("pow", operator.pow, "x ** n", (POSITIVE,), torch="x ** n",
       settings=({"n": 0.5}, {"n": -0.5}, {"n": 2.7}, {"n": -3})),
    Op("pow_whole", operator.pow, "x ** n", (OFF_ZERO,), torch="x ** n",
       settings=({"n": 1}, {"n": 2}, {"n": 3}, {"n": -1}, {"n": -2.0})),
    Op("exp", Value.exp, "exp(x)", (LINE,)),
    Op("log", Value.log, "log(x)", (POSITIVE,)),
    Op("relu", Value.relu, "max(x, 0)", (OFF_ZERO,)),
    Op("dot", dot, "sum(a * b for a, b in zip(x, y))", (LINE, LINE), lists=True),
    Op("rmsnorm", rmsnorm, "[a / sqrt(sum(b * b for b in x) / len(x) + 1e-5) for a in x]",
       (OFF_ZERO,), lists=True, torch="F.rms_norm(x, x.shape, eps=1e-5)"),
    # squashing functions and activations
    Op("tanh", tanh, "(exp(x) - exp(-x)) / (exp(x) + exp(-x))", (LINE,)),
    Op("sigmoid", sigmoid, "1 / (1 + exp(-x))", (LINE,)),
    Op("log_sigmoid", log_sigmoid, "log(1 / (1 + exp(-x)))", (LINE,), torch="F.logsigmoid(x)"),
    Op("softplus", softplus, "log(1 + exp(x))", (LINE,), torch="F.softplus(x)"),
    Op("silu", silu, "x / (1 + exp(-x))", (LINE,), torch="F.silu(x)"),
    Op("gelu", gelu, "x * (1 + erf(x / sqrt(2))) / 2", (LINE,), torch="F.gelu(x)"),
    Op("leaky_relu", leaky_relu, "x if x > 0 else slope * x", (OFF_ZERO,),
       settings=({"slope": 0.01}, {"slope": 0.3}), torch="F.leaky_relu(x, slope)"),
    Op("elu", elu, "x if x > 0 else alpha * (exp(x) - 1)", (OFF_ZERO,),
       settings=({"alpha": 1.0}, {"alpha": 0.5}), torch="F.elu(x, alpha)"),
    # powers, roots, logarithms
    Op("square", square, "x * x", (LINE,)),
    Op("sqrt", sqrt, "x ** 0.5", (POSITIVE,)),
    Op("reciprocal", reciprocal, "1 / x", (OFF_ZERO,)),
    Op("power", power, "x ** y", (POSITIVE, LINE), torch="x ** y"),
    Op("expm1", expm1, "exp(x) - 1", (LINE,)),
    Op("log1p", log1p, "log(1 + x)", (((-0.8, 3.0),),)),
    # trigonometry and its relatives
    Op("sin", sin, "sin(x)", (LINE,)),
    Op("cos", cos, "cos(x)", (LINE,)),
    Op("tan", tan, "sin(x) / cos(x)", (ANGLE,)),
    Op("asin", asin, "asin(x)", (INNER,)),
    Op("acos", acos, "pi / 2 - asin(x)", (INNER,)),
    Op("atan", atan, "atan(x)", (LINE,)),
    Op("sinh", sinh, "(exp(x) - exp(-x)) / 2", (LINE,)),
    Op("cosh", cosh, "(exp(x) + exp(-x)) / 2", (LINE,)),
    Op("erf", erf, "erf(x)", (LINE,)),
    # functions with a kink
    Op("abs", abs, "fabs(x)", (OFF_ZERO,)),
    Op("maximum", maximum, "max(x, y)", (OUTER, INNER)),
    Op("minimum", minimum, "min(x, y)", (OUTER, INNER)),
    Op("clip", clip, "max(low, min(x, high))", (OUTER + INNER,),
       settings=({"low": -1.0, "high": 1.0},), torch="torch.clip(x, low, high)"),
    # functions of a list
    Op("total", total, "sum(x)", (LINE,), lists=True, torch="x.sum()"),
    Op("mean", mean, "sum(x) / len(x)", (LINE,), lists=True),
    Op("product", product, "prod(x)", (LINE,), lists=True, torch="x.prod()"),
    Op("variance", variance, "sum((a - sum(x) / len(x)) ** 2 for a in x) / (len(x) - correction)",
       (LINE,), lists=True, settings=({"correction": 0}, {"correction": 1}),
       torch="torch.var(x, correction=correction)"),
    Op("logsumexp", logsumexp, "log(sum(exp(a) for a in x))", (LINE,), lists=True,
       torch="torch.logsumexp(x, 0)"),
    Op("softmax", softmax, "[exp(a) / sum(exp(b) for b in x) for a in x]", (LINE,), lists=True,
       torch="torch.softmax(x, 0)"),
    Op("log_softmax", log_softmax, "[a - log(sum(exp(b) for b in x)) for a in x]", (LINE,),
       lists=True, torch="torch.log_softmax(x, 0)"),
    Op("cross_entropy", cross_entropy, "log(sum(exp(a) for a in x)) - x[target]", (LINE,),
       lists=True, settings=({"target": 0}, {"target": 1}),
       torch="F.cross_entropy(x, torch.tensor(target))"),
)

CATALOGUE = {op.name: op for op in _OPS}
