"""The matrix backend: engine/matrix.py computes, plain Python, nothing to install."""
from microgpt.backends.base import (FORWARD, Backend, check_batch, check_token, micro_batches,
                                     part_seed)
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

    def attention(self, q, k, v, n_head, site):
        masks = self.masks and (lambda index, head, T: self.masks.rows(site, (index, head), T, T))
        return matrix.attention(q, k, v, n_head, self.lengths, masks)

    def dropout(self, x, site):
        if not self.masks:
            return x
        width = len(x.rows[0])
        return matrix.dropout(x, [row for index, T in enumerate(self.lengths)
                                  for row in self.masks.rows(site, (index,), T, width)])


class CachedOps(MatrixOps):
    """The ops for one token at a time: attention keeps the keys and values of those before."""

    def __init__(self):
        super().__init__([1])
        self.cache = {}

    def attention(self, q, k, v, n_head, site):
        keys, values = self.cache.setdefault(site, ([], []))
        keys += k.rows
        values += v.rows
        return Matrix([matrix.attend(q.rows[0], keys, values, n_head)])


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
        ops, weights = CachedOps(), {name: Matrix(rows) for name, rows in self._weights.items()}
        forward, position = FORWARD[self.config.model], 0

        def decode(token):
            nonlocal position
            check_token(self.config, position, token)
            logits = forward(ops, weights, self.config, [token], [position])
            position += 1
            return list(logits.rows[0])
        return decode
