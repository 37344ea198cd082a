"""The parts that both executions of the policy need, and a third one that reads like its definition (`naive.py`)."""
