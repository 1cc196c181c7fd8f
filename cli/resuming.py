"""What a run that goes on may change, and what is said of it."""
from microgpt.cli import arguments
from microgpt.training import settings as run_settings
from microgpt.training.schedules import learning_rate


def resumed_settings(args, run):
    """Returns (settings, what makes it inexact) of a run that goes on with these flags."""
    asked = arguments.given(args, run_settings.KINDS)
    if asked.keys() & {"backend", "device", "dtype", "threads"}:
        before = run.settings.backend
        asked["backend"] = args.backend or (
            before if before == "torch" else arguments.chosen_backend(args))
        arguments.chosen_backend(args)
    settings, inexact = run_settings.changes_on_resume(run.settings, asked)
    if settings.backend != "torch":
        settings = settings.changed(device=None, dtype=None, threads=None)
    return settings, inexact


def check_steps(run, settings, state):
    """Raises ValueError if a run has gone beyond the steps that it is to have."""
    if settings.num_steps < state.step:
        raise ValueError(f"the run {run.name} has {state.step:,} steps behind it, and would be "
                         f"given {settings.num_steps:,} in all: give --num-steps more than that, "
                         "or none, or begin a new run")


def say_what_differs(run, settings, inexact, backend, state):
    """Prints what keeps the run from going on bit for bit, and what a new length does."""
    before, now = run.settings, backend.facts()
    done = "; all are done, and a larger --num-steps goes on" * (state.step >= settings.num_steps)
    print(f"resumed: {run.path}, after step {state.step} of {before.num_steps}{done}")
    if settings.num_steps != before.num_steps and settings.schedule != "constant":
        rates = [learning_rate(state.step, one.num_steps, one.learning_rate, one.schedule,
                               one.warmup_steps, one.min_learning_rate)
                 for one in (before, settings)]
        print(f"schedule: stretched from {before.num_steps:,} to {settings.num_steps:,} steps, so "
              f"the learning rate goes from {rates[0]:.3g} to {rates[1]:.3g} here; not the same "
              f"as a run of {settings.num_steps:,} steps from its start")
    engine = run.about.get("engine", {})
    differing = [f"{name} was {engine[name]}, is {now[name]}" for name in now
                 if isinstance(engine, dict) and name in engine and engine[name] != now[name]
                 and name != "backend"] if settings.backend == before.backend else []
    changed = [f"{name} was {getattr(before, name)}, is {getattr(settings, name)}"
               for name in inexact]
    if changed or differing:
        print(f"no longer exact: {'; '.join(changed + differing)}", flush=True)
