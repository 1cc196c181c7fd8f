"""One training, new or resumed: from its settings and its text to the samples."""
import math
import os
import random
import shlex
import sys
import time

from microgpt import backends
from microgpt.backends import processes
from microgpt.cli import arguments, learning, texts
from microgpt.cli.chat import Chat
from microgpt.cli.interrupts import Interrupts
from microgpt.cli.progress import Watch, duration, losses_of
from microgpt.cli.resuming import check_steps, resumed_settings, say_what_differs
from microgpt.cli.writing import Writer, note, write
from microgpt.corpus import sources
from microgpt.corpus.load import load
from microgpt.nn import count_parameters, init_weights
from microgpt.nn.sampling import SamplingSettings, sample
from microgpt.training import costs, runs
from microgpt.training import settings as run_settings
from microgpt.training.baselines import baselines
from microgpt.training.trainer import Trainer, sample_seed


def check_alone(backend):
    """Raises ValueError for one of several processes whose backend cannot share the work."""
    if processes.is_one_of_several() and backend != "torch":
        raise ValueError("torchrun starts several processes, and only --backend torch shares the "
                         f"work among them; this is --backend {backend}")


def make_backend(settings, config, weights):
    """Returns the backend that the settings ask for, with the model in it."""
    options = {}
    if settings.weight_decay is not None:
        options["weight_decay"] = settings.weight_decay
    if settings.backend == "torch":
        options.update(device=settings.device or "auto", dtype=settings.dtype or "auto",
                       threads=settings.threads, together=True, report=note)
    return backends.load(settings.backend)(config, weights, optimizer=settings.optimizer,
                                           max_norm=settings.grad_clip, **options)


def tuned(settings, backend, data):
    """Returns settings in which the backend has chosen what was left to it, for a run to keep."""
    if settings.threads:
        return settings
    at_a_time = min(settings.batch_size, settings.micro_batch or settings.batch_size)
    return settings.changed(**backend.tune(
        data.batch(0, at_a_time, settings.block_size, settings.seed)))


def automatic_name(settings, config):
    """Returns what a run is called that was given no name.

    >>> from microgpt.nn import GPTConfig
    >>> from microgpt.training.settings import Settings
    >>> automatic_name(Settings(), GPTConfig(27))[:8]
    'char-4k-'
    """
    size = count_parameters(config)
    short = (f"{size / 1e6:.3g}M" if size >= 999_500 else
             f"{size / 1e3:.0f}k" if size >= 1000 else str(size))
    kind = settings.tokenizer if config.model == "gpt" else f"{config.model}-{settings.tokenizer}"
    return f"{kind}-{short}-{time.strftime('%Y-%m-%d')}"


def with_steps(settings, data):
    """Returns completed settings, with num_steps in the place of epochs."""
    settings = settings.changed(batch_size=settings.batch_size or
                                run_settings.BATCH_SIZES[settings.backend])
    if settings.epochs is not None:
        steps = run_settings.steps_of_epochs(settings.epochs, settings.batch_size,
                                             settings.block_size, data)
        settings = settings.changed(num_steps=steps, epochs=None)
    return settings.completed()


class Session:
    """One training, new or resumed: what it needs, and its way from the plan to the samples."""

    def __init__(self, settings, gathered, data, backend, rng, run, state=None, counting=None):
        self.settings, self.gathered, self.data, self.backend = settings, gathered, data, backend
        self.rng, self.run, self.state, self.counting = rng, run, state, counting

    # ---- beginnings

    @classmethod
    def new(cls, args, settings):
        """Returns the session of a new run; settings: those that the flags ask for."""
        if settings.backend == "torch":
            backends.load("torch")  # before any reading, if it is not there
        asked = texts.asked_texts(args)
        gathered = texts.gather_texts(args, settings)
        settings = settings.changed(val_fraction=texts.held_out_fraction(settings, gathered))
        rng = random.Random(settings.seed)
        cache = not args.no_cache
        data = load(gathered, lambda docs: learning.learn_tokenizer(
            settings, settings.tokenizer, docs, cache), rng, mode=settings.documents,
            val_fraction=settings.val_fraction, dedupe=settings.dedupe,
            progress=texts.encoding_progress)
        texts.show_progress("")
        settings = with_steps(settings, data)
        config = settings.config(data.tokenizer.vocab_size)
        data.check(config.block_size)
        costs.check_memory(config, settings)
        backend = make_backend(settings, config, init_weights(config, rng))
        settings = tuned(settings, backend, data)
        run = counting = None
        if data.corpus:  # of a text that is too large for memory, there are no baselines
            counting = baselines(data.corpus.train, data.corpus.validation, data.is_stream)
        if not args.no_save and processes.speaks():
            run = runs.create(args.name, automatic_name(settings, config), {
                "settings": settings.to_dict(), "vocab_size": config.vocab_size,
                "parameters": count_parameters(config),
                "tokenizer_hash": data.tokenizer.hash, "engine": backend.facts(),
                "baselines": counting and {"uniform": counting.uniform, "bigram": counting.bigram,
                                           "ngram": counting.ngram},
                "data": {**sources.absolute(**asked), "name": gathered.name, "mode": data.mode,
                         "sha256": gathered.sha256, "sources": gathered.provenance}},
                data.tokenizer, backend, rng)
        return cls(settings, gathered, data, backend, rng, run, counting=counting)

    @classmethod
    def resumed(cls, args, run):
        """Returns the session of a run that goes on; the caller holds its lock."""
        for name in ("preset", "name", "no_save", "dedupe"):
            if getattr(args, name):
                raise ValueError(f"--{name.replace('_', '-')} is for a new run, and --resume "
                                 f"{args.resume} goes on with one")
        if processes.speaks():
            run.remove_temporary()
        weights, memory, state, rng = run.load_last()
        run.check(weights)
        settings, inexact = resumed_settings(args, run)
        check_alone(settings.backend)
        gathered = texts.stored_texts(args, run, settings)
        data = load(gathered, lambda docs: run.tokenizer, random.Random(settings.seed),
                    mode=run.about["data"]["mode"], val_fraction=settings.val_fraction,
                    dedupe=settings.dedupe, progress=texts.encoding_progress)
        texts.show_progress("")
        data.check(run.config.block_size)
        settings = with_steps(settings, data)
        check_steps(run, settings, state)
        costs.check_memory(run.config, settings)
        backend = make_backend(settings, run.config, weights)
        for slot in backend.optimizer.slot_names:
            memory.setdefault(slot, {})  # empty before the first step
        backend.load_optimizer_state(memory)
        settings = tuned(settings, backend, data)
        say_what_differs(run, settings, inexact, backend, state)
        if settings != run.settings:
            changes = {name: getattr(settings, name) for name in run_settings.KINDS
                       if getattr(settings, name) != getattr(run.settings, name)}
            run.about["settings"] = settings.to_dict()
            run.about.setdefault("resumed", []).append({"step": state.step, "changes": changes})
            if processes.speaks():
                run.write_about()
        return cls(settings, gathered, data, backend, rng, run if processes.speaks() else None,
                   state)

    # ---- on the way

    def go(self):
        """Trains from where it stands to the end, and samples; returns the exit code."""
        with Interrupts() as interrupts:
            try:
                self.describe()
                state = self.state or runs.State()
                self.watch = Watch(self.settings, state.step, self.evaluation_seconds,
                                   costs.rough_factors(self.settings.backend,
                                                       self.settings.batch_size))
                trainer = Trainer(self.backend, self.data, self.settings, self.rng, self.run,
                                  state, self.watch, interrupts.received,
                                  self.sample_on_the_way if processes.speaks() else None)
                reason = trainer.train()
                if reason != "interrupted" and processes.speaks():
                    self.finish(trainer, reason, interrupts.received)
                if interrupts.received():
                    self.interrupted(state)
                elif self.run:
                    self.run.end(state, reason)
            except OSError:
                if not interrupts.received():
                    raise
                # the terminal is gone: nobody reads what print() still wants to say
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return interrupts.exit_code if interrupts.received() else 0

    def evaluation_seconds(self, step_seconds):
        """Returns about how long an evaluation takes: forward is a third of a step."""
        limit = run_settings.evaluation_tokens(self.settings, self.data)
        held_out = self.data.validation
        available = len(held_out) if self.data.is_stream else sum(
            len(held_out[i]) for i in range(min(limit, len(held_out))))
        tokens = 2 * min(limit, available) or limit
        return step_seconds / 3 * tokens / run_settings.tokens_a_step(self.settings, self.data)

    def interrupted(self, state):
        """Says how to go on."""
        where = "nothing was kept (--no-save)"
        if self.run:
            where = (f"kept in {self.run.path}\n"
                     f"go on with: python3 microgpt.py --resume {self.run_name()}")
        self.watch.line(f"interrupted after step {state.step} of {self.settings.num_steps}; "
                        f"{where}")

    def run_name(self):
        """Returns what --run and --resume take for this run, as a shell takes it."""
        inside = self.run.path.parent == runs.runs_folder()
        return shlex.quote(self.run.name if inside else str(self.run.path))

    def new_sample(self, rng):
        return sample(self.backend, self.data.tokenizer,
                      SamplingSettings(self.settings.temperature), rng, self.data.is_stream)

    def write_prompted(self, prompts):
        """Goes on from prompts, and keeps that in samples.txt; returns the exit code."""
        if not prompts or not processes.speaks():
            return 0
        (writer, settings), written = self.writing(), []
        try:
            for number, prompt in enumerate(prompts, 1):
                text = write(writer, prompt, settings, self.settings.seed, 0).text
                written.append(prompt + text)
                print(f"prompt {number:2d}: {written[-1]}", flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            return 130
        finally:
            if written and self.run:
                self.run.write_samples("after prompts", written)
        return 0

    def chat(self):
        """Lets a person type prompts; returns the exit code."""
        return Chat(*self.writing(), self.settings.seed).talk() if processes.speaks() else 0

    def writing(self):
        """Returns the Writer of this model, and the settings to write with."""
        settings = SamplingSettings(self.settings.temperature, max_tokens=(
            arguments.STREAM_TOKENS if self.data.is_stream else None))
        return Writer(self.backend, self.data.tokenizer, self.data.is_stream), settings

    def sample_on_the_way(self, step):
        text = self.new_sample(sample_seed(self.settings.seed, step))
        self.watch.line(f"sample after step {step}: {text}")
        if self.run:
            self.run.write_samples(f"after step {step}", [text])

    # ---- before and after

    def describe(self):
        """Prints what will be learned from, by how large a model, and how."""
        data, settings = self.data, self.settings
        config = self.backend.config
        documents = 1 if data.is_stream else len(data.train) + len(data.validation)
        print(f"num docs: {documents} ({self.gathered.name})\nvocab size: {config.vocab_size}")
        print(f"num params: {count_parameters(config)}")
        if settings.documents == "auto" and not self.state:
            print(f"documents: {data.reason}")
        if data.removed:
            print(f"duplicates: {data.removed} left out")
        print(f"text: {data.statistics(config.block_size)}")
        for remark in learning.remarks(settings, data.tokenizer, data.texts):
            print(remark)
        for line in self.plan():
            print(line, flush=True)

    def plan(self):
        """Yields what the run will do, a line each."""
        settings, config, data = self.settings, self.backend.config, self.data
        sizes = (f"n_embd {config.n_embd}, n_head {config.n_head}, n_layer {config.n_layer}, "
                 f"block_size {config.block_size}" + f", dropout {config.dropout:g}" * bool(
                     config.dropout)) if config.model == "gpt" else "a table of pairs"
        yield f"model: {config.model}, {sizes}; {settings.backend}, {self.backend.describe()}"
        floor = f" to {settings.min_learning_rate:g}" if settings.min_learning_rate else ""
        warm = f", {settings.warmup_steps} steps of warm-up" if settings.warmup_steps else ""
        yield (f"optimizer: {settings.optimizer}, learning rate {settings.learning_rate:g}, "
               f"{settings.schedule}{floor}{warm}")
        epochs = run_settings.epochs_of_steps(settings.num_steps, settings.batch_size,
                                              config.block_size, data)
        what = "window" if data.is_stream else "document"
        tokens = run_settings.tokens_a_step(settings, data)
        needed = costs.memory(config, settings, data.tokens_in_memory)
        yield (f"plan: {settings.num_steps:,} steps of {settings.batch_size} {what}"
               f"{'s' * (settings.batch_size > 1)}, about {tokens:,.0f} tokens each; all text "
               f"{epochs:.2g} times; about {needed / 1e6:,.0f} MB of memory")
        if self.run:
            yield f"run: {self.run.path}; Ctrl-C stops and keeps it"
        if self.counting:
            yield str(self.counting)
            yield from filter(None, [self.counting.note])

    def finish(self, trainer, reason, interrupted):
        """Says how well the model does, writes the samples, and tells how to use the run.

        interrupted: whether to leave off; the run, resumed, then writes all samples.
        """
        settings, state = self.settings, trainer.state
        if reason == "patience":
            print(f"stopped after step {state.step}: no new best in {settings.patience} "
                  f"evaluations; the best, {state.best_loss:.4f}, was after step "
                  f"{state.best_step}")
        if reason == "time":
            print(f"stopped after step {state.step}: --max-time "
                  f"{duration(settings.max_time)} is over")
        if trainer.log:
            line = trainer.log[-1]
            print(f"learned from {state.tokens:,} tokens in {duration(state.seconds)}, "
                  f"{line['tokens_per_second']:,.0f} a second")
            print(losses_of(line) + compared(line, self.counting), flush=True)
        samples = []
        for i in range(settings.num_samples):
            if interrupted():
                return
            samples.append(self.new_sample(self.rng))
            print(f"sample {i + 1:2d}: {samples[-1]}", flush=True)
        if samples and self.run:
            self.run.write_samples(
                f"after step {state.step}, temperature {settings.temperature:g}", samples)
        if self.run:
            print(f"kept in {self.run.path}:\n"
                  f"  python3 microgpt.py sample --run {self.run_name()}\n"
                  f"  python3 microgpt.py chat --run {self.run_name()}\n"
                  f"  python3 microgpt.py --resume {self.run_name()} "
                  f"--num-steps {2 * settings.num_steps or run_settings.Settings.num_steps}",
                  flush=True)


def compared(line, counting):
    """Returns how a line of the log compares with counting, the words to put behind its losses."""
    bits = line["bits_per_character"]
    if bits is None or not counting or counting.on_training_text:
        return ""
    nats = bits * math.log(2)
    beaten = [name for name, loss in (("the 5-gram", counting.ngram),
                                      ("the bigram", counting.bigram),
                                      ("uniform guessing", counting.uniform)) if nats < loss]
    return f"; {nats:.3f} nats a character beats {beaten[0]}" if beaten else (
        f"; {nats:.3f} nats a character is worse than guessing")
