"""The scalar backend: microgpt.py itself behind the contract.

The file's Value, gpt, mean_loss and Adam run here, looked up in the file at each call: whoever
edits them there sees every run change. Only the loop around them is another.
"""
import microgpt
from microgpt.backends.base import Backend, check_batch, check_tokens, micro_batches
from microgpt.engine import optim
from microgpt.nn.weights import check_weights, weight_shapes


def mapped(function, tensors):
    """Returns name -> rows of function(x), for name -> rows of x."""
    return {name: [[function(x) for x in row] for row in rows] for name, rows in tensors.items()}


def flat(tensors):
    """Returns all entries of name -> rows in one list."""
    return [x for rows in tensors.values() for row in rows for x in row]


def bigram_logits(token, pos, cache, weights, config):
    """What microgpt.gpt is for the bigram model, which the file does not have."""
    return weights["bigram"][token]


class ScalarBackend(Backend):
    """A number a node: slow, and the specification of the others.

    The optimizer adam is the file's; the others are engine.optim's, applied to Values.
    """

    name = "scalar"

    def __init__(self, config, weights, optimizer="adam", max_norm=None, **settings):
        if config.dropout:
            raise ValueError(f"dropout is {config.dropout}: the scalar backend has none, to keep "
                             "the file simple; the matrix backend does")
        self._values = None
        super().__init__(config, weights, optimizer, max_norm, **settings)
        self._adam = None
        if optimizer == "adam":
            rule = self.optimizer
            self._adam = microgpt.Adam(flat(self._values), rule.beta1, rule.beta2, rule.eps)

    def load(self, weights):
        check_weights(self.config, weights)
        if self._values is None:  # in the order of the shapes, which is the file's
            self._values = mapped(microgpt.Value, {name: weights[name] for name in
                                                   weight_shapes(self.config)})
        for name, rows in self._values.items():  # kept as they are, for Adam holds on to them
            for row, numbers in zip(rows, weights[name]):
                for value, number in zip(row, numbers):
                    value.data = float(number)

    def weights(self):
        return mapped(lambda value: value.data, self._values)

    def _gpt(self):
        return bigram_logits if self.config.model == "bigram" else microgpt.gpt

    def _cache(self):
        return [([], []) for _ in range(self.config.n_layer)]

    def logits(self, batch):
        check_batch(self.config, batch)
        gpt, out = self._gpt(), []
        for tokens in batch:
            cache = self._cache()
            out.append([[logit.data for logit in gpt(token, pos, cache, self._values, self.config)]
                        for pos, token in enumerate(tokens[:-1])])
        return out

    def _loss(self, batch):
        check_batch(self.config, batch)
        if self.config.model == "gpt":
            return microgpt.mean_loss(batch, self._values, self.config)
        losses = [-microgpt.softmax(self._values["bigram"][token])[target].log()
                  for tokens in batch for token, target in zip(tokens, tokens[1:])]
        return sum(losses) / len(losses)

    def loss(self, batch):
        return self._loss(batch).data

    def _backward(self, batch, micro_batch=None):
        for value in flat(self._values):
            value.grad = 0.0
        total = 0.0
        for _, part, share in micro_batches(batch, micro_batch):
            loss = self._loss(part)
            (loss if share == 1 else loss * share).backward()
            total += loss.data * share
        return total

    def gradients(self, batch, dropout=None):
        if dropout:
            raise ValueError("the scalar backend has no dropout; the matrix backend does")
        loss = self._backward(batch)
        return loss, mapped(lambda value: value.grad, self._values)

    def step(self, batch, learning_rate, dropout_seed=None, micro_batch=None):
        loss = self._backward(batch, micro_batch)
        if self._adam is None:
            self.optimizer.step_values(self._values, learning_rate, self.max_norm)
            return loss
        if self.max_norm is not None:
            grads = mapped(lambda value: value.grad, self._values)
            optim.clip_gradients(grads, self.max_norm)
            for value, grad in zip(flat(self._values), flat(grads)):
                value.grad = grad
        self._adam.step(learning_rate)
        return loss

    def decoder(self):
        gpt, cache, position = self._gpt(), self._cache(), 0

        def decode(*tokens):
            nonlocal position
            check_tokens(self.config, position, tokens)
            for token in tokens:
                logits = gpt(token, position, cache, self._values, self.config)
                position += 1
            return [logit.data for logit in logits]
        return decode

    def optimizer_state(self):
        if self._adam is None:
            return self.optimizer.state()
        return {"step": self._adam.t, "m": self._like(self._adam.m), "v": self._like(self._adam.v)}

    def _like(self, numbers):
        """Returns a flat list as name -> rows, in the shape of the weights."""
        numbers = iter(numbers)
        return mapped(lambda value: next(numbers), self._values)

    def load_optimizer_state(self, state):
        super().load_optimizer_state(state)
        if self._adam is not None:
            self._adam.t = state["step"]
            for slot in ("m", "v"):  # empty before the first step
                zeros = mapped(lambda value: 0.0, self._values)
                setattr(self._adam, slot, flat({**zeros, **state[slot]}))
