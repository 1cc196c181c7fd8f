"""The model that comes with microgpt: the default one, trained on the bundled names.

    python3 benchmarks/small_model.py                            training/models/names, anew
    python3 benchmarks/small_model.py --out DIR --num-steps 20   somewhere else, and quickly

Of the run it keeps config.json, tokenizer.json and best.safetensors, and no path of this machine.
It takes two minutes, and gives the same weights each time: to the last digit on one version of
Python, elsewhere but for what 4000 steps make of another rounding of sums (math.sumprod).
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import microgpt  # noqa: E402

HOW = ["--data", "names", "--documents", "lines", "--val-fraction", "0.1", "--backend", "matrix",
       "--batch-size", "16", "--num-samples", "0", "--name", "names"]
NUM_STEPS = 4000


def train(folder, num_steps):
    """Trains the model in folder/names, and returns that path."""
    os.environ["MICROGPT_RUNS"] = str(folder)
    code = microgpt.main([*HOW, "--num-steps", str(num_steps)])
    if code:
        sys.exit(code)
    return Path(folder) / "names"


def keep(run, out):
    """Copies what a model needs to be used, without paths."""
    out.mkdir(parents=True, exist_ok=True)
    about = json.loads((run / "config.json").read_text(encoding="utf-8"))
    for source in about["data"]["sources"]:
        source.pop("path", None)
    (out / "config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "best.safetensors"):
        shutil.copyfile(run / name, out / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "training" / "models" / "names")
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keep(train(folder, args.num_steps), args.out.resolve())
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
