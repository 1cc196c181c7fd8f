"""A sweep under way: its runs started, several at once, watched, and compared at the end.

How a run stands is read from its folder, which the run itself keeps whole at any moment, and from
failed.json beside it. So a sweep may be killed anywhere: started again, it knows what is left.
"""
import json
import shlex
import sys
import time
from pathlib import Path

from microgpt.backends.processes import available_cores
from microgpt.cli.compare import under_each_other
from microgpt.cli.jobs import Job, Stops
from microgpt.cli.progress import duration
from microgpt.cli.runs import print_table, row_of
from microgpt.cli.terminal import LiveLine
from microgpt.cli.writing import Writer, note, write_jobs
from microgpt.corpus.cache import write_atomically
from microgpt.nn.config import DEFAULTS
from microgpt.nn.sampling import SamplingSettings
from microgpt.training import runs, sweep
from microgpt.training.evaluation import bits_shown
from microgpt.training.lock import Lock

PAUSE = 0.05  # seconds between two looks at the jobs
SHOW_EVERY = 0.5
LONGEST_SAMPLE = 100  # tokens, of a running text
ON_DEVICES = ("cuda", "mps")  # where a CPU's threads matter little
STOPPED = (130, 143, 129, -2, -15, -1)  # exit codes of a run that somebody stopped

# column -> (heading, how a value is shown)
COLUMNS = {
    "name": ("run", str),
    "parameters": ("params", lambda n: f"{n:,}"),
    "steps": ("steps", lambda n: f"{n:,}"),
    "val_loss": ("held out", lambda loss: f"{loss:.4f}"),
    "bits_per_character": ("bits/char", lambda bits: bits if bits == "lossy" else f"{bits:.3f}"),
    "tokens_per_second": ("tokens/s", lambda n: f"{n:,.0f}"),
    "seconds": ("time", duration),
}


def write(path, document):
    """Writes JSON, whole or not at all; ValueError where that fails."""
    try:
        write_atomically(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ValueError(f"{path} could not be written: {error.strerror}") from None


def count_of(number, what):
    return f"{number} {what}{'s' * (number != 1)}"


class Start:
    """One start of a sweep: what stands, what is left to do, what runs, how it ends.

    standing: name -> "finished", "failed", "interrupted", "new". running: place -> Job, where a
    place is one of those that run at once, and has a device.
    """

    def __init__(self, asked, plans, folder, devices, args):
        self.sweep, self.plans, self.folder, self.args = asked, plans, folder, args
        self.devices, self.running, self.waited_for = devices, {}, set()
        self.places = args.jobs or len(devices) or 1
        self.lines = LiveLine(sys.stderr if args.json else sys.stdout)
        self.failed = read_failures(folder)
        self.standing = {name: self.stands(name) for name in plans}
        self.waiting = [name for name, how in self.standing.items() if how != "finished" and (
            how != "failed" or args.retry)]
        self.work = {name: sweep.work_of(plans[name][1]) for name in self.waiting}
        self.done, self.started = 0.0, time.monotonic()

    def go(self):
        """Runs what is left, and prints the table; returns the exit code."""
        self.describe()
        with Stops(lambda: list(self.running.values())) as stops:
            self.work_off(stops)
            if stops.received():
                self.interrupted()
                return stops.exit_code
            self.summary(stops)
            if stops.received():
                return stops.exit_code
        return 0 if set(self.standing.values()) <= {"finished"} else 1

    def describe(self):
        say, count = self.lines.say, list(self.standing.values()).count
        about = f": {self.sweep.about}" if self.sweep.about else ""
        say(f"sweep {self.sweep.name}{about}")
        at_once = f", {self.places} at once" if self.places > 1 else ""
        say(f"{count_of(len(self.plans), 'run')}{at_once}, in {self.folder}; Ctrl-C stops and "
            "keeps them")
        if count("finished"):
            say(f"finished before, not run again: {', '.join(self.those('finished'))}")
        for name in self.those("failed") if not self.args.retry else ():
            say(f"failed before, kept: {name}: {self.failed[name]} (--retry starts it again)")

    def those(self, *how):
        return [name for name in self.plans if self.standing[name] in how]

    # ---- how a run stands, from its folder alone

    def stands(self, name):
        path = self.folder / name
        if name in self.failed:
            return "failed"
        if not has_begun(path):
            return "new"
        try:
            return "finished" if runs.open_run(path).has_ended() else "interrupted"
        except ValueError as error:
            self.failed[name] = str(error)
            return "failed"

    # ---- the loop

    def work_off(self, stops):
        """Runs all that waits, as many at once as there are places, until that or a signal."""
        while self.waiting or self.running:
            if stops.received():
                self.waiting.clear()
                for job in self.running.values():
                    job.stop()
            for place, job in list(self.running.items()):
                if job.has_ended():
                    del self.running[place]
                    self.end(job, stops.received())
            for place in range(self.places):
                if place not in self.running:
                    self.start_in(place)
            if self.lines.is_due(SHOW_EVERY):
                self.lines.rewrite(self.progress())
            time.sleep(PAUSE)

    def start_in(self, place):
        """Starts the first run that may have this place, if there is one."""
        device = self.devices[place % len(self.devices)] if self.devices else None
        for name in self.waiting:
            own = self.own_device(name)
            if own in self.devices and own != device or self.is_held(name):
                continue
            self.waiting.remove(name)
            self.running[place] = self.start(name, device, own)
            return

    def own_device(self, name):
        """Returns the device on which a run that was interrupted goes on exactly."""
        if not self.devices or not has_begun(self.folder / name):
            return None
        return runs.open_run(self.folder / name).settings.device

    def is_held(self, name):
        """Returns whether another process has a run: one of a sweep that was killed saves it."""
        if not (self.folder / name / "config.json").exists():
            return False
        try:
            with Lock(self.folder / name / "lock"):
                return False
        except ValueError as error:
            if name not in self.waited_for:
                self.waited_for.add(name)
                self.lines.say(f"wait   {name}: {str(error).split(';')[0]}")
            return True

    def start(self, name, device, own):
        """Returns the Job of a run, begun or gone on with."""
        path, where = self.folder / name, f" on {device}" if device else ""
        if has_begun(path):
            argv = [f"--resume={path}"] + [f"--device={device}"] * (device != own)
            self.lines.say(f"go on  {name}{where}")
        else:
            clear(path)
            argv = [*sweep.flags_of(self.sweep.runs[name]), f"--name={path}",
                    *self.engine_flags(name, device)]
            self.lines.say(f"start  {name}{where}")
        if self.failed.pop(name, None):
            write(self.folder / "failed.json", self.failed)
        self.standing[name] = "interrupted"
        return Job(name, ["train", *argv], self.output(name), device)

    def output(self, name):
        return self.folder / f"{name}.txt"

    def engine_flags(self, name, device):
        """Returns the flags that divide the machine among runs that go on at once."""
        flags = [f"--device={device}"] * bool(device)
        settings = self.plans[name][1]
        where = device or settings.device or "auto"
        if self.places > 1 and settings.backend == "torch" and not settings.threads and (
                not where.startswith(ON_DEVICES)):
            flags.append(f"--threads={max(1, available_cores() // self.places)}")
        return flags

    def end(self, job, stopping):
        """Notes how a run ended, and says it."""
        name = job.name
        self.standing[name] = how = self.stands(name)
        took = duration(time.monotonic() - job.started)
        if how == "finished":
            self.done += self.work[name]
            self.lines.say(f"done   {name}: {result_of(self.row(name))}; {took}")
        elif stopping or job.exit_code in STOPPED:
            self.standing[name] = "interrupted"
            self.lines.say(f"stop   {name}, after {took}")
        else:
            self.done += self.work[name]
            self.standing[name], self.failed[name] = "failed", job.last_line()
            write(self.folder / "failed.json", self.failed)
            self.lines.say(f"failed {name}: {self.failed[name]} (see {self.output(name)})")

    def progress(self):
        """Returns the live line: how much is done, where each run is, the time left."""
        done, parts = self.done, []
        for job in self.running.values():
            since, step, total = job.steps()
            if total:
                done += self.work[job.name] * since / total
            parts.append(f"{job.name} {step}/{total}" if total else f"{job.name} begins")
        left = sweep.seconds_left(sum(self.work.values()), done, time.monotonic() - self.started)
        ended = len(self.those("finished", "failed"))
        time_left = "" if left is None else f", {duration(left)} left"
        return " | ".join([f"{ended} of {len(self.plans)} done{time_left}", *parts])

    # ---- the end

    def interrupted(self):
        """Says what was kept, and how to go on."""
        file = shlex.quote(str(self.folder / "sweep.json"))
        jobs = f" --jobs {self.args.jobs}" if self.args.jobs else ""
        devices = f" --devices {self.args.devices}" if self.args.devices else ""
        self.lines.say(f"interrupted: {len(self.those('finished'))} of {len(self.plans)} finished, "
                       "all others kept\n"
                       f"go on with: python3 microgpt.py sweep {file}{jobs}{devices}")

    def summary(self, stops):
        """Prints the table and what each run makes of the same prompts; keeps both."""
        rows = sweep.ranked([self.row(name) for name in self.plans])
        if not self.args.json:
            self.lines.say("")
            print_table([{**row, "bits_per_character": "lossy"} if row["lossy"] else row
                         for row in rows if row["status"] != "failed"], COLUMNS)
            for note in self.notes(rows):
                print(note)
        samples = self.samples(self.sweep.prompts or [""], rows, stops)
        for i, sample in enumerate(samples if not self.args.json else ()):
            under_each_other(i, sample["prompt"], sample["texts"])
        document = {"name": self.sweep.name, "about": self.sweep.about, "runs": rows,
                    "samples": samples}
        write(self.folder / "table.json", document)
        if self.args.json:
            print(json.dumps(document))
        else:
            print(f"\nkept in {self.folder}: table.json, and a folder a run", flush=True)

    def row(self, name):
        """Returns a run's row of the table: column -> value, None where there is none."""
        row = {**dict.fromkeys(COLUMNS), "tokens": None, "text": None, "lossy": False}
        path = self.folder / name
        if has_begun(path):
            try:
                found = runs.open_run(path)
                lines, row = found.log(), {**row, **row_of(found)}
            except ValueError:
                lines = []
            if lines and type(lines[-1].get("tokens")) is int:
                row["tokens"] = lines[-1]["tokens"]
                row["text"] = found.about["data"].get("sha256")
        row["lossy"] = row["val_loss"] is not None and row["bits_per_character"] is None
        return {**row, "name": name, "settings": self.sweep.variation(name),
                "status": self.standing[name], "failure": self.failed.get(name)}

    def notes(self, rows):
        """Yields what must be known of the table, a line each."""
        tested = [row for row in rows if row["steps"]]
        if len({row["text"] for row in tested}) > 1:
            yield "not all learned from the same text: their losses compare only as far as it does"
        if any(row["val_loss"] is None for row in tested):
            yield "where nothing was held out, bits/char are of the text that was learned from"
        for row in rows:
            if row["status"] == "failed":
                yield f"failed: {row['name']}: {row['failure']}"
            elif row["status"] == "interrupted":
                yield f"interrupted: {row['name']}: start the sweep again to finish it"

    def samples(self, prompts, rows, stops):
        """Returns what each finished run's best model writes behind each prompt, as JSON has it.

        With the seed that `compare` has too, so it can show the same texts again.
        """
        samples = [{"prompt": prompt, "texts": {}} for prompt in prompts]
        for row in rows:
            if row["status"] != "finished" or stops.received():
                continue
            try:
                chosen = runs.open_run(self.folder / row["name"])
                writer = Writer(chosen.backend(), chosen.tokenizer, chosen.is_stream)
                settings = SamplingSettings(chosen.settings.temperature, max_tokens=(
                    LONGEST_SAMPLE if chosen.is_stream else None))
                found = write_jobs(chosen.name, writer, [(prompt, 0) for prompt in prompts],
                                   settings, DEFAULTS["seed"])
            except ValueError as error:
                note(error)
                continue
            for sample, text in zip(samples, found):
                sample["texts"][chosen.name] = text.text
        return samples


def result_of(row):
    """Returns a row's losses in a few words."""
    loss = "" if row["val_loss"] is None else f"held out {row['val_loss']:.4f} nats a token, "
    return loss + bits_shown(row["bits_per_character"])


def read_failures(folder):
    """Returns name -> why a run failed when it was last started."""
    path = folder / "failed.json"
    if not path.exists():
        return {}
    found = runs.read_json(path)
    if not all(isinstance(line, str) for line in found.values()):
        raise ValueError(f"{path} is damaged: a failure is not a text; without it, they are "
                         "started again")
    return found


def has_begun(path):
    """Returns whether a folder is a run's that can go on: killed earlier, it was never one."""
    return (path / "config.json").exists() and (path / "last.safetensors").exists()


def clear(path):
    """Removes what a run has left that was killed before it began.

    ValueError where there is anything else in its place, which is not ours to remove.
    """
    path, names = Path(path), ("config.json", "tokenizer.json", "last.safetensors")
    if not path.exists():
        return
    for file in path.iterdir() if path.is_dir() else [path]:
        if file.name not in (*names, "lock") and not file.name.startswith(
                tuple(f".{name}." for name in names)):
            raise ValueError(f"{file} is no part of a run that has not begun, and is in its way: "
                             "move it")
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
