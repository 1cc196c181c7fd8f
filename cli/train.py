"""python3 microgpt.py [train]: learn from a text, then write more of its kind."""
import random
import sys
import time

import microgpt
from microgpt import backends
from microgpt.cli import arguments, learning, texts
from microgpt.corpus.load import load
from microgpt.nn import GPTConfig, count_parameters, init_weights
from microgpt.nn.sampling import sample
from microgpt.training.evaluation import evaluate
from microgpt.training.trainer import train


def make_parser():
    """Returns the file's parser, with the flags that need the repository."""
    parser = microgpt.make_parser()
    parser.prog = "python3 microgpt.py"
    parser.description = "Train a small GPT on text, then let it write."
    group = arguments.add_data_flags(parser)
    group.add_argument("--val-fraction", type=arguments.ranged(float, 0, 1), metavar="SHARE",
                       help="of the text, held out to test the model on (default: "
                       f"{texts.HELD_OUT}, or 0 for a text below {texts.ENOUGH} bytes)")
    arguments.add_tokenizer_flags(parser)
    arguments.add_backend_flags(parser)
    arguments.add_model_flags(parser)
    arguments.add_optimizer_flags(parser)
    return arguments.finish(parser)


def make_backend(args, config, weights):
    """Returns the backend that the flags ask for, with the model in it."""
    settings = {}
    if args.weight_decay is not None:
        settings["weight_decay"] = args.weight_decay
    name = arguments.chosen_backend(args)
    if name == "torch":
        settings.update(device=args.device or "auto", dtype=args.dtype or "auto")
    return backends.load(name)(config, weights, optimizer=args.optimizer,
                               max_norm=args.grad_clip, **settings)


class Progress:
    """The line of a step: rewritten on a terminal, with the time left; else a line each."""

    def __init__(self, num_steps):
        self.num_steps, self.start, self.live = num_steps, time.monotonic(), sys.stdout.isatty()
        self.shown = 0.0

    def show(self, step, loss):
        line, now, last = f"step {step:4d} / {self.num_steps:4d} | loss {loss:.4f}", "", "\n"
        if self.live and step < self.num_steps:
            if time.monotonic() - self.shown < 0.05:  # a terminal is slow, and nobody reads faster
                return
            self.shown = time.monotonic()
            left = (self.shown - self.start) / step * (self.num_steps - step)
            now, last = f" | {left:.0f} s left ", "\r"
        elif self.live:
            now = " " * 12
        print(line + now, end=last, flush=True)


def run(args):
    """Trains and samples; ValueError says which flag is wrong."""
    arguments.check_ranges(args)
    name = arguments.chosen_backend(args)
    batch_size = args.batch_size or (
        arguments.TORCH_BATCH if name == "torch" else arguments.PURE_PYTHON_BATCH)
    rate = args.learning_rate
    if rate is None:
        rate = arguments.LEARNING_RATES[args.optimizer]
    GPTConfig(2, **arguments.model_settings(args))  # a mistake in the flags, before any reading
    arguments.tokenizer_settings(args, args.tokenizer)

    gathered = texts.gather_texts(args)
    rng = random.Random(args.seed)
    data = load(gathered, lambda docs: learning.learn_tokenizer(args, args.tokenizer, docs), rng,
                mode=args.documents, val_fraction=texts.held_out_fraction(args, gathered),
                dedupe=args.dedupe, progress=texts.encoding_progress)
    texts.show_progress("")
    tokenizer = data.tokenizer
    config = GPTConfig(tokenizer.vocab_size, **arguments.model_settings(args))
    data.check(config.block_size)
    backend = make_backend(args, config, init_weights(config, rng))
    describe(args, gathered, data, config)

    def batch_of(step):
        return data.batch(step, batch_size, config.block_size, args.seed)
    steps = train(backend, batch_of, args.num_steps, rate, args.seed)
    progress = Progress(args.num_steps)
    for step, loss in enumerate(steps, 1):
        progress.show(step, loss)
    if len(data.validation):
        print(f"held out: {evaluate(backend, data.validation, data.is_stream)}", flush=True)
    for i in range(args.num_samples):
        text = sample(backend.decoder(), tokenizer, config.block_size, args.temperature, rng,
                      data.is_stream)
        print(f"sample {i + 1:2d}: {text}", flush=True)


def describe(args, gathered, data, config):
    """Prints what will be learned from, and by how large a model."""
    documents = 1 if data.is_stream else len(data.train) + len(data.validation)
    print(f"num docs: {documents} ({gathered.name})\nvocab size: {config.vocab_size}")
    print(f"num params: {count_parameters(config)}")
    if args.documents == "auto":
        print(f"documents: {data.reason}")
    if data.removed:
        print(f"duplicates: {data.removed} left out")
    print(f"text: {data.statistics(config.block_size)}")
    for remark in learning.remarks(args, data.tokenizer, data.texts):
        print(remark)
