"""What the property tests draw: arguments for an op, whole expressions, and whole models with a
batch; and torch's answers."""
import dataclasses
import math
import random
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from microgpt import Value
from microgpt.backends.proof import random_weights
from microgpt.engine import CATALOGUE
from microgpt.nn import GPTConfig

# The same examples each time, as many as fit into a quick run.
few = settings(max_examples=15, deadline=None, derandomize=True)
some = settings(max_examples=40, deadline=None, derandomize=True)
many = settings(max_examples=300, deadline=None, derandomize=True)


def within(domain):
    """Numbers from the intervals of an op's argument."""
    # floats below 2e-308 have fewer digits, and torch flushes some of them to 0
    return st.one_of([st.floats(low, high, allow_subnormal=False) for low, high in domain])


@st.composite
def op_cases(draw, op):
    """A setting of an op and its arguments: numbers, or lists of up to 6."""
    setting = draw(st.sampled_from(op.settings))
    if not op.lists:
        return setting, [draw(within(domain)) for domain in op.domain]
    shortest = 1 + max(setting.values(), default=0)
    size = draw(st.integers(shortest, 6))
    return setting, [draw(st.lists(within(domain), min_size=size, max_size=size))
                     for domain in op.domain]


def as_leaves(arguments):
    """Returns the arguments as Values."""
    return [[Value(x) for x in argument] if isinstance(argument, list) else Value(argument)
            for argument in arguments]


def flat(nested):
    """Returns the items of a list of items and lists, or a lone item, as one list."""
    if not isinstance(nested, (list, tuple)):
        return [nested]
    return [item for part in nested for item in flat(part)]


def torch_call(op, arguments, setting):
    """Returns what torch gives for the op, of tensors and the numbers of a setting."""
    torch = pytest.importorskip("torch")
    names = "xy"[:len(arguments)]
    source = op.torch or f"torch.{op.name}({', '.join(names)})"
    scope = {"torch": torch, "F": torch.nn.functional, **dict(zip(names, arguments)), **setting}
    return eval(source, scope)


# ---- Random expressions --------------------------------------------------------------------------


class Step(NamedTuple):
    """One op of a program: its operands are places in the list of all numbers so far."""

    op: str
    setting: dict
    operands: list  # for each argument a place, or a list of places


class Program(NamedTuple):
    """An expression in which any number may be used many times: leaves, then one step a line."""

    leaves: list
    steps: list


@st.composite
def programs(draw, max_steps=10):
    """Programs of any ops of the catalogue."""
    leaves = draw(st.lists(st.floats(-2, 2), min_size=2, max_size=4))
    count, steps = len(leaves), []
    for _ in range(draw(st.integers(2, max_steps))):
        op = CATALOGUE[draw(st.sampled_from(sorted(CATALOGUE)))]
        place = st.integers(0, count - 1)
        operands = place
        if op.lists:
            size = draw(st.integers(2, 4))
            operands = st.lists(place, min_size=size, max_size=size)
        step = Step(op.name, draw(st.sampled_from(op.settings)),
                    [draw(operands) for _ in op.domain])
        steps.append(step)
        count += len(step.operands[0]) if op.name in LIST_OUTPUTS else 1
    return Program(leaves, steps)


LIST_OUTPUTS = {name for name, op in CATALOGUE.items()
                if op.lists and isinstance(op.call(as_leaves([[1.0, 2.0]] * len(op.domain)),
                                                   op.settings[0]), list)}


def squash(x, domain):
    """Returns a smooth function of x with values in the last interval of a domain."""
    low, high = domain[-1]
    return x.tanh() * (0.499 * (high - low)) + 0.5 * (low + high)


def run_program(program, leaves, call):
    """Returns all numbers of a program, leaves first: Values, or tensors, as leaves and call are.

    call(op, arguments, setting) applies an op; before, each argument is squashed into its domain.
    """
    numbers = list(leaves)
    for step in program.steps:
        op = CATALOGUE[step.op]
        arguments = []
        for places, domain in zip(step.operands, op.domain):
            inputs = [squash(numbers[i], domain) for i in flat(places)]
            arguments.append(inputs if op.lists else inputs[0])
        numbers += flat(call(op, arguments, step.setting))
    return numbers


def value_call(op, arguments, setting):
    """The call of run_program for Values."""
    return op.call(arguments, setting)


def tensor_call(op, arguments, setting):
    """The call of run_program for tensors of no dimension."""
    torch = pytest.importorskip("torch")
    if op.lists:
        arguments = [torch.stack(argument) for argument in arguments]
    return list(torch_call(op, arguments, setting).reshape(-1))


def same(a, b, tolerance):
    """Returns whether two floats agree, relative to the larger or to 1."""
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


# ---- Models and batches --------------------------------------------------------------------------


@st.composite
def configs(draw, model=st.just("gpt"), block_size=st.integers(1, 16), n_embd=st.integers(4, 32),
            n_layer=st.integers(1, 3), dropout=st.just(0.0), vocab_size=st.integers(2, 40)):
    """Configs of any size, the heads any divisor of n_embd."""
    C = draw(n_embd)
    return GPTConfig(draw(vocab_size), C,
                     draw(st.sampled_from([H for H in range(1, C + 1) if C % H == 0])),
                     draw(n_layer), draw(block_size), draw(model), draw(dropout))


class Case(NamedTuple):
    """A model with random weights, and a ragged batch; small to print, for the rest is drawn from
    the seed."""

    config: GPTConfig
    lengths: tuple  # tokens of each sequence, from 2 to block_size + 1
    spread: float   # of the weights, times the root of n_embd
    seed: int

    @property
    def weights(self):
        """Name -> rows of floats, none near 0.

        The spread is at most four times that of a model before training. With more, a batch of a
        few tokens may be predicted with p = 1 - 1e-9, and a gradient, p - 1, has few digits left.
        """
        config = dataclasses.replace(self.config, init_std=self.spread / self.config.n_embd ** 0.5)
        return random_weights(config, random.Random(f"weights {self.seed}"))

    @property
    def batch(self):
        rng = random.Random(f"batch {self.seed}")
        return [[rng.randrange(self.config.vocab_size) for _ in range(length)]
                for length in self.lengths]


@st.composite
def cases(draw, some_config=configs(block_size=st.integers(3, 16)), max_sequences=5):
    """Cases of 1 to 5 sequences. One predicts 3 tokens at least, if block_size allows: with a
    single position, attention has nothing to choose from, and proves nothing."""
    config = draw(some_config)
    longest = config.block_size + 1
    lengths = [draw(st.integers(min(4, longest), longest))]
    others = draw(st.integers(0, max_sequences - 1))
    lengths += [draw(st.integers(2, longest)) for _ in range(others)]
    return Case(config, tuple(draw(st.permutations(lengths))), draw(st.floats(0.32, 1.2)),
                draw(st.integers(0, 999)))
