"""Training on any text, as people type it: pages, folders, prose, several files at once."""
import re
import subprocess
import sys

import pytest

import microgpt
from conftest import ROOT
from website import website

BOOK = "<html><head><title>Book</title><script>var no = 1</script></head><body>" + "".join(
    f"<h2>Chapter {i}</h2><p>The {word} sat on the mat, and the {word} was happy.</p>"
    for i, word in enumerate(["cat", "dog", "hen", "fox"] * 6)) + "</body></html>"


@pytest.fixture
def site():
    """The address of a server that has one page, and the paths that it was asked for."""
    with website(lambda path: ("text/html", BOOK) if path == "/book.html" else None) as found:
        yield found


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "cache"))


def command(*flags):
    return subprocess.run([sys.executable, "microgpt.py", *flags], cwd=ROOT, capture_output=True,
                          text=True, encoding="utf-8", timeout=120)


def output(capsys, *flags):
    """Returns the lines that the command prints with these flags, in this process."""
    code = microgpt.main(["--backend", "matrix", "--num-samples", "1", *flags])
    out, _ = capsys.readouterr()
    assert not code, out
    return out.splitlines()


def test_a_page_from_the_web_by_words(site):
    site, requests = site
    flags = ["--urls", f"{site}/book.html", f"{site}/gone.html", "--tokenizer", "word",
             "--num-steps", "50", "--num-samples", "2", "--backend", "matrix",
             "--eval-tokens", "50"]
    first = command(*flags)
    assert first.returncode == 0, first.stderr
    assert "gone.html" in first.stderr and "404" in first.stderr
    assert f"({site}/book.html)" in first.stdout and "var no" not in first.stdout
    losses = [float(line.split("loss ")[1]) for line in first.stdout.splitlines()
              if line.startswith("step")]
    assert len(losses) == 50 and losses[-1] < losses[0] / 2
    before = requests.count("/book.html")
    again = command(*flags).stdout.splitlines()
    assert [line for line in again if line.startswith(("step", "sample"))] == [
        line for line in first.stdout.splitlines() if line.startswith(("step", "sample"))]
    assert requests.count("/book.html") == before == 1  # the second time from the cache
    command(*flags, "--no-cache", "--num-steps", "1")
    assert requests.count("/book.html") == 2


def test_when_no_page_can_be_had_nothing_is_learned(site):
    done = command("--urls", f"{site[0]}/gone.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "404" in done.stderr


@pytest.mark.parametrize("backend", ["scalar", "matrix", "torch"])
def test_prose_is_one_stream(backend, tmp_path, capsys):
    if backend == "torch":
        pytest.importorskip("torch")
    prose = tmp_path / "prose.txt"
    prose.write_text("It was a bright cold day.\n\nThe clocks were striking.\n\n" * 40)
    assert not microgpt.main(["--data", str(prose), "--backend", backend, "--num-steps", "4",
                              "--num-samples", "2", "--batch-size", "2"])
    out = capsys.readouterr().out
    assert out.startswith(f"num docs: 1 ({prose})\n") and "one stream" in out
    assert "held out " in out and "sample  1: " in out


def test_several_sources_at_once(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("anna\nbela\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.txt").write_text("carla\nanna\n")
    flags = ["--data", str(tmp_path / "a.txt"), str(tmp_path / "more"), "--num-steps", "1"]
    assert output(capsys, *flags)[0].startswith("num docs: 4 (2 texts, ")
    deduped = output(capsys, *flags, "--dedupe")
    assert deduped[0].startswith("num docs: 3 ") and "duplicates: 1 left out" in deduped


def test_documents_says_what_it_chose_and_obeys(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("one\n\ntwo\nthree\n" * 4)
    assert "one stream; --documents lines|paragraphs chooses otherwise" in "\n".join(
        output(capsys, "--data", str(text), "--num-steps", "1", "--block-size", "4"))
    lines = output(capsys, "--data", str(text), "--documents", "lines", "--num-steps", "1")
    assert lines[0].startswith("num docs: 12 ")
    paragraphs = output(capsys, "--data", str(text), "--documents", "paragraphs",
                        "--num-steps", "1")
    assert paragraphs[0].startswith("num docs: 5 ")


def test_a_tenth_is_held_out_of_a_text_that_is_not_tiny(tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name{i}\n" for i in range(300)))
    held = [line for line in output(capsys, "--data", str(names), "--num-steps", "1")
            if line.startswith("held out")]
    assert len(held) == 1
    everything = output(capsys, "--data", str(names), "--num-steps", "1", "--val-fraction", "0")
    assert not any(line.startswith("held out") for line in everything)


BAD = [
    (["--data", "nul.txt"], "byte 2 is NUL"),
    (["--data", "latin.txt"], "byte 1.*--encoding"),
    (["--data", "nothing"], "nothing.*no text"),
    (["--data", "missing.txt"], "missing.txt"),
    (["--val-fraction", "1"], "--val-fraction: got '1'"),
    (["--url-file", "missing.txt"], "--url-file missing.txt"),
    (["--data", "short.txt", "--documents", "stream"], "--block-size"),
    (["--encoding", "nonsense"], "nonsense"),
]


@pytest.mark.parametrize("flags, message", BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_texts_get_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nul.txt").write_bytes(b"ab\0c\n")
    (tmp_path / "latin.txt").write_bytes("né\n".encode("latin-1"))
    (tmp_path / "short.txt").write_text("ab\n")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SystemExit) as stop:
        microgpt.main(flags)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err


def test_encoding_reads_what_is_not_utf8(tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes("né\nça\n".encode("latin-1"))
    lines = output(capsys, "--data", str(tmp_path / "latin.txt"), "--encoding", "latin-1",
                   "--num-steps", "1")
    assert lines[1] == "vocab size: 5"
