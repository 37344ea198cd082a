"""Plans which rows are sampled together, by the prompts alone, so that every process comes to the same plan.

A plan does not depend on who is quick. The rows of a shard always share their forward passes with the same neighbours,
so a shard that is sampled again, by another worker or in another run, gives the same bits; handing out single rows to
whoever is free would balance better and be repeatable to rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence


def plan_shards(prompt_ids: Sequence[Sequence[int]], num_shards: int) -> list[list[int]]:
    """Deal the rows to at most `num_shards` shards.

    No shard has more than its even share of the rows, rounded up. Equal prompts stay together as far as that allows
    (each worker processes a prompt once), the longest prompts are dealt first, each to the shard with the fewest rows
    and, among these, the fewest prompt tokens.

    Args:
        prompt_ids: token ids of all rows.
        num_shards: upper bound on the number of shards.

    Returns:
        Row numbers of each shard, ascending; no shard is empty.

    Raises:
        ValueError: if there is less than one shard, or if there are no prompts.
    """
    if not prompt_ids:
        raise ValueError("no prompts were given; pass at least one list of token ids")
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, got {num_shards}")
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(prompt_ids):
        groups.setdefault(tuple(ids), []).append(row)
    share = -(-len(prompt_ids) // num_shards)
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    tokens = [0] * num_shards
    for prompt, rows in sorted(groups.items(), key=lambda group: -len(group[0])):
        left = rows
        while left:
            target = min(range(num_shards), key=lambda shard: (len(shards[shard]), tokens[shard]))
            placed, left = left[: share - len(shards[target])], left[share - len(shards[target]) :]
            shards[target] += placed
            tokens[target] += len(prompt)
    return [sorted(shard) for shard in shards if shard]
