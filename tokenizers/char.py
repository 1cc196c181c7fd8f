"""A token a character: the tokenizer of microgpt.py, with the same ids.

The alphabet is small and every text of the same characters comes back exactly; but a word takes as
many tokens as letters, so a model sees little text at once.
"""
from microgpt.tokenizers.base import (
    Tokenizer, split_by, tokenizer_json, well_formed, words_in_order)

ANY_CHARACTER = r"[\s\S]"  # a plain . would miss newlines


class CharTokenizer(Tokenizer):
    """Characters by code point, then BOS. One that was never seen is left out.

    >>> tokenizer = CharTokenizer.learn(["banana"])
    >>> tokenizer.encode("naba!"), tokenizer.bos, tokenizer.unknown("naba!")
    ([2, 0, 1, 0], 3, ['!'])
    """

    kind = "char"

    def __init__(self, chars):
        self.chars = sorted(set(chars))
        self.ids = {char: token for token, char in enumerate(self.chars)}

    @classmethod
    def learn(cls, texts, progress=None):
        chars = set()
        for text in texts:
            chars.update(text)
        return cls(well_formed("".join(chars)))

    @property
    def vocab_size(self):
        return len(self.chars) + 1

    def encode(self, text):
        try:
            return list(map(self.ids.__getitem__, text))
        except KeyError:
            return [self.ids[char] for char in well_formed(text) if char in self.ids]

    def token_bytes(self, token):
        return b"" if self.check_token(token) == self.bos else self.chars[token].encode("utf-8")

    def unknown(self, text):
        return list(dict.fromkeys(char for char in well_formed(text) if char not in self.ids))

    def document(self):
        model = {"type": "WordLevel", "vocab": self.ids, "unk_token": "<unk>"}  # which never occurs
        drop_unknown = {"type": "Replace", "pattern": {"Regex": all_but(self.chars)}, "content": ""}
        return tokenizer_json(self.vocab_size, model, split_by(ANY_CHARACTER), {"type": "Fuse"},
                              drop_unknown)

    @classmethod
    def from_document(cls, document):
        chars = words_in_order(document)
        if any(len(char) != 1 or well_formed(char) != char for char in chars):
            raise ValueError("an entry of its vocabulary is not one character")
        return cls(chars)


def all_but(chars):
    """Returns a regular expression for any character but these, which are sorted."""
    runs = []  # [first, last] code points, one run for neighbours
    for code in map(ord, chars):
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    inside = "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in runs)
    return f"[^{inside}]" if inside else ANY_CHARACTER
