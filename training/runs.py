"""A run's folder: all that is needed to look at a run, to use its model, and to go on.

    config.json         what the run was told, its data, and what a repeat needs beyond the seed
    tokenizer.json
    last.safetensors    weights and the optimizer's state: the checkpoint, whole in one file
    best.safetensors    the weights with the lowest loss on held-out text
    log.jsonl           a line an evaluation
    samples.txt, loss.svg

Every file is written whole or not at all, so a process may be killed at any moment. A folder that
comes from a stranger is data: sizes are checked before memory is taken, nothing in it is run, and
nothing outside it is written.
"""
import contextlib
import json
import math
import os
import random
import re
import shutil
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from microgpt import backends, tokenizers
from microgpt.corpus.cache import write_atomically
from microgpt.nn.weights import weight_shapes
from microgpt.training import checkpoint, curve
from microgpt.training.lock import Lock
from microgpt.training.settings import settings_of

FORMAT = 1
BUNDLED = Path(__file__).resolve().parent / "models" / "names"  # comes with microgpt
LARGEST_JSON = 1 << 24  # bytes
LARGEST_SIZE, MOST_LAYERS = 1 << 20, 1 << 12  # of a model that is read: far beyond any real one
MOST_STEPS = 1e15
LARGEST_SAMPLES = 1 << 22  # characters
NAME = re.compile(r"[^\W_][^/\\:*?\"<>|\x00-\x1f]{0,99}")
SLOT = "optimizer."  # stands before slot and weight: optimizer.m.wte


def runs_folder():
    """Returns the folder of all runs: `runs` where the command runs, or $MICROGPT_RUNS."""
    return Path(os.environ.get("MICROGPT_RUNS") or "runs")


@dataclass
class State:
    """Where a run stands, beside weights and optimizer: all that the loop must remember."""
    step: int = 0                   # steps done
    tokens: int = 0                 # targets that were learned from
    seconds: float = 0.0            # of training, without evaluations
    evaluated: int = -1             # the step of the last evaluation
    sampled: int = -1               # and of the last samples on the way
    best_step: int = -1
    best_loss: float = math.inf     # the lowest validation loss so far
    stale: int = 0                  # evaluations since
    loss_sum: float = 0.0           # of the steps since the last evaluation
    loss_count: int = 0


# ---- Files of strangers --------------------------------------------------------------------------


def parse_json(text):
    """Returns what JSON text holds; ValueError for what is none, or has no end."""
    try:
        return json.loads(text, parse_int=checkpoint.whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path):
    """Returns the dict that a JSON file holds; ValueError, in a line, for any other."""
    text = read_text(path, LARGEST_JSON)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(value).__name__}")
    return value


def read_text(path, at_most):
    """Returns the text of a regular file; ValueError for any other, or a larger one."""
    try:
        with open(path, "rb", opener=checkpoint.without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{path} is not a file")
            content = file.read(at_most + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if len(content) > at_most:
        raise ValueError(f"{path} is larger than {at_most:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def parse_state(text, path):
    """Returns the State in a checkpoint's metadata; ValueError if it is none."""
    try:
        values = parse_json(text)
        state = State(**values)
        for name, value in asdict(state).items():
            known, lowest = getattr(State, name), min(0, getattr(State, name))
            right = (int,) if type(known) is int else (int, float)
            # note: best_loss begins at infinity; and no comparison holds for a NaN
            if type(value) not in right or not lowest <= value <= max(known, MOST_STEPS):
                raise ValueError(f"{name} is {value!r:.40}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: its state is not one: {error}") from None
    return state


def parse_random(text, path):
    """Returns a generator in the stored state; ValueError if it is none."""
    rng = random.Random()
    try:
        version, numbers, gauss = parse_json(text)
        if gauss is not None and type(gauss) is not float:
            raise ValueError(f"what is left of a pair is {gauss!r:.40}")
        rng.setstate((version, tuple(numbers), gauss))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: it holds no state of random numbers: {error}"
                         ) from None
    return rng


def check_line(line):
    """Raises ValueError unless an item of log.jsonl is what an evaluation writes."""
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise ValueError("a line is not an evaluation")
    for name in ("step", "train_loss", "eval_tokens", "tokens_per_second", "seconds"):
        if not is_number(line.get(name)):
            raise ValueError(f"after step {line['step']}, {name} is {line.get(name)!r:.40}")
    for name in ("val_loss", "bits_per_character", "loss", "whole"):
        if name not in line or line[name] not in (None, False, True) and not is_number(line[name]):
            raise ValueError(f"after step {line['step']}, {name} is "
                             f"{line.get(name, 'missing')!r:.40}")


def is_number(value):
    """Returns whether a value is a number, finite and of a size that one meets."""
    return type(value) in (int, float) and abs(value) < 1e18


def check_memory(weights, memory, path):
    """Raises ValueError unless this is what an optimizer remembers, of each weight or of none."""
    slots = {slot: tensors for slot, tensors in memory.items() if slot != "step"}
    known = {name for tensors in slots.values() for name in tensors}
    if known and known != weights.keys() or slots.get("m", {}).keys() != slots.get("v", {}).keys():
        raise ValueError(f"{path} is damaged: what the optimizer remembers is not of all weights")
    squares = slots.get("v", {}).values()
    if not all(map(all_finite, slots.values())) or any(
            min(row, default=0) < 0 for rows in squares for row in rows):
        raise ValueError(f"{path} is damaged: what the optimizer remembers is no such number")


def check_about(about):
    """Raises ValueError, KeyError or TypeError unless this is what config.json holds."""
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']!r:.20}, and this microgpt reads {FORMAT}")
    for name, kind in (("settings", dict), ("data", dict), ("tokenizer_hash", str)):
        if not isinstance(about[name], kind):
            raise ValueError(f"its {name} is {about[name]!r:.40}")
    for name, kind in (("engine", dict), ("baselines", dict), ("resumed", list)):
        if about.get(name) is not None and not isinstance(about[name], kind):
            raise ValueError(f"its {name} is {about[name]!r:.40}")
    data = about["data"]
    if data["mode"] not in ("lines", "paragraphs", "stream"):
        raise ValueError(f"its documents are {data['mode']!r:.20}")
    if not isinstance(data["sha256"], str):
        raise ValueError(f"the sha256 of its text is {data['sha256']!r:.20}")
    if "val_fraction" not in about["settings"]:
        raise KeyError("val_fraction")


def check_sizes(run):
    """Raises ValueError for sizes far beyond what anybody has trained here."""
    sizes = {**asdict(run.config), "batch_size": run.settings.batch_size or 1,
             "num_samples": run.settings.num_samples, "threads": run.settings.threads or 1}
    for name in sorted(sizes.keys() - {"model", "dropout", "init_std", "n_layer"}):
        if sizes[name] > LARGEST_SIZE:
            raise ValueError(f"its {name} is {sizes[name]}, and the largest is {LARGEST_SIZE}")
    if sizes["n_layer"] > MOST_LAYERS:
        raise ValueError(f"its n_layer is {sizes['n_layer']}, and the most are {MOST_LAYERS}")


# ---- A run ---------------------------------------------------------------------------------------


class Run:
    """A run's folder. `open_run`, `find` and `create` make one."""

    def __init__(self, path, about):
        """about: what config.json holds, already checked."""
        self.path, self.about = Path(path), about
        self.settings = settings_of(about["settings"])
        self.config = self.settings.config(about["vocab_size"])
        self.lock = Lock(self.path / "lock")
        self._tokenizer = None

    @property
    def name(self):
        return self.path.name

    @property
    def is_bundled(self):
        """Whether this is the model that comes with microgpt."""
        return self.path == BUNDLED

    @property
    def is_stream(self):
        return self.about["data"]["mode"] == "stream"

    @property
    def tokenizer(self):
        """The run's tokenizer; ValueError where its file is damaged, or another's."""
        if self._tokenizer is None:
            path = self.path / "tokenizer.json"
            found = tokenizers.load(path)
            if (found.hash, found.vocab_size) != (self.about["tokenizer_hash"],
                                                  self.config.vocab_size):
                raise ValueError(f"{path}: this is not the tokenizer that the run {self.name} was "
                                 f"trained with: its model has {self.config.vocab_size} tokens of "
                                 "another vocabulary; put the run's own file back")
            self._tokenizer = found
        return self._tokenizer

    # ---- writing

    def write(self, name, content):
        """Writes a file of the run, whole or not at all; ValueError where that fails."""
        try:
            write_atomically(self.path / name, content)
        except OSError as error:
            raise ValueError(_not_written(self.path / name, error)) from None

    def write_about(self):
        self.write("config.json", json.dumps(self.about, indent=1) + "\n")

    def end(self, state, reason):
        """Notes in config.json that the run came to its end: why, and at which step."""
        self.about["ended"] = {"step": state.step, "reason": reason}
        self.write_about()

    def has_ended(self):
        """Returns whether it came to its end, and has not gone on since."""
        ended = self.about.get("ended")
        state = self.state() if isinstance(ended, dict) else None
        return state is not None and state.step == ended.get("step")

    def state(self):
        """Returns the State of its checkpoint, or None where it has none; ValueError where that is
        damaged."""
        path = self.path / "last.safetensors"
        if not path.exists():
            return None
        return parse_state(checkpoint.read_metadata(path).get("state", ""), path)

    def write_log(self, lines):
        self.write("log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def draw(self, lines):
        """Writes loss.svg; counting is drawn beside it where characters can be compared."""
        last, levels = lines[-1], []
        bits = last["bits_per_character"]
        if bits and self.about.get("baselines"):
            loss = last["train_loss"] if last["val_loss"] is None else last["val_loss"]
            per_token = loss / (bits * math.log(2))  # characters a token
            levels = [(name, value * per_token) for name, value in self.about["baselines"].items()
                      if type(value) is float]
        self.write("loss.svg", curve.to_svg(lines, self.name, levels))

    def _write_checkpoint(self, name, tensors, metadata):
        metadata = {**metadata, "crc32": checkpoint.checksum(tensors, metadata)}
        try:
            checkpoint.write(self.path / name, tensors, metadata)
        except OSError as error:
            raise ValueError(_not_written(self.path / name, error)) from None

    def _read_checkpoint(self, name):
        """Returns (tensors, metadata) of a file; ValueError if a byte is not what was written."""
        tensors, metadata = checkpoint.read(self.path / name)
        stored = metadata.pop("crc32", None)  # a file that somebody else wrote has none
        if stored is not None and stored != checkpoint.checksum(tensors, metadata):
            raise ValueError(f"{self.path / name} is damaged: some of its bytes are not those that "
                             "were written, as its checksum shows; take another copy")
        return tensors, metadata

    def save_last(self, backend, state, rng):
        """Writes the checkpoint: weights, the optimizer's state, where the run stands.

        rng: the run's generator. ValueError, and the one before left, if a weight is not finite,
        or the disk is full.
        """
        weights, memory = backend.snapshot()
        if not all_finite(weights):
            raise NotFinite("a weight is no longer a finite number")
        version, numbers, gauss = rng.getstate()
        metadata = {"format": f"microgpt checkpoint {FORMAT}", "state": json.dumps(asdict(state)),
                    "random": json.dumps([version, numbers, gauss]),
                    "optimizer_step": str(memory["step"])}
        slots = {f"{SLOT}{slot}.{name}": rows for slot, tensors in memory.items()
                 if slot != "step" for name, rows in tensors.items()}
        self._write_checkpoint("last.safetensors", {**weights, **slots}, metadata)

    def save_best(self, backend, state):
        """Writes the weights alone."""
        weights, _ = backend.snapshot()
        if not all_finite(weights):
            raise NotFinite("a weight is no longer a finite number")
        metadata = {"format": f"microgpt weights {FORMAT}", "step": str(state.best_step),
                    "val_loss": repr(state.best_loss)}
        self._write_checkpoint("best.safetensors", weights, metadata)

    def write_samples(self, title, samples):
        """Adds samples to samples.txt; those that have this title already are replaced, with all
        behind them: the run was killed, and is at that place again."""
        path, header = self.path / "samples.txt", f"---- {title}\n"
        before = read_text(path, LARGEST_JSON) if path.exists() else ""
        if len(before) > LARGEST_SAMPLES:  # the older half goes
            before = before[before.find("\n---- ", LARGEST_SAMPLES // 2) + 1:]
        place = ("\n" + before).find("\n" + header)
        before = before if place < 0 else before[:place]
        self.write(path.name, before + header + "".join(f"{text}\n" for text in samples))

    def remove_temporary(self):
        """Removes what a process that was killed while writing has left; call it with the lock."""
        for path in self.path.glob(".*.*.*"):
            if re.fullmatch(r"\.(config\.json|tokenizer\.json|log\.jsonl|samples\.txt|loss\.svg|"
                            r"(last|best)\.safetensors)\.\w{8}", path.name):
                with contextlib.suppress(OSError):  # a folder: whoever made it, it was not us
                    path.unlink()

    # ---- reading

    def load_last(self):
        """Returns (weights, the optimizer's state, State, rng); ValueError where it is damaged."""
        path = self.path / "last.safetensors"
        tensors, metadata = self._read_checkpoint(path.name)
        for name in ("state", "random", "optimizer_step"):
            if name not in metadata:
                raise ValueError(f"{path}: its metadata has no {name}, so it is no checkpoint to "
                                 "go on from")
        weights, memory = {}, {"step": _whole(metadata["optimizer_step"], path)}
        for name, rows in tensors.items():
            if not name.startswith(SLOT):
                weights[name] = rows
                continue
            slot, _, weight = name[len(SLOT):].partition(".")
            if slot == "step":
                raise ValueError(f"{path} is damaged: the optimizer's step is a tensor")
            memory.setdefault(slot, {})[weight] = rows
        check_memory(weights, memory, path)
        return (weights, memory, parse_state(metadata["state"], path),
                parse_random(metadata["random"], path))

    def weights(self, which="best"):
        """Returns (weights, the step they are of); best: the last where there is no best."""
        name = f"{which}.safetensors"
        if which == "best" and not (self.path / name).exists():
            name = "last.safetensors"
        tensors, metadata = self._read_checkpoint(name)
        weights = {name: rows for name, rows in tensors.items() if not name.startswith(SLOT)}
        if "state" in metadata:
            return weights, parse_state(metadata["state"], self.path / name).step
        return weights, _whole(metadata.get("step", ""), self.path / name)

    def backend(self, name=None, which="best", **settings):
        """Returns a backend with the run's model in it, for use rather than training.

        name: of backends.BACKENDS; without one, torch where the run was torch's and torch is here,
        else matrix. settings: of the backend, such as device. ValueError for a model that is not
        the config's.
        """
        if name is None:
            name = "matrix" if self.settings.backend == "scalar" else self.settings.backend
        try:
            cls = backends.load(name)
        except backends.NotInstalled:
            cls = backends.load("matrix")
            settings = {}
        weights, _ = self.weights(which)
        self.check(weights)
        return cls(self.config.without_dropout(), weights, **settings)

    def check(self, weights):
        """Raises ValueError, with the file's folder named, unless weights are this model's."""
        if self.config.n_layer * 6 > len(weights) and self.config.model == "gpt":
            raise ValueError(f"{self.path}: config.json says {self.config.n_layer} layers, and "
                             f"the weights are {len(weights)} tensors: they are another model's")
        shapes = {name: (len(rows), len(rows[0]) if rows else 0)
                  for name, rows in weights.items()}
        for name, shape in weight_shapes(self.config).items():
            if shapes.get(name) != shape:
                raise ValueError(f"{self.path}: {name} is {shapes.get(name, 'missing')}, and "
                                 f"config.json says {shape}: the weights are another model's")
        if not all_finite(weights):
            raise ValueError(f"{self.path}: its weights are not all finite numbers, so the model "
                             "is of no use; take another copy")

    def log(self):
        """Returns the lines of log.jsonl, dicts; without the file, none."""
        path = self.path / "log.jsonl"
        if not path.exists():
            return []
        try:
            lines = [parse_json(line) for line in read_text(path, LARGEST_JSON).splitlines()]
            for line in lines:
                check_line(line)
        except ValueError as error:
            error = str(error).replace(f"{path} is damaged: ", "").replace(f"{path} is", "it is")
            raise ValueError(f"{path} is damaged: {error}; without it, the run goes on") from None
        return lines


class NotFinite(ValueError):
    """The model has become useless: what it would have saved is not worth the name."""


def all_finite(tensors):
    """Returns whether no number of name -> rows is infinite or nan."""
    return all(math.isfinite(sum(row)) for rows in tensors.values() for row in rows)


def _whole(text, path):
    try:
        return checkpoint.whole(text) if text.isdecimal() else int("no")
    except ValueError:
        raise ValueError(f"{path} is damaged: {text!r:.40} is no number of steps") from None


def _not_written(path, error):
    return (f"{path} could not be written: {error.strerror or error}; what stood there before is "
            "whole; make room, or take another folder with --name PATH or MICROGPT_RUNS")


# ---- All runs ------------------------------------------------------------------------------------


def create(name, automatic, about, tokenizer, backend, rng):
    """Returns a new Run, locked, its folder made, with all that is there before the first step.

    name: what the user calls it, a name in runs_folder() or a path; None: `automatic`. A name that
    is taken gets a number. ValueError where it cannot be written, and then nothing is left.
    """
    path = make_folder(name, automatic)
    run = Run(path, {"format": FORMAT, "created": time.strftime("%Y-%m-%d %H:%M:%S"), **about})
    try:
        run.lock.__enter__()
        run.write("tokenizer.json", tokenizer.to_json())
        run._tokenizer = tokenizer
        run.save_last(backend, State(), rng)
        run.write_about()  # note: last, for it makes the folder a run, and a run can go on
    except BaseException:
        if run.lock.handle is not None:
            run.lock.__exit__()
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run


def make_folder(name, automatic):
    """Returns the path of a new folder, as create() has it."""
    parent, stem = runs_folder(), name or automatic
    if name and (os.sep in name or "/" in name):
        parent, stem = Path(name).parent, Path(name).name
    if not NAME.fullmatch(stem) or stem.rstrip(". ") != stem:
        raise ValueError(f"--name {stem!r}: it takes letters, digits, spaces and most signs, a "
                         "letter or digit first, 100 at most")
    for number in range(1, 1_000_000):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            return path
        except FileExistsError:
            if not os.path.lexists(path):
                raise ValueError(f"{parent} is not a folder; name another with --name PATH "
                                 "or MICROGPT_RUNS") from None
        except OSError as error:
            raise ValueError(f"{path} could not be made: {error.strerror}; name a folder that can "
                             "be written with --name PATH or MICROGPT_RUNS, or keep nothing with "
                             "--no-save") from None
    raise ValueError(f"{parent / stem}: a million runs have this name; take another with --name")


def open_run(path):
    """Returns the Run in a folder; ValueError, in a line, where there is none, or a damaged one."""
    file = Path(path) / "config.json"
    about = read_json(file)
    try:
        check_about(about)
        run = Run(path, about)
        check_sizes(run)
    except KeyError as error:
        raise ValueError(f"{file} is damaged: it has no {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    return run


def all_runs(folder=None):
    """Returns the paths of all runs in a folder, the one last written to first."""
    folder, found = Path(folder or runs_folder()), []
    for path in folder.glob("*/config.json"):
        times = [0.0]  # of a file that is gone by now
        for file in (path, path.with_name("last.safetensors")):
            with contextlib.suppress(OSError):
                times.append(file.stat().st_mtime)
        found.append((max(times), path.parent))
    return [path for _, path in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]


def find(name=None):
    """Returns the Run of a name in runs_folder(), or of a path; without one, the latest.

    Where there is none yet, that is the model that comes with microgpt, which otherwise has its
    name too. ValueError, which names the runs that there are, for one that is not there.
    """
    paths = all_runs()
    if name is None:
        return open_run(paths[0] if paths else BUNDLED)
    for path in (Path(name), runs_folder() / name, BUNDLED.parent / name):
        if os.path.lexists(path / "config.json"):  # unlike exists(), never an error
            return open_run(path)
    names = [path.name for path in paths]
    known = ", ".join(names[:5]) + ", ..." * (len(names) > 5) if names else "none yet"
    raise ValueError(f"there is no run {name!r}; in {runs_folder()} there are: {known}")
