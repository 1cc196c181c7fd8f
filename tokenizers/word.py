"""A token a word, a number or a sign; few tokens a text, and a large vocabulary.

A word takes the space before it along: " the" and "the" are two tokens, and no token is spent on
the spaces between words. Other spaces, line ends and signs are tokens of their own.
"""
from itertools import chain

from microgpt.tokenizers import splitting
from microgpt.tokenizers.base import (
    PieceCache, Tokenizer, split_by, tokenizer_json, well_formed, words_in_order)

UNKNOWN = " <unk>"  # with a space, for most words follow one; not a piece, so it cannot be learned


class WordTokenizer(Tokenizer):
    """Pieces, the most frequent first, then the unknown token if there is one, then BOS.

    >>> tokenizer = WordTokenizer.learn(["to be, or not to be"])
    >>> [tokenizer.words[token] for token in tokenizer.encode(" to be,")]
    [' to', ' be', ',']
    """

    kind = "word"

    def __init__(self, words):
        self.words = list(words)
        self.ids = {word: token for token, word in enumerate(self.words)}
        if len(self.ids) < len(self.words):
            raise ValueError("a word is in the vocabulary twice")
        self.unknown_token = self.ids.get(UNKNOWN)  # None where every word has its own
        unknown = () if self.unknown_token is None else (self.unknown_token,)
        ids = self.ids
        self._tokens = PieceCache(lambda piece: (ids[piece],) if piece in ids else unknown)

    @classmethod
    def learn(cls, texts, progress=None, min_count=1):
        """Returns a tokenizer; words that occur less than min_count times are one unknown token."""
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}: it takes 1 or more")
        counts = splitting.count_pieces(splitting.WORDS, map(well_formed, texts))
        words = sorted((word for word, count in counts.items() if count >= min_count),
                       key=lambda word: (-counts[word], word))
        return cls(words + [UNKNOWN] if len(words) < len(counts) else words)

    @property
    def vocab_size(self):
        return len(self.words) + 1

    @property
    def lossy(self):
        return self.unknown_token is not None

    def encode(self, text):
        pieces = chain.from_iterable(splitting.cut(splitting.WORDS, well_formed(text)))
        return list(chain.from_iterable(map(self._tokens.__getitem__, pieces)))

    def token_bytes(self, token):
        return b"" if self.check_token(token) == self.bos else self.words[token].encode("utf-8")

    def unknown(self, text):
        pieces = chain.from_iterable(splitting.cut(splitting.WORDS, well_formed(text)))
        return list(dict.fromkeys(piece for piece in pieces if piece not in self.ids))

    def document(self):
        model = {"type": "WordLevel", "vocab": self.ids, "unk_token": UNKNOWN}
        return tokenizer_json(self.vocab_size, model, split_by(splitting.WORDS), {"type": "Fuse"})

    @classmethod
    def from_document(cls, document):
        words = words_in_order(document)
        if any(well_formed(word) != word for word in words):
            raise ValueError("a word of its vocabulary has no UTF-8")
        return cls(words)
