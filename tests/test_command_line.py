"""The command as a whole: help, version, suggestions, questions, pipes and narrow terminals."""
import doctest
import importlib
import re
import shlex
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from microgpt.cli import COMMANDS, interactive, parser, terminal, train

on_unix = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")


def command(*words, **options):
    return subprocess.run([sys.executable, str(ROOT / "microgpt.py"), *words], capture_output=True,
                          text=True, encoding="utf-8", timeout=120, **options)


def on_terminal(*words, columns, **env):
    """Returns (exit code, lines on the screen, those that ran over its edge)."""
    from pseudoterminal import Session
    session = Session(*words, columns=columns, **env)
    return (session.finish(), *session.screen())


@pytest.mark.parametrize("name", ["arguments", "interactive", "parser", "terminal", "writing"])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"microgpt.cli.{name}")).failed == 0


# ---- help, version, suggestions

def test_version_stands_in_one_place():
    done = command("--version")
    assert done.stdout == f"{parser.version_line()}\n" and parser.version() in done.stdout
    assert "version = file: cli/VERSION" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_at_once(name):
    best = min(timed(name, "--help") for _ in range(3))
    assert best < 1  # a fifth of that, where nothing else runs


def timed(*words):
    begin = time.monotonic()
    assert command(*words).returncode == 0
    return time.monotonic() - begin


def test_every_flag_is_in_a_group_with_its_kin():
    text = command("--help").stdout
    groups = dict(re.findall(r"^([a-z ]+):\n((?:  .*\n|\n(?=  ))+)", text, re.MULTILINE))
    assert re.findall(r"^  (-[\w-]+)", groups["options"], re.MULTILINE) == [
        "-h", "--version", "--interactive"]
    for group, flag in (("model", "--n-embd"), ("training", "--num-steps"), ("text", "--data"),
                        ("after training", "--temperature"), ("engine", "--no-gpu")):
        assert f"  {flag} " in groups[group] or f"  {flag}\n" in groups[group]
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("words, message", [
    (["--learnig-rate", "1"], "there is no --learnig-rate; did you mean --learning-rate?"),
    (["--n-layers=2"], "there is no --n-layers; did you mean --n-layer?"),
    (["sample", "--promt", "a"], "there is no --promt; did you mean --prompt?"),
    (["--zzz"], "there is no --zzz; `python3 microgpt.py --help` lists the flags"),
    (["tokenise"], "there is no command 'tokenise'; did you mean tokenize?"),
    (["gardcheck"], "did you mean gradcheck?"),
    (["--n-embd", "8", "9"], "'9' belongs to no flag"),
    (["--no-gpu", "--backend", "torch"], "not allowed with"),
    (["--no-gpu", "--device", "cuda"], "--device is torch's; --backend scalar (which --no-gpu")])
def test_suggestions(words, message):
    done = command(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


# ---- what the older scripts were told

OLD = ["--tokenizer bpe --bpe-merges 1000 --n-embd 64 --n-head 8 --n-layer 3 --num-steps 2 "
       "--prompt-file test_prompts.txt --eval-tokens 20",
       "--tokenizer char --num-steps 2", "--no-gpu --batch-size 2 --block-size 8 --num-steps 1",
       "--url-file pages.txt --no-cache --num-steps 1 --tokenizer word"]


@pytest.mark.parametrize("line", OLD)
def test_older_command_lines_run_as_typed(line, tmp_path):
    (tmp_path / "test_prompts.txt").write_text("# names\nann\n", encoding="utf-8")
    (tmp_path / "pages.txt").write_text("# none\n", encoding="utf-8")
    done = command(*line.split(), "--num-samples", "1", cwd=tmp_path)
    if "--url-file" in line:  # nothing is fetched in a test: the flags are understood
        assert done.returncode == 2 and "pages.txt" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "sample  1: " in done.stdout and ("prompt  1: ann" in done.stdout) == (
        "--prompt-file" in line)


# ---- pipes and terminals

EVERY = {
    "train": "--num-steps 300 --backend matrix", "sample": "--num-samples 3000",
    "compare": "names --num-samples 2000", "eval": "", "runs": "names", "tokenize": "abc",
    "sweep": "--grid n_layer=1,2,3,4 --dry-run",
    "chat": "", "backends": "", "gradcheck": "", "bench": "--only startup --quick"}


@on_unix
@pytest.mark.parametrize("name", COMMANDS)
def test_head_has_seen_enough(name):
    """`microgpt COMMAND | head -1`: no traceback, whatever was still to come."""
    script = (f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'microgpt.py'))} {name} "
              f"{EVERY[name]} | head -1")
    many = "a\n" * 3000
    done = subprocess.run(["sh", "-c", script], input=many, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0 and len(done.stdout.splitlines()) <= 1
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


NARROW = ["--help", "sample --help", "compare --help", "tokenize --help", "sample",
          "sample --prompt ann --show-probabilities", "compare names names --prompt ann",
          "--num-steps 3 --num-samples 2", "tokenize Annabella", "backends", "--learnig-rate 1",
          "eval", "runs", "runs names", "gradcheck"]


@on_unix
@pytest.mark.parametrize("line", NARROW)
def test_forty_columns(line):
    """No line runs over the edge, so none is broken inside a word."""
    code, lines, over = on_terminal(*line.split(), columns=40)
    assert code == (2 if "learnig" in line else 0), lines
    assert over == []
    assert max(map(len, lines)) <= 40


@on_unix
def test_words_stay_whole_when_text_is_streamed(tmp_path, runs_folder):
    data = tmp_path / "prose.txt"
    data.write_text("quick foxes jumped over lazy dogs again and again. " * 40, encoding="utf-8")
    done = command("--data", str(data), "--documents", "stream", "--tokenizer", "word", "--backend",
                   "matrix", "--num-steps", "5", "--num-samples", "0")
    assert done.returncode == 0, done.stderr
    code, lines, over = on_terminal("sample", "--max-tokens", "60", columns=24)
    whole = command("sample", "--max-tokens", "60").stdout.split()
    assert code == 0 and over == [] and len(lines) > 10
    assert {word for word in whole if len(word) < 24} <= {word for line in lines
                                                          for word in line.split()}


@on_unix
@pytest.mark.parametrize("env, coloured", [({}, True), ({"NO_COLOR": "1"}, False),
                                           ({"TERM": "dumb"}, False)])
@pytest.mark.parametrize("line", ["tokenize abc", "sample --prompt ann"])
def test_colour(line, env, coloured):
    from pseudoterminal import Session
    session = Session(*line.split(), **env)
    assert session.finish() == 0 and ("\x1b[" in session.seen) == coloured


@pytest.mark.parametrize("pieces, expected", [
    (["one two three"], "one two \nthree"), (["one tw", "o thr", "ee"], None),
    (["x" * 20], "x" * 8 + "\n" + "x" * 8 + "\n" + "xxxx"), (["a\nbb cc"], "a\nbb cc"),
    (["one two ", "\n", "x"], "one two \nx"), (["\u65e5\u672c\u8a9e\u8a9e\u8a9e"],
                                              "\u65e5\u672c\u8a9e\u8a9e\n\u8a9e")])
def test_folding(pieces, expected):
    from pseudoterminal import screen
    fold = terminal.Fold(lambda: 8)
    out = "".join(map(fold.push, pieces))
    if expected is None:
        assert screen(out.replace("\n", "\r\n"), 9) == (["one two", "three"], [])
    else:
        assert out == expected


# ---- questions

@on_unix
def test_interactive(runs_folder):
    from pseudoterminal import Session
    session = Session("--interactive", "--num-samples", "1")
    for question, answer in (("data, text to learn from \\[names\\]", "nowhere.txt"),
                             ("there is no nowhere.txt", "names"), ("tokenizer", "bpe"),
                             ("bpe-merges.*\\[500\\]", "x"), ("got 'x', takes a whole", "20"),
                             ("n-embd", "10"), ("n-head, heads \\[2\\]", "3"),
                             ("not a multiple", ""), ("n-layer", ""), ("block-size", ""),
                             ("backend", "matrx"), ("invalid choice", "matrix"),
                             ("num-steps", "2"), ("batch-size, documents a step \\[1\\]", "")):
        session.expect(question)
        session.expect(": ")
        session.type(answer + "\n")
    said = session.expect(r"the same again: (\S[^|]*?)\r\n\r? *\r*.*num docs").group(1)
    assert session.finish() == 0
    assert " ".join(said.split()) == (
        "python3 microgpt.py --data names --tokenizer bpe --bpe-merges 20 --n-embd 10 --n-head 2 "
        "--backend matrix --num-steps 2 --num-samples 1".replace("--backend matrix --num-steps 2",
                                                                 "--num-steps 2 --backend matrix"))


def test_interactive_is_for_new_runs():
    done = command("--interactive", "--resume", "x")
    assert done.returncode == 2 and "--interactive is for a new run" in done.stderr


def test_interactive_piped():
    flags = ("--interactive", "--num-steps", "1", "--num-samples", "0")
    done = command(*flags, input="\n" * 9)
    assert done.returncode == 0 and "num params: 4192" in done.stdout, done.stderr
    assert "the same again: python3 microgpt.py --num-steps 1 --num-samples 0" in done.stderr
    done = command(*flags, input="\n\n")
    assert done.returncode == 2 and done.stdout == ""
    assert "the answers ended before the questions: nothing was trained" in done.stderr


def test_the_command_line_that_is_shown_says_the_same():
    made = train.make_parser()
    words = ["--data", "a b.txt", "c", "--no-save", "--chat", "--no-gpu", "--max-time", "1.5h"]
    shown = shlex.split(interactive.command_line(made, made.parse_args(words)))[2:]
    assert made.parse_args(shown) == made.parse_args(words)
