"""What each operator can see, where it starts, whose weights it loads; and that the table would notice a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor, nn

from grafting import operators
from grafting.operators import convolution

WIDTH, HEADS, GRID = 24, 3, (9, 11)
N = GRID[0] * GRID[1]
HERE = 4 * 11 + 5  # the middle of the grid


def made(name: str, *, shake: float = 0.3, width: int = WIDTH, **options: Any) -> operators.Operator:
    torch.manual_seed(1)
    operator = operators.build(name, width=width, heads=HEADS, tokens=N, **options).double()
    for parameter in operator.parameters():
        parameter.data += shake * torch.randn_like(parameter)
    return operator


def seen_from(operator: operators.Operator, token: int) -> set[int]:
    """The inputs on which one output token depends."""
    x = torch.randn(1, N, WIDTH, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(operator(x, grid=GRID)[0, token].square().sum(), x)
    return set(gradient[0].abs().sum(-1).nonzero().flatten().tolist())


def square(reach: int) -> set[int]:
    row, column = divmod(HERE, GRID[1])
    return {
        r * GRID[1] + c for r in range(row - reach, row + reach + 1) for c in range(column - reach, column + reach + 1)
    }


EVERYTHING = set(range(N))
VIEWS: list[tuple[str, dict[str, Any], set[int]]] = [
    ("mha", {}, EVERYTHING),
    ("linear", {}, EVERYTHING),
    ("local_mean", {}, EVERYTHING),
    ("swa", {}, set(range(HERE - 4, HERE + 5))),
    ("swa", {"window": 17}, set(range(HERE - 17, HERE + 18))),
    ("swa_2d", {}, square(2)),
    ("swa_2d", {"window": 1}, square(1)),
    ("hyena_x", {}, set(range(HERE - 3, HERE + 1))),
    ("hyena_y", {}, set(range(HERE - 3, HERE + 1))),
    ("hyena_se", {}, set(range(HERE - 6, HERE + 1))),
    ("hyena_x_centred", {}, set(range(HERE - 2, HERE + 3))),
    ("hyena_x_2d", {}, square(1)),
    ("hyena_x_2d", {"kernel": 5}, square(2)),
    ("mamba2", {}, set(range(HERE + 1))),
    ("mamba2", {"direction": "both"}, EVERYTHING),
    ("mlp", {}, {HERE}),
    ("mlp_hyena_x", {}, {HERE}),
    ("mix_ffn", {}, square(1)),
    ("mix_ffn", {"kernel": 5}, square(2)),
]


@pytest.mark.parametrize(
    ("name", "options", "view"), VIEWS, ids=[f"{name}{options or ''}" for name, options, _ in VIEWS]
)
def test_a_token_sees_what_the_definition_says(name: str, options: dict[str, Any], view: set[int]) -> None:
    assert seen_from(made(name, **options), HERE) == view


@pytest.mark.parametrize("name", ["swa", "hyena_x", "hyena_se", "hyena_x_2d", "mix_ffn"])
def test_nothing_wraps_around_the_edges(name: str) -> None:
    operator = made(name)
    assert max(seen_from(operator, 0)) < 2 * GRID[1]
    assert min(seen_from(operator, N - 1)) > N - 1 - 2 * GRID[1]


@pytest.mark.parametrize("name", ["hyena_x_2d", "swa_2d", "mix_ffn"])
def test_frames_do_not_mix_in_two_dimensions(name: str) -> None:
    x = torch.randn(1, N, WIDTH, dtype=torch.float64)
    operator = made(name)
    whole = operator(x, grid=(3, 3, 11))
    torch.testing.assert_close(whole[:, 33:66], operator(x[:, 33:66], grid=(3, 11)))


# Independent oracles


def test_mha_is_torch_s_attention() -> None:
    operator = made("mha")
    oracle = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    oracle.in_proj_weight.data, oracle.in_proj_bias.data = operator.qkv.weight.data, operator.qkv.bias.data
    oracle.out_proj.load_state_dict(operator.proj.state_dict())
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(operator(x), oracle(x, x, x, need_weights=False)[0])


def test_a_window_over_everything_is_full_attention() -> None:
    full, window = made("mha"), made("swa", window=N)
    window.Wqkv.load_state_dict(full.qkv.state_dict())
    window.out_proj.load_state_dict(full.proj.state_dict())
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(window(x), full(x))


def test_a_square_over_the_whole_grid_is_full_attention_and_a_row_of_it_a_window_of_the_raster() -> None:
    full, wide, near = made("mha"), made("swa_2d", window=11), made("swa_2d", window=3)
    raster = made("swa", window=3)
    for one in (wide, near):
        one.load_state_dict(full.state_dict())
    raster.Wqkv.load_state_dict(full.qkv.state_dict())
    raster.out_proj.load_state_dict(full.proj.state_dict())
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(wide(x, grid=GRID), full(x))
    torch.testing.assert_close(near(x, grid=(1, N)), raster(x))


def test_linear_attention_starts_without_its_filter_and_adds_one_of_the_values() -> None:
    torch.manual_seed(3)
    plain = operators.build("linear", width=WIDTH, heads=HEADS)
    local = operators.build("linear", width=WIDTH, heads=HEADS, local=3)
    local.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, N, WIDTH)
    assert torch.equal(local(x, grid=GRID), plain(x))
    convolution.make_identity(local.local, at=1)  # values themselves, on top of what attention returns
    values = plain.qkv_projection(x)[..., 2 * WIDTH :]
    torch.testing.assert_close(local.features(x, grid=GRID), plain.features(x) + values)


def test_mamba2_both_ways_is_a_recurrence_each_way() -> None:
    forward, both = made("mamba2"), made("mamba2", direction="both")
    both.load_state_dict(forward.state_dict(), strict=False)
    both.conv1d_back.load_state_dict(both.conv1d.state_dict())
    for part in ("dt_bias", "A_log", "D"):  # the same recurrence backwards reads the mirror image as the other does
        getattr(both, f"{part}_back").data.copy_(getattr(both, part).data)
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    z, mixed, step = both.split(x)
    once, mirrored = both.scan(mixed, step), both.scan(mixed.flip(1), step.flip(1)).flip(1)
    torch.testing.assert_close(both(x), both.out_projection(both.norm(once + mirrored, z)))
    torch.testing.assert_close(both(x.flip(1)), both(x).flip(1))


@pytest.mark.parametrize("back", ["", "_back"])
def test_mamba2_starts_with_the_published_steps_and_decays(back: str) -> None:
    """Over 2,048 heads: steps log-uniform from 0.001 to 0.1, decays uniform from 1 to 16, the input let through."""
    torch.manual_seed(4)
    operator = operators.build("mamba2", width=256, head_dim=1, expand=8, direction="both")
    step = F.softplus(getattr(operator, f"dt_bias{back}").double()).detach().log10()
    decay = getattr(operator, f"A_log{back}").double().detach().exp()
    assert len(step) == len(decay) == 2048
    assert -1 - 6e-3 < step.max() < -1 + 1e-5  # the inverse of softplus is no mere logarithm
    assert kstest(step, "uniform", (-3, 2)).pvalue > 1e-3 and kstest(decay, "uniform", (1, 15)).pvalue > 1e-3
    assert set(getattr(operator, f"D{back}").tolist()) == {1.0}


def test_mamba2_s_norm_by_hand() -> None:
    """On numbers so small that the constant beneath the root counts."""
    torch.manual_seed(4)
    norm = operators.build("mamba2", width=WIDTH).norm.double()
    norm.weight.data += 0.3 * torch.randn_like(norm.weight)
    x, z = 4e-3 * torch.randn(5, 2 * WIDTH, dtype=torch.float64), torch.randn(5, 2 * WIDTH, dtype=torch.float64)
    gated = x.numpy() * z.numpy() / (1 + np.exp(-z.numpy()))
    wanted = gated / np.sqrt((gated**2).mean(-1, keepdims=True) + 1e-5) * norm.weight.detach().numpy()
    np.testing.assert_allclose(norm(x, z).detach().numpy(), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["hyena_se", "hyena_y"])
def test_a_fresh_inner_filter_lets_everything_through(name: str) -> None:
    """Features are q · k · v, of what torch's own causal convolution makes of the projection where there is one."""
    torch.manual_seed(4)
    operator = operators.build(name, width=WIDTH)
    x = torch.randn(2, N, WIDTH)
    h = operator.in_proj(x)
    if name == "hyena_se":
        h = F.conv1d(F.pad(h.transpose(1, 2), (3, 0)), *operator.short_filter.parameters(), groups=3 * WIDTH)
        h = h.transpose(1, 2)
    q, k, v = h.chunk(3, dim=-1)
    torch.testing.assert_close(operator.features(x), q * k * v)
    assert not operator.inner_filter.bias.any()


def test_filter_is_torch_s_causal_convolution() -> None:
    conv = nn.Conv1d(6, 6, 4, groups=6, padding=3).double()
    x = torch.randn(2, 13, 6, dtype=torch.float64)
    expected = conv(x.transpose(1, 2))[..., :13].transpose(1, 2)
    torch.testing.assert_close(convolution.filter_1d(x, conv.weight, conv.bias, before=3), expected)


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_mamba2_is_one_function_whatever_the_chunk(chunk: int) -> None:
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    reference, other = made("mamba2"), made("mamba2", chunk=chunk)
    other.load_state_dict(reference.state_dict())
    torch.testing.assert_close(other(x), reference(x), rtol=1e-9, atol=1e-10)


def test_mamba2_stays_finite_where_decay_is_extreme() -> None:
    operator = operators.build("mamba2", width=WIDTH)
    operator.A_log.data.fill_(8.0)
    x = (100 * torch.randn(1, 300, WIDTH)).requires_grad_()
    y = operator(x)
    y.sum().backward()
    assert torch.isfinite(y).all() and x.grad is not None and torch.isfinite(x.grad).all()


# Weights of others, at DiT-XL/2's sizes

D = 1152
RELEASED: dict[str, dict[str, tuple[int, ...]]] = {
    "mha": {"qkv.weight": (3 * D, D), "qkv.bias": (3 * D,), "proj.weight": (D, D), "proj.bias": (D,)},
    "swa": {"Wqkv.weight": (3 * D, D), "Wqkv.bias": (3 * D,), "out_proj.weight": (D, D), "out_proj.bias": (D,)},
    "hyena_se": {
        "in_proj.weight": (3 * D, D), "in_proj.bias": (3 * D,),
        "short_filter.weight": (3 * D, 1, 4), "short_filter.bias": (3 * D,),
        "inner_filter.weight": (D, 1, 4), "inner_filter.bias": (D,),
        "out_proj.weight": (D, D), "out_proj.bias": (D,),
    },
    "hyena_x": {
        "in_proj.weight": (3 * D, D), "in_proj.bias": (3 * D,),
        "short_filter.weight": (3 * D, 1, 4), "short_filter.bias": (3 * D,),
        "out_proj.weight": (D, D), "out_proj.bias": (D,),
    },
    "hyena_y": {
        "in_proj.weight": (3 * D, D), "in_proj.bias": (3 * D,),
        "inner_filter.weight": (D, 1, 4), "inner_filter.bias": (D,),
        "out_proj.weight": (D, D), "out_proj.bias": (D,),
    },
    # d_in_proj = 2 * 2304 + 2 * 64 + 144 heads; the filter runs over 2304 + 2 * 64 channels.
    "mamba2": {
        "in_proj.weight": (4880, D), "conv1d.weight": (2432, 1, 4), "conv1d.bias": (2432,),
        "dt_bias": (144,), "A_log": (144,), "D": (144,), "norm.weight": (2304,), "out_proj.weight": (D, 2304),
    },
    "mlp": {"fc1.weight": (4 * D, D), "fc1.bias": (4 * D,), "fc2.weight": (D, 4 * D), "fc2.bias": (D,)},
    "mlp_hyena_x": {
        "in_proj.weight": (6 * D, D), "in_proj.bias": (6 * D,),
        "short_filter.weight": (256, 1, 4), "short_filter.bias": (256,),
        "out_proj.weight": (D, 2 * D), "out_proj.bias": (D,),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_has_the_keys_of_the_released_weights(name: str) -> None:
    with torch.device("meta"):
        operator = operators.build(name, width=D, heads=16, tokens=256)
    assert {key: tuple(t.shape) for key, t in operator.state_dict().items()} == RELEASED[name]


# Starts from a teacher's weights


def attention_weights(teacher: operators.Operator) -> tuple[Any, Any]:
    parts = zip(teacher.qkv.weight.chunk(3), teacher.qkv.bias.chunk(3), strict=True)
    return tuple(t for part in parts for t in part), (teacher.proj.weight, teacher.proj.bias)


@pytest.mark.parametrize("name", ["mha", "swa", "linear"])
def test_copies_all_projections(name: str) -> None:
    teacher, student = made("mha"), made(name)
    assert student.copy_from_attention(*attention_weights(teacher))
    assert torch.equal(student.qkv_projection.weight, teacher.qkv.weight)
    assert torch.equal(student.qkv_projection.bias, teacher.qkv.bias)
    assert torch.equal(student.out_projection.weight, teacher.proj.weight)
    assert torch.equal(student.out_projection.bias, teacher.proj.bias)


@pytest.mark.parametrize("name", operators.list_operators("hyena*"))
def test_hyena_starts_near_its_own_values(name: str) -> None:
    teacher, student = made("mha"), made(name, shake=0.0)
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    own = teacher.proj(teacher.qkv(x).chunk(3, dim=-1)[2])

    def off() -> float:
        with torch.no_grad():
            return float((student(x, grid=GRID) - own).square().mean() / own.square().mean())

    assert off() > 0.9
    assert student.copy_from_attention(*attention_weights(teacher)) and off() < 0.5
    assert len(seen_from(student, HERE)) > 1, "the values' filter mixes"
    if student.has_short:
        gates = torch.zeros_like(student.short_filter.weight[: 2 * WIDTH])
        gates[(slice(None), 0, *[student.before] * student.dimensions)] = 1
        assert torch.equal(student.short_filter.weight[: 2 * WIDTH], gates)
    assert torch.equal(student.in_proj.weight[2 * WIDTH :], teacher.qkv.weight[2 * WIDTH :])
    assert torch.equal(student.out_proj.weight, teacher.proj.weight)


def copies_attention(name: str) -> bool:
    return operators.get(name).copy_from_attention is not operators.Operator.copy_from_attention


@pytest.mark.parametrize("name", [name for name in operators.list_operators("*") if copies_attention(name)])
def test_no_two_rows_of_a_copied_weight_learn_alike(name: str) -> None:
    # What begins equal and has equal gradients stays equal for good, and is one where two are paid for.
    teacher, student = made("mha"), made(name, shake=0.0)
    assert student.copy_from_attention(*attention_weights(teacher))
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    (student(x, grid=GRID) * torch.randn(2, N, WIDTH, dtype=torch.float64)).sum().backward()
    for key, parameter in student.named_parameters():
        if parameter.ndim > 1:
            rows = torch.cat([parameter.detach().flatten(1), parameter.grad.flatten(1)], dim=1)
            near = torch.cdist(rows, rows).fill_diagonal_(1.0)
            assert near.min() > 1e-6 * rows.norm(dim=1).mean(), key


def test_local_mean_starts_near_values_and_their_mean() -> None:
    teacher, student = made("mha"), made("local_mean")
    assert student.copy_from_attention(*attention_weights(teacher))
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    v = teacher.qkv(x).chunk(3, dim=-1)[2].detach()
    local, mean = student.features(x, grid=GRID).detach().chunk(2, dim=-1)
    for given, wanted, most in ((local, v, 0.5), (mean, v.mean(1, keepdim=True).expand_as(v), 0.1)):
        assert 0 < (given - wanted).square().mean() / wanted.square().mean() < most


def test_local_mean_s_copied_output_reads_half_of_each() -> None:
    teacher, student = made("mha"), made("local_mean")
    assert student.copy_from_attention(*attention_weights(teacher))
    local, mean = student.features(torch.randn(2, N, WIDTH, dtype=torch.float64), grid=GRID).chunk(2, dim=-1)
    torch.testing.assert_close(student.out_projection(torch.cat([local, mean], -1)), teacher.proj((local + mean) / 2))


def test_a_copied_linear_attention_is_its_kernel_over_the_source_s_projections() -> None:
    teacher, student = made("mha"), made("linear")
    assert student.copy_from_attention(*attention_weights(teacher))
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in teacher.qkv(x).chunk(3, dim=-1))
    pairs = torch.einsum("bnhc,bmhc->bhnm", F.elu(q) + 1, F.elu(k) + 1)
    mixed = torch.einsum("bhnm,bmhc->bnhc", pairs / pairs.sum(-1, keepdim=True), v).flatten(2)
    torch.testing.assert_close(student(x), teacher.proj(mixed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mha", "swa", "linear", "local_mean", "hyena_se", "hyena_y"])
def test_a_source_without_biases_is_one_whose_biases_are_zero(name: str) -> None:
    qkv, out = attention_weights(made("mha"))
    bare, zero = made(name), made(name)
    torch.manual_seed(2)
    assert bare.copy_from_attention((qkv[0], None, qkv[2], None, qkv[4], None), (out[0], None))
    zeros = [torch.zeros_like(bias) for bias in qkv[1::2]]
    torch.manual_seed(2)
    assert zero.copy_from_attention(
        (qkv[0], zeros[0], qkv[2], zeros[1], qkv[4], zeros[2]), (out[0], torch.zeros_like(out[1]))
    )
    for key, value in zero.state_dict().items():
        assert torch.equal(bare.state_dict()[key], value), key
    assert not bare.out_projection.bias.any()


@pytest.mark.parametrize("ratio", [3, 4, 6])
def test_an_mlp_without_biases_is_copied_as_one(ratio: int) -> None:
    teacher, student = made("mlp"), made("mlp", ratio=ratio)
    assert student.copy_from_mlp((teacher.fc1.weight, None), (teacher.fc2.weight, None))
    assert not student.fc2.bias.any() and not student.fc1.bias[: min(ratio, 4) * WIDTH].any()
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    if ratio >= 4:
        hidden = F.gelu(F.linear(x, teacher.fc1.weight), approximate="tanh")
        torch.testing.assert_close(student(x), F.linear(hidden, teacher.fc2.weight))


def test_says_when_nothing_was_copied() -> None:
    weights = attention_weights(made("mha"))
    for name in ("mamba2", "mlp", "mlp_hyena_x", "mix_ffn"):
        student = made(name)
        before = {key: t.clone() for key, t in student.state_dict().items()}
        assert student.copy_from_attention(*weights) is False
        assert all(torch.equal(before[key], t) for key, t in student.state_dict().items())
    for name in ("mha", "swa", "hyena_x", "local_mean"):
        assert made(name, width=48).copy_from_attention(*weights) is False


@pytest.mark.parametrize("ratio", [4, 4.5, 6])
def test_a_wider_mlp_contains_the_source(ratio: float) -> None:
    teacher, student = made("mlp"), made("mlp", ratio=ratio)
    assert student.copy_from_mlp((teacher.fc1.weight, teacher.fc1.bias), (teacher.fc2.weight, teacher.fc2.bias))
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-14, atol=1e-14)


def test_a_narrower_mlp_keeps_the_units_that_matter() -> None:
    teacher, student = made("mlp"), made("mlp", ratio=3)
    dead = torch.randperm(4 * WIDTH)[:WIDTH]
    teacher.fc2.weight.data[:, dead] = 0
    assert student.copy_from_mlp((teacher.fc1.weight, teacher.fc1.bias), (teacher.fc2.weight, teacher.fc2.bias))
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(student(x), teacher(x))


def mix_ffn(width: int = WIDTH) -> Any:
    """SANA's own, random, and its weights as a start takes them."""
    from diffusers.models.transformers.sana_transformer import GLUMBConv

    torch.manual_seed(3)
    made: Any = GLUMBConv(width, width, 2.5, residual_connection=False).double()
    first, filters, last = made.conv_inverted, made.conv_depth, made.conv_point
    weights = (
        (first.weight.flatten(1), first.bias),
        (filters.weight, filters.bias),
        (last.weight.flatten(1), last.bias),
    )
    return made, weights


def on_grid(module: Any, x: Tensor) -> Tensor:
    """A convolution's output as tokens."""
    image = x.transpose(1, 2).unflatten(2, GRID)
    return module(image).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("ratio", [2.5, 3, 4])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_mix_ffn_of_sana_s_size_or_wider_is_sana_s(ratio: float, kernel: int) -> None:
    module, weights = mix_ffn()
    student = made("mix_ffn", ratio=ratio, kernel=kernel)
    assert student.copy_from_mix_ffn(*weights) is True
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(student(x, grid=GRID), on_grid(module, x))


def test_a_narrower_mix_ffn_keeps_the_units_that_matter() -> None:
    module, weights = mix_ffn()
    hidden = module.conv_point.in_channels
    module.conv_point.weight.data[:, torch.randperm(hidden)[: hidden - 2 * WIDTH]] = 0
    student = made("mix_ffn", ratio=2)
    assert student.copy_from_mix_ffn(*weights) is True
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(student(x, grid=GRID), on_grid(module, x))
    assert made("mix_ffn", width=48).copy_from_mix_ffn(*weights) is False
    assert made("mlp").copy_from_mix_ffn(*weights) is False


def test_a_mix_ffn_starts_near_a_perceptron() -> None:
    """Through open gates it is the perceptron with silu in the place of gelu, which differs by 0.021 of a unit."""
    teacher, student = made("mlp", shake=1.0), made("mix_ffn", ratio=4)
    assert student.copy_from_mlp((teacher.fc1.weight, teacher.fc1.bias), (teacher.fc2.weight, teacher.fc2.bias))
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    units = F.linear(x, teacher.fc1.weight, teacher.fc1.bias)
    sigmoid = F.linear(units * torch.sigmoid(1.702 * units), teacher.fc2.weight, teacher.fc2.bias)
    torch.testing.assert_close(student(x, grid=GRID), sigmoid, rtol=1e-6, atol=1e-6)
    bound = 0.021 * teacher.fc2.weight.abs().sum(1)
    assert ((student(x, grid=GRID) - teacher(x)).abs() <= bound).all()


# Sabotage: the comparison with the definition must notice each of these


def disagrees(operator: operators.Operator) -> bool:
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    return not torch.allclose(operator(x, grid=GRID), operator.naive(x, grid=GRID), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["hyena_se", "hyena_x", "hyena_y", "hyena_x_centred"])
def test_a_filter_off_by_one_token_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = convolution.filter_1d

    def off_by_one(x: Tensor, weight: Tensor, bias: Tensor | None, *, before: int) -> Tensor:
        return true(x, weight, bias, before=before - 1)

    assert not disagrees(made(name))
    monkeypatch.setattr(convolution, "filter_1d", off_by_one)
    assert disagrees(made(name))


@pytest.mark.parametrize("name", ["mha", "swa", "linear"])
def test_queries_and_keys_swapped_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = operators.get(name)
    true: Callable[..., tuple[Tensor, Tensor, Tensor]] = cls.split_heads  # type: ignore[attr-defined]
    operator = made(name)
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    expected = operator.naive(x)

    def swapped(self: Any, x: Tensor, **padding: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = true(self, x, **padding)
        return k, q, v

    torch.testing.assert_close(operator(x), expected)
    monkeypatch.setattr(cls, "split_heads", swapped)
    assert not torch.allclose(operator(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", operators.list_operators("hyena*"))
@pytest.mark.parametrize("gate", ["q", "k"])
def test_a_dropped_gate_is_noticed(name: str, gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = made(name)
    x = torch.randn(2, N, WIDTH, dtype=torch.float64)
    expected = operator.naive(x, grid=GRID)
    true = F.linear

    def dropped(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = true(x, weight, bias)
        if weight.shape[0] == 3 * WIDTH:
            start = 0 if gate == "q" else WIDTH
            y = torch.cat([y[..., :start], torch.ones_like(y[..., :WIDTH]), y[..., start + WIDTH :]], dim=-1)
        return y

    torch.testing.assert_close(operator(x, grid=GRID), expected)
    monkeypatch.setattr(F, "linear", dropped)
    assert not torch.allclose(operator(x, grid=GRID), expected, rtol=1e-6, atol=1e-6)
