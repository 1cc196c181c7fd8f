"""benchmarks/run.py: one table of all figures; what breaks is named, and the others go on."""
import ast
import doctest
import importlib
import importlib.util
import json
import re
import sys

import pytest

import microgpt
from conftest import ROOT
from microgpt.cli import bench as command

GOOD = 'print("words"); print(\'{"speed": 30, "size": 5}\')'
BROKEN = {"it raises": "raise SystemExit(3)", "no JSON": 'print("words alone")',
          "JSON, and a failure": 'print("{}"); raise SystemExit(1)'}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "benchmarks" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("turns", None)


def stub(bench, monkeypatch, folder, **scripts):
    """Replaces all benchmarks by scripts of one line."""
    cases = {}
    for name, source in scripts.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
        cases[name] = bench.Case(str(folder / f"{name}.py"), [], [])
    monkeypatch.setattr(bench, "CASES", cases)
    monkeypatch.setattr(bench, "FIGURES", [
        bench.Figure(name, f"{name}'s {key}", "x", reach, lambda found, key=key: found.get(key))
        for name in cases for key, reach in (("speed", "25+"), ("size", "4-"), ("gone", "1+"))])


def test_one_table(bench, monkeypatch, tmp_path, capsys):
    stub(bench, monkeypatch, tmp_path, good=GOOD)
    assert bench.main([]) == 0
    out = capsys.readouterr().out
    assert re.search(r"good's speed +25 x or more +30  yes", out)
    assert re.search(r"good's size +4 x or less +5  no", out)
    assert re.search(r"good's gone +1 x or more +-  not measured", out)
    answer = json.loads(out.splitlines()[-1])
    assert [row["reached"] for row in answer["figures"]] == [True, False, None]
    assert answer["failed"] == {}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_broken_benchmark_is_named_and_the_others_go_on(bench, monkeypatch, tmp_path, capsys,
                                                          source):
    stub(bench, monkeypatch, tmp_path, broken=source, good=GOOD)
    assert bench.main(["--quick"]) == 1
    out = capsys.readouterr().out
    assert "broken failed: exit code" in out and re.search(r"good's speed .* yes", out)
    assert list(json.loads(out.splitlines()[-1])["failed"]) == ["broken"]


def test_what_lacks_its_data_is_left_out_and_said_so(bench, monkeypatch, capsys):
    assert bench.main(["--only", "tokenizing", "torch_speed", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "tokenizing: left out, needs --data" in out and "not measured (left out:" in out


def test_the_start_is_measured_by_itself(bench, monkeypatch, capsys):
    monkeypatch.setitem(bench.CASES, "startup", bench.Case("run.py", ["--startup", "1"], None))
    assert bench.main(["--only", "startup"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(0 < row["measured"] < 60 for row in answer["figures"])
    assert len(answer["figures"]) == 2


def test_each_benchmark_has_a_figure_and_is_a_script(bench):
    assert {figure.case for figure in bench.FIGURES} == set(bench.CASES)
    for case in bench.CASES.values():
        source = (ROOT / "benchmarks" / case.script).read_text(encoding="utf-8")
        for flag in case.full + (case.quick or []):
            if flag.startswith("--"):
                plain = flag.replace("--no-", "--")
                assert f'"{flag}"' in source or f'"{plain}"' in source


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_what_a_benchmark_takes_from_microgpt_is_there(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("microgpt"):
            for alias in node.names:
                assert hasattr(importlib.import_module(node.module), alias.name) or (
                    importlib.util.find_spec(f"{node.module}.{alias.name}")), alias.name


def test_examples(bench):
    assert doctest.testmod(bench).failed == 0


def test_the_readme_has_the_table(bench):
    """Each figure with its mark; what falls short of it stands in bold."""
    rows = {row.what: (row.unit, row.reach) for row in bench.FIGURES}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| figure | to reach"):].split("\n\n")[0]
    told = [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()[2:]]
    assert [name.replace("`", "") for name, _, _ in told] == list(rows)
    for name, reach, measured in told:
        unit, limit = rows[name.replace("`", "")]
        assert reach == bench.in_words(limit, unit)
        if limit and measured != "not measured yet":
            value = float(measured.strip("*").replace(",", ""))
            reached = value >= float(limit[:-1]) if limit[-1] == "+" else (
                value <= float(limit[:-1]))
            assert reached != measured.startswith("**"), name


# ---- the command


def test_the_command_runs_them_too(monkeypatch, tmp_path, capsys):
    made = command.benchmarks()
    monkeypatch.setattr(command, "benchmarks", lambda: made)
    stub(made, monkeypatch, tmp_path, good=GOOD)
    assert microgpt.main(["bench", "--quick"]) == 0
    assert re.search(r"good's speed +25 x or more +30  yes", capsys.readouterr().out)
    with pytest.raises(SystemExit) as stop:
        microgpt.main(["bench", "--data", "nowhere.txt"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "microgpt: --data nowhere.txt: no such file\n"


def test_what_is_installed_has_no_benchmarks(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "SCRIPT", str(tmp_path / "benchmarks" / "run.py"))
    with pytest.raises(SystemExit) as stop:
        microgpt.main(["bench"])
    assert stop.value.code == 2
    assert "not in what is installed" in capsys.readouterr().err
