"""Text to whole numbers and back, four ways behind one contract (base.py).

    char.py        a token a character, as in microgpt.py
    word.py        a token a word
    bpe.py         byte-pair encoding: what is between, learned from the text
    pretrained.py  vocabularies of the package tiktoken
    splitting.py   where a text is cut into words
    learned.py     merges kept for the next run
"""
from microgpt.tokenizers.base import Tokenizer, build, read_document
from microgpt.tokenizers.bpe import BPETokenizer
from microgpt.tokenizers.char import ANY_CHARACTER, CharTokenizer
from microgpt.tokenizers.learned import learn_or_recall
from microgpt.tokenizers.pretrained import ENCODINGS, NotInstalled, PretrainedTokenizer
from microgpt.tokenizers.word import WordTokenizer

KINDS = {cls.kind: cls for cls in (CharTokenizer, WordTokenizer, BPETokenizer, PretrainedTokenizer)}


def learn(kind, texts, progress=None, cache=False, **settings):
    """Returns a tokenizer of a kind, learned from an iterable of documents.

    settings: word: min_count; bpe: merges, min_count; pretrained: vocabulary. progress: called as
    progress(done, total) while bpe learns. cache: recall the merges of the same texts, if they were
    learned before, and keep them if not. ValueError for a kind that is not there.
    """
    if isinstance(texts, str):  # which is an iterable of strings too, a character each
        raise TypeError("texts is one string: it takes a list of documents, such as [text]")
    if kind not in KINDS:
        raise ValueError(f"tokenizer is {kind!r}: it takes {', '.join(KINDS)}")
    if kind == "bpe" and cache:
        return learn_or_recall(texts, progress, **settings)
    return KINDS[kind].learn(texts, progress, **settings)


def load(path):
    """Returns the tokenizer in a file, of whatever kind; ValueError, in a line, for any other file.

    The file is only read, never run, and what it makes is no larger than itself.
    """
    document = read_document(path)
    return build(KINDS[_kind_of(document, path)], document, path)


def _kind_of(document, path):
    """Returns the kind of a document: the form is another package's, and has no place to say it."""
    if document.get("type") == "tiktoken":
        return "pretrained"
    model, cutting = document.get("model"), document.get("pre_tokenizer")
    model_type = model.get("type") if isinstance(model, dict) else None
    if model_type == "BPE":
        return "bpe"
    if model_type == "WordLevel" and isinstance(cutting, dict):
        return "char" if cutting.get("pattern") == {"Regex": ANY_CHARACTER} else "word"
    raise ValueError(f"tokenizer {path}: it is no {', '.join(KINDS)} tokenizer of microgpt")


__all__ = ["BPETokenizer", "CharTokenizer", "ENCODINGS", "KINDS", "NotInstalled",
           "PretrainedTokenizer", "Tokenizer", "WordTokenizer", "learn", "load"]
