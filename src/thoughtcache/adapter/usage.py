"""Who runs a model at the moment: one sampler alone, or any number of threads that generate.

A sampler changes the model's modules while it decodes (`sampler/weights/`), so nobody else may run it then. `generate`
changes nothing: its states are bound per thread (`binding.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock, get_ident

REMEDY = (
    "(in a callback or another thread: collect what is to be sampled, or use a model of its own, for example a copy)"
)


class ModelUse:
    """Keeps account of what runs a model now, and in which threads.

    Attributes:
        changed_layers: held while the decoder layers' own forward functions are replaced, by one thread at a time.
    """

    def __init__(self) -> None:
        self.changed_layers = RLock()
        self._lock = Lock()
        self._sampler: int | None = None
        self._generating: Counter[int] = Counter()
        self._full_cache = 0

    def __reduce__(self) -> tuple[type[ModelUse], tuple[()]]:
        """A copy of the model is in nobody's use."""
        return ModelUse, ()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample in this block, alone.

        Raises:
            RuntimeError: if the model is sampling already, or another thread generates with it.
        """
        own = get_ident()
        with self._lock:
            if self._sampler is not None:
                raise RuntimeError(
                    f"this model is sampling already; let that rollout end before the next one begins {REMEDY}"
                )
            if any(thread != own for thread in self._generating):
                raise RuntimeError(
                    f"another thread generates with this model; let that end before a rollout begins {REMEDY}"
                )
            self._sampler = own
        try:
            yield
        finally:
            self._sampler = None

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Generate in this block; other threads may do so as well.

        Raises:
            RuntimeError: if another thread samples.
        """
        own = get_ident()
        with self._lock:
            self.check()
            self._generating[own] += 1
        try:
            yield
        finally:
            with self._lock:
                self._generating[own] -= 1
                if not self._generating[own]:
                    del self._generating[own]

    def check(self) -> None:
        """Check that this thread may run the model.

        Raises:
            RuntimeError: if another thread samples.
        """
        if self._sampler is not None and self._sampler != get_ident():
            raise RuntimeError(
                f"this model is sampling in another thread; let that rollout end before anything else runs it {REMEDY}"
            )

    @contextmanager
    def with_full_cache(self) -> Iterator[None]:
        """Mark the block, in all threads, as one in which the adapter has no window."""
        with self._lock:
            self._full_cache += 1
        try:
            yield
        finally:
            with self._lock:
                self._full_cache -= 1

    @property
    def has_full_cache(self) -> bool:
        """Whether the adapter runs without its window now."""
        return self._full_cache > 0
