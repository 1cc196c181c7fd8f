"""Sampling: how a token is chosen, what the model sees, and tokens as text while they come.

The backends are held to each other by the text they write, and all of them to a model that reads
everything in view anew for each token.
"""
import itertools
import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import microgpt
from microgpt import tokenizers
from microgpt.backends import BACKENDS, load
from microgpt.nn import GPTConfig, sampling
from microgpt.nn.sampling import (
    SamplingSettings as Settings, TextStream, adjusted, choose, explain, generate,
    generate_choices, generate_many, probabilities, sample, sample_rng, stream_text, window_start)
from microgpt.tokenizers.base import Tokenizer
from strategies import Case, cases, configs, few, many, some

each_backend = pytest.mark.parametrize("name", BACKENDS)


def make(name, case):
    """Returns a backend in float64 with the model of a case; skips where its package is missing."""
    options = {}
    if name == "torch":
        pytest.importorskip("torch").set_num_threads(1)
        options = {"device": "cpu", "dtype": "float64"}
    return load(name)(case.config, case.weights, **options)


class Numbers(Tokenizer):
    """A token a byte of some bytes, so that tests choose what a token's bytes are."""

    def __init__(self, parts):
        self.parts = parts

    @property
    def vocab_size(self):
        return len(self.parts) + 1

    def encode(self, text):
        return [self.parts.index(char.encode()) for char in text if char.encode() in self.parts]

    def token_bytes(self, token):
        return b"" if token == self.bos else self.parts[token]


def letters(case):
    """Returns a tokenizer with as many tokens as the model of a case: one byte each."""
    return Numbers([bytes([97 + i]) for i in range(case.config.vocab_size - 1)])


some_settings = st.builds(
    Settings, temperature=st.sampled_from([0, 0.5, 0.8, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 2, 5, 1000]),
    top_p=st.sampled_from([1.0, 0.99, 0.7, 0.3, 1e-9]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 3.0, 0.7]))
some_logits = st.lists(st.one_of(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), st.floats(-20, 20)),
                       min_size=1, max_size=30)


def prompts(case, longest=25):
    return st.lists(st.integers(0, case.config.vocab_size - 2), max_size=longest)


shapes = configs(vocab_size=st.integers(2, 40), block_size=st.integers(1, 8),
                 n_embd=st.integers(4, 12), n_layer=st.integers(1, 2),
                 model=st.sampled_from(["gpt", "gpt", "gpt", "bigram"]))


@st.composite
def situations(draw):
    """A model, a prompt that may be longer than it sees, settings and whether it is a stream."""
    case = draw(cases(shapes, max_sequences=1))
    settings = Settings(**{**vars(draw(some_settings)), "max_tokens": draw(st.integers(1, 30))})
    return case, draw(prompts(case)), settings, draw(st.booleans())


def written(name, situation, seed=None):
    case, prompt, settings, is_stream = situation
    return list(generate(make(name, case), letters(case), prompt, settings,
                         random.Random(case.seed if seed is None else seed), is_stream))


# ---- How a token is chosen -----------------------------------------------------------------------


@pytest.mark.parametrize("name, value, accepted", [
    ("temperature", -1, "a number, 0 or more"), ("temperature", math.nan, "a number, 0 or more"),
    ("temperature", math.inf, "a number, 0 or more"), ("temperature", "hot", "a number, 0 or more"),
    ("temperature", True, "a number"),
    ("top_k", 0, "a whole number, 1 or more"), ("top_k", 2.5, "a whole number"),
    ("top_p", 0, "a share of the probability, above 0, up to 1"), ("top_p", 1.1, "a share"),
    ("top_p", math.nan, "a share"), ("repetition_penalty", 0, "a number above 0; 1 is none"),
    ("repetition_penalty", math.inf, "a number above 0"), ("stop", "", "a text, not empty"),
    ("stop", 5, "a text"), ("max_tokens", 0, "a whole number, 1 or more")])
def test_wrong_settings_are_refused(name, value, accepted):
    with pytest.raises(ValueError, match=f"^{name} is {value!r}: it takes {accepted}") as caught:
        Settings(**{name: value})
    assert "\n" not in str(caught.value)


def test_the_temperature_of_the_file_is_the_default():
    assert Settings() == Settings(temperature=dict((n, d) for n, d, _ in microgpt.FLAGS)[
        "temperature"])


@given(logits=some_logits, temperature=st.sampled_from([0, 0.3, 0.5, 1.0]), seed=st.integers())
@some
def test_without_settings_the_file_chooses(logits, temperature, seed):
    ours, theirs = random.Random(seed), random.Random(seed)
    settings = Settings(temperature=temperature)
    for _ in range(3):
        assert choose(logits, settings, ours, [0]) == microgpt.choose(logits, temperature, theirs)
    assert ours.random() == theirs.random()  # as many random numbers were drawn
    assert adjusted(logits, settings, [0]) is logits


def test_who_edits_the_choice_of_the_file_changes_every_text(monkeypatch):
    case = Case(GPTConfig(7, n_embd=6, n_head=2, block_size=6), (7,), 0.6, 3)
    for settings in (Settings(max_tokens=20), Settings(top_k=5, top_p=0.9, max_tokens=20)):
        before = written("matrix", (case, [1], settings, True))
        with monkeypatch.context() as patch:
            patch.setattr(microgpt, "choose", lambda logits, temperature, rng: 4)
            assert written("matrix", (case, [1], settings, True)) == [4] * 20 != before


@given(logits=some_logits, settings=some_settings, recent=st.sets(st.integers(0, 29)),
       seed=st.integers())
@some
def test_top_k_1_is_greedy(logits, settings, recent, seed):
    recent = {token for token in recent if token < len(logits)}
    one, greedy = (Settings(**{**vars(settings), **changed})
                   for changed in ({"top_k": 1}, {"temperature": 0}))
    expected = choose(logits, greedy, random.Random(seed), recent)
    assert choose(logits, one, random.Random(seed), recent) == expected
    if settings.repetition_penalty == 1:
        assert expected == logits.index(max(logits))


@given(logits=some_logits, settings=some_settings)
@some
def test_top_p_1_and_a_top_k_above_the_vocabulary_change_nothing(logits, settings):
    free = Settings(settings.temperature)
    assert adjusted(logits, Settings(settings.temperature, top_p=1.0)) == logits
    assert adjusted(logits, Settings(settings.temperature, top_k=len(logits) + 5)) == logits
    assert probabilities(logits, Settings(settings.temperature, 1000, 1.0, 1.0)) == probabilities(
        logits, free)


@given(logits=some_logits, settings=some_settings, recent=st.sets(st.integers(0, 29)))
@some
def test_probabilities_sum_to_1_and_are_those_of_the_draw(logits, settings, recent):
    recent = {token for token in recent if token < len(logits)}
    shares = probabilities(logits, settings, recent)
    assert math.isclose(math.fsum(shares), 1, rel_tol=1e-12) and min(shares) >= 0
    if settings.temperature:
        drawn = []

        class Recorder(random.Random):
            def choices(self, population, weights):
                drawn.extend(weights)
                return super().choices(population, weights)
        choose(logits, settings, Recorder(1), recent)
        assert shares == pytest.approx([x / sum(drawn) for x in drawn], rel=1e-12)


@given(logits=some_logits, top_p=st.one_of(st.sampled_from([0.25, 0.5, 0.75]), st.floats(0.01, 1)),
       top_k=st.sampled_from([None, 3, 10]), temperature=st.sampled_from([0.5, 1.0]))
@example(logits=[1.0] * 4, top_p=0.5, top_k=None, temperature=1.0)
@example(logits=[0.0] * 10, top_p=0.7, top_k=None, temperature=1.0)
@some
def test_top_p_keeps_the_fewest_that_have_as_much(logits, top_p, top_k, temperature):
    free = probabilities(logits, Settings(temperature, top_k))
    kept = [i for i, x in enumerate(adjusted(logits, Settings(temperature, top_k, top_p)))
            if x > -math.inf]
    shares = sorted((free[i] for i in kept), reverse=True)
    assert math.fsum(shares) >= top_p - 1e-9
    assert math.fsum(shares[:-1]) < top_p + 1e-9  # without the last it would not do
    allowed = [i for i in range(len(logits)) if free[i]]
    by_rank = sorted(allowed, key=lambda i: (-logits[i], i))
    assert sorted(by_rank[:len(kept)]) == kept  # the likeliest, ties by id
    if top_k:
        assert len(kept) <= top_k


def test_ties_go_to_the_lowest_id():
    logits = [1.0, 2.0, 2.0, 2.0, 0.0]
    assert adjusted(logits, Settings(top_k=2)) == [-math.inf, 2.0, 2.0, -math.inf, -math.inf]
    assert adjusted([0.0] * 10, Settings(1.0, top_p=0.8)).count(0.0) == 8  # for all rounding
    kept = adjusted([0.0] * 4, Settings(1.0, top_p=0.5))
    assert kept == [0.0, 0.0, -math.inf, -math.inf]
    assert choose(logits, Settings(temperature=0), random.Random(0)) == 1


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones():
    """CTRL, section 4.1."""
    assert adjusted([4.0, -4.0, 0.0, 1.0], Settings(repetition_penalty=2.0), [0, 1, 2]) == [
        2.0, -8.0, 0.0, 1.0]
    assert choose([4.0, 3.0], Settings(0, repetition_penalty=2.0), random.Random(0), [0]) == 1


@given(logits=some_logits, settings=some_settings, token=st.integers(0, 29))
@some
def test_choices_say_the_probability_of_the_draw(logits, settings, token):
    token %= len(logits)
    shares = probabilities(logits, settings, [token])
    choice = explain(token, logits, settings, [token])
    assert choice.probability == shares[token]
    assert len(choice.others) == min(4, len(logits) - 1)
    assert all(other != token and share == shares[other] for other, share in choice.others)
    assert [share for _, share in choice.others] == sorted(
        (share for i, share in enumerate(shares) if i != token), reverse=True)[:4]


def test_choices_of_a_text_and_its_end():
    case = Case(GPTConfig(3, n_embd=4, n_head=2, block_size=6), (7,), 0.5, 3)
    backend, tokenizer, settings = make("matrix", case), letters(case), Settings(1.0, max_tokens=50)
    choices = list(generate_choices(backend, tokenizer, [1], settings, random.Random(5)))
    tokens = list(generate(backend, tokenizer, [1], settings, random.Random(5)))
    assert [choice.token for choice in choices] == [*tokens, tokenizer.bos] and len(tokens) > 2
    for choice in choices:
        assert math.isclose(choice.probability + sum(p for _, p in choice.others), 1)


# ---- The same text on every backend --------------------------------------------------------------


@given(situation=situations())
@many
def test_every_backend_writes_the_same_text(situation):
    text = written("scalar", situation)
    assert written("matrix", situation) == text
    assert written("torch", situation) == text


@given(situation=situations())
@few
def test_the_same_seed_writes_the_same_text_again(situation):
    assert written("matrix", situation) == written("matrix", situation)


def test_equal_logits_are_settled_alike():
    """Tokens 1 and 3 have the same weights, and so, on every backend, the same logits."""
    case = Case(GPTConfig(6, n_embd=8, n_head=2, block_size=5), (6,), 0.6, 2)
    weights = case.weights
    weights["lm_head"][3] = weights["lm_head"][1] = [3 * x for x in weights["lm_head"][1]]
    texts = []
    for name, settings in itertools.product(BACKENDS, (Settings(0, max_tokens=40),
                                                       Settings(1.0, 1, max_tokens=40))):
        backend = make(name, case)
        backend.load(weights)
        texts.append(list(generate(backend, letters(case), [0], settings, random.Random(1), True)))
    assert 1 in texts[0] and 3 not in texts[0] and texts == [texts[0]] * 6


# ---- What the model sees -------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 64))
@many
def test_the_view_is_the_end_of_the_text_and_never_small(length, block_size):
    start = window_start(length, block_size)
    seen = length - start
    assert 1 <= seen <= block_size
    assert seen == length if length <= block_size else seen > block_size / 2
    assert start <= window_start(length + 1, block_size) <= start + max(1, block_size // 2)


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 256])
def test_a_token_of_a_long_text_costs_two_forward_passes_at_most(block_size):
    reads, length = 0, 50 * block_size
    for n in range(1, length):
        moved = window_start(n, block_size) != window_start(n - 1, block_size)
        reads += n - window_start(n, block_size) if moved else 1
    assert reads <= (2 if block_size % 2 == 0 else 3) * length + block_size


def recomputed(backend, tokenizer, prompt, settings, rng, is_stream):
    """Returns what `generate` writes, by a full forward pass over all in view for each token."""
    text, out, size = [tokenizer.bos, *prompt], [], backend.config.block_size
    if is_stream:
        text = list(prompt) or [0]
    while len(out) < settings.max_tokens:
        view = text[window_start(len(text), size):]
        assert text[-len(view):] == view and len(view) <= size
        logits = backend.logits([[*view, 0]])[0][-1]
        if is_stream:
            logits[tokenizer.bos] = -math.inf
        token = choose(logits, settings, rng, {*view} - {tokenizer.bos})
        if token == tokenizer.bos:
            break
        text.append(token)
        out.append(token)
    return out


@each_backend
@given(situation=situations())
@some
def test_cached_generation_equals_reading_everything_anew(name, situation):
    case, prompt, settings, is_stream = situation
    expected = recomputed(make(name, case), letters(case), prompt, settings,
                          random.Random(case.seed), is_stream)
    assert written(name, situation) == expected


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8])
@each_backend
def test_cached_generation_equals_it_far_beyond_block_size(name, block_size):
    case = Case(GPTConfig(30, n_embd=8, n_head=2, block_size=block_size), (2,), 0.9, 4)
    settings = Settings(1.0, repetition_penalty=1.1, max_tokens=12 * block_size + 1)
    for prompt in ([], [3] * (7 * block_size)):
        got = written(name, (case, prompt, settings, True), 5)
        assert got == recomputed(make(name, case), letters(case), prompt, settings,
                                 random.Random(5), True)
        assert len(got) == settings.max_tokens and len(set(got)) > 3


def test_of_a_long_prompt_the_end_counts():
    case = Case(GPTConfig(30, n_embd=8, n_head=2, block_size=8), (2,), 0.9, 4)
    settings = Settings(1.0, max_tokens=30)
    rng = random.Random(2)
    long, other = ([rng.randrange(29) for _ in range(52)] for _ in range(2))
    assert written("matrix", (case, long, settings, True), 1) == written(
        "matrix", (case, other[:44] + long[44:], settings, True), 1)
    assert written("matrix", (case, long, settings, True), 1) != written(
        "matrix", (case, long[:51] + [(long[51] + 1) % 29], settings, True), 1)


@each_backend
@given(case=cases(shapes), data=st.data())
@few
def test_a_decoder_reads_many_tokens_as_one_by_one(name, case, data):
    backend, tokens = make(name, case), case.batch[0][:-1]
    one, many_at_once = backend.decoder(), backend.decoder()
    expected = [one(token) for token in tokens]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens)))) | {len(tokens)})
    for low, high in zip([0, *cuts], cuts):
        assert many_at_once(*tokens[low:high]) == pytest.approx(expected[high - 1], rel=1e-9)


@each_backend
def test_decoders_refuse_what_they_cannot_read_and_are_as_before(name):
    case = Case(GPTConfig(7, n_embd=6, n_head=2, block_size=4), (3,), 0.6, 3)
    backend = make(name, case)
    decode, fresh = backend.decoder(), backend.decoder()
    decode(1), fresh(1)
    for tokens, message in [((), "no token for the decoder"), ((2, 7), "token is 7: the vocab"),
                            ((1, 2, 3, 4), "has seen 1 of block_size, 4, tokens: .* 4 more")]:
        with pytest.raises(ValueError, match=message):
            decode(*tokens)
    assert decode(1, 2, 3) == fresh(1, 2, 3)
    decode = backend.batch_decoder(3)
    decode([[1], [2], [3]])
    for rows, keep in [([[1], [2]], None), ([[1], [2], [3, 4]], None), ([[1], [2], [3]], [0, 1])]:
        with pytest.raises(ValueError, match="equally many for each of its [23] texts"):
            decode(rows, keep)
    assert decode([[4], [5]], [0, 2])[1] == pytest.approx(backend.decoder()(3, 5), rel=1e-9)


# ---- Many at once --------------------------------------------------------------------------------


@each_backend
@given(situation=situations(), count=st.integers(1, 5), stop=st.sampled_from([None, "b", "ab"]))
@few
def test_many_texts_at_once_are_those_of_one_at_a_time(name, situation, count, stop):
    case, prompt, settings, is_stream = situation
    settings = Settings(**{**vars(settings), "stop": stop})
    backend, tokenizer = make(name, case), letters(case)

    def rngs():
        return [sample_rng(case.seed, i) for i in range(count)]
    together = generate_many(backend, tokenizer, prompt, settings, rngs(), is_stream)
    assert together == [list(generate(backend, tokenizer, prompt, settings, rng, is_stream))
                        for rng in rngs()]
    two = generate_many(backend, tokenizer, prompt, settings, rngs()[:2], is_stream)
    assert two == together[:2]


def test_no_texts_are_none():
    case = Case(GPTConfig(5, n_embd=4, n_head=2, block_size=4), (3,), 0.6, 3)
    assert generate_many(make("matrix", case), letters(case), [], Settings(), []) == []


def test_samples_differ_and_are_the_same_in_every_process():
    assert sample_rng(42, 0).random() != sample_rng(42, 1).random() != sample_rng(43, 1).random()
    assert sample_rng(42, 3).random() == 0.19335306222858684


# ---- Where texts begin and end -------------------------------------------------------------------


def model_of(tokenizer, block_size=8, name="matrix", seed=1):
    return make(name, Case(GPTConfig(tokenizer.vocab_size, n_embd=8, n_head=2,
                                     block_size=block_size), (2,), 0.9, seed))


CHARS = tokenizers.CharTokenizer.learn(["anna\nbob\n", "carla é"])


@pytest.mark.parametrize("settings", [Settings(0), Settings(1.0), Settings(1.0, 500, 0.9, 1.2)])
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("text", ["", "anna", "bob\ncarla", "é\n\n", "\N{GRINNING FACE}", "XYZ",
                                  "ann\N{GRINNING FACE}a", "anna\n" * 20])
def test_prompts_of_every_kind(text, is_stream, settings):
    backend, prompt = model_of(CHARS), CHARS.encode(text)
    known = "".join(char for char in text if char not in CHARS.unknown(text))
    assert CHARS.decode(prompt) == known
    out = sample(backend, CHARS, settings, random.Random(3), is_stream, prompt)
    assert set(out) <= set(CHARS.chars) and len(out) <= 8
    assert len(out) == 8 or not is_stream
    same = sample(backend, CHARS, settings, random.Random(3), is_stream, CHARS.encode(known))
    assert same == out


def test_an_unprompted_stream_begins_after_a_newline():
    backend, settings = model_of(CHARS), Settings(1.0)
    newline = CHARS.encode("\n")
    first = next(generate(backend, CHARS, [], settings, random.Random(3), True))
    assert first == choose(backend.decoder()(*newline)[:-1], settings, random.Random(3))
    assert sampling.opening(CHARS, [], True) == newline
    assert sampling.opening(CHARS, [1, 2], True) == [1, 2]
    assert sampling.opening(CHARS, [1, 2], False) == [CHARS.bos, 1, 2]
    assert sampling.opening(tokenizers.CharTokenizer.learn(["ab"]), [], True) == [0]  # has none


def test_a_document_ends_at_bos_and_a_stream_never():
    tokenizer = tokenizers.CharTokenizer.learn(["a\n"])
    backend, settings = model_of(tokenizer), Settings(2.0, max_tokens=60)
    lengths = [len(list(generate(backend, tokenizer, [], settings, sample_rng(1, i))))
               for i in range(9)]
    assert min(lengths) < 10
    for i in range(9):
        tokens = list(generate(backend, tokenizer, [], settings, sample_rng(1, i), True))
        assert len(tokens) == 60 and tokenizer.bos not in tokens


@pytest.mark.parametrize("count", [1, 5, 200])
def test_max_tokens_and_its_default(count):
    backend = model_of(CHARS)
    assert len(list(generate(backend, CHARS, [], Settings(max_tokens=count), random.Random(1),
                             True))) == count
    assert len(list(generate(backend, CHARS, [1] * 9, Settings(), random.Random(1), True))) == 8


def test_tokens_come_one_by_one(monkeypatch):
    backend, calls = model_of(CHARS), []
    real = microgpt.choose
    monkeypatch.setattr(microgpt, "choose", lambda *args: calls.append(1) or real(*args))
    tokens = generate(backend, CHARS, [], Settings(), random.Random(1), True)
    next(tokens), next(tokens)
    assert len(calls) == 2


def test_the_file_s_sample_is_the_same(golden_short):
    """The file's own sample() and ours draw the same text from the same random numbers."""
    tokenizer = microgpt.CharTokenizer(["anna", "bob"])
    mine = tokenizers.CharTokenizer.learn(["anna", "bob"])
    case = Case(GPTConfig(tokenizer.vocab_size, n_embd=8, n_head=2, block_size=9), (2,), 0.7, 1)
    values = {name: [[microgpt.Value(x) for x in row] for row in rows]
              for name, rows in case.weights.items()}
    theirs, ours = random.Random(4), random.Random(4)
    for _ in range(5):
        expected = microgpt.sample(tokenizer, values, case.config, 0.8, theirs)
        assert sample(make("scalar", case), mine, Settings(0.8), ours) == expected
    assert theirs.random() == ours.random()


# ---- Tokens as text ------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("ab\n é한\N{GRINNING FACE}\u0301\u200d\ufffd"), max_size=12)


@st.composite
def cut_bytes(draw, source=TEXTS):
    """A tokenizer whose tokens are the pieces of some bytes, cut anywhere, and these tokens."""
    data = draw(source)
    data = data.encode() if isinstance(data, str) else data
    cuts = sorted(draw(st.sets(st.integers(0, len(data)))) | {0, len(data)})
    parts = [data[low:high] for low, high in zip(cuts, cuts[1:])]
    return Numbers(parts), list(range(len(parts)))


@given(cut_bytes())
@many
def test_text_comes_in_whole_characters(cut):
    tokenizer, tokens = cut
    whole, shown, stream = tokenizer.decode(tokens), "", TextStream(tokenizer)
    for i, token in enumerate(tokens):
        shown += stream.push(token)
        assert whole.startswith(shown)  # nothing is ever taken back
        ready = b"".join(tokenizer.parts[:i + 1]).decode("utf-8", "ignore")
        assert shown == ready  # and nothing waits for longer than it must
    assert shown + stream.finish() == whole
    assert "".join(stream_text(tokens, tokenizer)) == whole


@given(cut_bytes(st.binary(max_size=12)))
@many
def test_bytes_that_are_no_text_are_replaced_as_decode_does(cut):
    tokenizer, tokens = cut
    assert "".join(stream_text(tokens, tokenizer)) == tokenizer.decode(tokens)


def test_half_a_character_at_the_end():
    tokenizer = Numbers([b"a", "é".encode()[:1]])
    assert list(stream_text([0, 1, 0, 1], tokenizer)) == ["a", "\ufffda", "\ufffd"]


@given(cut_bytes(), st.text(st.sampled_from("ab\n é한"), min_size=1, max_size=3))
@example((Numbers([b"aa", b"ab"]), [0, 1]), "aab")
@example((Numbers([b"a", b"b", b"a", b"a"]), [0, 1, 2, 3]), "aba")
@many
def test_the_stop_text_is_cut_off_and_never_shown_in_part(cut, stop):
    tokenizer, tokens = cut
    whole = tokenizer.decode(tokens)
    expected, found, _ = whole.partition(stop)
    stream, shown, read = TextStream(tokenizer, stop), "", b""
    for token in tokens:
        shown += stream.push(token)
        read += tokenizer.parts[token]
        ready = read.decode("utf-8", "ignore")
        assert expected.startswith(shown)
        if stop not in ready:  # what waits could be the beginning of the stop text
            assert not stream.stopped and stop.startswith(ready[len(shown):])
        else:
            assert stream.stopped
    assert shown + stream.finish() == expected and stream.stopped == bool(found)
    assert "".join(stream_text(tokens, tokenizer, stop)) == expected


@pytest.mark.parametrize("stop", ["a", "nn", "\n", "bo"])
def test_generation_ends_with_the_token_that_completes_the_stop_text(stop):
    backend, ended = model_of(CHARS), 0
    settings = Settings(1.5, stop=stop, max_tokens=150)
    for i in range(5):
        tokens = list(generate(backend, CHARS, [], settings, sample_rng(3, i), True))
        text = CHARS.decode(tokens)
        assert stop not in text[:-1]
        ended += text.endswith(stop) and len(tokens) < 150
        out = sample(backend, CHARS, settings, sample_rng(3, i), True)
        assert out == text.partition(stop)[0]
    assert ended


def test_a_stop_text_in_the_prompt_does_not_count():
    backend, settings = model_of(CHARS), Settings(1.0, stop="anna", max_tokens=20)
    assert list(generate(backend, CHARS, CHARS.encode("anna"), settings, random.Random(1), True))


def test_bpe_streams_emoji_whole():
    tokenizer = tokenizers.BPETokenizer.learn(["naïve \N{GRINNING FACE}\N{GRINNING FACE} é" * 3],
                                              merges=4)
    text = "é\N{GRINNING FACE}e\u0301 한"
    pieces = list(stream_text(tokenizer.encode(text), tokenizer))
    assert "".join(pieces) == text and "\ufffd" not in text and len(pieces) >= 5
    backend = model_of(tokenizer)
    tokens = list(generate(backend, tokenizer, tokenizer.encode("é"), Settings(3.0, max_tokens=40),
                           random.Random(1), True))
    assert "".join(stream_text(tokens, tokenizer)) == tokenizer.decode(tokens)
