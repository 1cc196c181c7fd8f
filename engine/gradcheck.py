"""Are the derivatives right? backward() against finite differences, input by input.

A derivative is what the output does when one input moves a little: (f(x + h) - f(x - h)) / 2h. So
any function can be checked without knowing what it computes. One such difference is good to a few
digits only: for a large h the function bends, for a small one the difference drowns in rounding.
Richardson's extrapolation takes it at several h and cancels the bending, which leaves about 12
digits; following Ridders (Advances in Engineering Software 4, 1982), how well the estimates agree
says how far to trust them, and the step shrinks until they do (or the steps run out: at a kink).

The error of a derivative is |expected - got|, divided by the largest derivative of its argument
(all the inputs that came as one list), or by a thousandth of the largest of all, if that is
larger: what counts is whether the direction of a step is right. An error below 1e-12 of the output
itself, within the steps taken, passes: differences of float64 numbers cannot show it.

On the command line it goes through all ops of the catalogue, or those named; the exit code is 0
if all pass, 1 if one fails, 2 for a name that is not there:

    python3 -m microgpt.engine.gradcheck
    python3 -m microgpt.engine.gradcheck tanh gelu

>>> from microgpt.engine import Value, tanh
>>> print(gradcheck(lambda x, y: x * tanh(y), [2.0, 0.5], tolerance=1e-9))
PASS: 2 derivatives, largest error below 1e-09
argument  index      at      expected           got    error
x             -       2      0.462117      0.462117   <1e-09
y             -     0.5        1.5729        1.5729   <1e-09
"""
import argparse
import inspect
import math
import random
import sys
from dataclasses import dataclass, field

from microgpt import Value
from microgpt.engine.ops import CATALOGUE, as_value

OP_TOLERANCE = 1e-9     # one op: little rounding adds up
GRAPH_TOLERANCE = 1e-6  # a whole model: thousands of roundings and, where relu bends, small steps
RESOLUTION = 1e-12      # of the output: what differences of float64 numbers can show
SMALLEST = 1e-290       # below about 1e-308 floats have fewer digits
SHRINK, STEPS = 4.0, 8  # the steps tried: the first, a quarter of it, ..., about 1e-5 of the first

# ---- One derivative by finite differences --------------------------------------------------------


def derivative(function, x, step=0.01, target=0.0):
    """Returns the derivative of a function of one float at x, and how far off it may be.

    `step` is the first and largest step, relative to x where |x| is above 1; smaller ones follow
    until the estimates agree to `target`. Both are nan and inf if the function has no value near x.

    >>> slope, doubt = derivative(math.sin, 1.0)
    >>> abs(slope - math.cos(1.0)) < 1e-11 and doubt < 1e-11
    True
    """
    best, doubt, coarser = math.nan, math.inf, []
    h = step * max(1.0, abs(x))
    for _ in range(STEPS):
        slope, rounding = difference(function, x, h)
        row = [slope]  # row[k] is exact for polynomials of degree 2k + 2
        for k, estimate in enumerate(coarser):
            row.append(row[k] + (row[k] - estimate) / (SHRINK ** (2 * k + 2) - 1))
            change = max(abs(row[k + 1] - row[k]), abs(row[k + 1] - estimate))
            # note: without the second term, two estimates that rounding made equal would win
            if change + rounding < doubt:
                best, doubt = row[k + 1], change + rounding
        if doubt <= max(target, rounding):  # it will do, or smaller steps can only be worse
            break
        coarser = row if math.isfinite(slope) else []
        h /= SHRINK
    return best, doubt


def difference(function, x, h):
    """Returns the slope of the function from x - h to x + h, and what rounding may add to it.

    The slope is nan where the function is not defined or not finite.
    """
    try:
        high, low = function(x + h), function(x - h)
    except (ValueError, ArithmeticError):
        return math.nan, 0.0
    width, size = (x + h) - (x - h), max(abs(high), abs(low))
    if not math.isfinite(high - low):
        return math.nan, 0.0
    return (high - low) / width, sys.float_info.epsilon * size / width


# ---- The report ----------------------------------------------------------------------------------


@dataclass
class Row:
    """What was found for one input."""

    argument: str
    index: tuple     # where it stands in that argument; () for one that is not a list
    at: float        # the input itself
    expected: float  # the derivative by finite differences
    got: float       # the derivative by backward()
    error: float     # as the module's docstring defines it
    doubt: float     # how far off `expected` may be, in the same measure

    def line(self, tolerance):
        """Returns the row as a line of the table."""
        index = ",".join(map(str, self.index)) or "-"
        error = f"<{tolerance:.0e}" if self.error <= tolerance else f"{self.error:.0e} FAIL"
        if math.isnan(self.expected):
            error += " (no value so near: try a smaller step)"
        elif self.doubt > tolerance:
            error += " (a kink or jump is near: the differences do not settle)"
        return (f"{self.argument:<8} {index:>6} {self.at:>7.4g} {self.expected:>13.6g} "
                f"{self.got:>13.6g}   {error}")


@dataclass
class Report:
    """What was found for all inputs; str(report) is a table of it, the worst where it is long."""

    tolerance: float
    rows: list = field(default_factory=list)

    @property
    def error(self):
        """The largest error; inf if a derivative or its estimate is nan."""
        return max((row.error for row in self.rows), default=0.0)

    @property
    def ok(self):
        """Whether there was something to check and every error is within the tolerance."""
        return bool(self.rows) and self.error <= self.tolerance

    def table(self, limit=20):
        """Returns the table as text with at most `limit` rows."""
        bad = sum(row.error > self.tolerance for row in self.rows)
        if self.ok:
            head = (f"PASS: {len(self.rows)} derivatives, "
                    f"largest error below {self.tolerance:.0e}")
        else:
            head = (f"FAIL: {bad} of {len(self.rows)} derivatives are wrong, "
                    f"largest error {self.error:.1e}, allowed {self.tolerance:.0e}")
        rows = self.rows
        if len(rows) > limit:
            rows = sorted(rows, key=lambda row: -row.error)[:limit]
        lines = [head, "argument  index      at      expected           got    error"]
        lines += [row.line(self.tolerance) for row in rows]
        if len(rows) < len(self.rows):
            lines.append(f"... and {len(self.rows) - len(rows)} with smaller errors")
        return "\n".join(lines)

    __str__ = table


def relative_errors(got, expected, floor=0.0):
    """Returns name -> the largest |got - expected| of a tensor, relative as described above.

    got, expected: name -> list of numbers (or of rows of numbers). This is the measure by which
    all engines are compared: the scale is the tensor's largest number, or a thousandth of the
    largest of all tensors, or `floor`, whichever is largest. inf where something is nan.

    >>> relative_errors({"w": [1.0, 2.0]}, {"w": [1.0, 2.5]})
    {'w': 0.2}
    """
    if got.keys() != expected.keys():
        raise ValueError(f"got has {sorted(got)}, expected has {sorted(expected)}")
    got = {name: [x for _, x in numbered(rows)] for name, rows in got.items()}
    expected = {name: [x for _, x in numbered(rows)] for name, rows in expected.items()}
    scales = error_scales([got, expected], floor)
    errors = {}
    for name, numbers in got.items():
        if len(numbers) != len(expected[name]):
            raise ValueError(f"{name}: got {len(numbers)} numbers, expected {len(expected[name])}")
        pairs = zip(numbers, expected[name])
        errors[name] = max((error_of(a, b, scales[name]) for a, b in pairs), default=0.0)
    return errors


def error_scales(sides, floor):
    """Returns name -> what differences are divided by; sides: dicts name -> list of numbers."""
    largest = {name: max((abs(x) for side in sides for x in side[name]), default=0.0)
               for name in sides[0]}
    overall = max(largest.values(), default=0.0) / 1000
    return {name: max(size, overall, floor) for name, size in largest.items()}


def error_of(a, b, scale):
    """Returns |a - b| / scale; 0 if they are equal, inf if one is nan."""
    if a == b:
        return 0.0
    return abs(a - b) / scale if math.isfinite(a - b) and scale > 0 else math.inf


# ---- The check -----------------------------------------------------------------------------------


def numbered(nested, index=()):
    """Yields (index, item) for every item of a list of lists (of any depth), or of a lone item."""
    if isinstance(nested, (list, tuple)):
        for i, item in enumerate(nested):
            yield from numbered(item, (*index, i))
    else:
        yield index, nested


def gradcheck(function, inputs, tolerance=GRAPH_TOLERANCE, names=None, step=0.01):
    """Returns a Report on the derivatives of function(*inputs) by every one of its inputs.

    inputs: a list with an item for each argument: a number, a Value, or a list of them (of any
    depth). A Value that appears twice is one input, whose uses add up. The function returns a
    Value or a list of Values; of a list, a fixed random combination is differentiated, in which no
    two outputs can stand in for each other. `names` are shown for the arguments; left out, they
    are taken from the function's signature. `step`: see derivative().

    Raises TypeError if the function returns something else, and ValueError if an input is not a
    leaf, or the output is not finite, or not the same each time.
    """
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"inputs must be a list with an item for each argument, got {inputs!r}")
    arguments = [as_values_nested(argument) for argument in inputs]
    names = argument_names(function, len(arguments)) if names is None else list(names)
    if len(names) != len(arguments):
        raise ValueError(f"got {len(names)} names for {len(arguments)} arguments")
    return gradcheck_leaves(lambda: function(*arguments), dict(zip(names, arguments)),
                            tolerance, step)


def gradcheck_leaves(function, leaves, tolerance=GRAPH_TOLERANCE, step=1e-4):
    """Returns a Report on the derivatives of function() by Values that it uses, such as weights.

    leaves: name -> a Value, a list or rows of Values; or just a list of Values. The function takes
    no argument and builds its graph anew each time. Numbers and gradients of the leaves are what
    they were when it returns. The first step is small, for a model with many relus has a kink
    everywhere. Costs 4 to 6 calls of the function for each leaf. Errors: see gradcheck().

    >>> w = [Value(0.5), Value(-0.25)]
    >>> gradcheck_leaves(lambda: (w[0] * 3 + w[1]).exp(), {"w": w}).ok
    True
    """
    groups = distinct_leaves(leaves if isinstance(leaves, dict) else {"leaves": leaves})
    kept = [leaf.grad for group in groups.values() for _, leaf in group]
    try:
        output = Output(function)
        return compare(output, groups, output.gradients(groups), tolerance, step)
    finally:
        for leaf in (leaf for group in groups.values() for _, leaf in group):
            leaf.grad = kept.pop(0)


def compare(output, groups, got, tolerance, step):
    """Returns the Report: finite differences of output() against got, name -> gradients."""
    # how exact an estimate must be follows from what it will be compared with
    targets = error_scales([got], output.floor(tolerance))
    expected, doubts = {}, {}
    for name, group in groups.items():
        target = 0.1 * tolerance * targets[name]
        pairs = [leaf_derivative(output, leaf, step, target) for _, leaf in group]
        expected[name] = [estimate for estimate, _ in pairs]
        doubts[name] = [doubt for _, doubt in pairs]
    scales = error_scales([got, expected], output.floor(tolerance))
    rows = []
    for name, group in groups.items():
        for (index, leaf), a, b, doubt in zip(group, expected[name], got[name], doubts[name]):
            scale = scales[name]
            rows.append(Row(name, index, leaf.data, a, b, error_of(a, b, scale),
                            doubt / scale if scale else 0.0))
    return Report(tolerance, rows)


def leaf_derivative(output, leaf, step, target):
    """Returns the derivative of output() by a leaf, and how far off it may be."""
    kept = leaf.data

    def moved(x):
        leaf.data = x
        return output()

    try:
        return derivative(moved, float(kept), step, target)
    finally:
        leaf.data = kept


class Output:
    """The output of a function as one number: of a list, a combination with fixed factors.

    `size` is the largest output met so far, before its terms could cancel: rounding goes by it.
    """

    def __init__(self, function):
        self.function, self.size = function, 0.0
        first, again = ([value.data for value in output_values(function())] for _ in range(2))
        if not all(map(math.isfinite, first)):
            raise ValueError(f"the output is not finite at these inputs: {first[:5]}")
        if first != again:
            raise ValueError(f"the function is not the same each time: {first[:5]}, then "
                             f"{again[:5]}; seed its random numbers within it")
        self.factors = projection_factors(len(first))
        self()

    def __call__(self):
        terms = [factor * value.data
                 for factor, value in zip(self.factors, output_values(self.function()))]
        self.size = max(self.size, sum(map(abs, terms)))
        return sum(terms)

    def floor(self, tolerance):
        """Returns the least scale by which errors are divided; see RESOLUTION."""
        return max(RESOLUTION * self.size / tolerance, SMALLEST)

    def gradients(self, groups):
        """Returns name -> the gradients that backward() from this number gives the leaves."""
        outputs = output_values(self.function())
        for group in groups.values():
            for _, leaf in group:
                leaf.grad = 0.0
        Value(0.0, tuple(outputs), tuple(self.factors)).backward()
        return {name: [leaf.grad for _, leaf in group] for name, group in groups.items()}


def projection_factors(n):
    """Returns n fixed random factors of either sign, between 0.5 and 1.5 in size; 1.0 for one."""
    rng = random.Random(n)
    return [rng.choice((-1, 1)) * rng.uniform(0.5, 1.5) for _ in range(n)] if n > 1 else [1.0] * n


def output_values(output):
    """Returns the Values of a function's output as a flat list."""
    outputs = [value for _, value in numbered(output)]
    if not outputs or not all(isinstance(value, Value) for value in outputs):
        raise TypeError(f"the function must return a Value or a list of Values, got {output!r}")
    return outputs


def distinct_leaves(leaves):
    """Returns name -> [(index, Value)], each Value once, under the first name it has."""
    groups, met = {}, set()
    for name, nested in leaves.items():
        groups[name] = []
        for index, leaf in numbered(nested):
            if not isinstance(leaf, Value):
                raise TypeError(f"{name}{list(index) or ''} must be a Value, got {leaf!r}")
            if leaf.parents:
                raise ValueError(f"{name}{list(index) or ''} is not a leaf: it is computed from "
                                 "other Values, so moving it alone means nothing")
            if id(leaf) not in met:
                met.add(id(leaf))
                groups[name].append((index, leaf))
    return groups


def as_values_nested(argument):
    """Returns the argument with every plain number in it, at any depth, as a Value."""
    if isinstance(argument, (list, tuple)):
        return [as_values_nested(item) for item in argument]
    return as_value(argument)


def argument_names(function, count):
    """Returns the names of a function's first `count` arguments, or argument 0, argument 1, ..."""
    try:
        names = [parameter.name for parameter in inspect.signature(function).parameters.values()
                 if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):  # some built-in functions have no signature to read
        names = []
    return names[:count] if len(names) >= count else [f"arg{i}" for i in range(count)]


# ---- The catalogue, checked ----------------------------------------------------------------------


def draw(domain, rng):
    """Returns a number from one of the intervals of an op's argument."""
    return rng.uniform(*rng.choice(domain))


def check_op(op, points=6, seed=0, tolerance=OP_TOLERANCE):
    """Returns one Report on an op of the catalogue at random points of its domain.

    Every one of its settings is tried at `points` points; lists have 1 to 5 items (2 to 5 where
    the setting asks for more than one).
    """
    rng = random.Random(f"{op.name} {seed}")
    report = Report(tolerance)
    for setting in op.settings:
        shortest = 1 + max(setting.values(), default=0) if op.lists else 1
        for _ in range(points):
            length = rng.randint(shortest, 5)
            inputs = [[draw(domain, rng) for _ in range(length)] if op.lists else draw(domain, rng)
                      for domain in op.domain]
            names = "xy"[:len(inputs)]
            found = gradcheck(lambda *arguments: op.call(arguments, setting), inputs,
                              tolerance, names)
            report.rows += found.rows
    return report


def main(argv=None):
    """Checks the ops that are named, or all, prints a line each, and returns the exit code."""
    parser = argparse.ArgumentParser("python3 -m microgpt.engine.gradcheck",
                                     description="Checks derivatives against finite differences.")
    parser.add_argument("ops", nargs="*", metavar="OP", help="as in the catalogue (default: all)")
    args = parser.parse_args(argv)
    for name in args.ops:
        if name not in CATALOGUE:
            parser.exit(2, f"gradcheck: there is no op {name!r}; the catalogue has "
                           f"{' '.join(CATALOGUE)}\n")
    reports = {name: check_op(CATALOGUE[name]) for name in args.ops or CATALOGUE}
    for name, report in reports.items():
        print(f"{'PASS' if report.ok else 'FAIL'}  {name:<14} largest error {report.error:.1e} "
              f"of {len(report.rows)} derivatives")
        if not report.ok:
            print(report)
    failed = [name for name, report in reports.items() if not report.ok]
    if failed:
        print(f"{len(failed)} of {len(reports)} ops have a wrong derivative: {' '.join(failed)}")
    else:
        print(f"{len(reports)} ops, all derivatives within {OP_TOLERANCE:.0e}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
