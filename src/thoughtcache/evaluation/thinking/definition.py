"""What a deep-thinking token is (arXiv 2602.13517, ICML 2026), with a setting for every choice that the paper leaves.

The paper says in two ways which layers are late. Equation 5 begins with layer `ceil(rho L)`, Algorithm 1 with layer
`ceil((1 - rho) L)`. The shares that it reports, 13 to 19 %, fit the equation: almost every token settles in the first
15 % of the layers. It does not say the base of the logarithm; it sweeps thresholds up to 0.75, which nats cannot reach
(at most 0.693), so the default is bits. It writes the raw unembedding. In models with a norm before their head the
outputs of other layers mean little without it, so it is applied by default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thoughtcache.checks import one_of

READINGS = ("equation", "algorithm")
LOG_BASES = ("2", "e")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepThinking:
    """Defines deep-thinking tokens; the defaults are the published ones.

    Attributes:
        threshold: g, the divergence from the last layer's prediction at which a token has settled.
        depth: rho, which of the layers count as late.
        reading: "equation" counts from layer `ceil(rho L)`, "algorithm" from layer `ceil((1 - rho) L)`.
        norm: apply the final norm to the output of a layer before the head. The last layer always has it.
        log_base: base of the logarithm of the divergence, "2" (at most 1) or "e" (at most 0.693).

    Raises:
        ValueError: if a value is unknown or out of range.
    """

    threshold: float = 0.5
    depth: float = 0.85
    reading: str = "equation"
    norm: bool = True
    log_base: str = "2"

    def __post_init__(self) -> None:
        one_of("reading", self.reading, READINGS)
        one_of("log_base", self.log_base, LOG_BASES)
        most = math.log(2) / self.unit
        if not 0.0 < self.threshold < most:
            raise ValueError(
                f"threshold must be between 0 and {most:.3g}, the largest divergence with log_base={self.log_base}, "
                f"got {self.threshold}"
            )
        if not 0.0 < self.depth < 1.0:
            raise ValueError(f"depth must be a share of the layers between 0 and 1, got {self.depth}")

    @property
    def unit(self) -> float:
        """Nats of one unit of divergence."""
        return math.log(2) if self.log_base == "2" else 1.0

    def deep_from(self, num_layers: int) -> int:
        """The first layer, counted from 1, at which a token that settles is a deep one.

        Raises:
            ValueError: if it is the first of all, so that every token would be deep.
        """
        share = self.depth if self.reading == "equation" else 1 - self.depth
        first = math.ceil(round(share * num_layers, 9))  # 0.15 * 20 is a little more than 3
        if first < 2:
            raise ValueError(
                f"depth={self.depth} with reading={self.reading!r} counts every one of {num_layers} layers as deep; "
                "choose a depth that leaves some out"
            )
        return first
