"""A run that was interrupted and goes on equals one that was not, bit for bit."""
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import microgpt
from microgpt.backends import load
from microgpt.cli import session
from microgpt.training import checkpoint, runs

TEXT = "".join(f"{word}\n" for word in """
    anna bertha cecil dora emil fritz gustav hans ida jakob karl lena max nora otto paula quirin
    rosa stefan tina ulla viktor willi xaver yvonne zoe""".split())
PROSE = "It was a bright cold day in April, and the clocks were striking thirteen.\n\n" * 8


class Stopped:
    """In the place of Interrupts: says that a signal came, once so many steps are done."""

    exit_code = 130
    steps = None

    def __init__(self):
        self.done = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def received(self):
        return "interrupted" if self.steps is not None and self.done >= self.steps else None


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Returns a function: run(flags, stop) -> exit code, which interrupts after `stop` steps."""
    stopped = []

    def make():
        stopped.append(Stopped())
        return stopped[-1]
    monkeypatch.setattr(session, "Interrupts", make)
    real = session.Trainer.step

    def step(self):
        real(self)
        stopped[-1].done += 1
    monkeypatch.setattr(session.Trainer, "step", step)

    def run(flags, stop=None):
        monkeypatch.setattr(Stopped, "steps", stop)
        return microgpt.main([str(flag) for flag in flags]) or 0
    return run


def end_of(path):
    """Returns all that must be equal: weights, memory, where it stands, the losses, the samples."""
    tensors, metadata = checkpoint.read(path / "last.safetensors")
    state = json.loads(metadata["state"])
    log = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    for values in [state, *log]:
        for name in ("seconds", "tokens_per_second"):
            values.pop(name, None)
    best, _ = checkpoint.read(path / "best.safetensors")
    return ({name: [list(row) for row in rows] for name, rows in tensors.items()},
            {name: [list(row) for row in rows] for name, rows in best.items()}, state,
            metadata["random"], log, (path / "samples.txt").read_text())


@st.composite
def runs_to_interrupt(draw):
    backend = draw(st.sampled_from(["scalar", "matrix", "torch"]))
    flags = {"--backend": backend, "--num-steps": draw(st.integers(2, 7)),
             "--optimizer": draw(st.sampled_from(["adam", "adamw", "muon", "sgd"])),
             "--batch-size": draw(st.integers(1, 3)), "--seed": draw(st.integers(0, 99)),
             "--n-embd": draw(st.sampled_from([4, 8])), "--n-head": draw(st.sampled_from([1, 2])),
             "--block-size": draw(st.integers(3, 8)),
             "--model": draw(st.sampled_from(["gpt", "gpt", "bigram"])),
             "--tokenizer": draw(st.sampled_from(["char", "word", "bpe"])),
             "--schedule": draw(st.sampled_from(["linear", "cosine", "constant"])),
             "--warmup-steps": draw(st.integers(0, 2)), "--num-samples": 2,
             "--eval-interval": draw(st.integers(1, 4)), "--val-fraction": 0.2,
             "--sample-every": draw(st.integers(1, 4))}
    if draw(st.booleans()):
        flags["--grad-clip"] = 0.5
    if backend != "scalar" and draw(st.booleans()):
        flags["--dropout"] = 0.3
    if draw(st.booleans()):
        flags["--micro-batch"] = 1
    if backend == "torch":
        flags["--dtype"] = draw(st.sampled_from(["float32", "float64"]))
        # two runs that each try how many threads are fastest may choose differently
        flags.update({"--device": "cpu", "--threads": draw(st.sampled_from([1, 2]))})
    if flags["--tokenizer"] == "bpe":
        flags["--bpe-merges"] = 5
    stops = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    return flags, draw(st.sampled_from([TEXT, PROSE])), stops


@given(case=runs_to_interrupt())
@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.torch
def test_interrupted_and_resumed_equals_uninterrupted(case, command, tmp_path):
    pytest.importorskip("torch")
    flags, text, stops = case
    data = tmp_path / "text.txt"
    data.write_text(text, encoding="utf-8")
    flags = ["--data", data, *(part for pair in flags.items() for part in pair)]
    assert command([*flags, "--name", "whole"]) == 0
    whole = runs.all_runs()[0]
    code = command([*flags, "--name", "parts"], stops[0])
    parts = next(path for path in runs.all_runs() if path.name.startswith("parts"))
    for stop in stops[1:]:
        code = command(["--resume", parts], stop) if code == 130 else code
    while code == 130:
        code = command(["--resume", parts], 5)
    whole, ended = end_of(whole), end_of(parts)
    for one, other in zip(whole, ended):
        assert one == other
    for path in runs.all_runs():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def begin(command, tmp_path, *flags, text=TEXT):
    """Starts a run of 6 steps, stopped after 3; returns its folder."""
    data = tmp_path / "text.txt"
    data.write_text(text, encoding="utf-8")
    assert command(["--data", data, "--backend", "matrix", "--num-steps", 6, "--val-fraction",
                    0.2, "--num-samples", 1, *flags], 3) == 130
    return runs.all_runs()[0]


def test_an_interrupt_says_how_to_go_on(command, tmp_path, capsys):
    path = begin(command, tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == [f"interrupted after step 3 of 6; kept in {path}",
                        f"go on with: python3 microgpt.py --resume {path.name}"]
    assert command(["--resume", path.name]) == 0
    out = capsys.readouterr().out
    assert "step    4 /    6" in out and "step    3 /    6" not in out
    assert "no longer exact" not in out and "schedule:" not in out


def test_a_longer_run_says_what_happens_to_the_schedule(command, tmp_path, capsys):
    path = begin(command, tmp_path)
    assert command(["--resume", path, "--num-steps", 12]) == 0
    out = capsys.readouterr().out
    assert ("schedule: stretched from 6 to 12 steps, so the learning rate goes from 0.005 to "
            "0.0075 here; not the same as a run of 12 steps from its start") in out
    assert "step   12 /   12" in out
    about = json.loads((path / "config.json").read_text())
    assert about["settings"]["num_steps"] == 12
    assert about["resumed"] == [{"step": 3, "changes": {"num_steps": 12}}]
    assert command(["--resume", path]) == 0
    assert "step " not in capsys.readouterr().out.split("run: ")[1].split("learned from")[0]


@pytest.mark.parametrize("flags, words", [
    (["--backend", "scalar"], "no longer exact: backend was matrix, is scalar"),
    (["--learning-rate", "0.1"], "no longer exact: learning_rate was 0.01, is 0.1"),
    (["--micro-batch", "1"], "no longer exact: micro_batch was None, is 1"),
])
def test_what_ends_exactness_is_named(command, tmp_path, capsys, flags, words):
    path = begin(command, tmp_path)
    assert command(["--resume", path, *flags]) == 0
    assert words in capsys.readouterr().out


def test_another_version_is_named(command, tmp_path, capsys):
    path = begin(command, tmp_path)
    about = json.loads((path / "config.json").read_text())
    about["engine"]["python"] = "3.8.0"
    (path / "config.json").write_text(json.dumps(about))
    assert command(["--resume", path]) == 0
    assert "no longer exact: python was 3.8.0, is 3." in capsys.readouterr().out


REFUSED = [
    (["--n-embd", "8"], "n_embd is 8, and the run began with 16: to change it is another run"),
    (["--seed", "1"], "seed is 1, and the run began with 42"),
    (["--batch-size", "5"], "batch_size is 5, and the run began with 1"),
    (["--optimizer", "sgd"], "optimizer is 'sgd', and the run began with 'adam'"),
    (["--tokenizer", "word"], "tokenizer is 'word', and the run began with 'char'"),
    (["--name", "x"], "--name is for a new run"),
    (["--preset", "laptop"], "--preset is for a new run"),
]


@pytest.mark.parametrize("flags, words", REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_what_would_be_another_run_is_refused(command, tmp_path, capsys, flags, words):
    path = begin(command, tmp_path)
    before = end_of_bytes(path)
    with pytest.raises(SystemExit) as stop:
        command(["--resume", path, *flags])
    assert stop.value.code == 2 and words in capsys.readouterr().err
    assert end_of_bytes(path) == before


def end_of_bytes(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock"}


def test_the_same_value_again_is_no_change(command, tmp_path, capsys):
    path = begin(command, tmp_path)
    assert command(["--resume", path, "--n-embd", 16, "--num-steps", 6]) == 0


def test_changed_data_is_refused(command, tmp_path, capsys):
    path = begin(command, tmp_path)
    (tmp_path / "text.txt").write_text(TEXT + "zorro\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        command(["--resume", path])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert "the text has changed" in err and "put it back, name it with --data" in err
    (tmp_path / "elsewhere.txt").write_text(TEXT, encoding="utf-8")
    assert command(["--resume", path, "--data", tmp_path / "elsewhere.txt"]) == 0


@pytest.mark.torch
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
def test_on_another_backend_five_steps_agree(command, tmp_path, optimizer):
    """The state is loaded exactly, and 5 further steps agree to 1e-9 in float64."""
    pytest.importorskip("torch")
    from microgpt.backends.proof import relative_errors
    from tolerances import FLOAT64
    path = begin(command, tmp_path, "--optimizer", optimizer)
    run = runs.open_run(path)
    ended = []
    for name in ("matrix", "scalar", "torch"):
        weights, memory, state, _ = run.load_last()
        options = {"dtype": "float64", "device": "cpu"} if name == "torch" else {}
        backend = load(name)(run.config, weights, optimizer=optimizer, **options)
        for slot in backend.optimizer.slot_names:
            memory.setdefault(slot, {})
        backend.load_optimizer_state(memory)
        assert backend.weights() == {name: [list(row) for row in rows]
                                     for name, rows in weights.items()}
        for step in range(5):
            backend.step([[1, 2, 3, 4], [5 + step, 6]], 0.01)
        ended.append(backend.weights())
    for other in ended[1:]:
        assert max(relative_errors(other, ended[0]).values()) <= FLOAT64["between backends"]


def test_fewer_steps_than_it_has_are_refused(command, tmp_path, capsys):
    data = tmp_path / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    flags = ["--data", data, "--backend", "matrix", "--num-steps", 4, "--num-samples", 1]
    assert command([*flags, "--name", "x"]) == 0
    about = (runs.find("x").path / "config.json").read_text()
    with pytest.raises(SystemExit) as stop:
        command(["--resume", "x", "--num-steps", 3])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert "the run x has 4 steps behind it, and would be given 3 in all" in err
    assert (runs.find("x").path / "config.json").read_text() == about
    assert command(["--resume", "x"]) == 0
    assert "after step 4 of 4; all are done, and a larger --num-steps goes on" in (
        capsys.readouterr().out)


def test_a_text_that_is_gone_is_named_with_its_run(command, tmp_path, capsys):
    data = tmp_path / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    assert command(["--data", data, "--backend", "matrix", "--num-steps", 1, "--num-samples", 1,
                    "--name", "x"]) == 0
    data.unlink()
    with pytest.raises(SystemExit) as stop:
        command(["--resume", "x"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"microgpt: the text that the run x learned from cannot be had: {data}: No such file or "
        "directory; put it back, or name it with --data\n")
