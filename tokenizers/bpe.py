"""Byte-pair encoding: frequent pairs of neighbouring tokens become tokens, again and again.

Sennrich et al. (2016), on bytes as in GPT-2 (Radford et al., 2019). As every text is bytes, every
text can be encoded and comes back exactly. Ids 0 to 255 are the bytes, in GPT-2's order; then a
token a merge, in the order learned; then BOS. The merges equal those of the package `tokenizers`
for the same pieces (splitting.py), alphabet and smallest count.
"""
import collections
import heapq
from array import array
from itertools import chain, repeat

from microgpt.tokenizers import splitting
from microgpt.tokenizers.base import PieceCache, Tokenizer, split_by, tokenizer_json, utf8

# The bytes that are visible characters in Latin-1 come first, then all others.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = _VISIBLE + [byte for byte in range(256) if byte not in set(_VISIBLE)]  # id -> byte
ID_OF_BYTE = bytes(sorted(range(256), key=BYTES.__getitem__))  # for bytes.translate
# In a tokenizer.json a byte is one visible character: itself, or one from U+0100 on.
_LETTERS = {byte: chr(byte) if token < len(_VISIBLE) else chr(256 + token - len(_VISIBLE))
            for token, byte in enumerate(BYTES)}


class BPETokenizer(Tokenizer):
    """merges: pairs of ids; the pair in place i becomes token 256 + i.

    >>> tokenizer = BPETokenizer.learn(["aaabdaaabac"], merges=10)
    >>> [tokenizer.token_bytes(256 + i).decode() for i in range(len(tokenizer.merges))]
    ['aa', 'ab', 'aaab']
    """

    kind = "bpe"

    def __init__(self, merges):
        self.merges = [tuple(pair) for pair in merges]
        self._ranks = {pair: 256 + i for i, pair in enumerate(self.merges)}
        self._bytes = [bytes([byte]) for byte in BYTES]
        for i, (a, b) in enumerate(self.merges):
            if not (0 <= a < 256 + i and 0 <= b < 256 + i):
                raise ValueError(f"merge {i} is of {a} and {b}: 0 to {255 + i} are there by then")
            self._bytes.append(self._bytes[a] + self._bytes[b])
        if len(set(self._bytes)) < len(self._bytes):
            raise ValueError("two merges make the same token")
        self._tokens = PieceCache(self._encode_piece)

    @classmethod
    def learn(cls, texts, progress=None, merges=500, min_count=2):
        """Returns a tokenizer of so many merges, or as many as the texts have: see len(merges).

        A pair that occurs less than min_count times is not merged.
        """
        if merges < 0 or min_count < 1:
            raise ValueError(f"merges {merges}, min_count {min_count}: they take 0 and 1 or more")
        counts = splitting.count_pieces(splitting.SUBWORDS, texts)
        return cls(learn_merges(counts, merges, min_count, progress))

    @property
    def vocab_size(self):
        return 256 + len(self.merges) + 1

    def encode(self, text):
        tokens = []
        for pieces in splitting.cut(splitting.SUBWORDS, text):
            tokens.extend(chain.from_iterable(map(self._tokens.__getitem__, pieces)))
        return tokens

    def _encode_piece(self, piece):
        """Returns the tokens of a piece: the merge learned first goes first, from left to right.

        In a time of n log n for n bytes, as a piece can be a whole book in Chinese.
        """
        tokens, ranks = list(utf8(piece).translate(ID_OF_BYTE)), self._ranks
        end = len(tokens)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        pairs = enumerate(zip(tokens, tokens[1:]))
        queue = [(ranks[pair], i) for i, pair in pairs if pair in ranks]
        heapq.heapify(queue)
        while queue:
            merged, i = heapq.heappop(queue)
            j = after[i]
            if j == end or ranks.get((tokens[i], tokens[j])) != merged:
                continue  # one of the two has become part of another token since
            tokens[i], tokens[j] = merged, -1
            after[i] = k = after[j]
            if k < end:
                before[k] = i
                if (merged, tokens[k]) in ranks:
                    heapq.heappush(queue, (ranks[merged, tokens[k]], i))
            h = before[i]
            if h >= 0 and (tokens[h], merged) in ranks:
                heapq.heappush(queue, (ranks[tokens[h], merged], h))
        return tuple(token for token in tokens if token >= 0)

    def token_bytes(self, token):
        return b"" if self.check_token(token) == self.bos else self._bytes[token]

    def document(self):
        names = ["".join(map(_LETTERS.__getitem__, token)) for token in self._bytes]
        model = {"type": "BPE", "dropout": None, "unk_token": None,
                 "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                 "byte_fallback": False, "ignore_merges": False,
                 "vocab": {name: token for token, name in enumerate(names)},
                 "merges": [[names[a], names[b]] for a, b in self.merges]}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": False}
        pieces = {"type": "Sequence", "pretokenizers": [split_by(splitting.SUBWORDS), byte_level]}
        return tokenizer_json(self.vocab_size, model, pieces, byte_level)

    @classmethod
    def from_document(cls, document):
        """note: tokens are read from the file, never built from ids, or 60 merges, each doubling
        the last, would fill the memory."""
        ids = {_LETTERS[byte]: token for token, byte in enumerate(BYTES)}
        merges = []
        for a, b in document["model"]["merges"]:
            merges.append((ids[a], ids[b]))
            ids.setdefault(a + b, len(ids))
        return cls(merges)


# ---- learning ------------------------------------------------------------------------------------

def learn_merges(counts, num_merges, min_count, progress=None):
    """Returns up to num_merges pairs of ids, the most frequent first, ties to the lowest pair.

    counts: piece -> how often it occurs. A pair counts in each place where it stands, so in "aaa"
    (a, a) counts twice. progress: called as progress(done, num_merges) every 100 merges.

    All distinct pieces stand in one array of tokens, and each pair knows its places there, so a
    merge costs as much as it has places, and all merges together no more than the array is long.
    """
    text = _Text(counts)
    base = 256 + num_merges  # a pair (a, b) as one number, a * base + b, in the same order
    places, totals = text.pairs(base)
    queue = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(queue)
    merges = []
    while queue and len(merges) < num_merges:
        promised, pair = heapq.heappop(queue)
        total = totals[pair]
        if total < -promised:  # others took some of its places; of these totals none ever grows
            if total >= min_count:
                heapq.heappush(queue, (-total, pair))
            continue
        if total < min_count:
            break
        if progress and len(merges) % 100 == 0:
            progress(len(merges), num_merges)
        a, b = divmod(pair, base)
        merges.append((a, b))
        changes = text.merge(a, b, 255 + len(merges), places.pop(pair), base, places)
        for changed, change in changes.items():
            totals[changed] = total = totals[changed] + change
            if change > 0 and total >= min_count:
                heapq.heappush(queue, (-total, changed))
    if progress:
        progress(len(merges), num_merges)
    return merges


class _Text:
    """Distinct pieces behind one another in an array, as tokens.

    tokens: at the first byte and at the last byte of each token its id, and -1 at all other bytes
    and between pieces; so both neighbours of a token are found in one step. weights: for each byte,
    how often its piece occurs. sizes: bytes of each token. (Arrays: lists take three times the
    memory, and the same time.)
    """

    def __init__(self, counts):
        self.tokens, self.weights, self.sizes = array("i", [-1]), array("q", [0]), [1] * 256
        for piece, count in counts.items():
            tokens = utf8(piece).translate(ID_OF_BYTE)
            self.tokens.extend(tokens)
            self.tokens.append(-1)
            self.weights.extend(repeat(count, len(tokens) + 1))

    def pairs(self, base):
        """Returns pair -> its places, ascending, and pair -> its total count."""
        places, totals = collections.defaultdict(lambda: array("q")), collections.defaultdict(int)
        a = -1
        for place, b in enumerate(self.tokens):
            if a >= 0 and b >= 0:
                pair = a * base + b
                places[pair].append(place - 1)
                totals[pair] += self.weights[place]
            a = b
        return places, totals

    def merge(self, a, b, merged, where, base, places):
        """Puts `merged` where a and b meet; returns pair -> change of its count, apart from theirs.

        where: places of the pair, ascending, some perhaps out of date. New pairs enter `places`.
        """
        tokens, weights, sizes = self.tokens, self.weights, self.sizes
        size_a, size_b = sizes[a], sizes[b]
        sizes.append(size_a + size_b)
        changes = collections.defaultdict(int)
        for place in where:
            middle = place + size_a
            if tokens[place] != a or tokens[middle] != b:
                continue  # one of the two has become part of another token since
            end, weight = middle + size_b, weights[place]
            left, right = tokens[place - 1], tokens[end]
            tokens[middle - 1] = tokens[middle] = -1
            tokens[place] = tokens[end - 1] = merged
            if left >= 0:
                changes[left * base + a] -= weight
                pair = left * base + merged
                changes[pair] += weight
                places[pair].append(place - sizes[left])
            if right >= 0:
                changes[b * base + right] -= weight
                pair = merged * base + right
                changes[pair] += weight
                places[pair].append(place)
        return changes
