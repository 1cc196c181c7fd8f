"""What the documents show is true: examples run, commands exist, outputs are the program's."""
import doctest
import fnmatch
import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest

from conftest import ROOT
from microgpt.cli import COMMANDS
from microgpt.nn import GPTConfig
from microgpt.nn.weights import count_parameters
from microgpt.training.costs import memory
from microgpt.training.presets import PRESETS
from microgpt.training.settings import Settings
from test_how_it_works import anchors

DOCUMENTS = ["README.md", "USAGE.md", "HOW_IT_WORKS.md", "GPU_EXPERIMENTS.md"]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_of_python(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # as a reader who types along in the checkout
    results = doctest.testfile(str(ROOT / name), module_relative=False)
    assert results.failed == 0


def test_the_readme_shows_the_golden_run(golden):
    text = text_of("README.md")
    shown = dict(re.findall(r"^step +(\d+) / 1000 \| loss ([\d.]+)$", text, re.MULTILINE))
    assert {int(step): float(loss) for step, loss in shown.items()} == {
        1: golden["losses"][0], 1000: golden["losses"][-1]}
    samples = re.findall(r"^sample +\d+: (\w+)$", text, re.MULTILINE)
    assert samples and samples == golden["samples"][:len(samples)]


@pytest.mark.slow
def test_the_readme_shows_what_its_first_command_prints(tmp_path):
    """Line by line, but for what depends on the machine and the day."""
    done = subprocess.run([sys.executable, str(ROOT / "microgpt.py")], cwd=tmp_path, text=True,
                          env={**os.environ, "MICROGPT_RUNS": "runs"}, capture_output=True)
    shown = re.search(r"^num docs: .*?^```$", text_of("README.md"), re.DOTALL | re.MULTILINE)[0]
    changing = r"\d+ [sm]\b.*|\d{4}-\d\d-\d\d"  # seconds and dates

    def lines(text):
        return [re.sub(changing, "", line) for line in text.splitlines()]
    printed = lines(done.stdout)
    for line in lines(shown)[:-1]:
        assert line == "..." or line in printed


def commands():
    """Yields every `python3 microgpt.py ...` of the documents, as a list of arguments."""
    for name in DOCUMENTS:
        for line in re.findall(r"(?:python3|torchrun[^`\n]*) microgpt\.py([^`\n]*)", text_of(name)):
            yield shlex.split(line.split("   ")[0])


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_commands_of_the_documents_parse(words):
    name = words.pop(0) if words and not words[0].startswith("-") else "train"
    assert name in COMMANDS
    parser = importlib.import_module(f"microgpt.cli.{name}").make_parser()
    if "--help" not in words:
        parser.parse_args(words)


def flags(name):
    """Returns the long flags of a command."""
    parser = importlib.import_module(f"microgpt.cli.{name}").make_parser()
    return {flag for action in parser._actions for flag in action.option_strings
            if flag.startswith("--")}


ELSEWHERE = {"--nproc-per-node", "--nnodes", "--standalone"}  # torchrun's


def flags_in(name):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text_of(name)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_and_command_stands_in_the_usage(name):
    assert flags(name) <= flags_in("USAGE.md")
    assert re.search(rf"microgpt\.py {name}\b", text_of("USAGE.md")) or name == "train"


def test_every_flag_of_the_usage_exists():
    assert flags_in("USAGE.md") - ELSEWHERE <= set().union(*map(flags, COMMANDS))


@pytest.mark.parametrize("name", ["README.md", "GPU_EXPERIMENTS.md"])
def test_every_flag_of_the_other_documents_exists(name):
    of_benchmarks = set(re.findall(r'"(--[a-z-]+)"', text_of("benchmarks/torch_speed.py")
                                   + text_of("benchmarks/run.py")))
    assert flags_in(name) - ELSEWHERE - of_benchmarks <= set().union(*map(flags, COMMANDS))


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_scripts_that_the_documents_name_exist_with_their_flags(name):
    for script, rest in re.findall(r"((?:benchmarks|scripts|tests)/[\w./-]+\w)([^`\n|]*)",
                                   text_of(name)):
        assert (ROOT / script).exists(), script
        if script.startswith("benchmarks/"):
            known = set(re.findall(r'"(--[a-z-]+)"', text_of(script)))
            assert set(re.findall(r"--[a-z][a-z-]+", rest)) <= known


def test_a_source_distribution_ships_what_the_tests_read():
    """Of the folders that are no packages, every file; of the others setup.cfg takes care."""
    patterns = []
    for line in text_of("MANIFEST.in").splitlines():
        kind, first, *others = line.split()
        patterns += ([f"{first}/{other}" for other in others] if kind == "recursive-include"
                     else [first, *others])
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md")] + [
        path.relative_to(ROOT).as_posix() for folder in
        ("benchmarks", "docs", "experiments", "scripts", "tests", ".github", "training/models")
        for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) > 50
    assert [file for file in files
            if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []


def test_a_flag_that_is_missing_would_be_seen(monkeypatch):
    monkeypatch.setitem(globals(), "text_of", lambda name: "--data --gone")
    with pytest.raises(AssertionError):
        test_every_flag_of_the_usage_exists()
    with pytest.raises(AssertionError):
        test_every_flag_and_command_stands_in_the_usage("runs")


def test_every_preset_stands_in_the_usage_with_its_size():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ((?:L\d).*)$", text_of("USAGE.md"), re.MULTILINE))
    assert rows.keys() == PRESETS.keys()
    for name, row in rows.items():
        told = {letter: int(number) for letter, number in re.findall(r"\b([LHCTB])(\d+)", row)}
        size = {"n_layer": 1, "n_head": 4, "n_embd": 16, "block_size": 16, "batch_size": 1,
                "num_steps": 1000, **PRESETS[name]}
        assert told == {"L": size["n_layer"], "H": size["n_head"], "C": size["n_embd"],
                        "T": size["block_size"], "B": size["batch_size"]}
        assert f"| {size['num_steps']:,} |" in row or f"| {size['num_steps']} |" in row


def test_what_else_a_preset_sets_stands_in_the_usage():
    told = {name: {*rest.split(", ")} for name, rest in re.findall(
        r"^- `([\w-]+)`: (.+)$", text_of("USAGE.md"), re.MULTILINE) if name in PRESETS}
    in_the_table = {"data", "n_layer", "n_head", "n_embd", "block_size", "batch_size", "num_steps"}
    assert told == {name: {f"{key.replace('_', ' ')} {value}" for key, value in preset.items()
                           if key not in in_the_table}
                    for name, preset in PRESETS.items() if preset.keys() - in_the_table}


def test_the_memory_of_presets_is_what_a_run_says_beforehand():
    """With the rows that Tiny Shakespeare has learned from, and its vocabulary or GPT-2's."""
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
                      text_of("GPU_EXPERIMENTS.md"), re.MULTILINE)
    assert len(rows) == 4
    for name, parameters, *told in rows:
        preset = PRESETS[name]
        sizes = {key: preset[key] for key in ("n_layer", "n_head", "n_embd", "block_size")}
        config = GPTConfig(50_258 if "vocabulary" in preset else 66, **sizes)
        assert f"{count_parameters(config):,}" == parameters
        for part, gigabytes in zip((1, 2, 4), told):
            settings = Settings(backend="torch", batch_size=preset["batch_size"],
                                micro_batch=preset["batch_size"] // part)
            assert f"{memory(config, settings, 1_003_854) / 1e9:.2f}" == gigabytes


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_and_anchors_lead_somewhere(name):
    prose = re.sub(r"^```.*?^```", "", text_of(name), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            assert (ROOT / (file or name)).is_file(), target
            assert not anchor or anchor in anchors(ROOT / (file or name)), target


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_nothing_tells_to_install_a_strangers_package(name):
    assert not re.search(r"pip install [^`\n]*\bmicrogpt\b", text_of(name))
