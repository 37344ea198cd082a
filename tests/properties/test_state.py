"""The state rules against their loops (`state/naive.py`), in values and gradients, and what holds for each of them."""

from __future__ import annotations

import pytest
import torch

from support.compare import assert_close, assert_gradients_match, gradients
from thoughtcache.state import STATE_NORMS, STATE_RULES, ThoughtEncoder, absorb, initial_state, normalise
from thoughtcache.state.naive import NAIVE_NORMS, naive_absorb, naive_initial_state

RULES = sorted(STATE_RULES)
SUMS_OVER_TOKENS = ("linear", "gated", "decay", "softmax")
SHAPES = [(5, 3), (3, 5), (4, 4), (1, 7)]
HEADS, HEAD_SIZE = 2, 3


def make_encoder(rule: str, num_global_tokens: int = 5, rank: int = 3) -> ThoughtEncoder:
    """An fp64 encoder whose zero-initialised gates are random."""
    encoder = ThoughtEncoder(
        layer_index=0,
        kv_size=HEADS * HEAD_SIZE,
        num_global_tokens=num_global_tokens,
        rank=rank,
        rule=rule,
        write_scale=0.3,
        dtype=torch.float64,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            if not parameter.count_nonzero():
                parameter.normal_()
    return encoder


def make_block(tokens: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Evicted keys and values [B, H, E, D] of very different scales per token."""
    scales = torch.logspace(-1, 1.5, tokens, dtype=torch.float64)[:, None]
    shape = (batch, HEADS, tokens, HEAD_SIZE)
    return torch.randn(shape, dtype=torch.float64) * scales, torch.randn(shape, dtype=torch.float64)


def heads_joined(block: torch.Tensor) -> torch.Tensor:
    """[B, H, E, D] -> [B, E, H D], written out."""
    return torch.stack([torch.cat([row[h] for h in range(HEADS)], dim=-1) for row in block])


@pytest.mark.parametrize("norm", sorted(STATE_NORMS))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("rule", RULES)
def test_rule_is_its_loop(rule, tokens, shape, norm):
    check_against_loop(rule, tokens, shape, norm)


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_its_loop_on_a_long_block(rule):
    check_against_loop(rule, 63, (5, 3), "frobenius")


def check_against_loop(rule: str, tokens: int, shape: tuple[int, int], norm: str) -> None:
    """Values, and the gradients of every encoder parameter, of the state and of what was evicted."""
    encoder = make_encoder(rule, *shape)
    keys, values = make_block(tokens)
    state = torch.randn(2, *shape, dtype=torch.float64)
    # Leaves inside a module, so that `gradients` sees them next to the encoder's parameters.
    inputs = torch.nn.ParameterList([state, keys, values])
    both = torch.nn.ModuleDict({"encoder": encoder, "inputs": inputs})
    weights = torch.randn(2, *shape, dtype=torch.float64)

    def fast() -> torch.Tensor:
        return absorb(encoder.weights(), *inputs, rule=rule, norm=norm)

    def slow() -> torch.Tensor:
        k, v = heads_joined(inputs[1]), heads_joined(inputs[2])
        rows = [naive_absorb(encoder, inputs[0][b], k[b], v[b], rule, norm) for b in range(2)]
        return torch.stack(rows)

    # `norm` "none" lets a block of 63 tokens grow: compare relative to its size.
    scale = max(slow().abs().max().item(), 1.0)
    assert_close(fast() / scale, slow() / scale)
    expected = gradients(both, lambda: (weights * slow()).sum())
    assert_gradients_match(gradients(both, lambda: (weights * fast()).sum()), expected)
    touched = {name for name, gradient in expected.items() if gradient.norm() > 0}
    idle = {"encoder.global_tokens"}
    if rule == "softmax" and tokens == 1:  # the softmax of one score is 1
        idle |= {"encoder.global_queries", "encoder.query_projection", "encoder.key_projection", "inputs.1"}
    assert set(expected) - touched == idle, "some comparison of gradients was vacuous"


def test_every_rule_has_a_loop():
    encoder = make_encoder("linear")
    with pytest.raises(ValueError, match="state_rule='other' is not known"):
        naive_absorb(encoder, torch.zeros(5, 3), torch.zeros(1, 6), torch.zeros(1, 6), "other", "none")


@pytest.mark.parametrize("norm", sorted(STATE_NORMS))
@pytest.mark.parametrize("shape", SHAPES)
def test_initial_state_is_its_loop_and_has_the_norm_of_the_identity(shape, norm):
    encoder = make_encoder("linear", *shape)
    found = initial_state(encoder.weights(), norm=norm)
    assert found.shape == (1, *shape)
    assert_close(found[0], naive_initial_state(encoder, norm))
    if norm == "frobenius":
        assert_close(found.norm(), torch.eye(*shape, dtype=torch.float64).norm())
    weights = torch.randn(shape, dtype=torch.float64)
    assert_gradients_match(
        gradients(encoder, lambda: (weights * initial_state(encoder.weights(), norm=norm)[0]).sum()),
        gradients(encoder, lambda: (weights * naive_initial_state(encoder, norm)).sum()),
    )


def with_singular_values(singular_values: list[float], shape: tuple[int, int]) -> torch.Tensor:
    """A state [1, G, R] with these singular values and random directions."""
    left, right = (torch.linalg.qr(torch.randn(n, min(shape), dtype=torch.float64)).Q for n in shape)
    return (left @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ right.mT)[None]


@pytest.mark.parametrize("norm", sorted(STATE_NORMS))
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (3, 3)])
def test_norms_of_given_singular_values(shape, norm):
    expected = {
        "frobenius": [4 * (3 / 29) ** 0.5, 3 * (3 / 29) ** 0.5, 2 * (3 / 29) ** 0.5],
        "spectral": [1.0, 0.75, 0.5],
        # sqrt(1 + d) s / sqrt(s^2 + d m) with d = 1e-4 and m = (16 + 9 + 4) / 3
        "orthogonal": [(1.0001 * s * s / (s * s + 29e-4 / 3)) ** 0.5 for s in (4, 3, 2)],
        "none": [4.0, 3.0, 2.0],
    }[norm]
    found = STATE_NORMS[norm](with_singular_values([4.0, 3.0, 2.0], shape))
    assert_close(torch.linalg.svdvals(found)[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["spectral", "orthogonal"])
@pytest.mark.parametrize("values", [[2.0, 1.0, 1.0], [1.5, 0.0, 0.0], [1.0, 0.5, 1e-7], [2.0, 2.0, 2.0]])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_gradcheck_of_norms_with_equal_and_zero_singular_values(shape, values, norm):
    if norm == "spectral" and values[0] == values[1]:
        return  # a largest singular value that two directions share has no gradient
    state = with_singular_values(values, shape)
    assert torch.autograd.gradcheck(STATE_NORMS[norm], state.requires_grad_())
    expected = NAIVE_NORMS[norm](state[0])
    assert_close(STATE_NORMS[norm](state)[0], expected)
    weights = torch.randn(shape, dtype=torch.float64)
    found = [torch.autograd.grad((weights * one).sum(), state)[0] for one in (STATE_NORMS[norm](state)[0], expected)]
    assert (found[0] - found[1]).norm() < 1e-9 * found[1].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["spectral", "orthogonal"])
def test_norms_leave_zero_and_the_identity_and_are_blind_to_scale(norm, dtype):
    states = torch.stack([torch.zeros(4, 4), torch.eye(4), torch.randn(4, 4)]).to(dtype).requires_grad_()
    found = STATE_NORMS[norm](states)
    assert found.dtype == dtype
    assert found[0].count_nonzero() == 0
    assert_close(found[1], torch.eye(4, dtype=dtype), dtype)
    for scale in (1e-9, 1e9):
        assert_close(STATE_NORMS[norm](states * scale), found, dtype)
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert gradient.isfinite().all()
    assert NAIVE_NORMS[norm](states[0]).count_nonzero() == 0


def test_what_was_never_written_stays_small_in_an_orthogonal_state():
    found = torch.linalg.svdvals(STATE_NORMS["orthogonal"](with_singular_values([3.0, 1.0, 1e-9], (5, 3))))[0]
    assert_close(found[:2], torch.ones(2).double() * found[0], torch.bfloat16)
    assert found[2] < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_absorbing_keeps_the_norm_of_the_identity(rule):
    keys, values = make_block(5)
    state = initial_state(make_encoder(rule).weights())
    for _ in range(4):
        state = absorb(make_encoder(rule).weights(), state, keys, values, rule=rule, norm="frobenius")
        assert_close(state.norm(dim=(1, 2)), torch.full((2,), 3**0.5, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES)
def test_order_of_the_evicted_tokens(rule):
    encoder = make_encoder(rule)
    keys, values = make_block(7)
    order = torch.randperm(7)
    state = torch.randn(2, 5, 3, dtype=torch.float64)
    straight = absorb(encoder.weights(), state, keys, values, rule=rule, norm="none")
    shuffled = absorb(encoder.weights(), state, keys[:, :, order], values[:, :, order], rule=rule, norm="none")
    if rule in SUMS_OVER_TOKENS:
        assert_close(straight, shuffled)
    else:
        assert (straight - shuffled).abs().max() > 1e-3, "the delta rule depends on the order"


@pytest.mark.parametrize("rule", ["linear", "gated", "delta"])
def test_a_block_is_the_same_as_its_tokens_one_after_the_other(rule):
    weights = make_encoder(rule).weights()
    keys, values = make_block(5)
    state = torch.randn(2, 5, 3, dtype=torch.float64)
    at_once = absorb(weights, state, keys, values, rule=rule, norm="none")
    for token in range(5):
        one = slice(token, token + 1)
        state = absorb(weights, state, keys[:, :, one], values[:, :, one], rule=rule, norm="none")
    assert_close(state, at_once)


@pytest.mark.parametrize("rule", RULES)
def test_rows_do_not_see_each_other(rule):
    weights = make_encoder(rule).weights()
    keys, values = make_block(5, batch=3)
    state = torch.randn(3, 5, 3, dtype=torch.float64)
    together = absorb(weights, state, keys, values, rule=rule, norm="frobenius")
    for row in range(3):
        one = slice(row, row + 1)
        assert_close(absorb(weights, state[one], keys[one], values[one], rule=rule, norm="frobenius"), together[one])


@pytest.mark.parametrize("rule", RULES)
def test_the_scale_of_cached_keys_and_values_does_not_matter(rule):
    # The RMS epsilon (1e-6 on squares of order one) is what remains of a factor of 100.
    weights = make_encoder(rule).weights()
    keys, values = make_block(5)
    keys, values = keys + 3, values + 3
    state = torch.randn(2, 5, 3, dtype=torch.float64)
    once = absorb(weights, state, keys, values, rule=rule, norm="frobenius")
    scaled = absorb(weights, state, 100 * keys, 0.1 * values, rule=rule, norm="frobenius")
    assert (once - scaled).abs().max() < 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_a_single_initial_state_is_broadcast_to_the_rows(rule):
    weights = make_encoder(rule).weights()
    keys, values = make_block(3)
    state = initial_state(weights)
    assert_close(
        absorb(weights, state, keys, values, rule=rule, norm="frobenius"),
        absorb(weights, state.repeat(2, 1, 1), keys, values, rule=rule, norm="frobenius"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1)])
def test_normalise_gives_the_norm_of_the_identity_and_is_idempotent(shape, size, dtype):
    state = torch.randn(2, *shape, dtype=dtype) * size
    once = normalise(state)
    assert_close(once.norm(dim=(1, 2)), torch.full((2,), min(shape) ** 0.5, dtype=dtype), dtype)
    assert_close(normalise(once), once, dtype)
    direction = state / state.norm(dim=(1, 2), keepdim=True)
    assert_close(once, direction * min(shape) ** 0.5, dtype)


def test_normalise_leaves_zero_at_zero():
    state = torch.zeros(2, 5, 3)
    state[1] = torch.randn(5, 3)
    result = normalise(state)
    assert result[0].count_nonzero() == 0
    assert result[1].norm().item() == pytest.approx(3**0.5, rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_gradcheck_of_absorb(rule):
    encoder = make_encoder(rule)
    keys, values = make_block(3)
    keys, values = keys / keys.norm(dim=-1, keepdim=True) + 0.5, values + 0.5
    state = torch.randn(2, 5, 3, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (state, keys, values)]

    def function(state, keys, values, *parameters):
        return absorb(encoder.weights(), state, keys, values, rule=rule, norm="frobenius")

    assert torch.autograd.gradcheck(function, (*inputs, *encoder.parameters()), fast_mode=True)


def test_gradcheck_of_the_initial_state():
    encoder = make_encoder("linear")
    assert torch.autograd.gradcheck(lambda *_: initial_state(encoder.weights()), tuple(encoder.parameters()))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_the_state_is_computed_in_fp32_whatever_the_cache_holds(stored):
    encoder = make_encoder("gated").float()
    weights = encoder.weights()
    keys, values = (block.to(stored) for block in make_block(3))
    state = initial_state(weights)
    assert state.dtype == torch.float32
    found = absorb(weights, state, keys, values, rule="gated", norm="frobenius")
    assert found.dtype == torch.float32
    upcast = absorb(weights, state, keys.float(), values.float(), rule="gated", norm="frobenius")
    assert torch.equal(found, upcast)


@pytest.mark.parametrize("rule", RULES)
def test_the_write_scale_that_was_asked_for_is_the_one_that_is_used(rule):
    """It is stored as its logarithm; the loop reads the same parameter and would not notice another one."""
    encoder, state = make_encoder(rule), torch.zeros(1, 5, 3, dtype=torch.float64)
    keys, values = make_block(1, batch=1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in ("gate", "gate_bias"):
                parameter.zero_()
        found = absorb(encoder.weights(), state, keys, values, rule=rule, norm="none")
        encoder.log_write_scale.zero_()
        at_one = absorb(encoder.weights(), state, keys, values, rule=rule, norm="none")
    # The gate is sigmoid(log w) = w / (1 + w).
    factor = (0.3 / 1.3) / (1 / 2) if rule in ("gated", "delta") else 0.3
    assert_close(found, factor * at_one)


def test_encoder_weights_are_at_least_fp32():
    assert make_encoder("delta").bfloat16().weights().queries.dtype == torch.float32
    assert make_encoder("delta").bfloat16().weights().extra["gate"].dtype == torch.float32
    assert make_encoder("delta").double().weights().queries.dtype == torch.float64


@pytest.mark.parametrize("rule", RULES)
def test_optional_parameters_exist_only_for_the_rule_that_uses_them(rule):
    names = {name for name, _ in make_encoder(rule).named_parameters()}
    assert ("gate" in names) == ("gate_bias" in names) == (rule in ("gated", "delta"))
    assert ("decay_logit" in names) == (rule == "decay")
