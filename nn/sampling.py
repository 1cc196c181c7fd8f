"""Text from a model: each token chosen by the logits, fed back, until the document ends.

The settings only change the logits, in this order: a penalty for repetition (CTRL, Keskar et al.,
2019), top-k, top-p (Holtzman et al., 2020). The choice itself is always microgpt.choose, with one
random number a token, so the same seed writes the same text on every backend.

A model sees block_size tokens. Positions are learned and absolute: when the oldest token leaves,
every other one moves, and all keys and values that were kept are wrong. So the view does not move
on with every token, but by half of itself now and then (`window_start`), and what is left of it is
read anew: two forward passes a token on the whole, however long the text.

    choose, probabilities              how a token is chosen
    generate, generate_choices         the tokens of one text; with their probabilities
    generate_many                      the tokens of many texts at once
    stream_text, TextStream            tokens as text, as they come, up to a stop text
    sample                             all that in one: a new document
"""
import codecs
import dataclasses
import heapq
import itertools
import math
import random
from typing import NamedTuple, Optional

import microgpt
from microgpt.nn.config import DEFAULTS

# ---- How a token is chosen -----------------------------------------------------------------------

ROUNDING = 1e-12  # top_p is reached within it, or equal probabilities would be cut by rounding


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen, and when a text ends; ValueError says what is wrong with it.

    >>> SamplingSettings(top_p=0)
    Traceback (most recent call last):
    ...
    ValueError: top_p is 0: it takes a share of the probability, above 0, up to 1
    """

    temperature: float = DEFAULTS["temperature"]  # 0: always the likeliest
    top_k: Optional[int] = None        # choose among so many of the likeliest
    top_p: float = 1.0                 # choose among the fewest that have this much probability
    repetition_penalty: float = 1.0    # above 1: less of what is in view already
    stop: Optional[str] = None         # a text that ends it, and is not part of it
    max_tokens: Optional[int] = None   # None: block_size

    def __post_init__(self):
        def check(name, is_right, accepted):
            value = getattr(self, name)
            if not is_right(value):
                raise ValueError(f"{name} is {value!r}: it takes {accepted}")

        def whole(value):
            return value is None or type(value) is int and value >= 1
        check("temperature", lambda x: is_number(x) and 0 <= x < math.inf, "a number, 0 or more")
        check("top_k", whole, "a whole number, 1 or more")
        check("top_p", lambda x: is_number(x) and 0 < x <= 1,
              "a share of the probability, above 0, up to 1")
        check("repetition_penalty", lambda x: is_number(x) and 0 < x < math.inf,
              "a number above 0; 1 is none")
        check("stop", lambda x: x is None or isinstance(x, str) and x, "a text, not empty")
        check("max_tokens", whole, "a whole number, 1 or more")


def penalised(logits, penalty, recent):
    """Returns the logits, those of recent tokens divided by the penalty, or times it below 0."""
    logits = list(logits)
    for token in set(recent):
        x = logits[token]
        logits[token] = x * penalty if x < 0 else x / penalty
    return logits


def softmax(logits, temperature):
    """Returns the probabilities by which microgpt.choose draws."""
    biggest = max(logits)
    if temperature == 0:
        likeliest = logits.index(biggest)
        return [float(token == likeliest) for token in range(len(logits))]
    odds = [math.exp((logit - biggest) / temperature) for logit in logits]
    total = sum(odds)
    return [x / total for x in odds]


def kept_tokens(logits, settings):
    """Returns the tokens that top_k and top_p leave, the likeliest first, ties by id.

    top_p is of the probability that top_k left.
    """
    count = min(settings.top_k or len(logits), len(logits))
    kept = heapq.nlargest(count, range(len(logits)), key=logits.__getitem__)  # keeps ties in order
    if settings.top_p == 1:
        return kept
    shares = softmax([logits[token] for token in kept], settings.temperature)
    reached = itertools.accumulate(shares)
    fewest = 1 + next((i for i, mass in enumerate(reached) if mass >= settings.top_p - ROUNDING),
                      len(kept) - 1)
    return kept[:fewest]


def adjusted(logits, settings, recent=()):
    """Returns the logits that microgpt.choose is given; -inf for tokens that cannot be chosen.

    recent: the tokens in view, for the penalty. With none of these settings: the logits as such.

    >>> adjusted([3.0, 1.0, -1.0, 2.0], SamplingSettings(top_k=2), recent=[0, 2])
    [3.0, -inf, -inf, 2.0]
    >>> adjusted([3.0, 1.0, -1.0, 2.0], SamplingSettings(repetition_penalty=2.0), recent=[0, 2])
    [1.5, 1.0, -2.0, 2.0]
    """
    if settings.repetition_penalty != 1:
        logits = penalised(logits, settings.repetition_penalty, recent)
    if settings.temperature == 0 or (settings.top_p == 1 and settings.top_k is None):
        return logits  # the likeliest is always among those that are kept
    out = [-math.inf] * len(logits)
    for token in kept_tokens(logits, settings):
        out[token] = logits[token]
    return out


def choose(logits, settings, rng, recent=()):
    """Returns the next token: microgpt.choose, looked up there, on the adjusted logits."""
    return microgpt.choose(adjusted(logits, settings, recent), settings.temperature, rng)


def probabilities(logits, settings, recent=()):
    """Returns V probabilities: those by which `choose` draws, after all the settings."""
    return softmax(adjusted(logits, settings, recent), settings.temperature)


class Choice(NamedTuple):
    """A token that was chosen, and what else there was.

    The probabilities are those of the draw itself, after temperature and all the other settings: at
    temperature 0 they are 1 and 0.
    """

    token: int
    probability: float
    others: list  # (token, probability) of the likeliest others, in order; 0 where it was cut off


def explain(token, logits, settings, recent=(), count=4):
    """Returns the Choice of a token from these logits, with so many of the others."""
    shares = probabilities(logits, settings, recent)
    ranks = penalised(logits, settings.repetition_penalty, recent)
    best = heapq.nlargest(count + 1, range(len(logits)), key=ranks.__getitem__)
    others = [(other, shares[other]) for other in best
              if other != token and ranks[other] > -math.inf]
    return Choice(token, shares[token], others[:count])


# ---- What the model sees -------------------------------------------------------------------------


def window_start(length, block_size):
    """Returns how many tokens of a text this long are out of view: the model sees the others.

    None, up to block_size tokens. Then the view moves on by half of block_size at a time, as soon
    as it is full, so it always has more than half of what fits: a function of the length alone.

    >>> [length - window_start(length, 8) for length in range(1, 18)]
    [1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8, 5]
    """
    hop = max(1, block_size // 2)
    return max(0, -(-(length - block_size) // hop) * hop)


class Window:
    """The logits after texts that grow together: a decoder, and a new one when the view moves."""

    def __init__(self, backend):
        self.backend = backend
        self.decode, self.start, self.seen = None, 0, 0  # in tokens from the beginning of the texts

    def logits(self, texts, keep=None):
        """Returns for each text the logits after it.

        texts: all equally long, those of the last call with more tokens behind them. keep: of which
        places among those they are, None for all.
        """
        length = len(texts[0])
        start = window_start(length, self.backend.config.block_size)
        if self.decode is None or start != self.start:
            self.decode = self.backend.batch_decoder(len(texts))
            self.start, self.seen, keep = start, start, None
        rows = [text[self.seen:] for text in texts]
        self.seen = length
        return self.decode(rows, keep)


def opening(tokenizer, prompt, is_stream):
    """Returns the tokens that a text begins with, before the first that is chosen.

    A document begins with BOS. A stream has never seen BOS: it begins with the prompt, or, where
    there is none, with the end of a line.
    """
    if not is_stream:
        return [tokenizer.bos, *prompt]
    return list(prompt) or [(tokenizer.encode("\n") or [0])[-1]]


# ---- Generation ----------------------------------------------------------------------------------


class Draw(NamedTuple):
    """A token drawn for one of several texts, and what it was drawn from."""

    text: int
    token: int
    logits: list
    recent: set  # tokens in view, where there is a penalty for them


def draws(backend, tokenizer, prompt, settings, rngs, is_stream=False):
    """Yields Draws for as many texts as there are rngs, in turn, BOS too, where it ends one."""
    texts = dict(enumerate(opening(tokenizer, prompt, is_stream) for _ in rngs))
    shown = {i: TextStream(tokenizer, settings.stop) for i in texts if settings.stop}
    window, keep, bos = Window(backend), None, tokenizer.bos
    for _ in range(settings.max_tokens or backend.config.block_size):
        if not texts:
            return
        before = list(texts)
        for i, logits in zip(before, window.logits(list(texts.values()), keep)):
            if is_stream:
                logits[bos] = -math.inf
            recent = ()
            if settings.repetition_penalty != 1:
                recent = {*texts[i][window.start:]} - {bos}  # a mark, not a repetition
            token = choose(logits, settings, rngs[i], recent)
            texts[i].append(token)
            if shown and token != bos:
                shown[i].push(token)
            if token == bos or shown and shown[i].stopped:
                del texts[i]
            yield Draw(i, token, logits, recent)
        keep = [place for place, i in enumerate(before) if i in texts]
        keep = keep if len(keep) < len(before) else None


def generate(backend, tokenizer, prompt, settings, rng, is_stream=False):
    """Yields the tokens that follow a prompt, until BOS, the stop text or max_tokens.

    prompt: tokens, or none; of many, the model sees the last. rng: a random.Random. is_stream: the
    model learned from one stream of text, so BOS is never chosen. The tokens that make the stop
    text are among those that come; stream_text cuts it off.
    """
    for draw in draws(backend, tokenizer, prompt, settings, [rng], is_stream):
        if draw.token != tokenizer.bos:
            yield draw.token


def generate_choices(backend, tokenizer, prompt, settings, rng, is_stream=False):
    """Yields what `generate` does, as Choices, with BOS where that was chosen as the end."""
    for draw in draws(backend, tokenizer, prompt, settings, [rng], is_stream):
        yield explain(draw.token, draw.logits, settings, draw.recent)


def generate_many(backend, tokenizer, prompt, settings, rngs, is_stream=False):
    """Returns the tokens of as many texts as there are rngs, all at once: a list of lists.

    Each is what `generate` gives with its rng, but for the last digits of a torch that computes
    many rows otherwise than one.
    """
    texts = [[] for _ in rngs]
    for draw in draws(backend, tokenizer, prompt, settings, rngs, is_stream):
        if draw.token != tokenizer.bos:
            texts[draw.text].append(draw.token)
    return texts


def sample_rng(seed, index):
    """Returns the random numbers of a sample: its own, however many are made at once."""
    return random.Random(f"{seed} sample {index}")


# ---- Tokens as text ------------------------------------------------------------------------------


class TextStream:
    """Turns tokens into text as they come: whole characters only, and never part of a stop text.

    A token may end inside a character: its bytes wait for the rest. Text that could be how the stop
    text begins waits too. `stopped` says whether that has come; what follows it is dropped.
    """

    def __init__(self, tokenizer, stop=None):
        self.tokenizer, self.stop, self.stopped = tokenizer, stop, False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token):
        """Returns the text that can be shown now that a token has come."""
        return self._show(self._decoder.decode(self.tokenizer.token_bytes(token)))

    def finish(self):
        """Returns the rest; a character that was never completed is U+FFFD."""
        text = self._show(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _show(self, text):
        if self.stopped or not self.stop:
            return "" if self.stopped else text
        before, found, _ = (self._held + text).partition(self.stop)
        if found:
            self.stopped, self._held = True, ""
            return before
        safe = len(before) - overlap(before, self.stop)
        self._held = before[safe:]
        return before[:safe]


def overlap(text, stop):
    """Returns how many characters at the end of a text may be how the stop text begins.

    >>> overlap("the en", "end"), overlap("the end of", "end")
    (2, 0)
    """
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1)
                 if text.endswith(stop[:size])), 0)


def stream_text(tokens, tokenizer, stop=None):
    """Yields the text of tokens in pieces, as soon as they can be shown, up to the stop text."""
    stream = TextStream(tokenizer, stop)
    for token in tokens:
        piece = stream.push(token)
        if piece:
            yield piece
        if stream.stopped:
            return
    rest = stream.finish()
    if rest:
        yield rest


def sample(backend, tokenizer, settings, rng, is_stream=False, prompt=()):
    """Returns a new document as text: what `generate` gives, up to the stop text."""
    tokens = generate(backend, tokenizer, prompt, settings, rng, is_stream)
    return "".join(stream_text(tokens, tokenizer, settings.stop))
