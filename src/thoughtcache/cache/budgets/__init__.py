"""Budgets that differ by layer: how many thoughts each layer holds, and allocations that share a total out.

To add an allocation: subclass `BudgetAllocation` in a file of its own, give it a `name`, and list it in `ALLOCATIONS`
(`table.py`). The tests of allocations and of parity run over that table and cover it.
"""

from thoughtcache.cache.budgets.base import BudgetAllocation
from thoughtcache.cache.budgets.layers import LayerBudgets, layer_budgets
from thoughtcache.cache.budgets.table import ALLOCATIONS, checked_budgets, resolve_budgets

__all__ = [
    "ALLOCATIONS",
    "BudgetAllocation",
    "LayerBudgets",
    "checked_budgets",
    "layer_budgets",
    "resolve_budgets",
]
