"""Where a text is cut before any learning: no token reaches over such a cut.

The rules are GPT-2's (Radford et al., 2019): a word with the space before it, a number with the
space before it, other signs with the space before them, and what is left of the spaces. GPT-2 needs
the package `regex` for its letters and numbers. Here they are written out, so that the standard
`re` cuts alike under every version of Python, and so do the engines of other languages, whose
`\\w`, `\\d` and `\\s` differ.

Unlike GPT-2's, a word keeps its combining marks: Hindi and Thai vowels, and accents that stand as a
character of their own, would else cut every word into letters.
"""
import collections
import functools
import re

# Code points, hexadecimal, from Unicode 15.1. Those not yet assigned between two letters count as
# letters. From 10000 on the ranges are coarse: old scripts, with their digits and punctuation.
# Letters and marks (L and M), without the marks for symbols (20d0-20ff, fe00-fe0f: "this as an
# emoji"), with the non-joiner that stands inside Persian words (200c).
LETTERS = """
41-5a 61-7a aa b5 ba c0-d6 d8-f6 f8-2c1 2c6-2d1 2e0-2e4 2ec 2ee 300-374 376-37d 37f 386 388-3f5
3f7-481 483-559 560-588 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7-5f2 610-61a 620-65f 66e-6d3 6d5-6dc
6df-6e8 6ea-6ef 6fa-6fc 6ff 710-7b1 7ca-7f5 7fa-7fd 800-82d 840-85b 860-887 889-88e 898-8e1
8e3-963 971-9e3 9f0-9f1 9fc 9fe-a5e a70-a75 a81-ae3 af9-b63 b71 b82-bd7 c00-c63 c80-c83 c85-ce3
cf1-d4e d54-d57 d5f-d63 d7a-ddf df2-df3 e01-e3a e40-e4e e81-ece edc-f00 f18-f19 f35 f37 f39
f3e-f84 f86-fbc fc6 1000-103f 1050-108f 109a-109d 10a0-10fa 10fc-135f 1380-138f 13a0-13fd
1401-166c 166f-167f 1681-169a 16a0-16ea 16f1-1734 1740-17d3 17d7 17dc-17dd 180b-180d 180f
1820-193b 1950-19c9 1a00-1a1b 1a20-1a7f 1aa7 1ab0-1b4c 1b6b-1b73 1b80-1baf 1bba-1bf3 1c00-1c37
1c4d-1c4f 1c5a-1c7d 1c80-1cbf 1cd0-1cd2 1cd4-1fbc 1fbe 1fc2-1fcc 1fd0-1fdb 1fe0-1fec 1ff2-1ffc
200c 2071 207f 2090-209c 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2139
213c-213f 2145-2149 214e 2183-2184 2c00-2ce4 2ceb-2cf3 2d00-2d6f 2d7f-2dff 2e2f 3005-3006
302a-302f 3031-3035 303b-303c 3041-309a 309d-309f 30a1-30fa 30fc-318e 31a0-31bf 31f0-31ff
3400-4dbf 4e00-a48c a4d0-a4fd a500-a60c a610-a61f a62a-a672 a674-a67d a67f-a6e5 a6f0-a6f1
a717-a71f a722-a788 a78b-a827 a82c a840-a873 a880-a8c5 a8e0-a8f7 a8fb a8fd-a8ff a90a-a92d
a930-a953 a960-a9c0 a9cf a9e0-a9ef a9fa-aa4d aa60-aa76 aa7a-aadd aae0-aaef aaf2-ab5a ab5c-ab69
ab70-abea abec-abed ac00-d7fb f900-fb28 fb2a-fbb1 fbd3-fd3d fd50-fdc7 fdf0-fdfb fe20-fe2f
fe70-fefc ff21-ff3a ff41-ff5a ff66-ffdc 10000-1cfff 1d400-1d7cb 1e000-1efff 20000-3ffff
e0100-e01ef
"""
# Numbers (Nd, Nl, No).
NUMBERS = """
30-39 b2-b3 b9 bc-be 660-669 6f0-6f9 7c0-7c9 966-96f 9e6-9ef 9f4-9f9 a66-a6f ae6-aef b66-b6f
b72-b77 be6-bf2 c66-c6f c78-c7e ce6-cef d58-d5e d66-d78 de6-def e50-e59 ed0-ed9 f20-f33
1040-1049 1090-1099 1369-137c 16ee-16f0 17e0-17f9 1810-1819 1946-194f 19d0-19da 1a80-1a99
1b50-1b59 1bb0-1bb9 1c40-1c49 1c50-1c59 2070 2074-2079 2080-2089 2150-2182 2185-2189 2460-249b
24ea-24ff 2776-2793 2cfd 3007 3021-3029 3038-303a 3192-3195 3220-3229 3248-324f 3251-325f
3280-3289 32b1-32bf a620-a629 a6e6-a6ef a830-a835 a8d0-a8d9 a900-a909 a9d0-a9d9 a9f0-a9f9
aa50-aa59 abf0-abf9 ff10-ff19 1d7ce-1d7ff 1fbf0-1fbf9
"""
# White_Space.
SPACES = "9-d 20 85 a0 1680 2000-200a 2028 2029 202f 205f 3000"


def literal(table):
    """Returns the inside of a character class: "41-5a 5f" -> "A-Z_"."""
    return "".join("-".join(chr(int(code, 16)) for code in span.split("-"))
                   for span in table.split())


L, N, S = literal(LETTERS), literal(NUMBERS), literal(SPACES)

# Each character is in some match, so the matches joined are the text. The last space before a word
# is the word's, hence the two ways of taking spaces: all but the last, if something follows.
SUBWORDS = (f"'(?:[sdmt]|ll|ve|re)| ?[{L}]+| ?[{N}]+| ?[^{S}{L}{N}]+"
            f"|[{S}]+(?![^{S}])|[{S}]+")

# Here words keep their apostrophes, and signs and spaces stand alone: each is in the vocabulary
# sooner than a run of them.
WORDS = f" ?[{L}]+(?:['\u2019][{L}]+)*| ?[{N}]+|[{S}]|[^{S}{L}{N}]"

_compiled = functools.lru_cache(maxsize=None)(re.compile)  # when used: it takes milliseconds


def cut(pattern, text, size=1 << 20):
    """Yields lists of pieces, the matches of SUBWORDS or WORDS, which joined are the text.

    A long text is cut by stretches of `size` characters or more, so that memory for pieces stays
    small; one ends between a non-space and a space, where no piece reaches over.
    """
    find, start = _compiled(pattern).findall, 0
    while len(text) - start > size:
        border = _compiled(f"[^{S}](?=[{S}])").search(text, start + size)
        if border is None:
            break
        yield find(text[start:border.end()])
        start = border.end()
    yield find(text[start:] if start else text)


def count_pieces(pattern, texts):
    """Returns piece -> how often it occurs in the texts."""
    counts = collections.Counter()
    for text in texts:
        for pieces in cut(pattern, text):
            counts.update(pieces)
    return counts
