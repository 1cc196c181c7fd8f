"""One import name, microgpt.engine and so on, everywhere: in the checkout, as a wheel and a wheel
from an sdist, in an editable install, beside the other package called tokenizers."""
import ast
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

FOLDERS = {"engine", "nn", "tokenizers", "backends", "corpus", "training", "cli"}

# Run where microgpt is installed: one class Value, and nobody else's package shadowed.
PROBE = """
import microgpt, microgpt.engine
assert microgpt.engine.Value is microgpt.Value
import importlib.util
for folder in ("engine", "nn", "backends", "corpus", "training", "cli"):
    assert importlib.util.find_spec(folder) is None, folder
print(microgpt.__file__)
"""


def python(code, cwd, *options, **env):
    run = subprocess.run([sys.executable, *options, "-c", code], cwd=cwd, capture_output=True,
                         text=True, env={**os.environ, **env})
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def pip(*arguments, cwd=ROOT):
    run = subprocess.run([sys.executable, "-m", "pip", *arguments], cwd=cwd, capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of the tree, for builds leave things beside what they build."""
    pytest.importorskip("setuptools", minversion="70.1")
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("source") / "microgpt"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(
        ".git", "*.egg-info", "__pycache__", "build", "dist", ".*cache*", ".hypothesis", "runs"))
    return copy


@pytest.fixture(scope="session")
def installed(source):
    """Returns a function: "wheel" or "sdist" -> a folder that holds what it installs."""
    done = {}

    def install(kind):
        if kind not in done:
            options = ["--wheel"] if kind == "wheel" else []  # by default: sdist, a wheel from it
            out = source.parent / f"dist-{kind}"
            run = subprocess.run([sys.executable, "-m", "build", "--no-isolation", *options,
                                  "--outdir", str(out), str(source)], capture_output=True,
                                 text=True)
            assert run.returncode == 0, run.stdout + run.stderr
            wheel, = out.glob("*.whl")
            done[kind] = source.parent / f"site-{kind}"
            pip("install", "--no-deps", "--no-index", "--target", str(done[kind]), str(wheel))
        return done[kind]
    return install


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_wheel_imports_and_shadows_nothing(installed, tmp_path, kind):
    site = installed(kind)
    assert python(PROBE, tmp_path, PYTHONPATH=str(site)) == str(site / "microgpt.py")
    assert not FOLDERS & {path.name for path in site.iterdir()}


def test_an_installed_wheel_runs_as_a_script_and_with_m(installed, tmp_path):
    site = installed("wheel")
    flags = ["--num-steps", "2", "--num-samples", "1"]
    scripts = site / ("Scripts" if os.name == "nt" else "bin")
    script = next(scripts.glob("microgpt*"))
    for call in ([str(script)], [sys.executable, "-m", "microgpt"]):
        run = subprocess.run([*call, *flags], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": str(site)})
        assert run.returncode == 0, run.stderr
        assert (site / "_microgpt" / "corpus" / "data" / "names.txt").exists()
        assert "(names)" in run.stdout and "sample  1: " in run.stdout
        run = subprocess.run([*call, "sample", "--prompt", "ann"], cwd=tmp_path, text=True,
                             env={**os.environ, "PYTHONPATH": str(site), "MICROGPT_RUNS": "none"},
                             capture_output=True)
        assert run.stdout.startswith("ann") and "comes with microgpt" in run.stderr, run.stderr
        run = subprocess.run([*call, "--version"], cwd=tmp_path, text=True, capture_output=True,
                             env={**os.environ, "PYTHONPATH": str(site)})
        assert run.stdout.startswith("microgpt 0."), run.stderr


def test_the_other_tokenizers_package_stays_itself(installed, tmp_path):
    other = pytest.importorskip("tokenizers").__file__
    assert "Tokenizer" in dir(sys.modules["tokenizers"])
    code = "import microgpt, tokenizers; print(tokenizers.__file__)"
    assert python(code, tmp_path, PYTHONPATH=str(installed("wheel"))) == other
    # In a checkout the working folder is first on the path, until main() takes it off.
    code = ("import microgpt, importlib.util as util; assert util.find_spec('engine'); "
            "microgpt.main(['--num-steps', '0', '--num-samples', '0']); "
            "assert util.find_spec('engine') is None; "
            "import tokenizers; print(tokenizers.__file__)")
    assert python(code, ROOT).splitlines()[-1] == other


def test_an_editable_install_imports_the_checkout(source, tmp_path):
    pip("install", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path),
        "--editable", str(source))
    # A .pth file, or a finder that one imports, counts in a site folder only; -S leaves out the
    # environment's own, where another checkout of microgpt may be installed.
    code = f"import site; site.addsitedir({str(tmp_path)!r})\n" + PROBE
    assert python(code, tmp_path.parent, "-S", PYTHONPATH="") == str(source / "microgpt.py")


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_both_import_modes_of_pytest(mode, tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(
        encoding="utf-8").replace("Path(__file__).resolve().parent.parent", f"Path({str(ROOT)!r})"),
        encoding="utf-8")
    (tmp_path / "test_probe.py").write_text(
        "import microgpt\nimport microgpt.engine\n\ndef test_one_class():\n"
        "    assert microgpt.engine.Value is microgpt.Value\n", encoding="utf-8")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "--import-mode", mode,
                          "-p", "no:cacheprovider", "test_probe.py"], cwd=tmp_path,
                         capture_output=True, text=True)
    assert "1 passed" in run.stdout, run.stdout + run.stderr


def test_run_as_a_script_there_is_one_class_value(tmp_path):
    code = ("import runpy, sys; sys.argv = ['microgpt.py', '--num-steps', '1']; "
            f"state = runpy.run_path({str(ROOT / 'microgpt.py')!r}, run_name='__main__')")
    # The script registers itself as microgpt; were it loaded again, this would print twice.
    assert python(code + "\n", tmp_path).count("num docs") == 1
    probe = "import microgpt.engine, __main__; print(microgpt.engine.Value is __main__.Value)"
    run = subprocess.run([sys.executable, "-i", str(ROOT / "microgpt.py"), "--num-steps", "1"],
                         input=probe, capture_output=True, text=True)
    assert "True" in run.stdout


def sources():
    return [path for path in [*ROOT.glob("*.py"), *ROOT.glob("*/**/*.py")]
            if not {"build", ".venv"} & set(path.relative_to(ROOT).parts)]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_no_source_imports_a_bare_folder_name():
    found = [(str(path), name) for path in sources() for name in imported(path)
             if name.split(".")[0] in FOLDERS - {"tokenizers"}]
    assert found == []


def test_arrows_point_one_way():
    """microgpt.py <- engine <- nn <- backends <- training <- cli; tokenizers, corpus apart."""
    order = ["engine", "nn", "backends", "training", "cli"]
    allowed = {name: set(order[:i + 1]) for i, name in enumerate(order)}
    apart = {"tokenizers", "corpus"}
    for name in ("training", "cli"):
        allowed[name] |= apart
    allowed.update({name: apart for name in apart})
    wrong = []
    for path in sources():
        folder = path.relative_to(ROOT).parts[0]
        for name in imported(path):
            parts = name.split(".")
            if folder in allowed and parts[0] == "microgpt" and len(parts) > 1:
                if parts[1] not in allowed[folder]:
                    wrong.append((str(path), name))
    assert wrong == []


def test_every_folder_with_code_is_packaged():
    listed = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for name in FOLDERS:
        if (ROOT / name / "__init__.py").exists():
            assert f"    _microgpt.{name}\n" in listed
            assert f"    _microgpt.{name} = {name}\n" in listed
