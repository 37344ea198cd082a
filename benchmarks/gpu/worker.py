"""`python -m benchmarks.gpu.worker DEVICE SIZE NAMES`: run checks in this process, one line of JSON for each.

An exception ends the process: run.py tells it and goes on in another one.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from dataclasses import asdict

import torch

from benchmarks.gpu.check import SIZES, Context, judge
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.run import MARK


def main() -> None:
    """Run what the command line names."""
    device, size, names = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    warnings.simplefilter("ignore")
    context = Context(device=torch.device(device), sizes=SIZES[size])
    for name in names:
        check = next(check for check in CHECKS if check.name == name)
        started = time.perf_counter()
        figures = check.run(context)
        outcome = judge(name, figures, time.perf_counter() - started)
        sys.stdout.write(MARK + json.dumps(asdict(outcome)) + "\n")
        sys.stdout.flush()
        gc.collect()
        if context.on_gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
