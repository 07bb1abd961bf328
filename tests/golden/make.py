"""Record the golden files: `python tests/golden/make.py`, or `--only GROUP/NAME` (a prefix will do) to record some cases again."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MUJOCO_GL", "egl")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="record only the cases whose name starts so")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the JSON files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLA_TUNE_CACHE"] = f"{folder}/cache"
        os.environ["HF_HOME"] = f"{folder}/hub"  # read when huggingface_hub is imported
        import cases

        with cases.one_thread():
            record(cases, cases.Work(f"{folder}/work"), options)


def record(cases, work, options):
    names = [name for name in work.names if name.startswith(options.only)]
    if not names:
        sys.exit(f"--only {options.only}: no such case; there are {', '.join(work.names)}")
    machine, told = cases.fingerprint(), {}
    for name in names:
        began = time.process_time()
        told[name] = work.case(name)
        print(f"golden: {name} in {time.process_time() - began:.1f} s of CPU", file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    for group in dict.fromkeys(name.split("/")[0] for name in names):
        file = options.out / f"{group}.json"
        old = json.loads(file.read_text()) if options.only and file.exists() else {"machine": machine, "cases": {}}
        if old["machine"] != machine:
            sys.exit(f"{file} was recorded on another machine; record all of it again")
        fresh = {name.split("/")[1]: case for name, case in told.items() if name.startswith(f"{group}/")}
        file.write_text(json.dumps({"machine": machine, "cases": {**old["cases"], **fresh}}, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
