"""Matrix: the autograd of microgpt.py with a list of rows in each node, not one number.

This is the second rung, after `Value`. What changed, and why it is some hundred times faster than
a number a node:

- A node is a whole matrix (`rows`: a list of lists of floats), so a GPT's graph has a dozen nodes
  a layer where Value's has thousands, and a node's cost is spent on arithmetic.
- Local derivatives are not stored: for a matrix product they would be a matrix for each entry.
  Instead a node brings a function, `push`, that takes the gradient of the node and hands each
  parent its share. Every op below is forward and push, side by side.
- All tokens of all sequences stand end to end as rows of one N x C matrix, without padding. Only
  attention needs to know where a sequence begins.
- Nearly all the arithmetic is inner products of rows, so there is one function for that,
  `products`, written anew (as source text, by `unrolled_products`) for each length of row.

What did not: the graph remembers its parents, and backward() walks it in topological order.

    N  tokens in all   C, C_in, C_out  numbers a token   V  vocabulary
    H  heads           D  numbers a head                 T  tokens of one sequence

>>> x, w = Matrix([[1.0, 2.0]]), Matrix([[3.0, 4.0], [5.0, 6.0], [0.0, -1.0]])
>>> y = relu(linear(x, w))
>>> y.rows
[[11.0, 17.0, 0.0]]
>>> y.backward([[1.0, 10.0, 100.0]])
>>> x.grad, w.grad
([[53.0, 64.0]], [[1.0, 2.0], [10.0, 20.0], [0.0, 0.0]])
"""
import functools
import math
import operator
import sys

# ---- The node ------------------------------------------------------------------------------------


class Matrix:
    """Rows of floats, the matrices they were made from, and how a gradient goes back to those."""

    __slots__ = ("rows", "grad", "parents", "push", "mark")

    def __init__(self, rows, parents=(), push=None):
        self.rows = rows        # one list of floats for each token, or for each output of a weight
        self.grad = None        # d(output) / d(self), the same shape, once backward() has come by
        self.parents = parents
        self.push = push        # takes self.grad and calls receive() of the parents
        self.mark = None

    def receive(self, grad):
        """Adds rows to the gradient. They may be shared with other nodes, so are never changed."""
        if self.grad is None:
            self.grad = grad
        else:
            self.grad = [list(map(operator.add, a, b)) for a, b in zip(self.grad, grad)]

    def backward(self, grad=((1.0,),)):
        """Adds d self / d leaf x grad to the grad of each leaf: Value.backward, for matrices."""
        order, stack, walk = [], [self], object()
        while stack:
            node = stack.pop()
            if node is None:
                order.append(stack.pop())
            elif node.parents and node.mark is not walk:
                node.mark, node.grad = walk, None
                stack += (node, None)
                stack += [p for p in node.parents if p.parents and p.mark is not walk]
        self.receive(grad)
        for node in reversed(order):
            node.push(node.grad)


# ---- Inner products ------------------------------------------------------------------------------

UNROLL_UP_TO = 64    # longer rows gain nothing over sum(map(mul))
SUMPROD_FROM = 24    # where math.sumprod (Python 3.12) overtakes
DISTANCE_FROM = 48   # where math.dist does, in the Pythons before, for enough rows
HAS_SUMPROD = hasattr(math, "sumprod")
FAST_DIST = sys.implementation.name == "cpython" and not HAS_SUMPROD


def products(a, b):
    """Returns the inner products of all rows of a with all rows of b: len(a) x len(b).

    >>> products([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]])
    [[11.0, 17.0]]
    """
    length = len(a[0])
    if FAST_DIST and length >= DISTANCE_FROM and len(a) * len(b) > 6 * (len(a) + len(b)):
        return distance_products(a, b)
    return products_for(length)(a, b)


@functools.lru_cache(maxsize=512)
def products_for(length):
    """Returns the fastest form of `products` for few rows of a length, in this Python."""
    if HAS_SUMPROD and length >= SUMPROD_FROM:
        return sumprod_products
    return unrolled_products(length) if length <= UNROLL_UP_TO else plain_products


def plain_products(a, b):
    mul = operator.mul
    return [[sum(map(mul, x, y)) for y in b] for x in a]


def sumprod_products(a, b):
    sumprod = math.sumprod
    return [[sumprod(x, y) for y in b] for x in a]


def distance_products(a, b):
    """Returns `products` by way of distances, which math.dist computes twice as fast as a sum.

    For rows of length 1, |x - y|^2 = 2 - 2 x . y (the polarisation identity). So rows are scaled to
    length 1 first, and the products scaled back: 35 ns a number, which pays for enough rows. The
    error is some 1e-16 |x| |y|, as of a sum.
    note: without the scaling, cancellation could cost half of the digits.
    """
    dist = math.dist
    b = [(size, row) for size, row in map(unit, b)]
    out = []
    for size, x in map(unit, a):
        half = -0.5 * size
        out.append([other * (size + half * d * d)
                    for other, d in [(other, dist(x, y)) for other, y in b]])
    return out


def unit(row):
    """Returns the length of a row, and the row scaled to length 1, or as it is if it is all 0."""
    size = math.sqrt(sum(map(operator.mul, row, row)))
    if not size:
        return 0.0, row
    inverse = 1.0 / size
    return size, [x * inverse for x in row]


def unrolled_products(length):
    """Returns `products` as source text with the loop over a row written out, compiled.

    For length 2 it reads as below. Local names instead of an iterator's items: half the time for
    short rows.

        def products(a, b):
            out = []
            for x0, x1, in a:
                out.append([x0*y0 + x1*y1 for y0, y1, in b])
            return out
    """
    xs = "".join(f"x{i}, " for i in range(length))
    ys = "".join(f"y{i}, " for i in range(length))
    terms = " + ".join(f"x{i}*y{i}" for i in range(length))
    source = (f"def products(a, b):\n    out = []\n    for {xs}in a:\n"
              f"        out.append([{terms} for {ys}in b])\n    return out\n")
    namespace = {}
    exec(source, namespace)  # the text is made of numbers alone
    return namespace["products"]


def columns(rows):
    """Returns the transposed rows, as tuples."""
    return list(zip(*rows))


# ---- Ops: forward, and how the gradient goes back ------------------------------------------------


def embed(table, ids):
    """Returns the rows of a table, one for each id: N x C."""
    def push(grad):
        width = len(table.rows[0])
        out = [None] * len(table.rows)
        for i, g in zip(ids, grad):
            out[i] = g if out[i] is None else list(map(operator.add, out[i], g))
        table.receive([row or [0.0] * width for row in out])
    return Matrix([table.rows[i] for i in ids], (table,), push)


def add(x, y):
    """Returns x + y, for the same shape."""
    def push(grad):
        x.receive(grad)
        y.receive(grad)
    return Matrix([list(map(operator.add, a, b)) for a, b in zip(x.rows, y.rows)], (x, y), push)


def linear(x, w):
    """Returns x w^T: N x C_in and C_out x C_in give N x C_out.

    Backward, of the inner products y[n][o] = x[n] . w[o]: each x[n] meets column n of grad^T, each
    w[o] column o of grad; both are inner products again.
    """
    def push(grad):
        x.receive(products(grad, columns(w.rows)))
        w.receive(products(columns(grad), columns(x.rows)))
    return Matrix(products(x.rows, w.rows), (x, w), push)


def relu(x):
    """Returns max(x, 0)."""
    out = [[0.0 if a <= 0.0 else a for a in row] for row in x.rows]

    def push(grad):
        x.receive([[g if a else 0.0 for g, a in zip(*pair)] for pair in zip(grad, out)])
    return Matrix(out, (x,), push)


def rmsnorm(x, eps=1e-5):
    """Returns x / sqrt(mean(x^2) + eps), a row at a time.

    Backward: with y = s x and s = (mean(x^2) + eps)^-0.5, ds/dx[i] = -s^3 x[i] / C, and so
    dx = s (g - y (g . y) / C).
    """
    C, mul = len(x.rows[0]), operator.mul
    scales = [(sum(map(mul, row, row)) / C + eps) ** -0.5 for row in x.rows]
    out = [[s * a for a in row] for s, row in zip(scales, x.rows)]

    def push(grad):
        back = []
        for s, g, y in zip(scales, grad, out):
            along = sum(map(mul, g, y)) / C
            back.append([s * (gi - along * yi) for gi, yi in zip(g, y)])
        x.receive(back)
    return Matrix(out, (x,), push)


def dropout(x, masks):
    """Returns x, each entry times its multiplier in masks (N x C rows, 0 or 1 / (1 - rate))."""
    def scaled(rows):
        return [list(map(operator.mul, row, mask)) for row, mask in zip(rows, masks)]
    return Matrix(scaled(x.rows), (x,), lambda grad: x.receive(scaled(grad)))


def causal_softmax(scores):
    """Returns softmax of each row up to the diagonal, and 0 after it: T x T."""
    exp, out, T = math.exp, [], len(scores)
    for t, row in enumerate(scores, 1):
        row = row[:t]  # token t sees the t tokens up to itself
        biggest = max(row)
        exps = [exp(score - biggest) for score in row]
        inverse = 1.0 / sum(exps)
        out.append([e * inverse for e in exps] + [0.0] * (T - t))
    return out


def softmax_backward(weights, grad):
    """Returns the gradient of the scores: a (g - g . a), for each row a of softmax weights."""
    mul, out = operator.mul, []
    for a, g in zip(weights, grad):
        mean = sum(map(mul, a, g))
        out.append([ai * (gi - mean) for ai, gi in zip(a, g)])
    return out


def head_forward(q, k, v_columns, masks):
    """Returns the output of a head for one sequence, T x D, and its T x T weights, masked or not.

    q, which is scaled already, and k: T rows of D; v_columns: D columns of T.
    """
    weights = causal_softmax(products(q, k))
    used = weights
    if masks:
        used = [list(map(operator.mul, row, mask)) for row, mask in zip(weights, masks)]
    return products(used, v_columns), weights, used


def head_backward(q, k, v, weights, used, masks, grad):
    """Returns the gradients of q, k and v, T x D each, from that of the head's output."""
    d_weights = products(grad, v)
    if masks:
        d_weights = [list(map(operator.mul, row, mask)) for row, mask in zip(d_weights, masks)]
    d_scores = softmax_backward(weights, d_weights)
    return (products(d_scores, columns(k)), products(columns(d_scores), columns(q)),
            products(columns(used), columns(grad)))


def attention(q, k, v, n_head, lengths, masks=None):
    """Returns causal attention inside each sequence: N x C, the heads side by side.

    lengths: how many of the N rows belong to each sequence, in order. masks: None, or a function,
    (sequence, head, T) -> T x T multipliers of the attention weights.
    """
    D = len(q.rows[0]) // n_head
    scale = D ** -0.5
    heads = []  # what the way back needs: (first row, T, first column, q, k, v, ...)
    out, start = [], 0
    for index, T in enumerate(lengths):
        tokens = slice(start, start + T)
        sides = []
        for head in range(n_head):
            part = slice(head * D, (head + 1) * D)
            qs = [[scale * a for a in row[part]] for row in q.rows[tokens]]
            ks = [row[part] for row in k.rows[tokens]]
            vs = [row[part] for row in v.rows[tokens]]
            mask = masks and masks(index, head, T)
            side, weights, used = head_forward(qs, ks, columns(vs), mask)
            sides.append(side)
            heads.append((tokens, part, qs, ks, vs, weights, used, mask))
        out += [sum(rows, []) for rows in zip(*sides)]
        start += T

    def push(grad):
        gq, gk, gv = [], [], []  # filled head after head; n_head in a row make one sequence
        sides = []
        for tokens, part, *saved, mask in heads:
            dq, dk, dv = head_backward(*saved, mask, [row[part] for row in grad[tokens]])
            sides.append(([[scale * g for g in row] for row in dq], dk, dv))
            if len(sides) == n_head:
                for target, parts in zip((gq, gk, gv), zip(*sides)):
                    target += [sum(rows, []) for rows in zip(*parts)]
                sides = []
        q.receive(gq)
        k.receive(gk)
        v.receive(gv)
    return Matrix(out, (q, k, v), push)


def attend(query, keys, value_columns):
    """Returns the output of one head for one token: D floats, without a graph, for decoding.

    query: D floats, scaled already. keys: T rows of D. value_columns: D columns of T. T of them is
    what the token sees, itself the last.
    """
    exp = math.exp
    scores = products_for(len(query))([query], keys)[0]
    biggest = max(scores)
    exps = [exp(score - biggest) for score in scores]
    inverse = 1.0 / sum(exps)
    return [inverse * x for x in products_for(len(exps))([exps], value_columns)[0]]


def cross_entropy(logits, targets):
    """Returns the mean of -log softmax(logits)[target] over N rows of V logits: a 1 x 1 matrix.

    Backward: (softmax(logits) - 1 at the target) / N.
    """
    N, exp = len(targets), math.exp
    loss, probabilities = 0.0, []
    for row, target in zip(logits.rows, targets):
        biggest = max(row)
        exps = [exp(a - biggest) for a in row]
        total = sum(exps)
        loss += math.log(total) - (row[target] - biggest)
        probabilities.append((exps, 1.0 / total))

    def push(grad):
        g, back = grad[0][0] / N, []
        for (exps, inverse), target in zip(probabilities, targets):
            row = [g * inverse * e for e in exps]
            row[target] -= g
            back.append(row)
        logits.receive(back)
    return Matrix([[loss / N]], (logits,), push)
