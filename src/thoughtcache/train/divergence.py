"""Divergences between the full-cache teacher and the bounded student, per thought token, in nats.

Both distributions are formed chunk by chunk from hidden states; a `[T, V]` tensor never exists.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from thoughtcache.policy.batch import RolloutBatch
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.scores import ScoreFunction, row_scores
from thoughtcache.policy.token_logprobs import scaled_log_softmax

Divergence = Callable[[Float[Tensor, "N V"], Float[Tensor, "N V"], Int[Tensor, " N"]], Float[Tensor, " N"]]


def forward_kl(
    student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], targets: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """`KL(teacher || student)` of log-probabilities: the student must cover what the teacher may say."""
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def reverse_kl(
    student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], targets: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """`KL(student || teacher)`: the student may drop modes."""
    return (student.exp() * (student - teacher)).sum(dim=-1)


def cross_entropy(
    student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], targets: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Negative log-likelihood of the teacher's sampled token; the teacher's distribution is not used."""
    return -student.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "cross_entropy": cross_entropy,
}


def divergence(
    policy: PolicyHandle, batch: RolloutBatch, teacher_hidden: Float[Tensor, "B T d"], name: str
) -> ScoreFunction:
    """A score function for `run_replay` that returns the divergence of every thought token.

    Args:
        policy: the student (its head serves the teacher too).
        batch: the tokens.
        teacher_hidden: hidden states from which the teacher predicts each thought token.
        name: a key of `DIVERGENCES`.
    """
    function = DIVERGENCES[name]
    return _score(policy, batch, teacher_hidden, lambda *parts: (function(*parts),))


def both_losses(policy: PolicyHandle, batch: RolloutBatch, teacher_hidden: Float[Tensor, "B T d"]) -> ScoreFunction:
    """A score function that returns the forward KL, the student's loss and the teacher's loss of every thought token.

    Args:
        policy: see `divergence`, as for the others.
        batch: the tokens.
        teacher_hidden: hidden states of the teacher.
    """

    def three(student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        losses = [cross_entropy(one, one, targets) for one in (student, teacher)]
        return forward_kl(student, teacher, targets), *losses

    return _score(policy, batch, teacher_hidden, three)


def _score(
    policy: PolicyHandle, batch: RolloutBatch, teacher_hidden: Tensor, function: Callable[..., tuple[Tensor, ...]]
) -> ScoreFunction:
    """A score function of both distributions and the targets."""
    temperature = batch.settings.scoring_temperature

    def rows(student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        student_distribution = scaled_log_softmax(student, policy.head, temperature)
        teacher_distribution = scaled_log_softmax(teacher, policy.head, temperature)
        return function(student_distribution, teacher_distribution, targets)

    def score(hidden: Tensor, start: int, stop: int, known: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        part = (slice(0, hidden.shape[0]), slice(start, stop))
        return row_scores(rows, policy.head, hidden, teacher_hidden[part], batch.token_ids[part], known=known)

    return score
