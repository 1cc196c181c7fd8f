"""Vocabularies that others learned from much of the web: the encodings of the package tiktoken.

A text takes few tokens, but the vocabulary is large: 50,000 to 200,000 rows of weights, most of
them for words that a small text never has. tiktoken downloads a vocabulary once, and keeps it.
"""
import hashlib

from microgpt.tokenizers.base import Tokenizer

ENCODINGS = ("gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")
_TYPE = "tiktoken"


class NotInstalled(ValueError):
    """The package tiktoken is missing; the message says how to get it."""


class PretrainedTokenizer(Tokenizer):
    """encoding: a tiktoken.Encoding. BOS is one more than its own tokens.

    Its special tokens, like <|endoftext|>, have ids, but a text that spells one is plain text.
    """

    kind = "pretrained"

    def __init__(self, encoding):
        self.name, self._encoding = encoding.name, encoding
        self._bytes = [_token_bytes(encoding, token) for token in range(encoding.n_vocab)]

    @classmethod
    def learn(cls, texts=(), progress=None, vocabulary="gpt2"):
        """Returns the tokenizer of an encoding; the texts change nothing.

        NotInstalled without tiktoken; ValueError for a name that it lacks or cannot download.
        """
        return cls(fetch(vocabulary))

    @property
    def vocab_size(self):
        return len(self._bytes) + 1

    def encode(self, text):
        return self._encoding.encode_ordinary(text)  # which replaces lone surrogates

    def token_bytes(self, token):
        return b"" if self.check_token(token) == self.bos else self._bytes[token]

    def document(self):
        digest = hashlib.sha256()
        for token in self._bytes:
            digest.update(len(token).to_bytes(4, "little") + token)
        return {"type": _TYPE, "encoding": self.name, "sha256": digest.hexdigest()}

    @classmethod
    def from_document(cls, document):
        """Fetches the encoding by its name; base.build sees whether it is still the same."""
        return cls(fetch(document["encoding"]))


def _token_bytes(encoding, token):
    """Returns the bytes of a token, none for an id that stands for nothing: there are gaps."""
    try:
        return encoding.decode_single_token_bytes(token)
    except KeyError:
        return b""


def fetch(name):
    """Returns the tiktoken.Encoding of a name; errors as PretrainedTokenizer.learn has them."""
    if name not in ENCODINGS:
        raise ValueError(f"vocabulary is {name!r}: it takes {', '.join(ENCODINGS)}")
    try:
        import tiktoken
    except ImportError:
        raise NotInstalled("pretrained vocabularies need the package tiktoken, which is not "
                           "installed: pip install tiktoken; bpe learns one from your text"
                           ) from None
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the vocabulary {name} cannot be downloaded ({type(error).__name__}: "
                         f"{reason}); try again online, or learn one from your text with bpe"
                         ) from None
