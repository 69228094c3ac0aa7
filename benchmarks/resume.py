"""Kill a run at random moments until it is through, and compare its bytes with those of a run left alone.

    python benchmarks/resume.py SOURCE --format Q4_K --kills 20 --work DIR

Writes benchmarks/results/resume.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "resume.json"


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("--format", default="Q4_K")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    alone, killed = arguments.work / "alone.gguf", arguments.work / "killed.gguf"
    command = [sys.executable, "-m", "fewbits", "quantize", arguments.source]
    options = ["--format", arguments.format, "--effort", "fast"]
    began = time.monotonic()
    subprocess.run([*command, str(alone), *options, "--force"], check=True)
    seconds = time.monotonic() - began
    choose = random.Random(arguments.seed)  # noqa: S311
    kills, last = [], False
    for path in arguments.work.glob("killed.gguf*"):
        path.unlink()
    while len(kills) < arguments.kills and not killed.exists():
        # Of a run's length in all, so that kills fall into start-up, quantizing, and the check alike.
        moment = choose.uniform(0.05, seconds * 2 / arguments.kills + 0.6)
        process = subprocess.Popen([*command, str(killed), *options], stderr=subprocess.DEVNULL)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if len(kills) % 2 else signal.SIGINT)
            process.wait()
            kills.append(round(moment, 3))
    if not killed.exists():
        last = True
        subprocess.run([*command, str(killed), *options], check=True)
    same = sha256(alone) == sha256(killed)
    left = sorted(path.name for path in arguments.work.glob("killed.gguf.*"))
    result = {"format": arguments.format, "seconds_alone": round(seconds, 2), "kills": kills,
              "finished_by_last_run": last, "same_bytes": same, "files_left": left}  # fmt: skip
    print(json.dumps(result))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if not same or left:
        raise SystemExit("the bytes differ, or files were left behind")


if __name__ == "__main__":
    main()
