"""The contract of a backend: an engine that holds one model, trains it and runs it.

    backend = load("matrix")(config, weights, optimizer="adam")
    loss = backend.step(batch, learning_rate=0.01)

Weights, gradients and the optimizer's state are exchanged as name -> rows of floats; a row that is
handed in may be any sequence of them, such as a memoryview. A batch is a list of token sequences,
ragged allowed: lists of 2 to block_size + 1 ids, of which each predicts the next. A StreamBatch
(corpus/batches.py) is one too, from which an engine may take where its windows start instead. The
loss is the mean of -log p(target), in nats, over all targets of the batch, so a long sequence
counts for more than a short one.
"""
import platform

from microgpt.engine import optim
from microgpt.nn.bigram import bigram
from microgpt.nn.gpt import gpt
from microgpt.nn.weights import check_weights, weight_shapes

FORWARD = {"gpt": gpt, "bigram": bigram}
HEAD = {"gpt": "lm_head", "bigram": "bigram"}  # the weights that make the logits


class Backend:
    """A model in an engine. Subclasses say how weights are held and gradients computed.

    config: a GPTConfig. weights: name -> rows of floats, copied. optimizer: a name of
    engine.optim.OPTIMIZERS, its settings after it. max_norm: gradients are clipped to it.
    """

    name = ""
    rank, size = 0, 1  # which of how many processes this is, where several train one model
    tolerance = 1e-9  # of a gradient's error against the file's (proof.errors): float64's

    def __init__(self, config, weights, optimizer="adam", max_norm=None, **settings):
        optim.require(max_norm is None or max_norm > 0, "max_norm", max_norm, "above 0")
        self.config = config
        self.max_norm = max_norm
        self.optimizer = optim.make(optimizer, **settings)
        self.load(weights)

    def describe(self):
        """Returns, in a few words, what it computes with."""
        return "float64 in Python"

    def facts(self):
        """Returns what, beside the seed, decides about each last digit: name -> value, for JSON."""
        return {"backend": self.name, "python": platform.python_version(),
                "implementation": platform.python_implementation(), "machine": platform.machine()}

    def summed(self, numbers):
        """Returns the sums of a list of numbers over all processes."""
        return numbers

    def tune(self, batch):
        """Returns settings that trying out a batch like this has chosen, for a run to keep: other
        ones would round otherwise. Nothing that is learned changes."""
        return {}

    def load(self, weights):
        """Takes over weights, name -> rows of floats; ValueError if they are another model's."""
        check_weights(self.config, weights)
        # note: in one order wherever they come from, or the gradient's norm would be rounded anew
        self._weights = optim.copied({name: weights[name] for name in weight_shapes(self.config)})

    def weights(self):
        """Returns a copy of the weights, name -> rows of floats."""
        return optim.copied(self._weights)

    def logits(self, batch):
        """Returns for each sequence its T x V logits, as rows of floats; no dropout."""
        raise NotImplementedError(f"{type(self).__name__} does not compute logits")

    def loss(self, batch):
        """Returns the loss of a batch; no dropout."""
        raise NotImplementedError(f"{type(self).__name__} does not compute losses")

    def gradients(self, batch, dropout=None):
        """Returns (loss, gradients as name -> rows of floats); dropout: DropoutMasks, or none."""
        raise NotImplementedError(f"{type(self).__name__} does not compute gradients")

    def step(self, batch, learning_rate, dropout_seed=None, micro_batch=None):
        """Returns the loss of a batch, after one step: forward, backward, clip, optimizer.

        dropout_seed: where the config has dropout, the masks follow from its text; None: no masks.
        micro_batch: sequences at a time, to save memory: their gradients are added up, so the step
        is the same, but for rounding and for the masks of dropout.
        """
        raise NotImplementedError(f"{type(self).__name__} does not train")

    def decoder(self):
        """Returns a function: one or more tokens in, the logits after the last out (V floats).

        It remembers the tokens before by their keys and values, block_size at most; make a new one
        after a step. The list of logits is the caller's own.
        """
        raise NotImplementedError(f"{type(self).__name__} does not decode")

    def batch_decoder(self, count):
        """Returns a decoder of many texts at once, all equally long.

        It is a function of `count` lists of tokens, equally many in each: what follows in each
        text. It returns for each the logits after the last. Texts that have ended are left out by
        keep, the places of the others among those of the call before: decode(rows, keep).

        Here it is one decoder a text; a backend that computes in batches has something faster.
        """
        decoders = [self.decoder() for _ in range(count)]

        def decode(rows, keep=None):
            nonlocal decoders
            chosen = decoders if keep is None else [decoders[i] for i in keep]
            check_rows(chosen, rows)
            decoders = chosen
            return [decode(*tokens) for decode, tokens in zip(decoders, rows)]
        return decode

    def optimizer_state(self):
        """Returns what the optimizer remembers: {"step": number, slot: name -> rows}.

        Ask the backend, not backend.optimizer: that is the rule, and its memory may be elsewhere.
        """
        return self.optimizer.state()

    def snapshot(self):
        """Returns (weights(), optimizer_state()), to be stored.

        A backend that holds numbers more tightly than lists gives rows that are memoryviews.
        """
        return self.weights(), self.optimizer_state()

    def load_optimizer_state(self, state):
        """Takes over what optimizer_state() gave, here or on another backend.

        ValueError, and nothing changed, if it is another optimizer's, or of another model.
        """
        check_state(self.config, state)
        self.optimizer.load_state(state)


def check_state(config, state):
    """Raises ValueError unless what an optimizer remembers stands beside this model's weights."""
    shapes = weight_shapes(config)
    for slot, tensors in state.items():
        for name, rows in {} if slot == "step" else tensors.items():
            count, width = shapes.get(name, (0, 0))
            if [*map(len, rows)] != [width] * count:
                raise ValueError(f"slot {slot} of {name} has another shape than its weights: the "
                                 "state is of another model")


def micro_batches(batch, size=None):
    """Yields (index, part, share) of a batch: parts of `size` sequences, and of all targets each
    one's share, by which its loss and gradients count.

    >>> [*micro_batches([[1, 2], [3, 4, 5, 6], [7, 8]], 2)]
    [(0, [[1, 2], [3, 4, 5, 6]], 0.8), (1, [[7, 8]], 0.2)]
    """
    size = size or len(batch)
    if len(batch) <= size:
        yield 0, batch, 1.0
        return
    total = count_targets(batch)
    for index, first in enumerate(range(0, len(batch), size)):
        part = batch[first:first + size]
        yield index, part, count_targets(part) / total


def count_targets(batch):
    """Returns how many tokens of a batch are predicted: all but the first of each sequence."""
    if hasattr(batch, "length"):  # windows of a stream, which nobody needs to cut out for this
        return len(batch) * (batch.length - 1)
    return sum(map(len, batch)) - len(batch)


def part_seed(seed, index):
    """Returns the seed of the dropout masks of a part of a batch; of the first, the batch's own."""
    return f"{seed} part {index}" if index else seed


def check_tokens(config, position, tokens):
    """Raises ValueError unless a decoder has room for the tokens, and all of them exist."""
    if not tokens:
        raise ValueError("no token for the decoder: it takes one or more")
    for token in tokens:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token is {token}: the vocabulary has 0 to {config.vocab_size - 1}")
    if position + len(tokens) > config.block_size:
        raise ValueError(f"the decoder has seen {position} of block_size, {config.block_size}, "
                         f"tokens: there is no position for {len(tokens)} more")


def check_rows(texts, rows):
    """Raises ValueError unless there are equally many new tokens for each text of a decoder."""
    lengths = [*map(len, rows)]
    if len(lengths) != len(texts) or len(set(lengths)) != 1:
        raise ValueError(f"new tokens for {len(lengths)} texts, of lengths {sorted(set(lengths))}: "
                         f"the decoder takes equally many for each of its {len(texts)} texts")


def check_batch(config, batch):
    """Raises ValueError, which names the first fault, unless a model can learn from the batch."""
    if not batch:
        raise ValueError("the batch is empty: it takes a list of token sequences")
    for i, tokens in enumerate(batch):
        if not 2 <= len(tokens) <= config.block_size + 1:
            raise ValueError(f"sequence {i} has {len(tokens)} tokens: it takes 2 to block_size "
                             f"+ 1, {config.block_size + 1}, since each predicts the next")
        if not 0 <= min(tokens) <= max(tokens) < config.vocab_size:
            raise ValueError(f"sequence {i} has tokens from {min(tokens)} to {max(tokens)}: the "
                             f"vocabulary has 0 to {config.vocab_size - 1}")
