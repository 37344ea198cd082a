"""The bytes of a memory in attention space in one decoder layer: what its reads and writes keep for the backward pass.

Letters: B rows, T tokens of a chunk, E that leave, Q query heads, H kv heads, D head size, F features, C columns of the
projections. Everything is fp32. The rotation of a layer's keys and queries keeps cosines and sines, [B, T, D / 2] each.

Not covered: models whose layers differ. Proof: tests/unit/test_plan_memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.state.attention.features import FEATURE_MAPS
from thoughtcache.state.attention.weights import MemoryShape
from thoughtcache.state.attention.window_share import EXTRA
from thoughtcache.state.attention.writes import WRITE_RULES

FP32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNumbers:
    """A memory as far as its bytes are concerned.

    Attributes:
        shape: its sizes.
        turns: whether keys and queries are un-rotated.
        chooses: whether every head chooses what leaves, so that each has positions of its own.
        base: bytes of a number of the base model.
    """

    shape: MemoryShape
    turns: bool
    chooses: bool
    base: int

    @property
    def copies_queries(self) -> bool:
        """Whether a read makes fp32 queries of its own."""
        return self.turns or self.base != FP32


def features_saved(shape: MemoryShape) -> int:
    """Numbers kept of one vector whose features are made, without the features themselves."""
    features = FEATURE_MAPS[shape.feature_map]
    saved = features.saved(shape.num_features)
    if WRITE_RULES[shape.write].has_unit_features:
        saved += 1 + (0 if features.keeps_output else shape.num_features)
    return saved


def read_saved_bytes(memory: MemoryNumbers, rows: int, tokens: int) -> int:
    """What one layer's read keeps: queries, features, what is found; weighted too, and the two sides of the fraction.

    The added read keeps the content that its matrix is applied to instead.
    """
    shape, size = memory.shape, memory.shape.head_size
    per_query = features_saved(shape) + shape.num_features + size + 1
    per_query += size if memory.copies_queries else 0
    per_query += size if shape.read == "added" else (size + 1) + size + 1
    if shape.read == "joint":  # the memory's share once more, the denominator before its bound, and the key's share
        per_query += 2 + (memory.base != FP32)
    return rows * tokens * shape.query_heads * per_query * FP32


def share_saved_bytes(memory: MemoryNumbers, rows: int, tokens: int, leaving: int) -> int:
    """What one layer's attention keeps beside keys, values, queries and output where it tells the window's share.

    Keys and values are copied, longer and one more of each; the output is longer, and so are queries, whose shorter
    form stays where the read looks at it.
    """
    shape, longer = memory.shape, memory.shape.head_size + EXTRA
    if shape.read != "joint":
        return 0
    copied = 2 * shape.kv_heads * (leaving + 1) * longer
    per_token = shape.query_heads * (EXTRA + (EXTRA if memory.copies_queries else longer))
    return rows * (copied + tokens * per_token) * memory.base


def share_running_bytes(memory: MemoryNumbers, rows: int, tokens: int, leaving: int) -> int:
    """The same while it runs without a graph."""
    if memory.shape.read != "joint":
        return 0
    longer = memory.shape.head_size + EXTRA
    copied = 2 * memory.shape.kv_heads * (leaving + 1) * longer
    return rows * (copied + 2 * tokens * memory.shape.query_heads * longer) * memory.base


def read_running_bytes(memory: MemoryNumbers, tokens: int) -> int:
    """What one layer's read has alive without a graph: queries, features, what is found, and three outputs in turn."""
    shape, size = memory.shape, memory.shape.head_size
    per_query = size + shape.num_features + (size + 1) + 2 * size
    return tokens * shape.query_heads * (per_query * FP32 + 2 * size * memory.base)


def write_saved_bytes(memory: MemoryNumbers, rows: int, num_evicted: int) -> int:
    """What one layer's write keeps: keys alone and with values, features, strengths, and what the rule needs."""
    if not num_evicted:
        return 0
    shape, size = memory.shape, memory.shape.head_size
    per_token = 3 * size + features_saved(shape) + 1
    rule = WRITE_RULES[shape.write].saved(rows, shape.kv_heads, num_evicted, shape.num_features, size + 1)
    numbers = shape.kv_heads * (num_evicted * per_token + 2 * size)
    if memory.turns:  # every head has positions of its own where it chooses
        numbers += num_evicted * size * (shape.kv_heads if memory.chooses else 1)
    return (rows * numbers + rule) * FP32


def write_running_bytes(memory: MemoryNumbers, rows: int, num_evicted: int) -> int:
    """What one layer's write has alive without a graph, its new states aside.

    These are keys and values in fp32, features, and either keys with values or what the rule makes, and the products
    that are added to the state.
    """
    shape, size = memory.shape, memory.shape.head_size
    heads = rows * shape.kv_heads
    inputs = heads * num_evicted * size * (2 if memory.base != FP32 else 1)
    rule = WRITE_RULES[shape.write]
    added = rows * shape.state_floats * (2 if rule.has_decay else 1)  # what is added, and to what
    made = rule.saved(rows, shape.kv_heads, num_evicted, shape.num_features, size + 1) + added
    made = max(made, heads * num_evicted * (shape.num_features + 2 * size))
    return (inputs + made) * FP32


def shared_bytes(memory: MemoryNumbers, rows: int, tokens: int) -> int:
    """The angles of a chunk's queries, which all layers share."""
    return rows * tokens * memory.shape.head_size * FP32 if memory.turns else 0


def scaled_weights_bytes(memory: MemoryNumbers) -> int:
    """The projections of one layer in the scale in which they are used."""
    shape = memory.shape
    return (shape.kv_heads + shape.query_heads) * shape.head_size * shape.num_columns * FP32
