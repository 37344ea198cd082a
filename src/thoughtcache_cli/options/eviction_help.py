"""Eviction policies and budgets for the help of the command line, which must not import the library.

Each is (name, what stays or is large, settings). Generated from the tables by `make docs`.
"""

POLICIES = (
    (
        "sliding",
        "the newest (the paper)",
        "",
    ),
    (
        "streaming",
        "the first thoughts and the newest (StreamingLLM)",
        "sinks=4",
    ),
    (
        "random",
        "thoughts by chance: the control",
        "shared=false",
    ),
    (
        "snapkv",
        "what the last queries attended to (SnapKV)",
        "max_queries=32 max_protected=32 kernel=5",
    ),
    (
        "h2o",
        "what had the most attention so far, and the newest (H2O)",
        "",
    ),
    (
        "tova",
        "what the last query attends to, the same in all heads (TOVA)",
        "max_protected=0",
    ),
    (
        "scissorhands",
        "what seldom had less than its share (Scissorhands)",
        "max_queries=400 max_protected=10",
    ),
    (
        "r-kv",
        "what matters to the last queries and is not repeated (R-KV)",
        "max_queries=8 max_protected=8 kernel=7 threshold=0.5 importance=0.1",
    ),
    (
        "expected-attention",
        "what queries to come should attend to",
        "max_queries=256 max_protected=0 future=512",
    ),
    (
        "key-norm",
        "keys of a small norm (L2 norm, Devoto et al.)",
        "max_protected=0",
    ),
    (
        "keydiff",
        "keys that point elsewhere than their mean (KeyDiff)",
        "max_protected=0",
    ),
)
BUDGETS = (
    (
        "pyramid",
        "lower layers keep more (PyramidKV)",
        "beta=20",
    ),
)
SCORED = (
    (
        "headkv",
        "over all layers, as in HeadKV",
        "beta=2 temperature=1 group=1",
    ),
    (
        "adakv",
        "within each layer, as in AdaKV",
        "alpha=0.2 group=1",
    ),
)
