"""What a run says on its way: the line of a step, evaluations, and the time it will take."""
import statistics
import sys
import time

from microgpt.cli.terminal import LiveLine
from microgpt.training.evaluation import bits_shown
from microgpt.training.trainer import Report

MOST_LINES = 1000  # of steps, where they are not one line that is rewritten
ENOUGH_STEPS, ENOUGH_SECONDS = 5, 1.5  # for a guess at the whole


def duration(seconds):
    """Returns a time for people.

    >>> duration(8.4), duration(95), duration(7300)
    ('8 s', '1:35 min', '2:01 h')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


class Watch(Report):
    """Prints to standard output: a line that is rewritten on a terminal, plain lines elsewhere.

    rough: what to say, beside the time that the run will take, of other engines.
    """

    def __init__(self, settings, first_step, evaluation_seconds, rough=""):
        self.settings, self.first = settings, first_step
        self.evaluation_seconds, self.rough = evaluation_seconds, rough
        self.lines = LiveLine(sys.stdout)
        self.line = self.lines.say
        self.every = max(1, (settings.num_steps - first_step) // MOST_LINES)
        self.paces, self.last = [], None
        self.started = self.before = time.monotonic()

    # ---- what the trainer reports

    def step(self, step, loss, tokens_per_second):
        num_steps = self.settings.num_steps
        if self.paces is not None:
            self.guess()
        text = f"step {step:4d} / {num_steps:4d} | loss {loss:.4f}"
        if not self.lines.live:
            if step % self.every == 0 or step in (self.first + 1, num_steps):
                print(text, flush=True)
        elif step == num_steps:
            self.line(text)
        elif self.lines.is_due(0.05):  # a terminal is slow, and nobody reads faster
            held_out = "" if self.last is None else f" | held out {self.last:.4f}"
            self.lines.rewrite(f"{text}{held_out} | {tokens_per_second:,.0f} tokens/s | "
                               f"{duration(self.left(step))} left")

    def evaluating(self, done, total):
        if self.lines.is_due(0.2):
            self.lines.rewrite(f"testing: {100 * done // total} %")

    def evaluation(self, line):
        if line["val_loss"] is not None:
            self.last = line["val_loss"]
        if line["step"] < self.settings.num_steps:
            self.line(f"after step {line['step']}: {losses_of(line)}")

    # ---- time

    def left(self, step):
        """Returns the seconds that are left, at the pace so far."""
        pace = (time.monotonic() - self.started) / max(1, step - self.first)
        return pace * (self.settings.num_steps - step)

    def guess(self):
        """Prints once, after the first steps, how long the run will take.

        Their mean, without the very first step, which is much slower on some engines.
        """
        now = time.monotonic()
        self.paces.append(now - self.before)
        self.before = now
        if len(self.paces) < ENOUGH_STEPS or now - self.started < ENOUGH_SECONDS:
            return
        pace, self.paces = statistics.mean(self.paces[1:]), None
        settings = self.settings
        steps = settings.num_steps - self.first
        times = settings.num_steps // settings.interval - self.first // settings.interval
        total = pace * steps + times * self.evaluation_seconds(pace)
        limit = f", {duration(settings.max_time)} at most" if settings.max_time else ""
        if total > 2:
            self.line(f"time: about {duration(total)} for {steps:,} steps{limit}{self.rough}")


def losses_of(line):
    """Returns the losses of a line of the log, for people."""
    bits = bits_shown(line["bits_per_character"])
    if not line["whole"]:
        bits += f", on {line['eval_tokens']:,} tokens of windows evenly spaced (--eval-tokens)"
    if line["val_loss"] is None:
        return f"loss {line['train_loss']:.4f} nats a token, {bits}, on what it learned from"
    return (f"held out {line['val_loss']:.4f} nats a token, {bits}; training text "
            f"{line['train_loss']:.4f}")
