"""Operators among the picture's tokens of joint attention: text goes on as it did, by closed forms and naive twins."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from test_hosts_table import HOSTS, ready, sd3
from torch import nn

from grafting.activations import visit_spans
from grafting.conditions import each
from grafting.cost import host_flops, plan_cost, site_parameters
from grafting.graft import graft
from grafting.hosts import HostError, Site, host_for, shape_of
from grafting.hosts.shapes import bundled_config
from grafting.initialise import make_stand_in
from grafting.joint import Joint
from grafting.operators import arithmetic, list_operators
from grafting.plan import Plan, PlanError

ROWS = [name for name in HOSTS if name.startswith("SD3")]
MIXERS = [name for name in list_operators() if arithmetic(name).kind == "mixer"]
N, L, D, H = 16, 5, 32, 2


def placed(row: str, operator: str, block: int, **options: Any) -> tuple[Any, Joint, torch.Tensor, torch.Tensor]:
    """An original attention, the same site with ``operator``, and tokens of picture and text."""
    model, *_ = ready(row)
    host, site = host_for(model), Site(block, "attn")
    (entry,) = Plan.explicit(operator=operator, blocks=[block], **options).resolve(model)
    made = make_stand_in(host, model, host.get(model, site), entry, "copy", 0)
    assert isinstance(made, Joint)
    return host.get(model, site), made, torch.randn(2, N, D), torch.randn(2, L, D)


def parts(attention: Any, x: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
    """q, k, v of the picture, then of the text, by hand: (B, H, n, C) each."""
    found = []
    for given, names, norms in (
        (x, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k", None)),
        (text, ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k", None)),
    ):
        for name, norm in zip(names, norms, strict=True):
            heads = getattr(attention, name)(given).view(len(x), -1, H, D // H).transpose(1, 2)
            module = getattr(attention, norm) if norm else None
            found.append(heads if module is None else module(heads))
    return found


def merged(heads: torch.Tensor) -> torch.Tensor:
    return heads.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("operator", "options"), [("mha", {}), ("swa", {"window": N}), ("swa_2d", {"window": N})])
def test_attention_over_all_tokens_is_the_original(row: str, operator: str, options: dict[str, Any]) -> None:
    """In every block, the last among them, where text ends: the copied start is the whole model's own output."""
    model, z, t, condition = ready(row)
    call = partial(host_for(model).call, model, z, t, condition)
    before = call().detach()
    graft(model, Plan.all(operator=operator, **options), init="copy")
    torch.testing.assert_close(call(), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("block", [1, 2])
def test_a_window_and_the_text_share_one_softmax(row: str, block: int) -> None:
    original, made, x, text = placed(row, "swa", block, window=2)
    q, k, v, tq, tk, tv = parts(original, x, text)
    apart = (torch.arange(N)[:, None] - torch.arange(N)).abs()
    seen = torch.cat([apart <= 2, torch.ones(N, L, dtype=torch.bool)], dim=1)
    scores = (q @ torch.cat([k, tk], 2).mT / (D // H) ** 0.5).masked_fill(~seen, -torch.inf)
    wanted = original.to_out[0](merged(scores.softmax(-1) @ torch.cat([v, tv], 2)))
    picture, told = made(x, grid=(4, 4), context=text)
    torch.testing.assert_close(picture, wanted, rtol=1e-4, atol=1e-5)
    if block == 2:  # the last: text ends
        assert told is text and not any("add_q" in name or "to_add_out" in name for name in made.state_dict())
        return
    both = (tq @ torch.cat([k, tk], 2).mT / (D // H) ** 0.5).softmax(-1) @ torch.cat([v, tv], 2)
    torch.testing.assert_close(told, original.to_add_out(merged(both)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told, original(x, encoder_hidden_states=text)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_a_square_and_the_text_share_one_softmax(row: str) -> None:
    original, made, x, text = placed(row, "swa_2d", 1, window=1)
    q, k, v, _, tk, tv = parts(original, x, text)
    place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(8), indexing="ij")).flatten(1)
    apart = (place[:, :, None] - place[:, None, :]).abs().amax(0)
    seen = torch.cat([apart <= 1, torch.ones(N, L, dtype=torch.bool)], dim=1)
    scores = (q @ torch.cat([k, tk], 2).mT / (D // H) ** 0.5).masked_fill(~seen, -torch.inf)
    wanted = original.to_out[0](merged(scores.softmax(-1) @ torch.cat([v, tv], 2)))
    torch.testing.assert_close(made(x, grid=(2, 8), context=text)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_linear_attention_reads_text_under_its_own_normaliser(row: str) -> None:
    original, made, x, text = placed(row, "linear", 1, feature_map="relu")
    q, k, v, _, tk, tv = parts(original, x, text)
    pairs = q.relu() @ torch.cat([k, tk], 2).relu().mT
    wanted = original.to_out[0](merged(pairs @ torch.cat([v, tv], 2) / (pairs.sum(-1, keepdim=True) + 1e-6)))
    torch.testing.assert_close(made(x, grid=(4, 4), context=text)[0], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("operator", ["hyena_x", "hyena_x_2d", "local_mean", "mamba2", "none"])
def test_other_operators_stand_beside_what_the_picture_reads_of_the_text(row: str, operator: str) -> None:
    """Softmax over text and the picture, which counts as N tokens of weight exp(balance); text sees both as before."""
    original, made, x, text = placed(row, operator, 1)
    assert made.balance is not None
    nn.init.normal_(made.balance)
    q, _, _, _, tk, tv = parts(original, x, text)
    weights = (q @ tk.mT / (D // H) ** 0.5).exp()
    picture = N * made.balance.exp().view(1, H, 1, 1)
    read = merged(weights @ tv / (weights.sum(-1, keepdim=True) + picture))
    if operator == "none":
        wanted = original.to_out[0](read)
    elif made.wide:
        assert made.operator is not None
        wanted = made.operator(x, grid=(4, 4)) + original.to_out[0](read)
    else:
        assert made.operator is not None
        wanted = made.operator.out_projection(made.operator.features(x, grid=(4, 4)) + read)
    given, told = made(x, grid=(4, 4), context=text)
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    # hyena's values start as the original's, so that what text reads is the same in every case.
    torch.testing.assert_close(told, original(x, encoder_hidden_states=text)[1], rtol=1e-4, atol=1e-5)


def test_the_picture_counts_as_all_of_its_tokens_in_half_precision() -> None:
    """Of 16,384 of its tokens and 5 of the text all weights are one: the text is read with 5 / 16,389 of them."""
    _, made, _, text = placed("SD3", "none", 1)
    made = made.bfloat16()
    for name, constant in (("to_q", 0.0), ("add_v_proj", 1.0)):
        for parameter in made.kept[name].parameters():
            nn.init.constant_(parameter, 0.0)
        nn.init.constant_(made.kept[name].bias, constant)  # type: ignore[arg-type]
    with torch.no_grad():
        read = made.read(torch.randn(2, 16384, D).bfloat16(), made.text(text.bfloat16()))
    torch.testing.assert_close(read.float(), torch.full_like(read, 5 / 16389).float(), rtol=5e-3, atol=0)


def test_values_that_are_lent_are_what_text_reads() -> None:
    _, made, x, text = placed("SD3", "hyena_x", 1)
    before = made(x, grid=(4, 4), context=text)
    assert made.operator is not None and "to_v" not in made.kept
    with torch.no_grad():
        made.operator.in_proj.weight[2 * D :] *= 2  # type: ignore[union-attr, operator]
    after = made(x, grid=(4, 4), context=text)
    assert all((new - old).abs().max() > 1e-4 for new, old in zip(after, before, strict=True))


def test_none_leaves_the_text_to_every_token_of_the_picture_and_nothing_else() -> None:
    _, made, x, text = placed("SD3", "none", 1)
    before = made(x, grid=(4, 4), context=text)[0]
    x[:, 3] += 1
    moved = (made(x, grid=(4, 4), context=text)[0] - before).abs().amax((0, 2))
    assert moved[3] > 1e-4 and not moved[:3].any() and not moved[4:].any()
    text[:, 1] += 1
    assert (made(x, grid=(4, 4), context=text)[0] - before).abs().amax((0, 2)).min() > 1e-5


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("operator", [*MIXERS, "none", "identity"])
def test_parameters_and_flops_are_those_that_formulas_say(row: str, operator: str) -> None:
    """Of the whole model with its graft, against torch's counters, in a block where text goes on and where it ends."""
    from torch.utils.flop_counter import FlopCounterMode

    model, z, t, condition = ready(row)
    host = host_for(model)
    z, t, condition = (each(part, lambda x: x[:1].to("meta")) for part in (z, t, condition))
    height, width = z.shape[2:]
    shape = shape_of({**model.config, "_class_name": "SD3Transformer2DModel", "text_tokens": L}).at(
        (height // 2, width // 2)
    )

    def count(model: nn.Module) -> int:
        # Without numbers: of attention on a CPU torch's counter knows nothing.
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            host.call(model.to("meta"), z, t, condition)
        return int(counter.get_total_flops())

    shared = 2 * (L * 12 * D + 10 * D + 256 * D + 2 * D * D)  # embedders of text and time, once a call
    assert host_flops(shape) == count(copy.deepcopy(model)) - shared
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    plan = Plan.explicit(operator=operator, blocks=[1, 2])
    cost, handle = plan_cost(plan, shape), graft(model, plan, init="random")
    made = handle.operators()
    assert [site.parameters_after for site in cost.sites] == [
        sum(p.numel() for p in m.parameters()) for m in made.values()
    ]
    originals = [switch.original for switch in handle.switches.values()]
    assert [site.parameters_before for site in cost.sites] == [
        sum(p.numel() for p in original.parameters()) for original in originals if original is not None
    ]
    if operator != "swa_2d" or height == width:  # whose formula is of squares
        # Torch counts filters with their padding.
        assert cost.flops_after == pytest.approx(count(model) - shared, rel=2e-3)
    assert site_parameters(shape, "mlp") == sum(p.numel() for p in host.get(model, Site(1, "mlp")).parameters())


def test_a_solved_start_is_of_the_picture_and_stage_one_of_both() -> None:
    """By stream; the last block has the picture's alone."""
    model, z, t, condition = ready("SD3.5, no square")
    host = host_for(model)

    def batch(_: int) -> dict[str, Any]:
        return {"z": torch.randn(2, 3, 4, 16), "y": condition}

    handle = graft(model, Plan.all(operator="hyena_x"), calibration=batch, calibration_batches=2)
    assert set(handle.explained) == set(handle.switches) and all(0 < share < 1 for share in handle.explained.values())
    sizes: dict[Any, Any] = {}

    def look(site: Any, inputs: torch.Tensor, outputs: Any, call: Any) -> None:
        answered = handle.pupils()[site].answer(inputs, outputs, call)
        sizes[site.block] = [(given.shape[1], wanted.shape[1]) for given, wanted in answered]

    with handle.teacher(), visit_spans({site: p.spans for site, p in handle.pupils().items()}, look, host.streams):
        host.call(model, z, t, condition)
    assert sizes == {0: [(N, N), (L, L)], 1: [(N, N), (L, L)], 2: [(N, N)]}
    other = graft(
        HOSTS["SD3"]()[0],
        Plan.all(operator="mha"),
        calibration=lambda _: {"z": z[:, :, :, :8].repeat(1, 1, 2, 1), "y": condition},
    )
    assert set(other.explained.values()) == {1.0}


def test_a_solved_last_layer_is_the_least_squares_one() -> None:
    model, _, _, condition = ready("SD3")
    z, host, site = torch.randn(16, 3, 8, 8), host_for(model), Site(1, "attn")
    y = {key: torch.cat([value] * 8) for key, value in condition.items()}
    original = copy.deepcopy(host.get(model, site))
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    host.get(model, site).register_forward_hook(
        lambda _, args, kwargs, out: seen.append((kwargs["hidden_states"], kwargs["encoder_hidden_states"], out[0])),
        with_kwargs=True,
    )
    handle = graft(
        model,
        Plan.explicit(operator="hyena_x", blocks=[1]),
        calibration=lambda _: {"z": z, "y": y},
        calibration_batches=1,
    )
    made = handle.operators()[site]
    assert isinstance(made, Joint) and made.operator is not None
    x, text, wanted = seen[0]
    q, k, _, _, tk, tv = parts(original, x, text)
    scale = (D // H) ** 0.5
    # The picture counts at the start as it does in the original, in the mean over its queries.
    picture = (q @ k.mT / scale).exp().sum(-1).log().mean((0, 2))
    assert made.balance is not None
    torch.testing.assert_close(made.balance + torch.tensor(N).log(), picture)
    weights = (q @ tk.mT / scale).exp()
    read = weights @ tv / (weights.sum(-1, keepdim=True) + picture.exp().view(1, H, 1, 1))
    features = made.operator.features(x, grid=(4, 4)) + merged(read)
    features = features.flatten(0, 1)
    design = torch.cat([features, torch.ones(len(features), 1)], 1)
    best = torch.linalg.lstsq(design.double(), wanted.flatten(0, 1).double()).solution
    assert ((design.double() @ best) - made.out_projection(features)).abs().max() < 2e-3


def test_blocks_are_not_rearranged_and_conditions_are_whole() -> None:
    model, condition, _ = sd3()
    with pytest.raises(PlanError, match="carry text beside the picture"):
        Plan.from_dict({"restructure": [{"drop": [1]}]}).check(model).raise_if_any()
    with pytest.raises(HostError, match="pooled_projections"):
        host_for(model).call(model, torch.zeros(2, 3, 8, 8), torch.tensor([1, 1]), {"encoder_hidden_states": condition})
    with pytest.raises(HostError, match=r"dual_attention_layers \[1\]"):
        shape_of({**model.config, "_class_name": "SD3Transformer2DModel", "dual_attention_layers": [1]})


def test_published_sizes() -> None:
    """Of 3 medium and 3.5 medium and large, as their cards say: thousand millions of numbers, the table of positions,
    which does not train, among them."""
    for name, size in (("sd3-medium-1024", 2.0), ("sd3.5-medium-1024", 2.5), ("sd3.5-large-1024", 8.1)):
        config = bundled_config(name)
        shape = shape_of(config)
        stored = shape.parameters + config["pos_embed_max_size"] ** 2 * shape.width
        assert stored / 1e9 == pytest.approx(size, rel=0.05), name


class Told(nn.Module):
    """Answers with a constant of the input's shape; at joint attention for the text too."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: Any = None) -> Any:
        mine = torch.full_like(hidden_states, self.value)
        return mine if encoder_hidden_states is None else (mine, torch.full_like(encoder_hidden_states, 2 * self.value))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("site", [Site(block, kind) for block in (0, 1, 2) for kind in ("attn", "mlp")])  # type: ignore[arg-type]
def test_gates_are_what_a_unit_output_adds(row: str, site: Site) -> None:
    """To picture and text, in a block with a second attention, without, and in the last."""
    model, z, t, condition = ready(row)
    host, block = host_for(model), model.transformer_blocks[site.block]  # type: ignore[index, union-attr]
    for name in ("attn", "attn2", "ff", "ff_context"):
        if getattr(block, name, None) is not None:
            setattr(block, name, Told(0.0))
    shown: list[Any] = []
    block.register_forward_hook(lambda module, _, output: shown.append(host.streams(module, output)))
    with torch.no_grad():
        for value in (0.0, 1.0):
            host.set(model, site, Told(value))
            host.call(model, z, t, condition)
        gate = host.gates(model, z, t, condition)[site]
    assert gate.shape == (2, 2 if site.kind == "attn" and site.block < 2 else 1, D)
    assert (gate[0] - gate[1]).abs().max() > 1e-4, "the gate depends on the timestep"
    for stream, (after, before) in enumerate(zip(*reversed(shown), strict=True)):
        wanted = (stream + 1) * gate[:, stream : stream + 1] if stream < gate.shape[1] else torch.zeros(2, 1, D)
        torch.testing.assert_close(after - before, wanted.expand_as(after), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_queries_and_keys_are_those_that_attention_takes_of_the_picture(row: str) -> None:
    original, _, x, text = placed(row, "mha", 1)
    q, k, *_ = parts(original, x, text)
    model, *_ = ready(row)
    given = host_for(model).queries_keys(original, x)
    torch.testing.assert_close(given[0], q / (D // H) ** 0.5)
    torch.testing.assert_close(given[1], k)
