"""SGD, Adam, AdamW and Muon: how a step follows from the gradients.

Weights and gradients are dicts, name -> rows of floats, as everywhere outside the graph, and a
step changes the weights in place. The same step for Values is `step_values`, for a list of them,
or rows, or name -> rows:

>>> from microgpt.engine import Value
>>> x, optimizer = Value(5.0), SGD(momentum=0.5)
>>> for _ in range(60):
...     (x - 2.0).square().backward()
...     optimizer.step_values([x], 0.1)
>>> print(f"{x.data:.6f}")
2.000000

Every optimizer can be stopped and taken up again: `state()` is a plain dict of all that it
remembers, `load_state()` takes it back, and the steps that follow are the same, digit for digit.

Sources: Adam, Kingma and Ba (2015), algorithm 1. AdamW, Loshchilov and Hutter (2019). Muon,
Keller Jordan (2024), kellerjordan.github.io/posts/muon. The first three are torch.optim's too, and
with the same numbers; what differs from torch is said where it does.
"""
import math
import operator
from typing import Tuple

# A weight's row and a gradient's are plain lists, changed by index: for so few numbers at a time
# that is faster than building new lists, and nobody who holds a row loses it.

# ---- Tools ---------------------------------------------------------------------------------------

if hasattr(math, "sumprod"):  # Python 3.12
    inner = math.sumprod
else:
    def inner(a, b):
        """Returns the inner product of two lists of floats."""
        return sum(map(operator.mul, a, b))


def require(condition, name, value, accepted):
    """Raises ValueError, which says what the argument must be, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} is {value!r}; it must be {accepted}")


def require_fraction(name, value):
    """Raises ValueError unless 0 <= value < 1, as all these averages need."""
    require(0 <= value < 1, name, value, "at least 0 and below 1")


def shape(rows):
    """Returns the length of each row."""
    return [*map(len, rows)]


def zeros_like(rows):
    """Returns rows of zeros, as many and as long."""
    return [[0.0] * len(row) for row in rows]


def copied(tensors):
    """Returns a copy of name -> rows that shares no list with it."""
    return {name: [list(row) for row in rows] for name, rows in tensors.items()}


def gradient_norm(grads):
    """Returns the root of the sum of squares over all of name -> rows."""
    return math.sqrt(sum(inner(row, row) for rows in grads.values() for row in rows))


def clip_gradients(grads, max_norm):
    """Returns the norm of all gradients together, and shrinks them to max_norm if it is larger.

    Where torch's clip_grad_norm_ divides by norm + 1e-6, this divides by the norm: what is clipped
    has the length that was asked for. If the norm is inf or nan, nothing is changed.

    >>> grads = {"w": [[3.0, 0.0], [0.0, 4.0]]}
    >>> clip_gradients(grads, 2.5), grads
    (5.0, {'w': [[1.5, 0.0], [0.0, 2.0]]})
    """
    require(max_norm > 0, "max_norm", max_norm, "above 0")
    norm = gradient_norm(grads)
    if max_norm < norm < math.inf:
        scale = max_norm / norm
        for rows in grads.values():
            for row in rows:
                row[:] = [scale * g for g in row]
    return norm


# ---- What all of them share ----------------------------------------------------------------------


class Optimizer:
    """A rule for steps, and what it remembers: the number of steps, and some slots.

    A slot is name -> rows of numbers beside the weights, 0 at first. A rule says which slots it
    has (`slot_names`) and how it updates one tensor (`update`).
    """

    slot_names: Tuple[str, ...] = ()

    def __init__(self):
        self.t = 0  # steps done
        self.slots = {slot: {} for slot in self.slot_names}

    def step(self, weights, grads, learning_rate):
        """Changes weights, name -> rows, in place. grads: the same names and shapes, left alone."""
        if weights.keys() != grads.keys():
            raise ValueError(f"weights are named {sorted(weights)}, gradients {sorted(grads)}")
        for name, rows in weights.items():
            if shape(rows) != shape(grads[name]):
                raise ValueError(f"the gradient of {name} has another shape than its weights")
            for slot, tensors in self.slots.items():
                if name in tensors and shape(tensors[name]) != shape(rows):
                    raise ValueError(f"slot {slot} of {name} has another shape than its weights: "
                                     "the state is of another model")
        self.t += 1
        for name, rows in weights.items():
            self.update(name, rows, grads[name], learning_rate)

    def step_values(self, params, learning_rate, max_norm=None):
        """Changes the data of Values by their grads, then sets the grads to 0.

        params: a list of Values, or rows of them, or name -> rows; the same at each step. With
        max_norm, the gradients are clipped first: see clip_gradients.
        """
        params = value_rows(params)
        weights = {name: [[p.data for p in row] for row in rows] for name, rows in params.items()}
        grads = {name: [[p.grad for p in row] for row in rows] for name, rows in params.items()}
        if max_norm is not None:
            clip_gradients(grads, max_norm)
        self.step(weights, grads, learning_rate)
        for name, rows in params.items():
            for row, numbers in zip(rows, weights[name]):
                for p, number in zip(row, numbers):
                    p.data, p.grad = number, 0.0

    def update(self, name, rows, grads, learning_rate):
        """Changes the rows of one tensor in place."""
        raise NotImplementedError(f"{type(self).__name__} has no rule for a step")

    def slot(self, slot, name, rows):
        """Returns the rows of a slot beside these rows of weights; zeros at the first step."""
        tensors = self.slots[slot]
        if name not in tensors:
            tensors[name] = zeros_like(rows)
        return tensors[name]

    def state(self):
        """Returns {"step": steps done, slot: {name: rows}, ...}, a copy."""
        return {"step": self.t, **{slot: copied(self.slots[slot]) for slot in self.slot_names}}

    def load_state(self, state):
        """Takes over what state() gave, here or in another process; the dict itself stays free."""
        if state.keys() != {"step", *self.slot_names}:
            raise ValueError(f"{type(self).__name__} keeps {['step', *self.slot_names]}, "
                             f"the state holds {sorted(state)}: it is another optimizer's")
        self.t = state["step"]
        self.slots = {slot: copied(state[slot]) for slot in self.slot_names}


def value_rows(params):
    """Returns params as name -> rows of Values: a list of Values is one row, named params."""
    if isinstance(params, dict):
        return params
    params = list(params)
    if not params:
        raise ValueError("there are no parameters to update, got an empty list")
    return {"params": params if isinstance(params[0], (list, tuple)) else [params]}


# ---- SGD -----------------------------------------------------------------------------------------


class SGD(Optimizer):
    """Stochastic gradient descent: a step down the gradient.

    With momentum it follows the sum of the past gradients, each time worth momentum x as much;
    nesterov looks one such step ahead. weight_decay adds weight_decay x weight to the gradient.
    """

    def __init__(self, momentum=0.0, nesterov=False, weight_decay=0.0):
        require_fraction("momentum", momentum)
        require(weight_decay >= 0, "weight_decay", weight_decay, "at least 0")
        require(momentum > 0 or not nesterov, "momentum", momentum, "above 0 for nesterov")
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.slot_names = ("momentum",) if momentum else ()
        super().__init__()

    def update(self, name, rows, grads, learning_rate):
        momentum, decay = self.momentum, self.weight_decay
        if not momentum:
            for w, g in zip(rows, grads):
                for i in range(len(w)):
                    w[i] -= learning_rate * (g[i] + decay * w[i])
            return
        for w, g, past in zip(rows, grads, self.slot("momentum", name, rows)):
            for i in range(len(w)):
                slope = g[i] + decay * w[i]
                past[i] = momentum * past[i] + slope
                w[i] -= learning_rate * (slope + momentum * past[i] if self.nesterov else past[i])


# ---- Adam and AdamW ------------------------------------------------------------------------------


class AdamW(Optimizer):
    """Adam with weight decay of its own: each step first shrinks the weights by lr x weight_decay.

    Slots: m, the mean gradient, and v, the mean square (torch: exp_avg and exp_avg_sq).
    """

    slot_names: Tuple[str, ...] = ("m", "v")

    def __init__(self, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0):
        require_fraction("beta1", beta1)
        require_fraction("beta2", beta2)
        require(eps > 0, "eps", eps, "above 0")
        require(weight_decay >= 0, "weight_decay", weight_decay, "at least 0")
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        super().__init__()

    def update(self, name, rows, grads, learning_rate):
        # note: products are taken in the same order as in the file's Adam, for the same digits
        beta1, beta2, eps, sqrt = self.beta1, self.beta2, self.eps, math.sqrt
        fresh1, fresh2 = 1 - beta1, 1 - beta2
        m_scale = learning_rate / (1 - beta1 ** self.t)  # m and v start at 0: make up for it
        v_scale = 1 / (1 - beta2 ** self.t)
        keep = 1 - learning_rate * self.weight_decay
        ms, vs = self.slot("m", name, rows), self.slot("v", name, rows)
        for w, g, m, v in zip(rows, grads, ms, vs):
            for i in range(len(w)):
                gi = g[i]
                m[i] = mi = beta1 * m[i] + fresh1 * gi
                v[i] = vi = beta2 * v[i] + fresh2 * gi * gi
                w[i] = keep * w[i] - m_scale * mi / (sqrt(v_scale * vi) + eps)


class Adam(AdamW):
    """The Adam of microgpt.py, digit for digit, for rows: its betas, and no weight decay."""

    def __init__(self, beta1=0.85, beta2=0.99, eps=1e-8):
        super().__init__(beta1, beta2, eps)


# ---- Muon ----------------------------------------------------------------------------------------

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of Jordan's post
NEWTON_SCHULZ_STEPS = 5
NORM_EPS = 1e-7
ADAMW_SHARE = 3e-3 / 0.02  # the rest of the weights learn at 3e-3 when Muon's rate is 0.02


def by_muon(name):
    """Returns whether Muon itself moves this tensor: the matrices of attention and MLP.

    >>> [by_muon(name) for name in ("layer0.attn_wq", "layer11.mlp_fc2", "wte", "lm_head")]
    [True, True, False, False]
    """
    return ".attn_" in name or ".mlp_" in name


def orthogonalize(rows):
    """Returns a matrix with the directions of this one, and all its singular values near 1.

    If rows is U S V^T, each Newton-Schulz step takes every singular value s to
    a s + b s^3 + c s^5: five bring all from 0.002 up to between 0.68 and 1.21. U, V stay.

    >>> [[round(x, 1) for x in row] for row in orthogonalize([[0.0, -5.0], [1.0, 0.0]])]
    [[0.0, -0.7], [0.8, 0.0]]
    """
    a, b, c = NEWTON_SCHULZ
    tall = len(rows) > len(rows[0])
    x = transposed(rows) if tall else rows  # the products below are of the shorter side's size
    norm = math.sqrt(sum(inner(row, row) for row in x)) + NORM_EPS
    x = [[number / norm for number in row] for row in x]  # no singular value is above 1 now
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = gram_matrix(x)  # G = X X^T
        square = gram_matrix(gram)  # G G, because G is symmetric
        poly = [[b * g + c * gg for g, gg in zip(*pair)] for pair in zip(gram, square)]
        columns = transposed(x)  # X becomes a X + (b G + c G G) X
        x = [[a * number + inner(factors, column) for number, column in zip(row, columns)]
             for row, factors in zip(x, poly)]
    return transposed(x) if tall else x


def gram_matrix(rows):
    """Returns the inner products of all rows with all; half are computed, the rest mirrored."""
    gram = [[inner(row, other) for other in rows[:i + 1]] for i, row in enumerate(rows)]
    return [row + [gram[j][i] for j in range(i + 1, len(rows))] for i, row in enumerate(gram)]


def transposed(rows):
    """Returns the columns as rows."""
    return [list(column) for column in zip(*rows)]


class Muon(AdamW):
    """MomentUm Orthogonalized by Newton-Schulz, for the matrices of attention and MLP.

    What is a matrix of weights gets a step that is as long in all of the gradient's directions,
    so that rare ones are learned too. Embeddings, head and bigram table are no such maps: they go
    by AdamW, at ADAMW_SHARE of the learning rate. `by_muon` says which is which, by the name.

    Slots: momentum for the matrices, m and v for the others. torch.optim.Muon does the same, but
    computes the Newton-Schulz steps in bfloat16, and bounds the norm below where this adds 1e-7.
    """

    slot_names = ("momentum", "m", "v")

    def __init__(self, momentum=0.95, weight_decay=0.0, beta1=0.9, beta2=0.99, eps=1e-8):
        require_fraction("momentum", momentum)
        self.momentum = momentum
        super().__init__(beta1, beta2, eps, weight_decay)

    def update(self, name, rows, grads, learning_rate):
        if not by_muon(name):
            super().update(name, rows, grads, learning_rate * ADAMW_SHARE)
            return
        momentum, ahead = self.momentum, []
        for g, past in zip(grads, self.slot("momentum", name, rows)):
            for i in range(len(g)):
                past[i] += (1 - momentum) * (g[i] - past[i])
            # Nesterov: where the mean will be if the next gradient is like this one
            ahead.append([gi + momentum * (pi - gi) for gi, pi in zip(g, past)])
        # a tall matrix has the same number of directions spread over more outputs: longer steps
        pace = learning_rate * math.sqrt(max(1.0, len(rows) / len(rows[0])))
        keep = 1 - learning_rate * self.weight_decay
        for w, direction in zip(rows, orthogonalize(ahead)):
            for i in range(len(w)):
                w[i] = keep * w[i] - pace * direction[i]


# ---- By name -------------------------------------------------------------------------------------

OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "muon": Muon, "sgd": SGD}


def make(name, **settings):
    """Returns a new optimizer of OPTIMIZERS, with the class's own defaults for what is left out.

    >>> make("adamw", weight_decay=0.1).weight_decay
    0.1
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"there is no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}")
    code = OPTIMIZERS[name].__init__.__code__
    accepted = code.co_varnames[1:code.co_argcount]
    for setting in settings:
        if setting not in accepted:
            raise ValueError(f"{name} has no {setting}; it takes {', '.join(accepted)}")
    return OPTIMIZERS[name](**settings)
