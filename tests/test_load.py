"""The whole way from texts to batches: in memory and on disk the same, and as in microgpt.py."""
import random

import pytest

import microgpt
from microgpt import tokenizers
from microgpt.corpus.load import load
from microgpt.corpus.sources import gather

SETTINGS = [(mode, kind, fraction) for mode in ("lines", "paragraphs", "stream")
            for kind in ("char", "word", "bpe") for fraction in (0, 0.1)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prose(tmp_path):
    """Two files, one after the other, with lines, paragraphs and words of several scripts."""
    rng = random.Random(1)
    words = "it was a café and 3 naïve людей went on, they said".split()
    paths = []
    for name in ("a.txt", "b.md"):
        lines = [" ".join(rng.choices(words, k=rng.randint(1, 12))) + "\n" * rng.choice([1, 1, 2])
                 for _ in range(200)]
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(lines) + "The end\n", encoding="utf-8")
    return paths


def learn(kind):
    return lambda texts: tokenizers.learn(kind, texts, **({"merges": 30} if kind == "bpe" else {}))


@pytest.mark.parametrize("mode, kind, fraction", SETTINGS)
def test_on_disk_as_in_memory(prose, mode, kind, fraction):
    data, states = [], []
    for large in (10 ** 9, 0):
        rng = random.Random(42)
        data.append(load(gather(prose), learn(kind), rng, mode=mode, val_fraction=fraction,
                         large=large))
        states.append(rng.getstate())
    memory, disk = data
    assert disk.corpus is None and memory.corpus is not None
    assert memory.tokenizer.hash == disk.tokenizer.hash and states[0] == states[1]
    if mode != "stream":
        assert list(memory.train) == list(disk.train)
        assert list(memory.validation) == list(disk.validation)
        assert memory.batch(3, 5, 8, 42) == disk.batch(3, 5, 8, 42)
    else:  # note: on disk a stream is cut between tokens, in memory between characters
        assert [*memory.train, *memory.validation] == [*disk.train, *disk.validation]
    if mode == "stream" and fraction == 0:
        assert memory.train[:].tolist() == disk.train[:].tolist()
        assert memory.batch(3, 5, 8, 42) == disk.batch(3, 5, 8, 42)
    assert (len(memory.validation) > 0) == (len(disk.validation) > 0) == (fraction > 0)
    assert "on disk" in str(disk.statistics(8)) and str(memory.statistics(8))


def test_the_default_is_the_file_s_own(golden_short):
    """The documents, their order and the weights drawn after them are those of microgpt.py."""
    rng = random.Random(42)
    data = load(gather(), lambda texts: microgpt.CharTokenizer(texts), rng)
    config = microgpt.Config(data.tokenizer.vocab_size, 16, 4, 1, 16)
    weights = microgpt.init_weights(config, rng)
    steps = len(golden_short["losses"])
    losses = microgpt.train(data.corpus.train, data.tokenizer, weights, config, steps)
    assert [round(loss, 4) for loss, _ in zip(losses, range(20))] == golden_short["losses"][:20]
    docs, _ = microgpt.load_docs()
    random.Random(42).shuffle(docs)
    assert [data.batch(step, 1, 16, 42) for step in range(5)] == [
        [[data.tokenizer.bos, *data.tokenizer.encode(doc), data.tokenizer.bos]] for doc in docs[:5]]


def test_tokens_on_disk_are_written_once(prose, monkeypatch):
    seen = []
    for _ in range(2):
        load(gather(prose), learn("char"), random.Random(1), large=0,
             progress=lambda *values: seen.append(values))
    count = len(seen)
    assert count and seen[-1][0] == seen[-1][1] + 1  # the blank line between the two texts
    prose[0].write_text("Changed\n", encoding="utf-8")
    load(gather(prose), learn("char"), random.Random(1), large=0,
         progress=lambda *values: seen.append(values))
    assert len(seen) > count


def test_what_is_refused(prose):
    with pytest.raises(ValueError, match="--dedupe needs all text in memory, and [0-9,]+ bytes"):
        load(gather(prose), learn("char"), random.Random(1), dedupe=True, large=0)
    with pytest.raises(ValueError, match="--val-fraction 2: it takes 0 or more, below 1"):
        load(gather(prose), learn("char"), random.Random(1), val_fraction=2, large=0)
    data = load(gather([prose[0]]), learn("char"), random.Random(1), mode="stream")
    data.check(8)
    with pytest.raises(ValueError, match="tokens, and --block-size 99999 needs 100000"):
        data.check(99_999)
    short = load(gather([prose[0]]), learn("char"), random.Random(1), mode="stream",
                 val_fraction=1e-9)
    with pytest.raises(ValueError, match="--val-fraction holds out a single token"):
        short.check(8)
