"""python3 microgpt.py sample: text from a run's model, shown as it comes.

One text is printed as it is; of several each has its number before it. A text that was prompted
begins with its prompt.
"""
import json
import sys

from microgpt.cli import arguments
from microgpt.cli.parser import Parser
from microgpt.cli.terminal import bold
from microgpt.cli.tokenize import visible
from microgpt.cli.writing import Text, Writer, Writing, read_prompts
from microgpt.nn.config import DEFAULTS
from microgpt.nn.sampling import generate_many, sample_rng, stream_text

AT_ONCE = 64  # texts, on torch, when nobody watches them grow


def make_parser():
    parser = Parser("sample", "Lets a run's model write.")
    arguments.add_run_choice(parser)
    arguments.add_use_flags(parser)
    group = arguments.add_generation_flags(parser)
    arguments.add_prompt_flags(group)
    group.add_argument("--num-samples", type=arguments.ranged(int, 0), metavar="N",
                       help="texts, of each prompt (default: 1; without a prompt, of documents, "
                       f"{DEFAULTS['num_samples']})")
    parser.add_argument("--show-probabilities", action="store_true",
                        help="for each token a line: its probability, and the next four")
    parser.add_argument("--json", action="store_true", help="all texts as JSON, at the end")
    return parser


def run(args):
    """Prints the texts; returns the exit code."""
    prompts = read_prompts(args)
    chosen = arguments.chosen_run(args)
    settings = arguments.sampling_settings(args, chosen.is_stream)
    writer = Writer(arguments.backend_of_run(args, chosen), chosen.tokenizer, chosen.is_stream)
    each = args.num_samples
    if each is None:
        each = DEFAULTS["num_samples"] if prompts is None and not chosen.is_stream else 1
    jobs = [(prompt, index) for prompt in ([""] if prompts is None else prompts)
            for index in range(each)]
    try:
        if args.json:
            show = Collecting(args, chosen, settings)
        elif args.show_probabilities:
            show = Explaining(len(jobs))
        else:
            show = Streaming(len(jobs))
        write_all(writer, jobs, settings, args.seed, show)
    except KeyboardInterrupt:
        print(flush=True)
        return 130


def write_all(writer, jobs, settings, seed, show):
    """Has every text written, and shown."""
    tokens, before = [], None
    at_once = writer.backend.name == "torch" and not show.explained and not (
        show.live and sys.stdout.isatty())
    while jobs:
        prompt, index = jobs[0]
        if prompt != before:  # said once, however many samples
            tokens, before = writer.tokens(prompt), prompt
            writer.note_length(tokens)
        same = 1
        while at_once and same < AT_ONCE and jobs[same:same + 1] == [(prompt, index + same)]:
            same += 1
        if same > 1:
            rngs = [sample_rng(seed, index + i) for i in range(same)]
            for ids in generate_many(writer.backend, writer.tokenizer, tokens, settings, rngs,
                                     writer.is_stream):
                show.whole(text_of(writer, prompt, ids, settings))
        else:
            show.growing(Writing(writer, prompt, settings, sample_rng(seed, index), tokens,
                                 show.explained))
        jobs = jobs[same:]
    show.finish()


def text_of(writer, prompt, ids, settings):
    """Returns the Text of the tokens that were generated in one go."""
    text = "".join(stream_text(ids, writer.tokenizer, settings.stop))
    limit = settings.max_tokens or writer.backend.config.block_size
    stopped = settings.stop and settings.stop in writer.tokenizer.decode(ids)
    end = "stop" if stopped else "length" if len(ids) == limit else "end"
    return Text(prompt, text, len(ids), end)


# ---- How texts are shown -------------------------------------------------------------------------


class Streaming:
    """Prints each text as it comes."""

    live, explained = True, False

    def __init__(self, total):
        self.total, self.number = total, 0

    def begin(self, prompt):
        self.number += 1
        label = f"sample {self.number:2d}: " if self.total > 1 else ""
        print(label + bold(prompt), end="", flush=True)

    def growing(self, writing):
        self.begin(writing.result.prompt)
        for piece, _ in writing:
            print(piece, end="", flush=True)
        print(flush=True)

    def whole(self, text):
        self.begin(text.prompt)
        print(text.text, flush=True)

    def finish(self):
        pass


class Explaining(Streaming):
    """Prints a line for each token as it comes, and then the text."""

    explained = True

    def growing(self, writing):
        for _, choice in writing:
            if choice is not None:
                print(line_of(choice, writing.writer.tokenizer), flush=True)
        self.begin(writing.result.prompt)
        print(writing.result.text, flush=True)


def line_of(choice, tokenizer):
    """Returns a token, its probability, and after a bar the likeliest others."""
    cells = [f"{name_of(token, tokenizer)} {probability:.3f}" for token, probability in
             [(choice.token, choice.probability), *choice.others]]
    return f"{cells[0]} | {' '.join(cells[1:])}"


def name_of(token, tokenizer):
    """Returns a token as something that can be seen."""
    return "END" if token == tokenizer.bos else visible(tokenizer.token_bytes(token)) or "''"


class Collecting:
    """Prints one JSON list of all texts, at the end."""

    live = False

    def __init__(self, args, chosen, settings):
        self.explained, self.name, self.seed = args.show_probabilities, chosen.name, args.seed
        self.rows = []

    def growing(self, writing):
        choices = [choice for _, choice in writing]
        self.whole(writing.result)
        if self.explained:
            self.rows[-1]["choices"] = [self.row_of(choice, writing.writer.tokenizer)
                                        for choice in choices if choice is not None]

    @staticmethod
    def row_of(choice, tokenizer):
        named = [{"token": token, "text": name_of(token, tokenizer), "probability": probability}
                 for token, probability in [(choice.token, choice.probability), *choice.others]]
        return {**named[0], "others": named[1:]}

    def whole(self, text):
        self.rows.append({"run": self.name, "prompt": text.prompt, "text": text.text,
                          "tokens": text.tokens, "end": text.end, "seed": self.seed})

    def finish(self):
        print(json.dumps(self.rows))
