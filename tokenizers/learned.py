"""Merges that were learned once, kept in the user's cache folder for the next run."""
import hashlib

from microgpt.corpus.cache import cache_folder
from microgpt.tokenizers import splitting
from microgpt.tokenizers.bpe import BPETokenizer


def cache_path(texts, **settings):
    """Returns where the merges of the texts are kept: a name from all that they follow from."""
    digest = hashlib.sha256(repr((splitting.SUBWORDS, sorted(settings.items()))).encode("utf-8"))
    for text in sorted(texts):  # their order, which a seed shuffles, changes no count
        digest.update(text.encode("utf-8", errors="surrogatepass") + b"\xff")  # never in UTF-8
    return cache_folder() / "merges" / f"{digest.hexdigest()}.json"


def learn_or_recall(texts, progress=None, merges=500, min_count=2):
    """Returns BPETokenizer.learn(...), from the cache where it is there and whole.

    A cache that cannot be written is no reason to stop: the next run learns anew.
    """
    texts = texts if isinstance(texts, (list, tuple)) else list(texts)  # which are read twice
    path = cache_path(texts, merges=merges, min_count=min_count)
    try:
        return BPETokenizer.load(path)
    except ValueError:
        tokenizer = BPETokenizer.learn(texts, progress, merges, min_count)
    try:
        tokenizer.save(path)
    except OSError:
        pass
    return tokenizer
