"""The training loop: settings, schedules, when it stops, what it keeps, and what it says."""
import json
import math
import re
import sys

import pytest

from microgpt.cli.progress import Watch
from microgpt.corpus.load import load
from microgpt.corpus.sources import gather
from microgpt.tokenizers import CharTokenizer
from microgpt.training import checkpoint, trainer as training
from microgpt.training.presets import PRESETS
from microgpt.training.schedules import check_schedule, learning_rate
from microgpt.training.settings import (KINDS, epochs_of_steps, evaluation_tokens,
                                        settings_of, steps_of_epochs)
from microgpt.training.trainer import Report, Trainer
from small import TEXT, TINY, Clock, a_run, command, end_of, finished, main, texts, trainer

# ---- schedules


def rates(schedule, **options):
    return [learning_rate(step, 8, 1.0, schedule, **options) for step in range(8)]


def test_linear_is_the_files():
    assert rates("linear") == [1 - step / 8 for step in range(8)]


def test_cosine_and_constant():
    assert rates("constant", floor=0.5) == [1.0] * 8
    cosine = rates("cosine", floor=0.2)
    assert cosine[0] == 1.0 and cosine[4] == pytest.approx(0.6)
    assert cosine == sorted(cosine, reverse=True) and 0.2 < cosine[-1] < 0.25


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_warm_up_rises_evenly_to_the_peak(schedule):
    assert rates(schedule, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_floor_is_what_the_step_after_the_last_would_have(schedule):
    assert learning_rate(8, 8, 1.0, schedule, 2, 0.25) == pytest.approx(0.25)
    assert learning_rate(80, 8, 1.0, schedule, 2, 0.25) == pytest.approx(0.25)


@pytest.mark.parametrize("values, words", [
    (("stairs", 8, 1.0, 0, 0.0), "schedule is 'stairs': it takes linear, cosine, constant"),
    (("linear", 8, 1.0, 9, 0.0), "warmup_steps, 9, is more than num_steps, 8"),
    (("linear", 8, 1.0, 0, 2.0), "min_learning_rate, 2.0, is above learning_rate, 1.0"),
])
def test_schedules_that_are_none(values, words):
    with pytest.raises(ValueError, match=words):
        check_schedule(*values)


# ---- settings


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_settings(preset):
    settings = settings_of({"backend": "torch"}, preset).completed()
    assert settings.config(65).n_embd == PRESETS[preset].get("n_embd", 16)
    assert settings.batch_size and settings.learning_rate
    assert set(PRESETS[preset]) <= {*KINDS, "data"}
    assert settings_of(settings.to_dict()) == settings


def test_what_is_asked_for_goes_before_a_preset_and_that_before_the_defaults():
    assert settings_of({}).n_layer == 1
    assert settings_of({"backend": "matrix"}, "laptop").n_layer == 2
    assert settings_of({"backend": "matrix", "n_layer": 3}, "laptop").n_layer == 3


@pytest.mark.parametrize("values, words", [
    ({"n_embd": "16"}, "n_embd is '16': it takes a whole number"),
    ({"n_embd": 16.0}, "n_embd is 16.0: it takes a whole number"),
    ({"n_embd": True}, "n_embd is True: it takes a whole number"),
    ({"dedupe": 1}, "dedupe is 1: it takes true or false"),
    ({"model": None}, "model is None: it takes a text"),
    ({"learning_rate": math.nan}, "learning_rate is nan: it takes a number"),
    ({"learning_rate": 10 ** 400}, "learning_rate is inf: it takes a number"),
    ({"temperature": math.inf}, "temperature is inf: it takes a number"),
    ({"num_steps": -1}, "num_steps is -1: it takes 0 or more"),
    ({"learning_rate": -0.1}, "learning_rate is -0.1: it takes 0 or more"),
    ({"batch_size": 0}, "batch_size is 0: it takes 1 or more"),
    ({"n_embd": 10}, "n_embd, 10, is not a multiple of n_head, 4"),
    ({"n_emdb": 16}, "there is no setting 'n_emdb'"),
    ({"optimizer": "lion"}, "optimizer is 'lion': it takes adam, adamw"),
    ({"backend": "numpy"}, "backend is 'numpy': it takes scalar, matrix, torch"),
    ({"tokenizer": "\x1b[2J"}, "tokenizer is '.x1b.2J': it takes char, word"),
    ({"documents": "pages"}, "documents is 'pages': it takes auto, lines"),
    ({"schedule": "stairs"}, "schedule is 'stairs': it takes linear"),
    (["n_embd", 16], "the settings are list, not name and value"),
])
def test_settings_that_are_none(values, words):
    with pytest.raises(ValueError, match=words):
        settings_of(values)


def test_a_preset_that_is_none():
    with pytest.raises(ValueError, match="preset is 'huge': it takes names, shakespeare-cpu"):
        settings_of({}, "huge")


def make_data(folder, mode):
    import random
    return load(gather([str(texts(folder))]), CharTokenizer.learn, random.Random(1), mode=mode)


@pytest.mark.parametrize("mode, per_epoch", [("lines", 26 / 4), ("stream", len(TEXT) / (4 * 6))])
def test_epochs_are_steps(tmp_path, mode, per_epoch):
    data = make_data(tmp_path, mode)
    assert steps_of_epochs(2, 4, 6, data) == math.ceil(2 * per_epoch)
    assert epochs_of_steps(13, 4, 6, data) == pytest.approx(13 / per_epoch)


def test_tokens_of_an_evaluation(tmp_path):
    """In plain Python a short run is tested on what it learns from, but on 500 tokens at least."""
    data = make_data(tmp_path, "stream")

    def tokens(**values):
        return evaluation_tokens(settings_of(values).completed(), data)
    assert tokens(num_steps=1) == 500
    assert tokens(num_steps=100, block_size=10, batch_size=2) == 2000
    assert tokens(num_steps=10 ** 6) == 20_000
    assert tokens(num_steps=10 ** 6, eval_tokens=7) == 7
    assert tokens(num_steps=1, backend="torch") == 2_000_000


# ---- when it stops


def test_patience_stops_and_says_so(tmp_path, capsys):
    """A learning rate that is far too high: no evaluation is better than the first ones."""
    a_run(tmp_path, "--num-steps", 60, "--learning-rate", 1, "--eval-interval", 2, "--patience", 3)
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in
             (tmp_path / "runs" / "x" / "log.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["val_loss"])
    assert lines[-1]["step"] == best["step"] + 6 < 60
    assert (f"stopped after step {lines[-1]['step']}: no new best in 3 evaluations; the best, "
            f"{best['val_loss']:.4f}, was after step {best['step']}") in out


def test_the_time_limit_stops_with_an_evaluation(tmp_path):
    clock = Clock(tick=1.0)
    found = trainer(tmp_path, clock=clock, num_steps=100, max_time=20, eval_interval=50)
    assert found.train() == "time"
    assert 2 < found.state.step < 20 and found.state.evaluated == found.state.step
    assert [line["step"] for line in found.run.log()] == [found.state.step]
    assert found.run.load_last()[2] == found.state


def test_the_time_limit_is_said(tmp_path, capsys):
    a_run(tmp_path, "--num-steps", 10 ** 6, "--max-time", "0.3s")
    out = capsys.readouterr().out
    assert ": --max-time 0 s is over" in out and "stopped after step " in out


def test_no_step_at_all(tmp_path):
    found = trainer(tmp_path, num_steps=0)
    assert found.train() == "done" and found.log[0]["step"] == 0


# ---- what it keeps


def test_the_best_is_kept_with_its_loss(tmp_path):
    """The learning rate is so high that later steps are worse."""
    found = trainer(tmp_path, num_steps=40, learning_rate=3.0, schedule="constant",
                    eval_interval=2)
    found.train()
    best = min(found.log, key=lambda line: line["val_loss"])
    weights, metadata = checkpoint.read(found.run.path / "best.safetensors")
    assert best["step"] < 40
    assert (metadata["step"], float(metadata["val_loss"])) == (str(best["step"]), best["val_loss"])
    assert (found.state.best_step, found.state.best_loss) == (best["step"], best["val_loss"])
    from microgpt.training.evaluation import evaluate
    backend = found.run.backend("matrix", "best")
    assert evaluate(backend, found.data.validation, False).loss == best["val_loss"]


def test_the_first_checkpoint_is_there_before_the_first_step(tmp_path):
    found = trainer(tmp_path)
    weights, memory, state, rng = found.run.load_last()
    assert state.step == 0 and {name: [list(row) for row in rows] for name, rows in
                                weights.items()} == found.backend.weights()
    assert rng.getstate() == found.rng.getstate()


def test_losses_that_have_to_be_waited_for_count_as_time(tmp_path):
    """On a GPU a step is only ordered when it returns: who reads the loss waits for it."""
    clock = Clock()

    class Loss:
        def __float__(self):
            clock.now += 10
            return 1.0
    found = trainer(tmp_path, clock=clock, num_steps=4, eval_interval=2)
    step = found.backend.step
    found.backend.step = lambda *arguments: (step(*arguments), Loss())[1]
    found.train()
    assert [line["seconds"] for line in found.log] == [20, 40]
    assert [line["loss"] for line in found.log] == [1.0, 1.0]


def test_an_evaluation_before_the_first_step_stays_in_the_log(tmp_path):
    found = trainer(tmp_path, clock=Clock(tick=1.0), num_steps=4, max_time=0.5,
                    eval_interval=4)
    assert found.train() == "time" and found.state.step == 0
    again = Trainer(found.backend, found.data, found.settings.changed(max_time=None), found.rng,
                    found.run, found.run.load_last()[2])
    again.train()
    assert [line["step"] for line in found.run.log()] == [0, 4]


def test_the_backend_chooses_what_was_left_to_it():
    from microgpt.cli.session import tuned

    class Backend:
        def tune(self, batch):
            return {"threads": len(batch)}

    class Data:
        def batch(self, step, batch_size, block_size, seed):
            return [[0] * block_size] * batch_size
    settings = settings_of({"batch_size": 8})
    assert tuned(settings, Backend(), Data()).threads == 8
    assert tuned(settings.changed(micro_batch=2), Backend(), Data()).threads == 2
    assert tuned(settings.changed(threads=5), Backend(), Data()).threads == 5


class Saves(Report):
    def __init__(self):
        self.steps = []

    def saved(self, state):
        self.steps.append(state.step)


def test_it_saves_every_minute(tmp_path):
    clock, saves = Clock(), Saves()
    found = trainer(tmp_path, clock=clock, report=saves, num_steps=10, eval_interval=10)
    step = found.backend.step

    def slow(*arguments):
        clock.now += 25
        return step(*arguments)
    found.backend.step = slow
    found.train()
    assert saves.steps == [0, 3, 6, 9, 10]


def test_without_a_run_nothing_is_written(tmp_path):
    before = sorted(tmp_path.iterdir())
    found = trainer(tmp_path, keep=False)
    assert found.train() == "done" and len(found.log) == 4
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "text.txt"]


def test_parts_of_a_batch_make_the_same_step(tmp_path):
    whole, parts = (trainer(tmp_path, keep=False, batch_size=5, micro_batch=size)
                    for size in (None, 2))
    whole.train(), parts.train()
    for one, other in zip(whole.log, parts.log):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-12)


# ---- numbers that are none


def broken_at(found, step, what):
    """Makes the step with this number, from 1, go wrong in one of two ways."""
    real = found.backend.step

    def wrong(batch, *more):
        loss = real(batch, *more)
        if found.state.step + 1 == step:
            if what == "loss":
                return math.nan
            found.backend._weights["wpe"][-1][0] = what
        return loss
    found.backend.step = wrong


@pytest.mark.parametrize("what, words", [
    ("loss", "the loss became nan at step 5; .*x keeps the model of the last good checkpoint; "
             "try a lower --learning-rate, --grad-clip 1, or --warmup-steps 100"),
    (math.nan, "a weight is no longer a finite number at step 6"),
    (math.inf, "a weight is no longer a finite number at step 6"),
])
def test_what_is_no_number_stops_the_run_and_the_good_checkpoint_stays(tmp_path, what, words):
    """A weight of a place that no short name reaches can be lost without the loss showing it."""
    found = trainer(tmp_path, num_steps=12, eval_interval=3, block_size=20)
    broken_at(found, 5, what)
    with pytest.raises(ValueError, match=words):
        found.train()
    weights, _, state, rng = found.run.load_last()
    assert state.step == 3
    for name in ("last", "best"):
        found.run.check(found.run.weights(name)[0])
        assert found.run.weights(name)[1] == 3
    again = trainer_of(found, state)
    assert again.train() == "done"
    (tmp_path / "other").mkdir()
    whole = trainer(tmp_path / "other", num_steps=12, eval_interval=3, block_size=20)
    whole.train()
    assert again.backend.weights() == whole.backend.weights()


def test_a_lost_weight_is_not_saved_where_nothing_is_held_out(tmp_path):
    found = trainer(tmp_path, num_steps=12, eval_interval=3, block_size=20, val_fraction=0.0)
    broken_at(found, 5, math.nan)
    with pytest.raises(ValueError, match="a weight is no longer a finite number at step 6"):
        found.train()
    assert found.run.load_last()[2].step == 3


def trainer_of(found, state):
    """Returns the Trainer of the same run, resumed."""
    weights, memory, state, rng = found.run.load_last()
    backend = type(found.backend)(found.backend.config, weights)
    for slot in backend.optimizer.slot_names:
        memory.setdefault(slot, {})
    backend.load_optimizer_state(memory)
    return Trainer(backend, found.data, found.settings, rng, found.run, state)


def test_a_model_that_is_lost_ends_the_command_with_a_line(tmp_path, capsys, monkeypatch):
    real = training.Trainer.step

    def step(self):
        if self.state.step == 2:
            self.backend.step = lambda *_: math.nan
        real(self)
    monkeypatch.setattr(training.Trainer, "step", step)
    assert main("--data", texts(tmp_path), *TINY, "--num-steps", 9, "--name", "x",
                "--val-fraction", 0.2) == 2
    err = capsys.readouterr().err
    assert err.startswith("microgpt: the loss became nan at step 3") and err.count("\n") == 1
    monkeypatch.undo()
    monkeypatch.setenv("MICROGPT_RUNS", str(tmp_path / "runs"))
    assert main("--resume", "x") == 0
    assert end_of(tmp_path / "runs" / "x")["state"]["step"] == 9


# ---- a report that cannot be made


class Deaf(Report):
    """Whose terminal is closed after the second step."""

    def step(self, step, loss, tokens_per_second):
        if step == 2:
            raise OSError(5, "Input/output error")


def test_a_closed_terminal_loses_no_step(tmp_path):
    found = trainer(tmp_path, report=Deaf(), eval_interval=4)
    with pytest.raises(OSError):
        found.train()
    assert found.run.load_last()[2].step == 2


# ---- the time that a run will take


def test_the_guess_at_the_time(monkeypatch, capsys):
    """The mean of the first steps but the very first, which is slow, and the evaluations."""
    clock = Clock()
    monkeypatch.setattr("microgpt.cli.progress.time.monotonic", clock)
    settings = settings_of({"backend": "matrix", "num_steps": 100, "eval_interval": 25})
    watch = Watch(settings, 0, lambda pace: 20 * pace, "; rough")
    for seconds in (5, 0.25, 0.25, 0.5, 0.25, 0.25):
        clock.now += seconds
        watch.guess() if watch.paces is not None else None
    assert capsys.readouterr().out == "time: about 56 s for 100 steps; rough\n"


# ---- what a run takes

RUNS = [("scalar", 8, 16, 1, 16), ("scalar", 1, 64, 2, 64), ("scalar", 16, 32, 2, 16),
        ("matrix", 64, 16, 1, 16), ("matrix", 16, 64, 2, 64), ("matrix", 4, 128, 4, 64),
        ("torch", 1, 16, 1, 16), ("torch", 64, 128, 4, 64), ("torch", 16, 384, 6, 128)]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured on Linux")
@pytest.mark.parametrize("backend, B, C, L, T", [
    pytest.param(*case, marks=pytest.mark.torch if case[0] == "torch" else ()) for case in RUNS])
def test_the_memory_that_is_planned_is_that_which_is_taken(tmp_path, backend, B, C, L, T):
    """Within a factor of two, of a process of its own."""
    flags = ["--backend", backend, "--batch-size", B, "--n-embd", C, "--n-layer", L,
             "--block-size", T, "--num-steps", 2, "--num-samples", 0, "--no-save", "--eval-tokens",
             64, "--documents", "stream"]
    if backend == "torch":
        pytest.importorskip("torch")
        flags += ["--threads", 1, "--device", "cpu", "--dtype", "float32"]
    # not ru_maxrss: there Linux hands the peak of a parent on to its children
    code, out, err = finished(command(*flags, folder=tmp_path, code="""
import atexit
atexit.register(lambda: sys.stderr.write(open("/proc/self/status").read()))"""))
    taken = int(re.search(r"VmHWM:\s+(\d+) kB", err)[1]) * 1024 / 1e6
    assert code == 0
    planned = int(re.search("about ([0-9,]+) MB of memory", out)[1].replace(",", ""))
    assert planned / 2 < taken < 2 * planned


@pytest.mark.parametrize("flags", [["--n-embd", "65536"], ["--batch-size", "1000000000"],
                                   ["--n-layer", "100000000"], ["--block-size", "1000000000"]])
def test_what_no_machine_has_room_for_is_refused_before_it_is_taken(tmp_path, flags, capsys):
    words = "of memory, and this machine has .*; take a smaller --n-embd, --block-size or --batch"
    if flags[0] == "--n-layer":
        words = "n_layer is 100000000"
    assert main("--data", texts(tmp_path), *TINY, *flags) == 2
    err = capsys.readouterr().err
    assert re.search(words, err) and err.count("\n") == 1


# ---- losses that are read later, as on a GPU


class Ordered:
    """A loss that is known once float() asks for it; counts how often that is."""

    asked = 0

    def __init__(self, loss):
        self.loss = loss

    def __float__(self):
        Ordered.asked += 1
        return self.loss


class Heard(Report):
    def __init__(self):
        self.steps = []

    def step(self, step, loss, tokens_per_second):
        self.steps.append((step, loss))


def on_a_gpu(found, spoil=None):
    """Makes a trainer's backend give its losses as a GPU does; the loss of step `spoil` is nan."""
    real, Ordered.asked = found.backend.step, 0

    def step(*arguments):
        loss = real(*arguments)
        return Ordered(math.nan if found.state.step == spoil else loss)
    found.backend.step = step
    return found


def test_losses_that_are_read_later_are_the_same_losses(tmp_path):
    plain, later = Heard(), Heard()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    trainer(tmp_path / "a", report=plain, num_steps=7, eval_interval=3).train()
    time = [0.0]  # which stands still: nothing is read but where it has to be
    found = on_a_gpu(trainer(tmp_path / "b", report=later, num_steps=7, eval_interval=3,
                             clock=lambda: time[0]))
    found.train()
    assert later.steps == plain.steps and [step for step, _ in plain.steps] == [*range(1, 8)]
    assert found.log[0]["loss"] == pytest.approx(sum(loss for _, loss in plain.steps[:3]) / 3)
    assert Ordered.asked == 7


def test_a_loss_that_is_read_late_and_is_nan_keeps_the_checkpoint_before(tmp_path):
    found = on_a_gpu(trainer(tmp_path, num_steps=9, eval_interval=3, clock=lambda: 0.0), spoil=4)
    with pytest.raises(ValueError, match="the loss became nan at step 5"):
        found.train()
    assert found.run.load_last()[2].step == 3
