"""python3 microgpt.py tokenize: how a text is cut into tokens, by one tokenizer or by all."""
import itertools
import json
import sys
import unicodedata

from microgpt import tokenizers
from microgpt.cli import arguments, learning, texts
from microgpt.cli.parser import Parser
from microgpt.cli.terminal import columns, in_colour
from microgpt.corpus.documents import choose_mode, split_documents

COLOURS = ("30;48;5;153", "30;48;5;223", "30;48;5;157", "30;48;5;218")  # black on four light ones


def make_parser():
    parser = Parser("tokenize", "Learns a tokenizer as training would, and shows how it cuts a "
                    "text.")
    parser.add_argument("text", nargs="*", help="what to cut (left out: standard input)")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    arguments.add_data_flags(parser, many=False)
    arguments.add_tokenizer_flags(parser, more_kinds=["all"])
    return parser


def run(args):
    """Prints the pieces, or with --tokenizer all a table, a line a tokenizer."""
    arguments.tokenizer_settings(args, args.tokenizer)
    text = given_text(args)
    gathered = texts.gather_texts(args)
    mode = choose_mode(gathered.texts(), args.documents).mode
    docs, source = split_documents(gathered.texts(), mode), gathered.name
    if args.tokenizer == "all":
        return compare(args, text, docs, source)
    tokenizer = learning.learn_tokenizer(args, args.tokenizer, docs, not args.no_cache)
    row = measure(tokenizer, text)
    tokens = tokenizer.encode(text)
    if args.json:
        row["tokens"] = [{"id": token, "text": visible(tokenizer.token_bytes(token))}
                         for token in tokens]
        print(json.dumps(row))
        return
    learned = "" if tokenizer.kind == "pretrained" else f", learned from {source}"
    print(f"{tokenizer.kind}: a vocabulary of {tokenizer.vocab_size}{learned}")
    for remark in learning.remarks(args, tokenizer, docs):
        print(remark)
    show(tokenizer, tokens)
    plural = "s" * (len(tokens) != 1)
    print(f"{row['characters']} characters, {len(tokens)} token{plural}"
          + f": {ratio(row)} characters a token" * (ratio(row) != "-"))
    if row["unknown"]:
        fate = "left out" if not tokenizer.lossy else "the unknown token"
        print(f"not in the vocabulary, so {fate}: {' '.join(row['unknown'])}")


def given_text(args):
    """Returns the text of the command line, or else of a pipe; ValueError where there is none."""
    if args.text:
        return " ".join(args.text)
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError('there is no text: give it, as in tokenize "some text", or pipe it in')
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text: {error}") from None


def measure(tokenizer, text):
    """Returns a row of the table, as JSON has it."""
    tokens, unknown = tokenizer.encode(text), tokenizer.unknown(text)
    # where symbols are left out, a length for each token would say nothing
    whole = tokens and (tokenizer.lossy or not unknown)
    return {"tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "tokens": len(tokens),
            "characters": len(text),
            "characters_per_token": len(text) / len(tokens) if whole else None,
            "lossy": tokenizer.decode(tokens) != text,
            "unknown": [visible(symbol.encode("utf-8")) for symbol in unknown]}


def ratio(row):
    length = row["characters_per_token"]
    return "-" if length is None else f"{length:.2f}"


def compare(args, text, docs, source):
    """Prints what each tokenizer makes of the text; one that is not there says why."""
    rows, lacking = [], {}
    for kind in tokenizers.KINDS:
        try:
            tokenizer = learning.learn_tokenizer(args, kind, docs, not args.no_cache)
            rows.append(measure(tokenizer, text))
        except ValueError as error:  # no tiktoken, or no network
            lacking[kind] = str(error)
    if args.json:
        print(json.dumps(rows + [{"tokenizer": kind, "error": error}
                                 for kind, error in lacking.items()]))
        return
    print(f"{len(text)} characters; learned from {source}")
    print(f"{'tokenizer':<12}{'vocabulary':>10}{'tokens':>10}{'characters a token':>20}  lossy")
    for row in rows:
        lossy = "no"
        if row["lossy"]:
            names = row["unknown"][:5] + ["..."] * (len(row["unknown"]) > 5)
            lossy = f"yes: {' '.join(names)}"
        print(f"{row['tokenizer']:<12}{row['vocab_size']:>10}{row['tokens']:>10}{ratio(row):>20}"
              f"  {lossy}")
    for kind, reason in lacking.items():
        print(f"{kind:<12}{reason}")


# ---- pieces for the eye --------------------------------------------------------------------------

def visible(data):
    """Returns bytes as text in which everything can be seen, and what is no UTF-8 as \\xf0.

    >>> visible(b" a\\n")
    '␣a␊'
    """
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(visible_character(char, i == 0) for i, char in enumerate(text))


def visible_character(char, first):
    code, category = ord(char), unicodedata.category(char)
    if char == " ":
        return "␣"
    if code < 32 or code == 127:
        return chr(0x2400 + min(code, 33))  # the symbol for a control character
    if category[0] in "CZ":
        return char.encode("unicode_escape").decode("ascii")
    return "\u25cc" + char if first and category[0] == "M" else char  # a circle for it to stand on


def show(tokenizer, tokens):
    """Prints each token with its id, as many a line as the terminal has room for."""
    colour, width = in_colour(), columns()
    line, length = [], 0
    for token, style in zip(tokens, itertools.cycle(COLOURS)):
        piece = visible(tokenizer.token_bytes(token))
        size = len(piece) + len(str(token)) + 3
        if line and length + size > width + 1:
            print(" ".join(line))
            line, length = [], 0
        line.append(f"\x1b[{style}m{piece}\x1b[0m\x1b[2m({token})\x1b[0m" if colour
                    else f"{piece}({token})")
        length += size
    if line:
        print(" ".join(line))
