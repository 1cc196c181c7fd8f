"""One training loop for all backends.

A step depends on the weights, the optimizer's state, the seed and its number, and on nothing else:
that is why a run can be interrupted at any moment and goes on bit for bit.
"""
import math
import random
import time

from microgpt.backends.base import count_targets
from microgpt.training.evaluation import characters_of_tokens, evaluate
from microgpt.training.runs import NotFinite, State
from microgpt.training.schedules import learning_rate
from microgpt.training.settings import evaluation_tokens

SAVE_EVERY = 60   # seconds, beside each evaluation
READ_EVERY = 0.2  # seconds: how often a GPU is asked for losses


class Interrupted(Exception):
    """Raised inside an evaluation when the run is to stop."""


class Report:
    """What a training tells those who watch it; a subclass says it to people."""

    def step(self, step, loss, tokens_per_second):
        """After each step; its number counts from 1."""

    def evaluation(self, line):
        """After an evaluation; line: what log.jsonl has of it."""

    def evaluating(self, done, total):
        """While it lasts."""

    def saved(self, state):
        """After the checkpoint was written."""


class Trainer:
    """Trains a backend's model, from where `state` stands to the end.

    data: corpus.load.Data. settings: completed Settings. rng: the run's generator, which is only
    stored. run: a Run to keep it in, or None. state: as the run has it stored; None at the
    beginning of a run that has nothing stored. stop: returns the name of a reason to stop, or None;
    asked after each step. sampler: called with the step when samples are due.
    """

    def __init__(self, backend, data, settings, rng, run=None, state=None, report=None,
                 stop=None, sampler=None, clock=time.monotonic):
        self.backend, self.data, self.settings, self.rng = backend, data, settings, rng
        self.run, self.state, self.report = run, state or State(), report or Report()
        self.stop, self.sampler, self.clock = stop or (lambda: None), sampler, clock
        self.log = []
        self.characters = characters_of_tokens(data.tokenizer)
        self.kept = state and self.standing()  # when it was last saved
        self.unread = []  # losses
        self.started = self.saved_at = self.read_at = clock()
        if run and self.state != State():
            self.log = [line for line in run.log() if line["step"] <= self.state.evaluated]
            run.write_log(self.log)

    def train(self):
        """Returns why it ended: "done", "patience", "time", or what stop() said.

        ValueError, and the last good checkpoint kept, when the loss is no longer finite.
        """
        try:
            return self.loop()
        except OSError:  # nobody sees the report: the terminal was closed, or `| head` has enough
            self.save()
            raise

    def loop(self):
        if self.state.step == 0:
            self.save()
        reason = None
        while not reason:
            reason, is_over = self.asked_to_end()
            try:
                reason = reason or self.look(is_over) or self.stop_alone()
            except Interrupted:
                reason = self.stop()
            if not reason:
                self.step()
        self.save()
        return reason

    def asked_to_end(self):
        """Returns (what stop() says, whether the time is over); of several processes, all agree."""
        reason, limit = self.stop(), self.settings.max_time
        is_over = bool(limit and self.clock() - self.started >= limit)
        if self.backend.size > 1:
            asked, is_over = self.backend.summed([reason is not None,
                                                  is_over and self.backend.rank == 0])
            reason = (reason or "interrupted") if asked else None
        return reason, is_over

    def stop_alone(self):
        """Returns what stop() says; of several processes None, for the others would wait for one
        that stops between two steps."""
        return self.stop() if self.backend.size == 1 else None

    def step(self):
        settings, state = self.settings, self.state
        batch = self.data.batch(state.step, settings.batch_size, settings.block_size,
                                settings.seed)
        rate = learning_rate(state.step, settings.num_steps, settings.learning_rate,
                             settings.schedule, settings.warmup_steps, settings.min_learning_rate)
        start = self.clock()
        loss = self.backend.step(batch, rate, f"{settings.seed} {state.step} dropout",
                                 settings.micro_batch)
        state.seconds += self.clock() - start
        state.step, state.tokens = state.step + 1, state.tokens + count_targets(batch)
        self.unread.append(loss)
        if isinstance(loss, float) or self.clock() - self.read_at >= READ_EVERY:
            self.read()
        if self.clock() - self.saved_at >= SAVE_EVERY:
            self.save()

    def read(self):
        """Takes note of the losses since the last time; on a GPU this waits until they are there.

        There a step is only ordered, not done, when it returns: who asks for each loss stands in
        the way of the next step.
        """
        if not self.unread:
            return
        state, start = self.state, self.clock()
        losses, self.unread = [*map(float, self.unread)], []
        self.read_at = self.clock()
        state.seconds += self.read_at - start
        for step, loss in enumerate(losses, state.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise ValueError(self.no_longer_finite(f"the loss became {loss}", step))
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
            self.report.step(step, loss, state.tokens / state.seconds if state.seconds else 0.0)

    def no_longer_finite(self, what, step):
        kept = ""
        if self.run:
            kept = f"; {self.run.path} keeps the model of the last good checkpoint"
        return (f"{what} at step {step}{kept}; try a lower --learning-rate, --grad-clip 1, or "
                "--warmup-steps 100")

    # ---- now and then

    def look(self, is_over):
        """Evaluates and samples where that is due at this step and was not done yet.

        Returns why the run ends here, or None. is_over: whether its time is.
        """
        settings, state, step = self.settings, self.state, self.state.step
        if step == settings.num_steps or is_over or step and step % settings.interval == 0:
            self.evaluate()
        if self.sampler and settings.sample_every and step and self.state.sampled != step and (
                step % settings.sample_every == 0):
            self.sampler(step)
            self.state.sampled = step
        if step >= settings.num_steps:
            return "done"
        if settings.patience and state.stale >= settings.patience:
            return "patience"
        return "time" if is_over else None

    def evaluating(self, done, total):
        if self.stop_alone():
            raise Interrupted
        self.report.evaluating(done, total)

    def evaluate(self):
        """Measures the loss on held-out text and on as many tokens of the text that was learned."""
        settings, state, data = self.settings, self.state, self.data
        if state.evaluated == state.step:
            return
        self.read()
        held_out, found = len(data.validation) > 0, None
        limit = evaluation_tokens(settings, data)
        if held_out:
            found = evaluate(self.backend, data.validation, data.is_stream, limit,
                             self.characters, self.evaluating)
            limit = found.tokens
        learned = evaluate(self.backend, data.train, data.is_stream, limit, self.characters,
                           self.evaluating)
        if not math.isfinite((found or learned).loss + learned.loss):
            raise ValueError(self.no_longer_finite("the loss is no longer a finite number",
                                                   state.step))
        state.evaluated = state.step
        line = self.line_of(learned, found)
        self.log.append(line)
        state.loss_sum, state.loss_count = 0.0, 0
        best = held_out and found.loss < state.best_loss
        if best:
            state.best_step, state.best_loss, state.stale = state.step, found.loss, 0
        elif held_out:
            state.stale += 1
        if self.run:  # in this order: a line that no checkpoint has caught up with is cut again
            if best:
                self.keep(self.run.save_best, self.backend, state)
            self.run.write_log(self.log)
            self.run.draw(self.log)
            self.save()
        self.report.evaluation(line)

    def line_of(self, learned, found):
        """Returns an evaluation as log.jsonl has it; losses in nats a token."""
        state, settings = self.state, self.settings
        shown = found or learned
        rate = learning_rate(state.step, settings.num_steps, settings.learning_rate,
                             settings.schedule, settings.warmup_steps, settings.min_learning_rate)
        return {"step": state.step, "train_loss": learned.loss,
                "val_loss": found.loss if found else None,
                "bits_per_character": shown.bits_per_character,
                "eval_tokens": shown.tokens, "whole": shown.whole,
                "loss": state.loss_sum / state.loss_count if state.loss_count else None,
                "learning_rate": rate, "tokens": state.tokens, "seconds": round(state.seconds, 3),
                "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else 0}

    def save(self):
        """Writes the checkpoint, where there is a run to keep."""
        self.read()
        self.saved_at = self.clock()
        if not self.run or self.standing() == self.kept:
            return
        self.keep(self.run.save_last, self.backend, self.state, self.rng)
        self.kept = self.standing()
        self.report.saved(self.state)

    def keep(self, write, *arguments):
        """Writes a checkpoint, unless the model has become useless."""
        try:
            write(*arguments)
        except NotFinite as error:
            raise ValueError(self.no_longer_finite(str(error), self.state.step)) from None

    def standing(self):
        return self.state.step, self.state.evaluated, self.state.sampled


def sample_seed(seed, step):
    """Returns the generator of the samples on the way, which leaves the run's own alone."""
    return random.Random(f"{seed} {step} sample")
