"""The flags that several commands share, each named after its config field."""
import argparse
import math
import sys

import microgpt
from microgpt import backends, tokenizers
from microgpt.corpus.documents import MODES
from microgpt.corpus.html import EXTRACTORS
from microgpt.corpus.sources import KNOWN
from microgpt.nn.config import DEFAULTS, MODELS
from microgpt.nn.sampling import SamplingSettings
from microgpt.training import runs
from microgpt.training.presets import PRESETS
from microgpt.training.schedules import SCHEDULES
from microgpt.training.settings import BATCH_SIZES, LEARNING_RATES

BPE_MERGES = 500
STREAM_TOKENS = 300  # of a text that has no end of its own


def ranged(kind, lowest, below=float("inf")):
    """Returns a parser of numbers from lowest up to, not including, below."""
    what = "a whole number" if kind is int else "a number"
    limit = f", below {below:g}" if below < float("inf") else ""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not lowest <= value < below:
            raise argparse.ArgumentTypeError(f"got {text!r}, takes {what}, {lowest} or more{limit}")
        return value
    return parse


def given(args, names):
    """Returns name -> value of what was asked for among some flags."""
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def add_file_flags(group, *names, **words):
    """Adds flags of the file's own parser to a group: its defaults, its words or others."""
    for name, default, text in microgpt.FLAGS:
        if name in names or name in words:
            text = words.get(name, text)
            lowest = int(name in microgpt.Config._fields)
            group.add_argument("--" + name.replace("_", "-"), type=ranged(type(default), lowest),
                               metavar="N", default=default, help=f"{text} (default: {default})")


def add_model_flags(parser):
    """Adds the sizes and options of a model."""
    group = parser.add_argument_group("model")
    add_file_flags(group, *microgpt.Config._fields)
    group.add_argument("--model", choices=MODELS, default="gpt",
                       help="gpt, or bigram, the table of pairs that it has to beat (default: gpt)")
    group.add_argument("--dropout", type=ranged(float, 0, 1), default=0.0, metavar="SHARE",
                       help="share of activations zeroed while training (default: 0)")
    group.add_argument("--init-std", type=ranged(float, 1e-12), metavar="STD",
                       help="of the weights at the start (default: 0.32 / sqrt(n_embd))")


def add_device_flags(group):
    group.add_argument("--device", metavar="NAME",
                       help="torch: auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument("--dtype", metavar="NAME",
                       help="torch: float32, float64, bfloat16, or auto, which trains with "
                       "products in bfloat16 where the processor has them and the model is not "
                       "tiny (default: auto)")


def add_backend_flags(parser):
    group = parser.add_argument_group("engine")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--backend", choices=backends.BACKENDS,
                        help="scalar is microgpt.py itself, matrix plain Python, faster, torch "
                        "PyTorch (default: torch with --device or --dtype, else scalar)")
    choice.add_argument("--no-gpu", action="store_const", dest="backend", const="scalar",
                        help="the same as --backend scalar")
    add_device_flags(group)
    group.add_argument("--threads", type=ranged(int, 1), metavar="N",
                       help="torch on a CPU: how many at once (default: tried out, and kept)")


def add_optimizer_flags(parser):
    group = parser.add_argument_group("training")
    group.add_argument("--preset", choices=PRESETS, metavar="NAME",
                       help=f"settings known from the field: {', '.join(PRESETS)}; any flag "
                       "overrides its part (default: names)")
    add_file_flags(group, "seed", num_steps="steps, each on --batch-size documents")
    group.add_argument("--epochs", type=ranged(float, 1e-9), metavar="N",
                       help="times that all text is seen, in place of --num-steps")
    group.add_argument("--batch-size", type=ranged(int, 1), metavar="N", help="documents a step "
                       f"(default: {BATCH_SIZES['scalar']} in plain Python, "
                       f"{BATCH_SIZES['torch']} with torch)")
    group.add_argument("--micro-batch", type=ranged(int, 1), metavar="N",
                       help="documents at a time: less memory, the same step (default: all)")
    group.add_argument("--optimizer", choices=LEARNING_RATES, default="adam",
                       help="the rule for steps (default: adam, the file's)")
    rates = ", ".join(f"{rate} with {name}" for name, rate in LEARNING_RATES.items())
    group.add_argument("--learning-rate", type=ranged(float, 0), metavar="N",
                       help=f"the highest of the schedule (default: {rates})")
    group.add_argument("--schedule", choices=SCHEDULES,
                       help="how the learning rate falls (default: linear)")
    group.add_argument("--warmup-steps", type=ranged(int, 0), metavar="N",
                       help="steps in which it first rises (default: 0)")
    group.add_argument("--min-learning-rate", type=ranged(float, 0), metavar="N",
                       help="where it falls to (default: 0)")
    group.add_argument("--weight-decay", type=ranged(float, 0), metavar="SHARE",
                       help="of the weights, times the learning rate, lost a step (not adam)")
    group.add_argument("--grad-clip", type=ranged(float, 1e-12), metavar="NORM",
                       help="longest gradient of all weights together (default: no limit)")


def seconds(text):
    """Returns the seconds of a time such as 90, 90s, 10m or 1.5h.

    >>> seconds("1.5h")
    5400.0
    """
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, takes a time such as 90s, 10m or 1.5h")
    return value


def add_run_flags(parser):
    """Adds how long a run goes on, what it shows on the way, and where it is kept."""
    group = parser.add_argument_group("run")
    group.add_argument("--patience", type=ranged(int, 1), metavar="N",
                       help="stop after so many evaluations without a new best (default: never)")
    group.add_argument("--max-time", type=seconds, metavar="TIME",
                       help="stop after this time, such as 90s, 10m, 1.5h (default: never)")
    group.add_argument("--eval-interval", type=ranged(int, 1), metavar="N",
                       help="steps between two evaluations on held-out text (default: a tenth of "
                       "the steps; with --backend scalar all of them)")
    group.add_argument("--eval-tokens", type=ranged(int, 1), metavar="N",
                       help="at most so many tokens in each (default: 20,000 in plain Python, "
                       "2 million with torch)")
    group.add_argument("--sample-every", type=ranged(int, 1), metavar="N",
                       help="steps between two samples on the way (default: none)")
    group.add_argument("--name", help="of the run's folder in runs/, or its path (default: after "
                       "tokenizer, size and date)")
    group.add_argument("--resume", metavar="RUN", help="go on with a run: its name or path")
    group.add_argument("--no-save", action="store_true", help="keep nothing")


def add_prompt_flags(group):
    group.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT",
                       help="what texts begin with, each one text")
    group.add_argument("--prompt-file", metavar="FILE",
                       help="a file of prompts, one a line; # comments and blank lines are skipped")


def add_ending_flags(parser):
    """Adds what a model does when its training is over."""
    group = parser.add_argument_group("after training")
    add_file_flags(group, "num_samples", "temperature")
    add_prompt_flags(group)
    group.add_argument("--chat", action="store_true", help="then let me type prompts")


def add_generation_flags(parser, temperature=DEFAULTS["temperature"]):
    """Adds how texts are written, and returns the group: SamplingSettings, and --seed."""
    group = parser.add_argument_group("text")
    group.add_argument("--temperature", type=ranged(float, 0), metavar="N", default=temperature,
                       help="how freely tokens are chosen; 0: always the likeliest (default: "
                       f"{temperature:g})")
    group.add_argument("--top-k", type=ranged(int, 1), metavar="N",
                       help="choose among the N likeliest tokens (default: all)")
    group.add_argument("--top-p", type=ranged(float, 1e-12), metavar="SHARE", default=1.0,
                       help="choose among the fewest tokens that have this share of the "
                       "probability (default: 1, all)")
    group.add_argument("--repetition-penalty", type=ranged(float, 1e-12), metavar="N", default=1.0,
                       help="above 1: less of what is in view already (default: 1)")
    group.add_argument("--stop", metavar="TEXT", type=unescaped,
                       help=r"ends a text, and is not part of it; \n is the end of a line")
    group.add_argument("--max-tokens", type=ranged(int, 1), metavar="N",
                       help="longest text (default: block_size for documents, "
                       f"{STREAM_TOKENS} for a running text)")
    group.add_argument("--seed", type=ranged(int, 0), metavar="N", default=DEFAULTS["seed"],
                       help=f"the same seed, the same text (default: {DEFAULTS['seed']})")
    return group


def unescaped(text):
    """Returns a text in which \\n and \\t stand for the signs that are hard to type."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def sampling_settings(args, is_stream):
    """Returns the SamplingSettings of add_generation_flags."""
    return SamplingSettings(args.temperature, args.top_k, args.top_p, args.repetition_penalty,
                            args.stop, args.max_tokens or (STREAM_TOKENS if is_stream else None))


def add_data_flags(parser, many=True):
    """Adds what is learned from, and returns the group.

    many: whether a flag takes all that follows it; else, before a text to cut, it is repeated.
    """
    several = {"nargs": "+", "action": "extend"} if many else {"action": "append"}
    group = parser.add_argument_group("text")
    group.add_argument("--data", **several, metavar="WHAT",
                       help="files, folders, globs, URLs, or names of known texts: "
                       f"{', '.join(KNOWN)} (default: input.txt if it is there, else names)")
    group.add_argument("--urls", **several, metavar="URL", help="web pages")
    group.add_argument("--url-file", metavar="FILE", help="a file with a URL a line, # comments")
    group.add_argument("--no-cache", action="store_true",
                       help="fetch, and learn merges, anew, whatever an earlier run has kept")
    group.add_argument("--encoding", metavar="NAME", help="of all texts (default: found out)")
    group.add_argument("--extract", choices=EXTRACTORS, default="builtin",
                       help="how a web page becomes text: built in, or library, which is the "
                       "package trafilatura (default: builtin)")
    group.add_argument("--documents", choices=MODES, default="auto", metavar="HOW",
                       help="what a document is: lines (one each), paragraphs, or stream (all of "
                       "it one); auto looks at the text and says what it chose (default: auto)")
    group.add_argument("--dedupe", action="store_true", help="leave out documents seen before")
    return group


def add_tokenizer_flags(parser, more_kinds=()):
    """Adds --tokenizer, with the kinds of more_kinds besides, and what the kinds can be told."""
    group = parser.add_argument_group("tokenizer")
    group.add_argument("--tokenizer", choices=[*tokenizers.KINDS, *more_kinds], default="char",
                       metavar="KIND",
                       help="char (a token a character), word, bpe (byte-pair encoding, between "
                       "the two), pretrained (a vocabulary of the package tiktoken)"
                       + "".join(f", {kind}" for kind in more_kinds) + " (default: char)")
    group.add_argument("--bpe-merges", type=ranged(int, 0), metavar="N",
                       help=f"tokens that bpe learns beside 256 bytes (default: {BPE_MERGES})")
    group.add_argument("--word-min-count", type=ranged(int, 1), metavar="N",
                       help="rarer words become one unknown token (default: 1, none)")
    group.add_argument("--vocabulary", choices=tokenizers.ENCODINGS, metavar="NAME",
                       help=f"of pretrained: {', '.join(tokenizers.ENCODINGS)} (default: gpt2)")


# A kind of tokenizer -> its flag, what tokenizers.learn calls it, and what it is where not given.
TOKENIZER_FLAGS = {"word": ("word_min_count", "min_count", 1),
                   "bpe": ("bpe_merges", "merges", BPE_MERGES),
                   "pretrained": ("vocabulary", "vocabulary", "gpt2")}


def tokenizer_settings(args, kind):
    """Returns the settings of tokenizers.learn for a kind; ValueError for another kind's flag."""
    for owner, (flag, _, _) in TOKENIZER_FLAGS.items():
        if getattr(args, flag) is not None and args.tokenizer not in (owner, "all"):
            raise ValueError(f"--{flag.replace('_', '-')} is for --tokenizer {owner}; this is "
                             f"--tokenizer {args.tokenizer}")
    if kind not in TOKENIZER_FLAGS:
        return {}
    flag, name, default = TOKENIZER_FLAGS[kind]
    value = getattr(args, flag)
    return {name: default if value is None else value}


def model_settings(args):
    """Returns the settings of GPTConfig that are flags, without vocab_size."""
    names = (*(name for name in microgpt.Config._fields if name in DEFAULTS),
             "model", "dropout", "init_std")
    return {name: getattr(args, name) for name in names}


def chosen_backend(args):
    """Returns the name of the backend: what --backend says, or what the other flags imply."""
    for_torch = [f"--{name}" for name in ("device", "dtype", "threads")
                 if getattr(args, name, None)]
    if for_torch and args.backend not in (None, "torch"):
        also = " (which --no-gpu means)" if args.backend == "scalar" else ""
        raise ValueError(f"{for_torch[0]} is torch's; --backend {args.backend}{also} has none")
    large = getattr(args, "preset", None) not in (None, "names")
    return args.backend or ("torch" if for_torch or large else "scalar")


# ---- A run that is there -------------------------------------------------------------------------


def add_run_choice(parser):
    parser.add_argument("--run", metavar="RUN",
                        help="a run's name or path (default: the one last written to; where there "
                        f"is none, {runs.BUNDLED.name}, the model that comes with microgpt)")


def add_use_flags(parser):
    """Adds which of a run's weights are used, and what computes with them."""
    parser.add_argument("--weights", choices=("best", "last"), default="best",
                        help="those with the lowest loss on held-out text, or those of the last "
                        "step (default: best, where there is one)")
    group = parser.add_argument_group("engine")
    group.add_argument("--backend", choices=backends.BACKENDS,
                       help="what computes (default: what the run was trained with, but matrix in "
                       "place of scalar, or where torch is not installed)")
    add_device_flags(group)


def chosen_run(args):
    """Returns the Run of --run; where that was left out, the latest, and says which."""
    chosen = runs.find(args.run)
    if chosen.is_bundled:
        print("microgpt: this is the model that comes with microgpt, trained on names"
              + "; `python3 microgpt.py` trains your own" * (args.run is None), file=sys.stderr)
    elif args.run is None:
        print(f"microgpt: the latest run is {chosen.name}", file=sys.stderr)
    return chosen


def backend_of_run(args, run):
    """Returns a backend with a run's model in it, as add_use_flags has it."""
    options = {name: getattr(args, name) for name in ("device", "dtype") if getattr(args, name)}
    name = args.backend or ("torch" if options else None)
    chosen_backend(args)
    return run.backend(name, args.weights, **options)
