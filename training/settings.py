"""All that a run is told: one frozen object, checked when it is built, each field a flag's name.

Three layers make it: the defaults here, a preset over them, and what was asked for over both.
"""
import dataclasses
import math
from dataclasses import dataclass
from typing import Optional, get_args, get_type_hints

from microgpt import tokenizers
from microgpt.corpus.documents import MODES
from microgpt.corpus.html import EXTRACTORS
from microgpt.engine.optim import OPTIMIZERS
from microgpt.nn.config import DEFAULTS, GPTConfig
from microgpt.training.evaluation import TOKENS_AT_MOST
from microgpt.training.presets import PRESETS
from microgpt.training.schedules import SCHEDULES, check_schedule

# The optimizers, each with the learning rate that it is at home with.
LEARNING_RATES = {"adam": DEFAULTS["learning_rate"], "adamw": 0.003, "muon": 0.02, "sgd": 0.1}
BATCH_SIZES = {"scalar": 1, "matrix": 1, "torch": 64}
FEWEST_TOKENS = 500  # that a test is made on
CHOICES = {"optimizer": OPTIMIZERS, "backend": BATCH_SIZES, "schedule": SCHEDULES,
           "tokenizer": tokenizers.KINDS, "documents": MODES, "extract": EXTRACTORS}
EVALUATIONS = {"scalar": 1, "matrix": 10, "torch": 10}  # of a run: the file's engine is slow

# What a resumed run may be told anew: these leave every step as it was, ...
FREE = ("num_steps", "epochs", "eval_interval", "eval_tokens", "sample_every", "patience",
        "max_time", "temperature", "num_samples")
# ... and these do not, or only up to rounding. Anything else would be another run.
INEXACT = ("backend", "device", "dtype", "threads", "micro_batch", "learning_rate")


@dataclass(frozen=True)
class Settings:
    """The settings of a run. None: it was not said, and has no meaning or is found out."""

    # the model
    n_embd: int = DEFAULTS["n_embd"]
    n_head: int = DEFAULTS["n_head"]
    n_layer: int = DEFAULTS["n_layer"]
    block_size: int = DEFAULTS["block_size"]
    model: str = "gpt"
    dropout: float = 0.0
    init_std: Optional[float] = None
    # the text
    documents: str = "auto"
    val_fraction: Optional[float] = None
    dedupe: bool = False
    encoding: Optional[str] = None
    extract: str = "builtin"
    # the tokenizer
    tokenizer: str = "char"
    bpe_merges: Optional[int] = None
    word_min_count: Optional[int] = None
    vocabulary: Optional[str] = None
    # the training
    seed: int = DEFAULTS["seed"]
    num_steps: int = DEFAULTS["num_steps"]
    epochs: Optional[float] = None          # in place of num_steps
    batch_size: Optional[int] = None        # documents, or windows of a stream, a step
    micro_batch: Optional[int] = None       # how many of them at a time
    optimizer: str = "adam"
    learning_rate: Optional[float] = None
    min_learning_rate: float = 0.0
    schedule: str = "linear"
    warmup_steps: int = 0
    weight_decay: Optional[float] = None
    grad_clip: Optional[float] = None
    # when to stop, test and show
    patience: Optional[int] = None          # evaluations without a new best
    max_time: Optional[float] = None        # seconds
    eval_interval: Optional[int] = None     # steps
    eval_tokens: Optional[int] = None
    sample_every: Optional[int] = None      # steps
    # the engine
    backend: str = "scalar"
    device: Optional[str] = None
    dtype: Optional[str] = None
    threads: Optional[int] = None
    # the samples at the end
    temperature: float = DEFAULTS["temperature"]
    num_samples: int = DEFAULTS["num_samples"]

    def __post_init__(self):
        for name, kind in KINDS.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if type(value) is int and kind is float:
                value = float(value) if abs(value) < 1e300 else math.inf
                object.__setattr__(self, name, value)
            if type(value) is not kind or kind is float and not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}: it takes {NAMES[kind]}")
            if kind in (int, float) and name != "seed" and value < LOWEST.get(name, 0):
                raise ValueError(f"{name} is {value!r}: it takes {LOWEST.get(name, 0)} or more")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r:.60}: it takes "
                                 f"{', '.join(choices)}")
        self.config(2)

    def config(self, vocab_size):
        """Returns the GPTConfig of the model."""
        return GPTConfig(vocab_size, self.n_embd, self.n_head, self.n_layer, self.block_size,
                         self.model, self.dropout, self.init_std)

    @property
    def interval(self):
        """The steps between two evaluations."""
        return self.eval_interval or max(1, self.num_steps // EVALUATIONS[self.backend])

    def changed(self, **changes):
        """Returns settings that differ in these."""
        return dataclasses.replace(self, **changes)

    def completed(self):
        """Returns settings in which what depends on the engine or the optimizer is filled in."""
        changes = {}
        if self.batch_size is None:
            changes["batch_size"] = BATCH_SIZES[self.backend]
        if self.learning_rate is None:
            changes["learning_rate"] = LEARNING_RATES[self.optimizer]
        settings = self.changed(**changes)
        check_schedule(settings.schedule, settings.num_steps, settings.learning_rate,
                       settings.warmup_steps, settings.min_learning_rate)
        return settings

    def to_dict(self):
        """Returns what JSON can write: all that differs from None."""
        return {name: value for name, value in dataclasses.asdict(self).items()
                if value is not None}


# name -> int, float, bool or str, also where None is taken
KINDS = {name: (get_args(hint) or (hint,))[0] for name, hint in get_type_hints(Settings).items()}
OPTIONAL = {field.name for field in dataclasses.fields(Settings) if field.default is None}
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
# The smallest value of a number; of those that are not named here, it is 0.
LOWEST = {"batch_size": 1, "micro_batch": 1, "patience": 1, "eval_interval": 1, "eval_tokens": 1,
          "sample_every": 1, "threads": 1, "bpe_merges": 0, "word_min_count": 1}


def settings_of(values, preset=None):
    """Returns the Settings of values over a preset, or of a run's folder: name -> value.

    ValueError for a name that is no setting, or a value of another kind, whoever wrote it.
    """
    if not isinstance(values, dict):
        raise ValueError(f"the settings are {type(values).__name__}, not name and value")
    unknown = [name for name in values if name not in KINDS]
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]!r:.60}")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}: it takes {', '.join(PRESETS)}")
    presets = {name: value for name, value in PRESETS[preset or "names"].items()
               if name in KINDS}
    return Settings(**{**presets, **values})


def steps_of_epochs(epochs, batch_size, block_size, data):
    """Returns how many steps see the training text `epochs` times."""
    if data.is_stream:
        return math.ceil(epochs * len(data.train) / (batch_size * block_size))
    return math.ceil(epochs * len(data.train) / batch_size)


def epochs_of_steps(num_steps, batch_size, block_size, data):
    """Returns how many times num_steps see the training text, about."""
    size = len(data.train) / block_size if data.is_stream else len(data.train)
    return num_steps * batch_size / size


def tokens_a_step(settings, data):
    """Returns the targets of a batch, about."""
    if data.is_stream:
        return settings.batch_size * settings.block_size
    looked_at = min(1000, len(data.train))
    lengths = [min(len(data.train[i]) - 1, settings.block_size) for i in range(looked_at)]
    return settings.batch_size * sum(lengths) / looked_at


def evaluation_tokens(settings, data):
    """Returns how many tokens an evaluation predicts at most.

    In plain Python a short run is tested on no more than it learns from: else trying something out
    would take longer to test than to do.
    """
    most = settings.eval_tokens or TOKENS_AT_MOST[settings.backend]
    if settings.eval_tokens or settings.backend == "torch":
        return most
    planned = int(settings.num_steps * tokens_a_step(settings, data))
    return min(most, max(FEWEST_TOKENS, planned))


def changes_on_resume(before, given):
    """Returns (settings, names that make it inexact) of a run told anew what stands in `given`.

    ValueError, which names the setting, for one that would make it another run.
    """
    changed = {name: value for name, value in given.items() if value != getattr(before, name)}
    for name in changed:
        if name not in FREE and name not in INEXACT:
            raise ValueError(f"{name} is {changed[name]!r}, and the run began with "
                             f"{getattr(before, name)!r}: to change it is another run; a resumed "
                             f"one takes other {', '.join(FREE + INEXACT)}")
    if "num_steps" in changed:
        changed.setdefault("epochs", None)
    return before.changed(**changed), [name for name in changed if name in INEXACT]
