"""Prompts and the texts that follow them: what sample, chat, compare and train --chat share."""
import sys
from dataclasses import dataclass
from typing import Optional

from microgpt.cli.texts import show_progress
from microgpt.nn.sampling import TextStream, draws, explain, sample_rng


@dataclass
class Writer:
    """A model that is ready to write.

    is_stream: it learned from one running text, not from documents.
    """
    backend: object
    tokenizer: object
    is_stream: bool

    def tokens(self, prompt):
        """Returns the tokens of a prompt, and says on standard error what of it cannot be read."""
        tokens = self.tokenizer.encode(prompt)
        unknown = self.tokenizer.unknown(prompt)
        if unknown:
            shown = ", ".join(map(repr, unknown[:10])) + ", ..." * (len(unknown) > 10)
            fate = "read as the unknown token" if self.tokenizer.lossy else "left out"
            note(f"the model has never seen {shown}: {fate}")
        return tokens

    def note_length(self, tokens):
        """Says on standard error that a prompt is longer than what the model sees."""
        block_size = self.backend.config.block_size
        if len(tokens) + (not self.is_stream) > block_size:
            note(f"the prompt has {len(tokens)} tokens; the model sees the last {block_size} "
                 "at most (block_size)")


def note(text):
    """Prints a remark on standard error: standard output is for what the model writes."""
    sys.stdout.flush()
    print(f"microgpt: {text}", file=sys.stderr, flush=True)


@dataclass
class Text:
    """What a model has written after a prompt, up to now.

    end: why it is over: "end" (the document's), "stop" (the stop text), "length" (max_tokens).
    """
    prompt: str
    text: str = ""
    tokens: int = 0
    end: Optional[str] = None


class Writing:
    """One text in the making: iterating yields (piece of text, Choice or None), token by token.

    explained: whether to give, for each token, what else there was.
    """

    def __init__(self, writer, prompt, settings, rng, tokens=None, explained=False):
        self.writer, self.settings, self.explained = writer, settings, explained
        self.drawn = draws(writer.backend, writer.tokenizer,
                           writer.tokens(prompt) if tokens is None else tokens,
                           settings, [rng], writer.is_stream)
        self.result, self.ids = Text(prompt), []

    def __iter__(self):
        stream = TextStream(self.writer.tokenizer, self.settings.stop)
        bos = self.writer.tokenizer.bos
        for draw in self.drawn:
            choice = explain(*draw[1:3], self.settings, draw.recent) if self.explained else None
            piece = "" if draw.token == bos else stream.push(draw.token)
            if draw.token == bos:
                self.result.end = "end"
            else:
                self.ids.append(draw.token)
            yield self._add(piece), choice
        if stream.stopped:
            self.result.end = "stop"
        self.result.end = self.result.end or "length"
        rest = stream.finish()
        if rest:
            yield self._add(rest), None

    def _add(self, piece):
        self.result.text += piece
        self.result.tokens = len(self.ids)
        return piece


def write(writer, prompt, settings, seed, index, tokens=None):
    """Returns the Text of sample number `index` of a prompt, whole."""
    writing = Writing(writer, prompt, settings, sample_rng(seed, index), tokens)
    for _ in writing:
        pass
    return writing.result


def write_jobs(name, writer, jobs, settings, seed):
    """Returns the Texts of some jobs, each a prompt and the number of its sample.

    name: the run's, which a terminal shows while it writes. What the model cannot read of a prompt
    is said once, before that.
    """
    tokens = {prompt: writer.tokens(prompt) for prompt in dict.fromkeys(job[0] for job in jobs)}
    show_progress(f"{name} writes")
    written = [write(writer, prompt, settings, seed, index, tokens[prompt])
               for prompt, index in jobs]
    show_progress("")
    return written


def read_prompts(args):
    """Returns the prompts of --prompt and --prompt-file, in that order; ValueError for no file.

    None where neither was given.
    """
    if args.prompt is None and args.prompt_file is None:
        return None
    prompts = list(args.prompt or ())
    if args.prompt_file is not None:
        found = prompts_of_file(args.prompt_file)
        if not found:
            raise ValueError(f"--prompt-file {args.prompt_file}: it holds no prompt; give one a "
                             "line, # before a comment")
        prompts += found
    return prompts


def prompts_of_file(path):
    """Returns the lines of a file, without those that are blank or begin with #."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file {path}: byte {error.start} is not UTF-8; save it as "
                         "UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"--prompt-file {path}: {error.strerror}") from None
    return [line.rstrip("\r") for line in lines if line.strip() and line.lstrip()[0] != "#"]
