"""A model of EleutherAI's lm-evaluation-harness, so that its tasks run under a bounded cache.

    python -m thoughtcache.harness --model thoughtcache --model_args pretrained=./model,window=64 --tasks arc_easy

The harness is an optional dependency: pip install 'thoughtcache[harness]'. Importing this package does not import it.
"""
