"""What both executions of the policy need, and the third one, which reads like its definition (`naive.py`)."""
