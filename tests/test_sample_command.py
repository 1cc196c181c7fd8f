"""sample and the model that comes with microgpt, prompts of all kinds, prompts after training."""
import json
import subprocess
import sys
import time

import pytest

import microgpt
from conftest import ROOT
from microgpt import backends
from microgpt.nn.sampling import SamplingSettings, sample, sample_rng
from microgpt.training import checkpoint, runs

BUNDLED = ROOT / "training" / "models" / "names"


def call(capsys, *words):
    """Returns (stdout, stderr) of a command that ends well."""
    assert not microgpt.main(list(words))
    return capsys.readouterr()


def command(*words, **options):
    return subprocess.run([sys.executable, str(ROOT / "microgpt.py"), *words], capture_output=True,
                          text=True, encoding="utf-8", timeout=120, **options)


def train(capsys, *flags, text=None, tmp_path=None):
    if text is not None:
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        flags = ("--data", str(tmp_path / "text.txt"), *flags)
    call(capsys, "--backend", "matrix", "--num-steps", "2", "--num-samples", "0", *flags)


# ---- the model that comes with microgpt

def test_it_writes_before_anything_was_trained(tmp_path):
    begin = time.monotonic()
    done = command("sample", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 20
    assert "the model that comes with microgpt" in done.stderr
    assert time.monotonic() - begin < 5  # a second, where nothing else runs


def test_own_runs_come_first(capsys):
    train(capsys, "--name", "mine")
    assert "the latest run is mine" in call(capsys, "sample", "--num-samples", "1").err
    assert "comes with microgpt" in call(capsys, "sample", "--run", "names",
                                         "--num-samples", "1").err


def test_what_comes_with_microgpt():
    assert {path.name for path in BUNDLED.iterdir()} == {
        "config.json", "tokenizer.json", "best.safetensors"}
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 50_000
    about = (BUNDLED / "config.json").read_text(encoding="utf-8")
    assert '"path"' not in about and str(ROOT) not in about and "/" not in about
    assert float(checkpoint.read(BUNDLED / "best.safetensors")[1]["val_loss"]) < 2.35


def test_it_cannot_be_gone_on_with(capsys):
    with pytest.raises(SystemExit) as stop:
        microgpt.main(["--resume", "names"])
    assert stop.value.code == 2 and "has no checkpoint to go on from" in capsys.readouterr().err
    assert not (BUNDLED / "lock").exists()


def test_its_loss_can_be_measured(capsys):
    out = json.loads(call(capsys, "eval", "--json").out)
    stored = float(checkpoint.read(BUNDLED / "best.safetensors")[1]["val_loss"])
    assert out["loss"] == pytest.approx(stored, rel=1e-9)


def small_model(out, *flags):
    done = subprocess.run([sys.executable, "benchmarks/small_model.py", "--out", str(out), *flags],
                          cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return runs.open_run(out)


def test_the_command_that_makes_it(tmp_path):
    made, here = small_model(tmp_path / "model", "--num-steps", "3"), runs.open_run(BUNDLED)
    assert (made.config, made.tokenizer.hash) == (here.config, here.tokenizer.hash)
    assert made.settings == here.settings.changed(num_steps=3)
    assert made.about["data"] == here.about["data"]
    made.check(made.weights()[0])


@pytest.mark.slow
def test_the_command_makes_the_same_model(tmp_path):
    small_model(tmp_path / "model")
    made, made_about = checkpoint.read(tmp_path / "model" / "best.safetensors")
    here, here_about = checkpoint.read(BUNDLED / "best.safetensors")
    assert float(made_about["val_loss"]) == pytest.approx(float(here_about["val_loss"]), abs=0.02)
    if sys.version_info[:2] == (3, 11) and sys.implementation.name == "cpython":
        assert {name: [list(row) for row in rows] for name, rows in made.items()} == {
            name: [list(row) for row in rows] for name, rows in here.items()}


# ---- prompts

def test_prompt_and_continuation_are_printed(capsys):
    out, _ = call(capsys, "sample", "--prompt", "ann", "jo", "--num-samples", "2")
    starts = [line[:14] for line in out.splitlines()]
    assert starts[0].startswith("sample  1: ann") and starts[3].startswith("sample  4: jo")
    alone, _ = call(capsys, "sample", "--prompt", "ann")
    assert alone == out.splitlines()[0][11:] + "\n"


def test_it_is_what_generation_writes(capsys):
    run = runs.find("names")
    expected = sample(run.backend(), run.tokenizer, SamplingSettings(), sample_rng(5, 0),
                      prompt=run.tokenizer.encode("ma"))
    assert call(capsys, "sample", "--prompt", "ma", "--seed", "5").out == f"ma{expected}\n"


ODD = [("Ann", "'A'"), ("\U0001f600", "'\U0001f600'"), ("a\nb", r"'\n'"), ("= \u00e9", "'='"),
       ("a" * 40, "the prompt has 40 tokens; the model sees the last 16"),
       ("\udcff", "seen '\ufffd'"),
       ("", None), ("ann", None)]


@pytest.mark.parametrize("prompt, message", ODD, ids=[ascii(p)[:12] for p, _ in ODD])
def test_odd_prompts(prompt, message, capsys):
    out, err = call(capsys, "sample", "--prompt", prompt, "--json")
    assert json.loads(out)[0]["prompt"] == prompt
    assert err.count("\n") == 1 + bool(message) and (message or "") in err


def test_a_prompt_file(tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# names\r\nann\r\n\r\n  # more\r\njo # x\n".encode())
    out = json.loads(call(capsys, "sample", "--prompt", "ma", "--prompt-file", str(path),
                          "--json").out)
    assert [row["prompt"] for row in out] == ["ma", "ann", "jo # x"]


@pytest.mark.parametrize("content, message", [
    (None, "No such file"), (b"# nothing\n\n", "it holds no prompt"),
    (b"\xff", "byte 0 is not UTF-8")])
@pytest.mark.parametrize("name", ["sample", "compare", "train"])
def test_prompt_files_that_are_none(name, content, message, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        microgpt.main([name, "--prompt-file", str(path)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and message in err and err.count("\n") == 1


def test_prompts_after_training_are_kept(tmp_path, capsys, runs_folder):
    path = tmp_path / "prompts.txt"
    path.write_text("# some\nann\njo\n", encoding="utf-8")
    out, _ = call(capsys, "--num-steps", "2", "--num-samples", "1", "--name", "mine",
                  "--prompt-file", str(path))
    first, second = out.splitlines()[-2:]
    assert first.startswith("prompt  1: ann") and second.startswith("prompt  2: jo")
    kept = (runs_folder / "mine" / "samples.txt").read_text(encoding="utf-8").splitlines()
    assert kept[-3:] == ["---- after prompts", first[11:], second[11:]]


# ---- settings

@pytest.mark.parametrize("flags, message", [
    (["--temperature", "-1"], "--temperature: got '-1', takes a number, 0 or more"),
    (["--top-k", "0"], "--top-k: got '0'"), (["--top-p", "1.5"], "top_p is 1.5"),
    (["--repetition-penalty", "0"], "--repetition-penalty: got '0'"),
    (["--run", "nothing"], "there is no run 'nothing'"), (["--stop", ""], "stop is ''")])
def test_mistakes(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        microgpt.main(["sample", *flags])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and message in err
    assert "Traceback" not in err


def test_temperature_0_and_top_k(capsys):
    greedy = call(capsys, "sample", "--temperature", "0", "--num-samples", "3").out.splitlines()
    assert len({line[11:] for line in greedy}) == 1
    assert call(capsys, "sample", "--top-k", "1", "--num-samples", "3").out.splitlines() == greedy
    assert call(capsys, "sample", "--top-k", "1000").out == call(capsys, "sample").out


def test_stop_and_max_tokens(tmp_path, capsys):
    train(capsys, "--documents", "stream", text="to be or not to be\n" * 99, tmp_path=tmp_path)
    row, = json.loads(call(capsys, "sample", "--max-tokens", "40", "--json").out)
    assert (row["tokens"], row["end"]) == (40, "length")
    row, = json.loads(call(capsys, "sample", "--stop", r"\n", "--json").out)
    assert row["end"] == "stop" and "\n" not in row["text"]


@pytest.mark.torch
def test_many_at_once_on_torch_are_the_same_texts(capsys):
    pytest.importorskip("torch")
    flags = ["sample", "--prompt", "a", "a", "b", "--num-samples", "3"]
    for form in [], ["--json"]:
        many, one_by_one = (call(capsys, *flags, *form, *engine).out for engine in (
            ["--backend", "torch", "--dtype", "float64"], []))
        assert many == one_by_one


def test_probabilities(capsys):
    out = call(capsys, "sample", "--prompt", "ann", "--show-probabilities").out.splitlines()
    assert out[-1].startswith("ann") and out[-2].startswith("END 0.")
    assert all(len(line.split()) == 11 for line in out[:-1])
    row, = json.loads(call(capsys, "sample", "--prompt", "ann", "--show-probabilities",
                           "--json").out)
    for choice in row["choices"]:
        shares = [choice["probability"], *(other["probability"] for other in choice["others"])]
        assert len(shares) == 5 and 0 < sum(shares) <= 1 + 1e-9
    assert "".join(choice["text"] for choice in row["choices"][:-1]) == row["text"]


def test_whole_characters_only(tmp_path, capsys):
    """bpe without merges: a token is a byte, and pieces of characters come one after the other."""
    train(capsys, "--tokenizer", "bpe", "--bpe-merges", "0", "--block-size", "40",
          text="\u043b\u0435\u0441\n\u043c\u043e\u0440\u0435\n" * 50, tmp_path=tmp_path)
    out = call(capsys, "sample", "--prompt", "\u043b", "--temperature", "0").out
    assert out.startswith("\u043b")


def test_every_backend_writes_the_same(capsys):
    texts = {call(capsys, "sample", "--backend", name, "--num-samples", "5",
                  *(["--dtype", "float64"] if name == "torch" else [])).out
             for name in backends.BACKENDS if name != "torch" or has_torch()}
    assert len(texts) == 1


def has_torch():
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True
