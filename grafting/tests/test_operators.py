"""The table: every registered operator answers the same questions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grafting import operators

NAMES = operators.list_operators()
WIDTH, HEADS = 24, 3
# Odd lengths, below and above the block sizes, on grids that are no squares; video grids too.
GRIDS = [(1, 1), (1, 3), (5, 7), (3, 43), (3, 5, 7)]
VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in NAMES] + [
    ("linear", {"feature_map": "relu"}),
    ("linear", {"feature_map": "learned"}),
    ("swa", {"window": 20}),
    ("swa", {"window": 1}),
    ("swa_2d", {"window": 1}),
    ("swa_2d", {"window": 5}),
    ("linear", {"local": 3}),
    ("mamba2", {"direction": "both", "state": 8, "head_dim": 8, "chunk": 4}),
    ("hyena_se", {"kernel": 3}),
    ("hyena_x_centred", {"kernel": 3}),
    ("hyena_x_2d", {"kernel": 5}),
    ("local_mean", {"kernel": 1}),
    ("mamba2", {"state": 8, "head_dim": 8, "chunk": 16, "expand": 1, "kernel": 2}),
    ("mlp", {"ratio": 2.5}),
    ("mlp_hyena_x", {"ratio": 1, "kernel": 3}),
    ("mix_ffn", {"ratio": 1.5, "kernel": 5}),
]
IDS = [name + "".join(f"-{k}={v}" for k, v in options.items()) for name, options in VARIANTS]
each = pytest.mark.parametrize("name", NAMES)
each_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)


def made(name: str, tokens: int, dtype: torch.dtype = torch.float64, **options: Any) -> operators.Operator:
    """An operator with every parameter random, so that no gate or filter hides behind a one or a zero."""
    torch.manual_seed(1)
    operator = operators.build(name, width=WIDTH, heads=HEADS, tokens=tokens, **options)
    for parameter in operator.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return operator.to(dtype)


def tokens_of(grid: tuple[int, ...]) -> int:
    return int(torch.tensor(grid).prod())


def gradients(operator: operators.Operator, x: Tensor, y: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    wanted = [x, *operator.parameters()]
    return list(torch.autograd.grad((y * torch.randn_like(y)).sum(), wanted))


def test_the_issue_s_operators_are_there() -> None:
    promised = (
        "mha swa swa_2d hyena_se hyena_x hyena_y mamba2 mlp mlp_hyena_x linear hyena_x_centred hyena_x_2d local_mean"
    )
    assert set(promised.split()) <= set(NAMES)
    assert operators.list_operators("hyena*") == sorted(name for name in NAMES if name.startswith("hyena"))


@each_variant
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_output_and_gradients_agree_with_the_definition(
    name: str, options: dict[str, Any], grid: tuple[int, ...]
) -> None:
    operator = made(name, tokens_of(grid), **options)
    x = torch.randn(2, tokens_of(grid), WIDTH, dtype=torch.float64, requires_grad=True)
    fast, slow = operator(x, grid=grid), operator.naive(x, grid=grid)
    assert fast.shape == x.shape
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)
    for a, b in zip(gradients(operator, x, fast), gradients(operator, x, slow), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_keeps_dtype_and_repeats_itself(name: str, dtype: torch.dtype) -> None:
    operator = made(name, 64, dtype)
    x = torch.randn(2, 64, WIDTH, dtype=dtype)
    y = operator(x)
    assert y.dtype == dtype and y.shape == x.shape and torch.isfinite(y).all()
    assert torch.equal(y, operator(x))


def test_half_precision_keeps_sums_over_many_tokens() -> None:
    """In float16 the normaliser of 4,096 tokens is beyond the largest number; in bfloat16 decays would round away."""
    x = torch.randn(1, 4096, WIDTH)
    linear = made("linear", 4096, torch.float16)
    linear.qkv_projection.bias.data += 8  # type: ignore[operator, union-attr]  # so that sums are of some 10^6
    y, exact = linear(x.half()), linear.float()(x.half().float())
    torch.testing.assert_close(y.float(), exact, rtol=2e-2, atol=2e-2 * exact.abs().max().item())
    mamba = made("mamba2", 4096, torch.bfloat16)
    *_, step, decay = mamba.inputs(*mamba.split(x.bfloat16())[1:])  # type: ignore[operator]
    assert step.dtype == decay.dtype == torch.float32


@pytest.mark.parametrize("feature_map", ["elu+1", "learned"])
def test_half_precision_keeps_sums_under_autocast_too(feature_map: str) -> None:
    """Which would turn the products of what was made float32 into float16 again, where they are infinite."""
    linear = made("linear", 4096, torch.float32, feature_map=feature_map, local=3)
    x = torch.randn(1, 4096, WIDTH)
    linear.qkv_projection.bias.data += 8  # type: ignore[operator, union-attr]
    with torch.no_grad():
        exact = linear(x)
        with torch.autocast("cpu", torch.float16):
            given = linear(x)
    torch.testing.assert_close(given.float(), exact, rtol=2e-2, atol=2e-2 * exact.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(("name", "options"), [("swa", {"window": 64}), ("swa_2d", {"window": 8})])
def test_windows_in_half_precision_are_as_exact_as_fused_attention(
    name: str, options: dict[str, Any], auto: bool, dtype: torch.dtype
) -> None:
    """On logits of some ten, where a score in half precision is off by a percent; the window sees every token."""
    torch.manual_seed(3)
    window: Any = operators.build(name, width=64, heads=2, tokens=64, **options)
    q, k, v = (scale * torch.randn(2, 64, 2, 32) for scale in (4, 4, 1))
    q, k, v = (t.to(dtype) for t in (q, k, v))
    exact = window.mix(q.double(), k.double(), v.double(), grid=(8, 8))
    with torch.autocast("cpu", dtype, enabled=auto):
        given = window.mix(q, k, v, grid=(8, 8))
        fused = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    assert given.dtype == dtype
    off = (given.double() - exact).norm()
    assert off < 1.5 * (fused.transpose(1, 2).flatten(2).double() - exact).norm()


@each_variant
def test_adapters_of_peft_work_on_every_operator(name: str, options: dict[str, Any]) -> None:
    """LoRA beside all linear layers, as a user of peft puts it there: it computes what its merged weights do."""
    peft = pytest.importorskip("peft")
    operator = made(name, 36, **options)
    layers = [path for path, layer in operator.named_modules() if isinstance(layer, torch.nn.Linear)]
    x = torch.randn(2, 36, WIDTH, dtype=torch.float64)
    before = operator(x)
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=layers), copy.deepcopy(operator))
    torch.testing.assert_close(adapted(x), before)
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
            parameter.data = parameter.data.double()
        elif "lora_A" in key:
            parameter.data = parameter.data.double()
    moved = adapted(x)
    assert not torch.allclose(moved, before, rtol=1e-3)
    for path in layers:
        layer = adapted.get_submodule(path)
        with torch.no_grad():
            operator.get_submodule(path).weight += layer.get_delta_weight("default")
    torch.testing.assert_close(moved, operator(x))


@each
def test_samples_do_not_mix(name: str) -> None:
    operator = made(name, 36)
    x = torch.randn(3, 36, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(operator(x)[1:2], operator(x[1:2]), rtol=1e-10, atol=1e-10)


@each
def test_building_is_a_function_of_the_seed(name: str) -> None:
    def weights() -> dict[str, Tensor]:
        torch.manual_seed(7)
        return operators.build(name, width=WIDTH, heads=HEADS, tokens=9).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[key], second[key]) for key in first)


@each
def test_every_parameter_is_learnt(name: str) -> None:
    operator = operators.build(name, width=WIDTH, heads=HEADS, tokens=16)
    operator(torch.randn(2, 16, WIDTH)).square().sum().backward()
    dead = [key for key, p in operator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@each_variant
def test_survives_a_file(name: str, options: dict[str, Any]) -> None:
    operator = made(name, 36, torch.float32, **options)
    again = operators.build(name, width=WIDTH, heads=HEADS, tokens=36, **operator.options)
    again.load_state_dict(load(save(operator.state_dict())))
    x = torch.randn(2, 36, WIDTH)
    assert torch.equal(operator(x), again(x))


@each_variant
@pytest.mark.parametrize(("width", "heads", "tokens"), [(24, 3, 36), (32, 4, 100), (48, 2, 144)])
def test_formulas_agree_with_counting(name: str, options: dict[str, Any], width: int, heads: int, tokens: int) -> None:
    cls = operators.get(name)
    operator = operators.build(name, width=width, heads=heads, tokens=tokens, **options)
    counted = sum(parameter.numel() for parameter in operator.parameters())
    assert cls.parameters_count(width, heads, tokens, **options) == counted
    # Counted on the meta device: the counter gives attention on a CPU zero.
    with FlopCounterMode(display=False) as counter:
        operator.to("meta")(torch.empty(1, tokens, width, device="meta"))
    assert cls.flops(width, heads, tokens, **options) == counter.get_total_flops()


@each_variant
def test_the_formula_of_features_is_what_the_last_layer_reads(name: str, options: dict[str, Any]) -> None:
    operator = operators.build(name, width=WIDTH, heads=HEADS, tokens=36, **options)
    assert operators.get(name).count_features(WIDTH, operator.options) == operator.out_projection.in_features


@each
def test_forward_is_the_last_linear_layer_of_the_features(name: str) -> None:
    operator = made(name, 36)
    x = torch.randn(2, 36, WIDTH, dtype=torch.float64)
    features = operator.features(x)
    last = operator.out_projection
    assert features.shape == (2, 36, last.in_features)
    torch.testing.assert_close(operator(x), last(features))
    changed = copy.deepcopy(operator)
    with torch.no_grad():
        changed.out_projection.weight.zero_()
    bias = torch.zeros(WIDTH, dtype=x.dtype) if last.bias is None else last.bias
    torch.testing.assert_close(changed(x), bias.expand_as(x))


@each
def test_refuses_all_wrong_options_at_once(name: str) -> None:
    with pytest.raises(operators.OperatorError) as raised:
        operators.build(
            name, width=-1, heads=HEADS, tokens=9, colour="red", **dict.fromkeys(operators.get(name).option_table)
        )
    message = str(raised.value)
    assert name in message and "width is -1" in message and "unknown option 'colour'" in message
    assert all(f"{option} is None" in message for option in operators.get(name).option_table)


@each
def test_refuses_a_tensor_or_grid_of_the_wrong_size(name: str) -> None:
    operator = made(name, 12)
    with pytest.raises(operators.OperatorError, match="input is"):
        operator(torch.zeros(1, 12, WIDTH + 1, dtype=torch.float64))
    with pytest.raises(operators.OperatorError, match="does not hold 12 tokens"):
        operator(torch.zeros(1, 12, WIDTH, dtype=torch.float64), grid=(3, 5))


def test_errors_name_the_nearest() -> None:
    with pytest.raises(operators.OperatorError, match="did you mean 'hyena_x'"):
        operators.build("hyena-x", width=8)
    with pytest.raises(operators.OperatorError, match="did you mean 'window'"):
        operators.build("swa", width=8, heads=2, windw=3)
    with pytest.raises(operators.OperatorError, match="not divisible by heads 3"):
        operators.build("mha", width=8, heads=3)
    with pytest.raises(operators.OperatorError, match="heads is None"):
        operators.build("mha", width=8)
    with pytest.raises(operators.OperatorError, match="not divisible by head_dim 16"):
        operators.build("mamba2", width=12)
    with pytest.raises(operators.OperatorError, match="form no square"):
        made("hyena_x_2d", 12)(torch.zeros(1, 12, WIDTH, dtype=torch.float64))
    with pytest.raises(operators.OperatorError, match="tied to 12 tokens"):
        made("mlp_hyena_x", 12)(torch.zeros(1, 13, WIDTH, dtype=torch.float64))


def test_a_user_s_operator_gets_its_counts_for_nothing() -> None:
    from grafting.operators import registry

    class Doubled(operators.Operator):
        def make_layers(self) -> None:
            self.out_proj = torch.nn.Linear(self.width, self.width)

        def features(self, x: Tensor, *, grid: Any = None) -> Tensor:
            return 2 * x

    try:
        operators.register("doubled")(Doubled)
        assert operators.build("doubled", width=6).name == "doubled" and "doubled" in operators.list_operators("d*")
        assert Doubled.parameters_count(6) == 42 and Doubled.flops(6, None, 5) == 2 * 5 * 36
        with pytest.raises(operators.OperatorError, match=r"'doubled' is already registered by .*Doubled of test_oper"):
            operators.register("doubled")(type("Other", (Doubled,), {}))
        with pytest.raises(operators.OperatorError, match="'mha' is already registered by MultiHeadAttention of"):
            operators.register("mha")(Doubled)
        assert operators.get("doubled") is Doubled and Doubled.name == "doubled"
    finally:
        registry.TABLE.pop("doubled", None)
    with pytest.raises(operators.OperatorError, match="must derive"):
        operators.register("linear-layer")(torch.nn.Linear)  # type: ignore[type-var]


def test_a_notebook_s_cell_may_run_twice() -> None:
    """The class that it defines anew takes the place of the one before; a class of the same name elsewhere does not."""
    cell = """
@operators.register("cell")
class Cell(operators.Operator):
    def make_layers(self):
        self.out_proj = torch.nn.Linear(self.width, self.width)
"""
    here = {"__name__": "__main__", "operators": operators, "torch": torch}
    try:
        made = []
        for _ in range(2):
            exec(cell, here)
            made.append(operators.get("cell"))
        assert made[0] is not made[1] is here["Cell"] and type(operators.build("cell", width=6)) is made[1]
        with pytest.raises(operators.OperatorError, match="'cell' is already registered by Cell of __main__"):
            exec(cell, here | {"__name__": "elsewhere"})
        assert operators.get("cell") is made[1]
    finally:
        operators.registry.TABLE.pop("cell", None)
