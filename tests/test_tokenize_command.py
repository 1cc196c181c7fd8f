"""How a text is cut, shown by the command; and training with each tokenizer on each backend."""
import io
import json
import re
import subprocess
import sys

import pytest

import microgpt
from conftest import ROOT
from microgpt import tokenizers
from microgpt.cli import learning, tokenize
from test_cli import EVERY_BACKEND, run

TEXT = "".join(f"the cat and the dog number {n}\nthe mat\n" for n in range(20))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def command(capsys, *flags):
    """Returns (exit code, output, errors) of `python3 microgpt.py` with these flags."""
    try:
        code = microgpt.main(list(flags)) or 0
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


class Terminal(io.StringIO):
    def isatty(self):
        return True


# ---- python3 microgpt.py tokenize

def test_pieces_with_their_ids(data, capsys):
    code, out, err = command(capsys, "tokenize", "--tokenizer", "bpe", "--bpe-merges", "9",
                             "--data", data, "the cat\n\x00\U0001f600")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"bpe: a vocabulary of 266, learned from {data}",
        "the(257) \u2423(220) cat(261) \u240a(198) \u2400(188) \\xf0(172) \\x9f(253) "
        "\\x98(246) \\x80(222)",
        "10 characters, 9 tokens: 1.11 characters a token"]


def test_characters_never_seen_are_named(data, capsys):
    code, out, _ = command(capsys, "tokenize", "--data", data, "the zoo, oh")
    assert code == 0 and out.splitlines()[-1] == "not in the vocabulary, so left out: z ,"
    _, out, _ = command(capsys, "tokenize", "--tokenizer", "word", "--word-min-count", "2",
                        "--data", data, "the cat 7, oh")
    assert out.splitlines()[1:] == [
        "lossy: 11.1 % of all words and signs are rarer than --word-min-count and will be <unk>",
        "the(0) \u2423cat(2) \u2423<unk>(7) \u2423<unk>(7) \u2423<unk>(7)",
        "13 characters, 5 tokens: 2.60 characters a token",
        "not in the vocabulary, so the unknown token: \u24237 , \u2423oh"]


def test_all_tokenizers_in_a_table(data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    flags = ["tokenize", "--tokenizer", "all", "--bpe-merges", "20", "--data", data, "the rat"]
    code, out, _ = command(capsys, *flags)
    lines = out.splitlines()
    assert code == 0 and lines[0] == f"7 characters; learned from {data}"
    assert [line.split()[0] for line in lines[1:]] == [
        "tokenizer", "char", "word", "bpe", "pretrained"]
    assert re.fullmatch(r"bpe +277 +4 +1\.75  no", lines[4])
    assert lines[3].endswith("yes: \u2423rat") and "pip install tiktoken" in lines[5]
    rows = json.loads(command(capsys, *flags, "--json")[1])
    assert rows[2] == {"tokenizer": "bpe", "vocab_size": 277, "tokens": 4, "characters": 7,
                       "characters_per_token": 1.75, "lossy": False, "unknown": []}
    assert rows[1]["unknown"] == ["\u2423rat"] and "tiktoken" in rows[3]["error"]


def test_json_for_one_tokenizer(data, capsys):
    row = json.loads(command(capsys, "tokenize", "--json", "--data", data, "at", "a")[1])
    assert [token["text"] for token in row["tokens"]] == ["a", "t", "\u2423", "a"]
    assert row["characters"] == 4 and row["lossy"] is False


@pytest.mark.parametrize("content, expected", [
    ("the cat\n".encode(), r"the\(257\)"), (b"", "0 characters, 0 tokens\n"),
    (b"\xff", "standard input is not UTF-8 text: .*position 0")])
def test_a_text_from_a_pipe(data, content, expected):
    done = subprocess.run([sys.executable, "microgpt.py", "tokenize", "--tokenizer", "bpe",
                           "--bpe-merges", "9", "--data", data], cwd=ROOT, input=content,
                          capture_output=True, timeout=60)
    assert done.returncode == (2 if content == b"\xff" else 0)
    assert re.search(expected, (done.stdout + done.stderr).decode())


def test_without_a_text_one_line_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal())
    code, out, err = command(capsys, "tokenize")
    assert (code, out) == (2, "")
    assert err == ('microgpt: there is no text: give it, as in tokenize "some text", or pipe it '
                   "in\n")


def test_colours_on_a_terminal_that_wants_them(data, monkeypatch):
    def shown(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", Terminal())
        microgpt.main(["tokenize", "--data", data, "the cat"])
        return sys.stdout.getvalue()
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = shown(TERM="xterm-256color")
    assert coloured.count("\x1b[0m") == 14 and len(set(re.findall(r"48;5;\d+", coloured))) == 4
    assert "\x1b" not in shown(TERM="dumb")
    assert "\x1b" not in shown(TERM="xterm", NO_COLOR="1")
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == shown()


def test_lines_are_no_wider_than_the_terminal(data, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = command(capsys, "tokenize", "--data", data, "the cat and the dog and the mat")
    pieces = out.splitlines()[1:-1]
    assert len(pieces) > 4 and all(len(line) <= 40 for line in pieces)


@pytest.mark.parametrize("data, text", [
    (b" \n\r\t\x7f", "\u2423\u240a\u240d\u2409\u2421"), (b"\xf0\x9f", "\\xf0\\x9f"),
    ("\u0301e\u0301".encode(), "\u25cc\u0301e\u0301"), ("\u200d\u00a0".encode(), "\\u200d\\xa0"),
    ("\u00e4\u4e2d".encode(), "\u00e4\u4e2d")])
def test_everything_in_a_piece_can_be_seen(data, text):
    assert tokenize.visible(data) == text


# ---- training

@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("kind, flags, vocab_size", [
    ("word", [], 28), ("word", ["--word-min-count", "2"], 9), ("bpe", ["--bpe-merges", "9"], 266)])
def test_every_backend_trains_with_every_tokenizer(backend, kind, flags, vocab_size, data, capsys):
    if backend == "torch":
        pytest.importorskip("torch")
    code, out, err = command(capsys, "--backend", backend, "--tokenizer", kind, *flags, "--data",
                             data, "--num-steps", "2", "--num-samples", "2", "--n-embd", "4")
    assert (code, err) == (0, "")
    assert f"vocab size: {vocab_size}\n" in out and "sample  2: " in out
    assert ("lossy: " in out) == bool(flags and kind == "word")


def test_a_trained_model_writes_words(data, capsys):
    _, out, _ = command(capsys, "--backend", "matrix", "--tokenizer", "word", "--data", data,
                        "--num-steps", "60", "--batch-size", "4", "--num-samples", "3")
    samples = [line[11:] for line in out.splitlines() if line.startswith("sample")]
    assert all(set(sample.split()) <= set(TEXT.split()) for sample in samples) and any(samples)


def test_char_is_the_run_of_the_file_alone(data, capsys):
    """The tokenizers of the toolkit and of the file give the same run to the last character."""
    def shared(out):
        return [line for line in out.splitlines() if line.startswith(("num", "step", "sample"))]
    flags = ["--data", data, "--num-steps", "5", "--num-samples", "3", "--n-embd", "8"]
    microgpt.main(flags, microgpt.make_parser(), microgpt.run)
    alone = shared(capsys.readouterr().out)
    assert shared(command(capsys, *flags, "--tokenizer", "char")[1]) == alone
    assert len(alone) == 10


def test_pretrained_without_its_package_gets_one_line():
    done = run("--tokenizer", "pretrained", code="import sys; sys.modules['tiktoken'] = None")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "pip install tiktoken" in done.stderr


def test_fewer_merges_than_asked_for_are_reported(data, capsys):
    _, out, _ = command(capsys, "--tokenizer", "bpe", "--bpe-merges", "5000", "--data", data,
                        "--num-steps", "0", "--num-samples", "0")
    found = re.search(r"^bpe: (\d+) merges, not 5000: no other pair of tokens occurs twice$", out,
                      re.MULTILINE)
    assert f"vocab size: {257 + int(found[1])}\n" in out


def test_merges_are_kept_unless_no_cache(data, cache, capsys, monkeypatch):
    flags = ["tokenize", "--tokenizer", "bpe", "--data", data, "the"]
    command(capsys, *flags, "--no-cache")
    assert not cache.exists()
    first = command(capsys, *flags)[1]
    assert len(list(cache.rglob("*.json"))) == 1
    monkeypatch.setattr(tokenizers.bpe, "learn_merges", lambda *_: [])
    assert command(capsys, *flags)[1] == first != command(capsys, *flags, "--no-cache")[1]
    # training shuffles the documents, and finds what the other command kept
    code, out, _ = command(capsys, *flags[1:-1], "--num-steps", "0", "--num-samples", "0")
    assert f"vocab size: {re.search('vocabulary of ([0-9]+)', first)[1]}\n" in out


BAD = [
    (["--bpe-merges", "5"], "--bpe-merges is for --tokenizer bpe; this is --tokenizer char"),
    (["--tokenizer", "bpe", "--word-min-count", "2"], "--word-min-count is for --tokenizer word"),
    (["--tokenizer", "bpe", "--vocabulary", "gpt2"], "--vocabulary is for --tokenizer pretrained"),
    (["--tokenizer", "words"], "invalid choice: 'words'"),
    (["--tokenizer", "bpe", "--bpe-merges", "-1"], "--bpe-merges: got '-1', takes a whole number"),
    (["--tokenizer", "word", "--word-min-count", "0"], "--word-min-count: got '0'"),
    (["--tokenizer", "pretrained", "--vocabulary", "gpt5"], "--vocabulary: invalid choice: 'gpt5'"),
    (["--data", "gone.txt"], "gone.txt"),
    (["--data", "gone.txt", "--bpe-merges", "5"], "is for --tokenizer bpe"),  # before any reading
]


@pytest.mark.parametrize("prefix", [[], ["tokenize", "text"]], ids=["train", "tokenize"])
@pytest.mark.parametrize("flags, message", BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_a_mistake_gets_one_line(prefix, flags, message, capsys):
    code, out, err = command(capsys, *prefix, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("microgpt: ") and message in err


def test_all_is_a_choice_of_tokenize_alone(capsys):
    assert "invalid choice: 'all'" in command(capsys, "--tokenizer", "all")[2]


def test_progress_on_a_terminal(monkeypatch):
    clock = iter([0.0, 0.5, 2.0, 2.01, 3.0, 4.0])
    monkeypatch.setattr(learning.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = learning.Progress("learning merges")
    for done in (0, 100, 101, 200, 400):  # quick at first, so that it says nothing until 2.0
        progress(done, 400)
    first, second, end = sys.stderr.getvalue().split("\r")[1:4]
    assert first.startswith("learning merges: 100 of 400, 6 s left at most")
    assert second.startswith("learning merges: 200 of 400, 3 s left") and end.isspace()


def test_no_progress_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = learning.Progress("learning merges")
    progress.start -= 100
    progress(100, 400)
    assert sys.stderr.getvalue() == ""


def test_help_names_the_flags(capsys):
    for prefix in ([], ["tokenize"]):
        text = " ".join(command(capsys, *prefix, "--help")[1].split())
        for flag in ("--tokenizer", "--bpe-merges", "--word-min-count", "--vocabulary",
                     "--no-cache"):
            assert flag in text
    assert "all" in text and "--json" in text
