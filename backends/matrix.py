"""The matrix backend: engine/matrix.py computes, plain Python, nothing to install."""
import operator

from microgpt.backends.base import (FORWARD, HEAD, Backend, check_batch, check_tokens,
                                     micro_batches, part_seed)
from microgpt.engine import matrix, optim
from microgpt.engine.matrix import Matrix
from microgpt.nn.dropout import DropoutMasks


class MatrixOps:
    """The ops that nn/gpt.py asks for, on a batch packed end to end: one row a token.

    lengths: tokens of each sequence. masks: DropoutMasks, or None outside training.
    """

    def __init__(self, lengths, masks=None):
        self.lengths, self.masks = lengths, masks

    embed = staticmethod(matrix.embed)
    add = staticmethod(matrix.add)
    linear = staticmethod(matrix.linear)
    rmsnorm = staticmethod(matrix.rmsnorm)
    relu = staticmethod(matrix.relu)
    cross_entropy = staticmethod(matrix.cross_entropy)

    def linears(self, x, weights):
        return [self.linear(x, w) for w in weights]

    def attention(self, q, k, v, n_head, site):
        masks = self.masks and (lambda index, head, T: self.masks.rows(site, (index, head), T, T))
        return matrix.attention(q, k, v, n_head, self.lengths, masks)

    def dropout(self, x, site):
        if not self.masks:
            return x
        width = len(x.rows[0])
        return matrix.dropout(x, [row for index, T in enumerate(self.lengths)
                                  for row in self.masks.rows(site, (index,), T, width)])


class CachedOps:
    """The ops for decoding, on plain rows and without a graph: a row for each new token, and what
    attention needs of those before is kept.

    head: the rows of the table that makes the logits, which are computed for the last token only.
    """

    def __init__(self, head):
        self.head = head
        self.cache = {}  # site -> for each head (its keys, T rows of D; its values, D columns of T)

    def embed(self, table, ids):
        return [table[i] for i in (ids[-1:] if table is self.head else ids)]

    def linear(self, x, w):
        return matrix.products(x[-1:] if w is self.head else x, w)

    def linears(self, x, weights):
        return [self.linear(x, w) for w in weights]

    @staticmethod
    def add(x, y):
        return [list(map(operator.add, *pair)) for pair in zip(x, y)]

    @staticmethod
    def relu(x):
        return [[0.0 if a <= 0.0 else a for a in row] for row in x]

    @staticmethod
    def rmsnorm(x):
        C, mul = len(x[0]), operator.mul
        scales = [(sum(map(mul, row, row)) / C + 1e-5) ** -0.5 for row in x]
        return [[s * a for a in row] for s, row in zip(scales, x)]

    def attention(self, q, k, v, n_head, site):
        D = len(q[0]) // n_head
        if site not in self.cache:
            self.cache[site] = [([], [[] for _ in range(D)]) for _ in range(n_head)]
        scale, out = D ** -0.5, []
        for query, key, value in zip(q, k, v):
            heads, low = [], 0
            for keys, columns in self.cache[site]:
                part = slice(low, low + D)
                low += D
                keys.append(key[part])
                for column, number in zip(columns, value[part]):
                    column.append(number)
                heads += matrix.attend([scale * a for a in query[part]], keys, columns)
            out.append(heads)
        return out

    @staticmethod
    def dropout(x, site):
        return x


def added(total, grads, share):
    """Returns total + share x grads; a total of None counts as zeros."""
    if total is None:
        return {name: [[share * g for g in row] for row in rows] for name, rows in grads.items()}
    return {name: [[a + share * g for a, g in zip(*pair)] for pair in zip(total[name], rows)]
            for name, rows in grads.items()}


class MatrixBackend(Backend):
    name = "matrix"

    def _forward(self, batch, masks=None):
        """Returns (weights as Matrix leaves, ops, logits of all but each sequence's last token)."""
        check_batch(self.config, batch)
        lengths = [len(tokens) - 1 for tokens in batch]
        inputs = [token for tokens in batch for token in tokens[:-1]]
        positions = [position for length in lengths for position in range(length)]
        weights = {name: Matrix(rows) for name, rows in self._weights.items()}
        ops = MatrixOps(lengths, masks)
        forward = FORWARD[self.config.model]
        return weights, ops, forward(ops, weights, self.config, inputs, positions)

    def logits(self, batch):
        _, ops, logits = self._forward(batch)
        rows = iter(logits.rows)
        return [[list(next(rows)) for _ in range(T)] for T in ops.lengths]

    def _loss(self, batch, masks=None):
        weights, ops, logits = self._forward(batch, masks)
        targets = [token for tokens in batch for token in tokens[1:]]
        return weights, ops.cross_entropy(logits, targets)

    def loss(self, batch):
        return self._loss(batch)[1].rows[0][0]

    def gradients(self, batch, dropout=None):
        weights, loss = self._loss(batch, dropout)
        loss.backward()
        return loss.rows[0][0], {name: list(map(list, w.grad)) for name, w in weights.items()}

    def step(self, batch, learning_rate, dropout_seed=None, micro_batch=None):
        loss, grads = 0.0, None
        for index, part, share in micro_batches(batch, micro_batch):
            masks = None
            if self.config.dropout and dropout_seed is not None:
                masks = DropoutMasks(self.config.dropout, part_seed(dropout_seed, index))
            part_loss, part_grads = self.gradients(part, masks)
            loss += share * part_loss
            grads = part_grads if share == 1 else added(grads, part_grads, share)
        if self.max_norm is not None:
            optim.clip_gradients(grads, self.max_norm)
        self.optimizer.step(self._weights, grads, learning_rate)
        return loss

    def decoder(self):
        weights, position = self._weights, 0
        forward, ops = FORWARD[self.config.model], CachedOps(weights[HEAD[self.config.model]])

        def decode(*tokens):
            nonlocal position
            check_tokens(self.config, position, tokens)
            start, position = position, position + len(tokens)
            return list(forward(ops, weights, self.config, tokens, range(start, position))[-1])
        return decode
