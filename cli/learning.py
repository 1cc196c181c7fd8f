"""Learning a tokenizer on the command's behalf: progress while it lasts, and what to know after."""
import time

from microgpt import tokenizers
from microgpt.cli import arguments
from microgpt.cli.texts import show_progress


class Progress:
    """A line on standard error, if that is a terminal, from the time on that it takes a second."""

    def __init__(self, what):
        self.what, self.start, self.shown = what, time.monotonic(), 0.0

    def __call__(self, done, total):
        now = time.monotonic()
        if now - self.start < 1:
            return
        if done == total and self.shown:
            show_progress("")
        elif done and now - self.shown > 0.1:
            self.shown = now
            left = (now - self.start) / done * (total - done)
            show_progress(f"{self.what}: {done} of {total}, {left:.0f} s left at most")


def learn_tokenizer(flags, kind, texts, cache):
    """Returns the tokenizer of a kind that the flags describe, learned from the texts."""
    settings = arguments.tokenizer_settings(flags, kind)
    return tokenizers.learn(kind, texts, Progress("learning merges"), cache, **settings)


def remarks(flags, tokenizer, texts):
    """Returns what a user must know of a tokenizer that was just learned, a line each."""
    lines = []
    if tokenizer.kind == "bpe":
        asked, found = arguments.tokenizer_settings(flags, "bpe")["merges"], len(tokenizer.merges)
        if found < asked:
            lines.append(f"bpe: {found} merges, not {asked}: no other pair of tokens occurs twice")
    if tokenizer.lossy:
        total = rare = 0
        for text in texts:
            tokens = tokenizer.encode(text)
            total += len(tokens)
            rare += tokens.count(tokenizer.unknown_token)
        lines.append(f"lossy: {100 * rare / total:.1f} % of all words and signs are rarer than "
                     f"--word-min-count and will be{tokenizer.words[tokenizer.unknown_token]}")
    return lines
