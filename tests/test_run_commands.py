"""What can be done with runs: eval, runs and sample, and the baseline that trains by the same
loop."""
import json
import math
import os
import random

import pytest

from microgpt import backends
from microgpt.cli import runs as runs_command
from microgpt.cli import session
from microgpt.training import runs
from microgpt.training.baselines import baselines
from small import TEXT, TINY, a_run, command, finished, main, texts

PROSE = "It was a bright cold day in April, and the clocks were striking thirteen.\n\n" * 12


def printed(capsys, *flags):
    """Returns (output, errors) of a command that ends well."""
    capsys.readouterr()
    assert main(*flags) == 0
    return capsys.readouterr()


def refused(capsys, *flags):
    capsys.readouterr()
    assert main(*flags) == 2
    return capsys.readouterr().err


@pytest.fixture
def run(tmp_path, capsys):
    return runs.open_run(a_run(tmp_path))


# ---- eval


@pytest.mark.parametrize("flags", [[], ["--documents", "stream", "--block-size", "5"],
                                   ["--tokenizer", "bpe", "--bpe-merges", "9"]])
def test_eval_gives_what_the_log_says(tmp_path, capsys, flags):
    run = runs.open_run(a_run(tmp_path, *flags))
    last = run.log()[-1]
    found = json.loads(printed(capsys, "eval", "--run", "x", "--weights", "last", "--json").out)
    for name, other in (("loss", "val_loss"), ("bits_per_character",) * 2,
                        ("tokens", "eval_tokens"), ("whole",) * 2):
        assert found[name] == pytest.approx(last[other], rel=1e-12)
    assert found["perplexity"] == pytest.approx(math.exp(last["val_loss"]))
    assert (found["run"], found["weights"], found["unknown"]) == ("x", "last", [])


def test_eval_takes_the_best_weights_and_the_latest_run(tmp_path, capsys):
    a_run(tmp_path, name="first")
    run = runs.open_run(a_run(tmp_path, "--learning-rate", 3, "--schedule", "constant",
                              "--num-steps", 20))
    best = min(line["val_loss"] for line in run.log())
    assert run.log()[-1]["val_loss"] > best
    out, err = printed(capsys, "eval")
    assert err == "microgpt: the latest run is x\n"
    assert out.startswith(f"x (best) on the text held out of {tmp_path / 'text.txt'}: {best:.4f} "
                          "nats a token, ")


def test_eval_on_another_text(run, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text(TEXT, encoding="utf-8")
    last = json.loads(printed(capsys, "eval", "--data", other, "--json").out)
    assert (last["tokens"], last["unknown"], last["text"]) == (145, [], str(other))
    assert last["bits_per_character"] == pytest.approx(last["loss"] / math.log(2))


def test_eval_names_what_the_model_does_not_know(run, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("anna\nÄnne!\n", encoding="utf-8")
    out, _ = printed(capsys, "eval", "--data", other)
    assert "nats a token, lossy, on " in out
    assert out.splitlines()[1] == "not in the vocabulary, so left out: 'Ä' '!'"
    found = json.loads(printed(capsys, "eval", "--data", other, "--json").out)
    assert (found["bits_per_character"], found["unknown"]) == (None, ["Ä", "!"])


@pytest.mark.parametrize("mode, other", [("lines", "stream"), ("stream", "lines")])
def test_eval_refuses_documents_of_another_kind(tmp_path, capsys, mode, other):
    a_run(tmp_path, "--documents", mode)
    line = refused(capsys, "eval", "--run", "x", "--data", tmp_path / "text.txt", "--documents",
                   other)
    assert f"--documents {other}: the run x learned {mode}, and knows no other" in line


def test_eval_of_a_stream_of_strange_letters(tmp_path, capsys):
    a_run(tmp_path, "--documents", "stream")
    (tmp_path / "other.txt").write_text("ÄÖÜ", encoding="utf-8")
    assert "has 0 tokens that the model knows; there must be two" in refused(
        capsys, "eval", "--run", "x", "--data", tmp_path / "other.txt")


def test_eval_where_nothing_was_held_out(tmp_path, capsys):
    a_run(tmp_path, "--val-fraction", 0)
    assert "nothing was held out from x; name a text with --data" in refused(capsys, "eval")


def test_eval_of_a_model_that_is_quite_wrong(run, capsys, monkeypatch):
    monkeypatch.setattr(backends.load("matrix"), "loss", lambda self, batch: 1e6)
    found = json.loads(printed(capsys, "eval", "--json").out)
    assert (found["loss"], found["perplexity"]) == (pytest.approx(1e6), None)


# ---- runs


@pytest.fixture
def three(tmp_path, capsys):
    """Three runs, the last one the newest."""
    for name, width, steps in (("middle", 8, 3), ("small", 4, 6), ("a large one", 12, 2)):
        path = a_run(tmp_path, "--n-embd", width, "--num-steps", steps, name=name)
        for file in path.iterdir():
            os.utime(file, (width, steps))


def names(capsys, *flags):
    return [row["name"] for row in json.loads(printed(capsys, "runs", "--json", *flags).out)]


def test_the_table_of_all_runs(three, capsys):
    out, err = printed(capsys, "runs")
    lines = out.splitlines()
    assert lines[0].split() == ["name", "params", "tokenizer", "steps", "held", "out", "bits/char",
                                "tokens/s", "backend", "time"]
    assert [line.split("  ")[0] for line in lines[1:]] == ["small", "middle", "a large one"]
    assert len({line.index(word) for line, word in zip(lines[1:], ["char"] * 3)}) == 1 and not err


def test_the_table_sorted(three, capsys):
    assert names(capsys) == ["small", "middle", "a large one"]
    assert names(capsys, "--reverse") == ["a large one", "middle", "small"]
    assert names(capsys, "--sort", "name") == ["a large one", "middle", "small"]
    assert names(capsys, "--sort", "parameters") == ["small", "middle", "a large one"]
    assert names(capsys, "--sort", "steps", "--reverse") == ["small", "middle", "a large one"]
    for column in runs_command.COLUMNS:
        assert len(names(capsys, "--sort", column)) == 3


def test_the_table_as_json(run, capsys):
    row = json.loads(printed(capsys, "runs", "--json").out)[0]
    best = min(run.log(), key=lambda line: line["val_loss"])
    assert row["val_loss"] == best["val_loss"] and row["best_step"] == best["step"]
    assert (row["parameters"], row["steps"], row["num_steps"], row["backend"]) == (
        432, 4, 4, "matrix")
    assert row["path"] == str(run.path) and row["tokenizer"] == "char"


def test_a_run_that_has_only_begun_is_listed(run, capsys):
    (run.path / "log.jsonl").unlink()
    assert printed(capsys, "runs").out.splitlines()[1].split() == [
        "x", "432", "char", "4", "-", "-", "-", "matrix", "-"]
    for column in runs_command.COLUMNS:
        assert names(capsys, "--sort", column) == ["x"]
    assert printed(capsys, "runs", "x").out.count("\n") == 2


def test_one_run_with_its_curve(run, capsys):
    out = printed(capsys, "runs", "x").out
    assert "held-out text" in out and "best " in out and len(out.splitlines()) > 12
    found = json.loads(printed(capsys, "runs", "x", "--json").out)
    assert found["log"] == run.log() and found["name"] == "x"


def test_without_runs(capsys, runs_folder):
    assert "no runs in " in printed(capsys, "runs").out
    assert printed(capsys, "runs", "--json").out == "[]\n"
    assert "there is no run 'x'; in " in refused(capsys, "eval", "--run", "x")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_narrow_terminal_breaks_no_line(three, capsys, monkeypatch, width):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = printed(capsys, "runs").out.splitlines()
    assert max(map(len, lines)) < width and len(lines) == 4
    if width >= 40:
        assert "held out" in lines[0] and "a large one" in lines[3]
    assert (len(lines[0].split()) == 10) == (width == 200)


def test_a_name_that_moves_the_cursor(run, capsys):
    run.path.rename(run.path.with_name("\x1b[2J\nx"))
    assert printed(capsys, "runs").out.splitlines()[1].startswith("?[2J?x ")


# ---- sample


def test_sample_takes_the_latest_run_and_says_so(tmp_path, capsys):
    a_run(tmp_path, name="old")
    a_run(tmp_path, name="new")
    os.utime(runs.runs_folder() / "old" / "last.safetensors", (1, 1))
    os.utime(runs.runs_folder() / "old" / "config.json", (1, 1))
    out, err = printed(capsys, "sample", "--num-samples", 2)
    assert err == "microgpt: the latest run is new\n" and out.count("sample ") == 2
    out, err = printed(capsys, "sample", "--run", "old", "--num-samples", 2)
    assert err == ""
    assert printed(capsys, "sample", "--run", runs.runs_folder() / "old", "--num-samples",
                   2).out == out


@pytest.mark.torch
def test_a_model_of_torchs_samples_without_torch(tmp_path):
    """The same greedy text, with the file's own engine, where torch is not installed."""
    pytest.importorskip("torch")
    data, folder = texts(tmp_path), tmp_path / "runs"
    flags = ["--data", data, "--backend", "torch", "--dtype", "float64", "--device", "cpu",
             "--num-steps", 80, "--n-embd", 8, "--block-size", 8, "--name", "x", "--num-samples", 1]
    assert finished(command(*flags, folder=folder))[0] == 0
    sample = ["sample", "--run", "x", "--temperature", 0, "--num-samples", 1]
    with_torch = finished(command(*sample, "--backend", "torch", folder=folder))
    assert with_torch[0] == 0 and with_torch[1].strip()
    for more in (["--backend", "scalar"], ["--backend", "matrix"], []):
        code = "sys.modules['torch'] = None"  # importing it fails, as if it were not there
        assert finished(command(*sample, *more, code=code, folder=folder)) == with_torch


# ---- the baseline, and what beats it


def in_sample(capsys, model, *flags):
    """Returns (the Session's line of the log, what counting reaches on the same training text)."""
    from microgpt.corpus.load import load
    from microgpt.corpus.sources import gather
    from microgpt.tokenizers import CharTokenizer
    printed(capsys, "--model", model, "--name", "x", "--num-samples", 0, *flags)
    run = runs.open_run(runs.runs_folder() / "x")
    data = load(gather(["names"]), CharTokenizer.learn, random.Random(42), val_fraction=0.1)
    return run.log()[-1], data


@pytest.mark.slow
def test_the_bigram_model_ends_near_bigram_counting(capsys):
    line, data = in_sample(capsys, "bigram", "--backend", "matrix", "--batch-size", 64,
                           "--num-steps", 1000, "--eval-tokens", 1_000_000, "--eval-interval",
                           1000)
    counted = baselines(data.corpus.train, (), False)
    assert counted.on_training_text
    assert abs(line["train_loss"] - counted.bigram) < 0.02, (line, counted)


@pytest.mark.slow
def test_matrix_beats_bigram_counting_on_held_out_names(capsys):
    """16 documents a step; in 1000 steps, which take half a minute."""
    line, data = in_sample(capsys, "gpt", "--backend", "matrix", "--batch-size", 16, "--num-steps",
                           1000, "--eval-tokens", 1_000_000, "--eval-interval", 1000)
    assert line["val_loss"] < baselines(data.corpus.train, data.corpus.validation, False).bigram


# ---- after training


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_is_in_use_until_what_follows_prompts_is_kept(tmp_path, monkeypatch, resumed):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("an\n", encoding="utf-8")
    if resumed:
        a_run(tmp_path)
    refusals = []
    write = session.write

    def while_writing(*args):
        with pytest.raises(ValueError, match="in use by process") as refusal, runs.find("x").lock:
            pass
        refusals.append(refusal)
        return write(*args)
    monkeypatch.setattr(session, "write", while_writing)
    flags = ["--resume", "x"] if resumed else ["--name", "x", "--data", texts(tmp_path), *TINY,
                                               "--num-steps", 2, "--num-samples", 1]
    assert main(*flags, "--prompt-file", prompts) == 0
    assert len(refusals) == 1
    with runs.find("x").lock as lock:
        assert lock.handle
    assert "after prompts" in (runs.find("x").path / "samples.txt").read_text(encoding="utf-8")


def test_the_table_has_the_steps_of_the_checkpoint_and_sorts_by_its_headings(run, capsys):
    lines = run.log()
    run.write_log(lines[:1])  # as of a run that was interrupted between two tests
    assert lines[0]["step"] < 4 and run.state().step == 4
    row = json.loads(printed(capsys, "runs", "--json", "--sort", "held out").out)[0]
    assert row["steps"] == 4
    (run.path / "last.safetensors").write_bytes(b"damaged")
    assert json.loads(printed(capsys, "runs", "--json").out)[0]["steps"] == lines[0]["step"]
    assert "invalid choice: 'loss'" in refused(capsys, "runs", "--sort", "loss")
