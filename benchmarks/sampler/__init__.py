"""The sampler's benchmarks: speed along a rollout, against transformers' and TRL's generation, and where time goes.

One file per measurement, named as `Case.kind`: `measure(case)` runs in a child process (`child.py`) and returns
figures. `sizes.py` says what is measured, `suite.py` runs it behind the gate (`gate.py`) and reports.
"""
