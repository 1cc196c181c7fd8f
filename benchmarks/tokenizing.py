"""Learning and using byte-pair encoding: microgpt against the package `tokenizers`, written in
Rust, and against a textbook.

    python3 benchmarks/tokenizing.py --data input.txt

All learn from the same pieces, take turns, and must come to the same merges and ids, or the exit
code is 1. The textbook counts all pairs anew for each merge, so it learns few merges, and microgpt
is timed on as few again. Not called tokenizers.py: the other package could not be imported then.
"""
import argparse
import collections
import importlib
import json
import statistics
import sys
import time
from pathlib import Path

import turns

MERGES, TEXTBOOK_MERGES = 5000, 20


# ---- the textbook --------------------------------------------------------------------------------

def textbook_merges(pieces, num_merges):
    """The merges, pairs of bytes objects: each the most frequent pair of neighbours, everywhere.

    pieces: all pieces of the text, as often as they occur. Ties go to the pair that `order` has
    first, which is the other two's rule: by id, and ids are in GPT-2's order of bytes.
    """
    words = [[piece[i:i + 1] for i in range(len(piece))] for piece in pieces]
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = visible + [byte for byte in range(256) if byte not in visible]
    order = {bytes([byte]): i for i, byte in enumerate(alphabet)}
    merges = []
    for _ in range(num_merges):
        counts = collections.Counter()
        for word in words:
            for pair in zip(word, word[1:]):
                counts[pair] += 1
        best = min(counts, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        for place, word in enumerate(words):
            merged, i = [], 0
            while i < len(word):
                if tuple(word[i:i + 2]) == best:
                    merged.append(word[i] + word[i + 1])
                    i += 2
                else:
                    merged.append(word[i])
                    i += 1
            words[place] = merged
        order[best[0] + best[1]] = len(order)
        merges.append(best)
    return merges


# ---- the contestants -----------------------------------------------------------------------------

def learn_in_rust(rust, text, num_merges, pattern):
    cut = rust.pre_tokenizers.Split(rust.Regex(pattern), "isolated")
    level = rust.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = rust.Tokenizer(rust.models.BPE())
    tokenizer.pre_tokenizer = rust.pre_tokenizers.Sequence([cut, level])
    tokenizer.train_from_iterator([text], rust.trainers.BpeTrainer(
        vocab_size=256 + num_merges, min_frequency=2, show_progress=False,
        initial_alphabet=rust.pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def timed(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - began, result


def one_round(ours, rust, text, num_merges):
    """Returns name -> seconds, and whether both came to the same."""
    seconds = {}
    seconds["learn"], tokenizer = timed(lambda: ours.BPETokenizer.learn([text], merges=num_merges))
    pattern = ours.splitting.SUBWORDS
    seconds["rust learn"], there = timed(learn_in_rust, rust, text, num_merges, pattern)
    seconds["encode"], tokens = timed(tokenizer.encode, text)  # with an empty cache of pieces
    seconds["encode again"], _ = timed(tokenizer.encode, text)
    seconds["rust encode"], encoding = timed(there.encode, text)
    seconds["decode"], back = timed(tokenizer.decode, tokens)
    model = json.loads(there.to_str())["model"]
    same = (model["merges"] == tokenizer.document()["model"]["merges"] and encoding.ids == tokens
            and back == text)
    return seconds, same


def textbook_round(ours, text, num_merges):
    stretches = ours.splitting.cut(ours.splitting.SUBWORDS, text)
    pieces = [piece.encode("utf-8") for stretch in stretches for piece in stretch]
    seconds, merges = timed(textbook_merges, pieces, num_merges)
    again, tokenizer = timed(lambda: ours.BPETokenizer.learn([text], merges=num_merges))
    found = [tuple(map(tokenizer.token_bytes, pair)) for pair in tokenizer.merges]
    return {"textbook": seconds, "learn as few": again}, found == merges


# ---- the report ----------------------------------------------------------------------------------

def report(rounds, size, num_merges, few):
    """Prints the table; returns its figures."""
    median = {name: statistics.median(taken[name] for taken in rounds if name in taken)
              for name in {name: None for taken in rounds for name in taken}}
    print(f"{'':44}{'seconds':>9}{'spread':>16}{'MB/s':>8}")
    labels = {"learn": f"microgpt learns {num_merges} merges",
              "rust learn": f"Rust learns {num_merges} merges",
              "textbook": f"a textbook learns {few} merges",
              "learn as few": f"microgpt learns {few} merges",
              "encode": "microgpt encodes", "encode again": "microgpt encodes the same again",
              "rust encode": "Rust encodes", "decode": "microgpt decodes"}
    for name, label in labels.items():
        taken = [times[name] for times in rounds if name in times]
        spread = f"{min(taken):.3f} to {max(taken):.3f}"
        print(f"{label:44}{median[name]:9.3f}{spread:>16}{size / 1e6 / median[name]:8.2f}")
    both = [taken["learn"] / taken["rust learn"] for taken in rounds]
    figures = {
        "seconds": {name: round(seconds, 4) for name, seconds in median.items()},
        "learn_to_rust": round(statistics.median(both), 3),
        "learn_to_rust_spread": [round(min(both), 3), round(max(both), 3)],
        "textbook_to_learn": round(median["textbook"] / median["learn as few"], 1),
        "encode_mb_per_second": round(size / 1e6 / median["encode"], 2)}
    print(f"\nlearning takes {figures['learn_to_rust']:.2f} x Rust's time (rounds: "
          f"{min(both):.2f} to {max(both):.2f}), and the textbook "
          f"{figures['textbook_to_learn']:.0f} x microgpt's")
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a text file")
    parser.add_argument("--merges", type=turns.whole, default=MERGES, help=f"({MERGES})")
    parser.add_argument("--textbook-merges", type=turns.whole, default=TEXTBOOK_MERGES,
                        help=f"({TEXTBOOK_MERGES})")
    parser.add_argument("--rounds", type=turns.whole, default=5, help="(5)")
    args = parser.parse_args()
    turns.import_microgpt()
    ours = importlib.import_module("microgpt.tokenizers")
    try:
        rust = importlib.import_module("tokenizers")
        text = args.data.read_text(encoding="utf-8")
    except (ImportError, OSError, ValueError) as error:
        parser.error(f"{error}; this needs a UTF-8 text and pip install tokenizers")
    where = turns.circumstances("tokenizing", {"benchmark": turns.python_of(sys.executable)})
    where["tokenizers"], size = rust.__version__, len(text.encode("utf-8"))
    turns.print_heading(where)
    print(f"{args.data.name}: {size / 1e6:.2f} MB; tokenizers {rust.__version__} on all cores, "
          f"everything else on one; {args.rounds} rounds\n", flush=True)
    rounds, equal = [], True
    one_round(ours, rust, text[:100_000], args.merges)  # warm-up
    for _ in range(args.rounds):
        seconds, same = one_round(ours, rust, text, args.merges)
        rounds.append(seconds)
        equal &= same
    seconds, same = textbook_round(ours, text, args.textbook_merges)
    rounds[0].update(seconds)
    equal &= same
    figures = report(rounds, size, args.merges, args.textbook_merges)
    print("the merges and ids of all are the same" if equal else "NOT the same merges and ids")
    print(json.dumps({**where, "bytes": size, "results": figures, "equal": equal}))
    return 0 if equal else 1


if __name__ == "__main__":
    turns.exit_with(main)
