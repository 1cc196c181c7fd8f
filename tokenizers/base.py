"""The contract of a tokenizer: text to whole numbers, and back.

    tokenizer = BPETokenizer.learn(texts, merges=500)
    tokenizer.decode(tokenizer.encode("First Citizen")) == "First Citizen"

The ids are 0 to vocab_size - 1. The last is BOS, which stands before and behind every document and
for no text: encode never gives it, and decode leaves it out. A tokenizer does not change once made.

What it has never seen makes encode raise nothing. Such symbols become the unknown token where there
is one, and are left out where there is none; `unknown` gives them as a value, for callers to name.
"""
import functools
import hashlib
import json
import os
import re

from microgpt.corpus.cache import write_atomically

BOS = "<|bos|>"  # its name in saved files
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """What all kinds share. A subclass has `kind` and fills in what raises NotImplementedError."""

    kind = ""
    lossy = False  # whether text that it learned from can come back changed

    @classmethod
    def learn(cls, texts, progress=None):
        """Returns a tokenizer for an iterable of documents (strings).

        progress: called as progress(done, total) now and then, where learning takes a while.
        """
        raise NotImplementedError(f"{cls.__name__} does not learn")

    @classmethod
    def from_document(cls, document):
        """Returns the tokenizer whose document() this is; ValueError where it is none."""
        raise NotImplementedError(f"{cls.__name__} cannot be loaded")

    def document(self):
        """Returns what is saved, as JSON's dicts, lists, strings and numbers."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved")

    @property
    def vocab_size(self):
        """The number of tokens, BOS among them."""
        raise NotImplementedError(f"{type(self).__name__} does not count its tokens")

    def encode(self, text):
        """Returns the ids of a text, a list of ints."""
        raise NotImplementedError(f"{type(self).__name__} does not encode")

    def token_bytes(self, token):
        """Returns the UTF-8 of one token: of bpe and pretrained, it can be part of a character."""
        raise NotImplementedError(f"{type(self).__name__} does not decode")

    @property
    def bos(self):
        """The id of BOS: the last."""
        return self.vocab_size - 1

    def decode(self, tokens):
        """Returns the text of ids; bytes that are no UTF-8 (a cut character) become U+FFFD.

        ValueError for an id that is not in the vocabulary.
        """
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", errors="replace")

    def unknown(self, text):
        """Returns the symbols of a text that are not in the vocabulary, each once, in order."""
        return []

    def to_json(self):
        """Returns the saved form, as text."""
        return json.dumps(self.document(), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def load(cls, path):
        """Returns the tokenizer of this kind in a file; ValueError where there is none."""
        return build(cls, read_document(path), path)

    def save(self, path):
        """Writes the saved form to path, whole or not at all; OSError where that fails."""
        write_atomically(path, self.to_json())

    @functools.cached_property
    def hash(self):
        """The sha256 of the saved form, as 64 hexadecimal digits: equal for equal tokenizers."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    def check_token(self, token):
        """Returns the id; ValueError where it is not in the vocabulary."""
        if not 0 <= token < self.vocab_size:  # note: a list would take -1 for its last item
            raise ValueError(f"token is {token}: the vocabulary has 0 to {self.vocab_size - 1}")
        return token


class PieceCache(dict):
    """A dict that finds what it lacks by `encode_piece`, and stays small whatever the text."""

    LIMIT, LONGEST = 1 << 15, 32  # pieces, and characters of a piece: some 40 MB at the very worst

    def __init__(self, encode_piece):
        super().__init__()
        self.encode_piece = encode_piece

    def __missing__(self, piece):
        tokens = self.encode_piece(piece)
        if len(piece) <= self.LONGEST:
            if len(self) >= self.LIMIT:
                self.clear()
            self[piece] = tokens
        return tokens


def well_formed(text):
    """Returns the text with U+FFFD for each lone surrogate, which has no UTF-8."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def utf8(text):
    """Returns the UTF-8 of a text, lone surrogates replaced."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return well_formed(text).encode("utf-8")


def tokenizer_json(vocab_size, model, pre_tokenizer, decoder, normalizer=None):
    """Returns a tokenizer.json document, the form of the package `tokenizers` 0.20 and later.

    note: a text that spells BOS out becomes BOS there, while encode takes it for plain text.
    """
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": vocab_size - 1, "content": BOS, "single_word": False,
                          "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": decoder, "model": model}


def split_by(pattern):
    """Returns the pre-tokenizer of a tokenizer.json that cuts a text into matches of a pattern."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def words_in_order(document):
    """Returns the vocabulary of a WordLevel document, by id."""
    vocab = document["model"]["vocab"]
    return sorted(vocab, key=vocab.__getitem__)


# ---- reading ------------------------------------------------------------------------------------

LARGEST_FILE = 1 << 27  # bytes: two million tokens, and far from what a machine's memory holds


def read_document(path):
    """Returns what the JSON file of a tokenizer holds, a dict; ValueError for all that is not."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError("it is not a file")
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
        document = json.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"tokenizer {path}: {_line(error)}") from None
    if not isinstance(document, dict):
        raise ValueError(f"tokenizer {path}: it holds a {type(document).__name__}, not an object")
    return document


def build(cls, document, path):
    """Returns the tokenizer of a class from its document; ValueError unless it is exactly that.

    Whatever was changed in the file, the tokenizer that comes of it would be saved otherwise.
    """
    try:
        tokenizer = cls.from_document(document)
        again = tokenizer.document()
        wrong = [name for name in {**document, **again} if document.get(name) != again.get(name)]
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, UnicodeError) as error:
        raise ValueError(f"tokenizer {path} is damaged: {type(error).__name__}, {_line(error)}"
                         ) from None
    except ValueError as error:
        raise type(error)(f"tokenizer {path}: {_line(error)}") from None
    if wrong:
        raise ValueError(f"tokenizer {path} is damaged, or not microgpt's: its {wrong[0]!r:.40} is "
                         f"not that of a {cls.kind} tokenizer")
    return tokenizer


def _line(error):
    return " ".join(str(error).split())[:200]
