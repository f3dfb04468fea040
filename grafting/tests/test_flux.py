"""Operators among the picture's tokens of Flux, in blocks of two streams and of one: closed forms and naive twins."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from test_hosts_table import HOSTS, ready
from torch import nn

from grafting.activations import visit_spans
from grafting.conditions import each
from grafting.cost import host_flops, plan_cost
from grafting.graft import graft
from grafting.hosts import HostError, Site, host_for, shape_of
from grafting.hosts.flux import packed, positions, unpacked
from grafting.hosts.shapes import bundled_config
from grafting.initialise import make_stand_in
from grafting.joint import Joint, SingleStream
from grafting.measure.speed import without_cores
from grafting.operators import arithmetic, list_operators
from grafting.operators.base import Places, turned
from grafting.plan import Plan, PlanError
from grafting.searching.candidates import candidates
from grafting.searching.costs import counted

ROWS = [name for name in HOSTS if name.startswith("Flux")]
MIXERS = [name for name in list_operators() if arithmetic(name).kind == "mixer"]
N, L, D, H, C = 16, 5, 32, 2, 16
DOUBLE, SINGLE = 1, 3
"""A block of each kind."""
BOTH = pytest.mark.parametrize("block", [DOUBLE, SINGLE])


def angles() -> torch.Tensor:
    """(L + N, C / 2) of the text and then the picture; the text's are none of those that Flux has, which are zero."""
    return torch.rand(L + N, C // 2, generator=torch.Generator().manual_seed(3)) * 6


def turns() -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines as a model of diffusers hands them to its blocks."""
    both = angles().repeat_interleave(2, dim=1)
    return both.cos(), both.sin()


def turn(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """(B, H, n, C) turned by angles (n, C / 2), as complex numbers."""
    return torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(by), by)
    ).flatten(-2)


class Placed:
    """An original attention, the same site with ``operator``, tokens of text and picture, and their q, k, v by hand:
    (B, H, n, C), of which queries and keys are not turned yet."""

    def __init__(self, operator: str, block: int, **options: Any) -> None:
        model, *_ = ready("Flux dev, no square")
        host, site = host_for(model), Site(block, "attn")
        (entry,) = Plan.explicit(operator=operator, blocks=[block], **options).resolve(model)
        self.original: Any = host.get(model, site)
        made = make_stand_in(host, model, self.original, entry, "copy", 0)
        assert isinstance(made, Joint) and isinstance(made, SingleStream) == (block == SINGLE)
        self.made, self.single = made, block == SINGLE
        self.x, self.text = torch.randn(2, N, D), torch.randn(2, L, D)
        a, other = self.original, "{}" if self.single else "add_{}_proj"
        names = [other.format("to_" + k if self.single else k) for k in "qkv"]
        added = "norm_" if self.single else "norm_added_"
        for module in (a.norm_q, a.norm_k, *(getattr(a, f"{added}{k}") for k in "qk")):
            nn.init.normal_(module.weight, 1.0, 0.2)
        again = make_stand_in(host, model, self.original, entry, "copy", 0)
        assert isinstance(again, Joint)
        self.made = again
        self.q, self.k, self.v = self.heads(self.x, ["to_q", "to_k", "to_v"], "norm_")
        self.tq, self.tk, self.tv = self.heads(self.text, names, added)
        self.by_text, self.by = angles().split([L, N])

    def heads(self, x: torch.Tensor, names: list[str], norm: str) -> list[torch.Tensor]:
        parts = [getattr(self.original, name)(x).view(2, -1, H, C).transpose(1, 2) for name in names]
        return [getattr(self.original, f"{norm}q")(parts[0]), getattr(self.original, f"{norm}k")(parts[1]), parts[2]]

    def projected(self, heads: torch.Tensor) -> torch.Tensor:
        """(B, n, D) as the original projects what its picture gets."""
        flat = heads.transpose(1, 2).flatten(2)
        return flat if self.single else self.original.to_out[0](flat)

    def __call__(self, grid: tuple[int, int] = (4, 4)) -> tuple[torch.Tensor, torch.Tensor]:
        """What picture and text get of the operator."""
        places = Places(cosines=turns()[0], sines=turns()[1])
        if self.single:
            found = self.made(torch.cat([self.text, self.x], dim=1), grid=grid, places=places)
            return found[:, L:], found[:, :L]
        return self.made(self.x, grid=grid, context=self.text, places=places)

    def before(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of the original."""
        if self.single:
            found = self.original(torch.cat([self.text, self.x], dim=1), image_rotary_emb=turns())
            return found[:, L:], found[:, :L]
        return self.original(self.x, encoder_hidden_states=self.text, image_rotary_emb=turns())

    def softmax(self, seen: torch.Tensor) -> torch.Tensor:
        """(B, N, D) of the picture, whose queries see what ``seen`` (N, N + L) says, all turned by their own angles."""
        keys = torch.cat([turn(self.k, self.by), turn(self.tk, self.by_text)], dim=2)
        scores = (turn(self.q, self.by) @ keys.mT / C**0.5).masked_fill(~seen, -torch.inf)
        return self.projected(scores.softmax(-1) @ torch.cat([self.v, self.tv], dim=2))


def near(given: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)


def test_turning_is_that_of_diffusers_to_the_bit() -> None:
    x = torch.randn(2, L + N, H, C)
    wanted = apply_rotary_emb(x, turns(), sequence_dim=1)
    assert torch.equal(turned(x, *turns()), wanted)
    places = Places(cosines=turns()[0], sines=turns()[1])
    assert torch.equal(torch.cat([places.of_text(x[:, :L]), places.of_picture(x[:, L:])], 1), wanted)
    half = x.bfloat16()
    assert torch.equal(turned(half, *turns()), apply_rotary_emb(half, turns(), sequence_dim=1))


def test_latents_are_packed_and_placed_as_the_pipeline_does_it() -> None:
    z = torch.randn(2, 3, 6, 10)
    tokens = FluxPipeline._pack_latents(z, 2, 3, 6, 10)
    assert torch.equal(packed(z), tokens) and torch.equal(unpacked(tokens, (3, 5)), z)
    wanted = FluxPipeline._prepare_latent_image_ids(2, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(positions((3, 5), z.device), wanted)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("operator", "options"), [("mha", {}), ("swa", {"window": N}), ("swa_2d", {"window": 8})])
def test_attention_over_all_tokens_is_the_original(row: str, operator: str, options: dict[str, Any]) -> None:
    """In every block: the copied start is the whole model's own output."""
    model, z, t, condition = ready(row)
    call = partial(host_for(model).call, model, z, t, condition)
    before = call().detach()
    graft(model, Plan.all(operator=operator, **options), init="copy")
    near(call(), before)


@BOTH
@pytest.mark.parametrize(("operator", "grid"), [("swa", (4, 4)), ("swa_2d", (2, 8))])
def test_a_window_and_the_text_share_one_softmax_of_absolute_positions(
    block: int, operator: str, grid: tuple[int, int]
) -> None:
    """The text sees picture and text as before; a window that turned by places within itself would be far off."""
    site = Placed(operator, block, window=1)
    index = torch.arange(N)
    rows, columns = ((index // grid[1]), index % grid[1])
    apart = [(place[:, None] - place).abs() for place in ((index,) if operator == "swa" else (rows, columns))]
    seen = torch.stack(apart).amax(0) <= 1
    picture, told = site(grid)
    near(picture, site.softmax(torch.cat([seen, torch.ones(N, L, dtype=torch.bool)], dim=1)))
    near(told, site.before()[1])
    everything = site.softmax(torch.ones(N, N + L, dtype=torch.bool))
    near(site.before()[0], everything)
    assert (picture - everything).abs().max() > 0.02


@BOTH
@pytest.mark.parametrize("feature_map", ["relu", "learned"])
def test_linear_attention_turns_features_and_not_its_normaliser(block: int, feature_map: str) -> None:
    site = Placed("linear", block, feature_map=feature_map)

    def mapped(x: torch.Tensor) -> torch.Tensor:
        return x.relu() if feature_map == "relu" else torch.cat([x, -x], -1).softmax(-1)

    def placed(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return torch.cat([turn(part, by) for part in x.split(C, dim=-1)], dim=-1)

    q, k, tk = (mapped(x) for x in (site.q, site.k, site.tk))
    keys = torch.cat([placed(k, site.by), placed(tk, site.by_text)], 2)
    total = (q @ torch.cat([k, tk], 2).mT).sum(-1, keepdim=True)
    wanted = placed(q, site.by) @ keys.mT @ torch.cat([site.v, site.tv], 2) / (total + 1e-6)
    picture, told = site()
    torch.testing.assert_close(picture, site.projected(wanted), rtol=1e-3, atol=1e-4)
    near(told, site.before()[1])


@BOTH
@pytest.mark.parametrize("operator", ["hyena_x", "hyena_x_2d", "local_mean", "mamba2", "none"])
def test_other_operators_stand_beside_what_the_picture_reads_of_the_text(block: int, operator: str) -> None:
    """Softmax over text and the picture, which counts as N tokens of weight exp(balance); text sees both as before."""
    site = Placed(operator, block)
    made = site.made
    assert made.balance is not None
    nn.init.normal_(made.balance)
    weights = (turn(site.q, site.by) @ turn(site.tk, site.by_text).mT / C**0.5).exp()
    picture = N * made.balance.exp().view(1, H, 1, 1)
    read = weights @ site.tv / (weights.sum(-1, keepdim=True) + picture)
    if made.operator is None:
        wanted = site.projected(read)
    elif made.wide:
        wanted = made.operator(site.x, grid=(4, 4)) + site.projected(read)
    else:
        features = made.operator.features(site.x, grid=(4, 4)) + read.transpose(1, 2).flatten(2)
        wanted = made.operator.out_projection(features)
    given, told = site()
    near(given, wanted)
    near(told, site.before()[1])


def test_text_and_picture_share_what_an_attention_has_of_its_own_in_a_single_stream() -> None:
    """Queries, keys and values of both; the last layer is the picture's, and starts as nothing."""
    site = Placed("swa", SINGLE)
    assert set(site.made.kept) == {"norm_q", "norm_k"} and site.made.operator is not None
    assert torch.equal(site.made.out_projection.weight, torch.eye(D)) and not site.made.out_projection.bias.any()
    before = site()
    with torch.no_grad():
        site.made.operator.qkv_projection.weight[:D] *= 2  # type: ignore[union-attr, operator]
    middle = site()
    with torch.no_grad():
        site.made.out_projection.weight *= 2
    after = site()
    assert all((new - old).abs().max() > 1e-4 for new, old in zip(middle, before, strict=True))
    assert torch.equal(after[1], middle[1]) and (after[0] - middle[0]).abs().max() > 1e-4


@pytest.mark.parametrize("operator", [*MIXERS, "none", "identity"])
def test_parameters_and_flops_are_those_that_formulas_say(operator: str) -> None:
    """Of the whole model with its graft, against torch's counters, at each kind of block."""
    from torch.utils.flop_counter import FlopCounterMode

    row = "Flux" if operator == "swa_2d" else "Flux dev, no square"  # whose formula is of squares
    model, z, t, condition = ready(row)
    host = host_for(model)
    z, t, condition = (each(part, lambda x: x[:1].to("meta")) for part in (z, t, condition))
    shape = shape_of({**model.config, "_class_name": "FluxTransformer2DModel", "text_tokens": L}).at(
        (z.shape[2] // 2, z.shape[3] // 2)
    )

    def count(model: nn.Module) -> int:
        # Without numbers: of attention on a CPU torch's counter knows nothing.
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            host.call(model.to("meta"), z, t, condition)
        return int(counter.get_total_flops())

    # Embedders of text, time and guidance, once a call.
    shared = 2 * (L * 12 * D + 10 * D + D * D + (1 + ("dev" in row)) * (256 * D + D * D))
    if operator == "identity":
        assert host_flops(shape) == count(copy.deepcopy(model)) - shared
        assert shape.parameters == sum(p.numel() for p in model.parameters())
    plan = Plan.explicit(operator=operator, blocks=[DOUBLE, SINGLE, 4])
    cost, handle = plan_cost(plan, shape), graft(model, plan, init="random")
    made = handle.operators()
    assert [site.parameters_after for site in cost.sites] == [
        sum(p.numel() for p in m.parameters()) for m in made.values()
    ]
    assert [site.parameters_before for site in cost.sites] == [
        sum(p.numel() for p in switch.original.parameters())  # type: ignore[union-attr]
        for switch in handle.switches.values()
    ]
    # Torch counts filters with their padding.
    assert cost.flops_after == pytest.approx(count(model) - shared, rel=2e-3)
    assert cost.sites[1].flops_after == cost.sites[2].flops_after != cost.sites[0].flops_after or operator == "none"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("flux-dev-1024", {}),
        ("flux-schnell-1024", {}),
        ("flux-schnell-1024", {"num_layers": 3, "num_single_layers": 1, "in_channels": 20, "num_attention_heads": 5}),
        ("flux-dev-1024", {"attention_head_dim": 24, "joint_attention_dim": 7, "pooled_projection_dim": 11}),
    ],
)
def test_sizes_are_those_of_diffusers(name: str, more: dict[str, Any]) -> None:
    """The published ones among them: 12 thousand millions of numbers."""
    config = bundled_config(name) | more
    with torch.device("meta"):
        model = FluxTransformer2DModel(**{key: value for key, value in config.items() if key != "_class_name"})
    shape = shape_of(model)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.block_parameters == sum(p.numel() for p in model.transformer_blocks[0].parameters())
    assert shape.grid == (64, 64) and shape.latents == (128, 128) and shape.channels == config["in_channels"] // 4
    assert shape.context_tokens == (512 if "dev" in name else 256)
    if not more:
        assert shape.parameters / 1e9 == pytest.approx(12, rel=0.02) and shape.depth == 57
        assert [site.name for site in host_for(model).sites(model)][37:39] == ["blocks.18.mlp", "blocks.19.attn"]


def test_plans_count_the_blocks_that_have_the_site() -> None:
    config = bundled_config("flux-dev-1024")
    for plan, blocks in (
        (Plan.interleaved(site="mlp", operator="mlp", share=0.5), list(range(1, 19, 2))),
        (Plan.all(site="mlp", operator="mlp"), list(range(19))),
        (Plan.last(site="mlp", operator="mlp", share=0.25), [15, 16, 17, 18]),
        (Plan.interleaved(operator="swa", share=0.5), list(range(1, 57, 2))),
    ):
        assert [entry.site.block for entry in plan.resolve(config)] == blocks
        assert plan.check(config).problems == ()


def test_what_flux_has_not_is_refused_in_a_sentence() -> None:
    model, z, t, condition = ready("Flux")
    host, text = host_for(model), {"encoder_hidden_states": condition["encoder_hidden_states"]}
    with pytest.raises(PlanError, match="block 3: its MLP shares a projection with attention and is no site"):
        graft(model, Plan.explicit(site="mlp", operator="mlp", blocks=[1, 3]))
    with pytest.raises(HostError, match="MLP of a block of a single stream shares"):
        host.get(model, Site(SINGLE, "mlp"))
    with pytest.raises(PlanError, match="blocks of Flux carry text beside the picture and are not rearranged"):
        Plan.from_dict({"restructure": [{"drop": [1]}]}).check(model).raise_if_any()
    with pytest.raises(HostError, match="not rearranged"):
        host.set_blocks(model, nn.ModuleList(list(host.blocks(model))[::-1]))
    for ask in (partial(host.modulation, [], z, {}), partial(host.norms, nn.Identity())):
        with pytest.raises(HostError, match="do not run as one batch"):
            ask()
    with pytest.raises(HostError, match="pooled_projections"):
        host.call(model, z, t, text)
    with pytest.raises(HostError, match="told no guidance"):
        host.call(model, z, t, condition | {"guidance": torch.ones(2)})
    with pytest.raises(HostError, match="latents of 7 x 8: multiples of 2 on both sides"):
        host.call(model, z[:, :, 1:], t, condition)
    for more, word in (
        ({"in_channels": 384, "out_channels": 64}, "in_channels 384, out_channels 64: a Flux that is shown another"),
        ({"num_single_layers": 0}, "at least one block of a single stream"),
        ({"patch_size": 2}, "a patch of 1"),
    ):
        with pytest.raises(HostError, match=word):
            shape_of(bundled_config("flux-dev-1024") | more)


def test_a_graft_knows_the_grid_of_every_pass_and_refuses_what_it_would_not_read() -> None:
    model, z, _, condition = ready("Flux")
    handle, told = graft(model, Plan.all(operator="swa_2d")), []
    for switch in handle.switches.values():
        switch.register_forward_hook(lambda module, *_: told.append(module.raster.grid))
    ids = positions((2, 8), z.device)
    given: dict[str, Any] = {**condition, "timestep": torch.tensor([0.5]), "txt_ids": torch.zeros(L, 3)}
    given = {key: value[:1] if key in condition else value for key, value in given.items()}
    tokens = torch.randn(1, N, 12)
    for img_ids in (ids, ids[None], ids.bfloat16(), ids + torch.tensor([0.0, 7.0, 3.0])):
        model(tokens, **given, img_ids=img_ids)
    assert set(told) == {(2, 8)} and len(told) == 4 * 5
    with pytest.raises(HostError, match="img_ids of 32 tokens end at 2 x 8: one picture is known"):
        model(tokens.repeat(1, 2, 1), **given, img_ids=ids.repeat(2, 1))  # Kontext's: a picture behind the picture
    with pytest.raises(ValueError, match="ip_hidden_states: a grafted attention reads no picture prompts"):
        model(tokens, **given, img_ids=ids, joint_attention_kwargs={"ip_hidden_states": [tokens]})
    with pytest.raises(HostError, match="img_ids on the meta device"):
        model.to("meta")(tokens.to("meta"), **{k: v.to("meta") for k, v in given.items()}, img_ids=ids.to("meta"))


def test_positions_are_read_once_and_again_where_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline gives the same at every step, and reading them waits for the device."""
    model, *_ = ready("Flux")
    host, reads, read = host_for(model), [], type(host_for(model)).grid_read
    monkeypatch.setattr(type(host), "grid_read", staticmethod(lambda ids: reads.append(1) or read(ids)))
    ids = positions((2, 8), torch.device("cpu"))
    for _ in range(3):
        assert host.grid_called(model, (), {"img_ids": ids}) == (2, 8)
    assert len(reads) == 1
    ids.copy_(positions((4, 4), ids.device))
    assert host.grid_called(model, (), {"img_ids": ids}) == (4, 4) and len(reads) == 2
    assert host.grid_called(model, (), {"img_ids": ids[None]}) == (4, 4)
    with torch.inference_mode():
        ids = positions((2, 8), ids.device)
        assert host.grid_called(model, (), {"img_ids": ids}) == (2, 8)
        ids.copy_(positions((4, 4), ids.device))
        assert host.grid_called(model, (), {"img_ids": ids}) == (4, 4)


@pytest.mark.parametrize("row", ["SD3.5, no square", "Flux"])
def test_a_search_knows_what_each_kind_of_block_costs(row: str) -> None:
    """Text that ends, streams that are one: the sum of what single swaps change is what the plan changes."""
    model, *_ = ready(row)
    operators = candidates(("swa", "local_mean", "mlp:ratio=3", "none"))
    found = counted(model, operators)
    for one in operators:
        cost = plan_cost(one.plan("all"), model)
        after = {"flops": cost.flops_after, "parameters": cost.parameters_after}
        for kind, costs in found.items():
            changes = {
                site: costs.changes[site, one.name] for site in host_for(model).sites(model) if site.kind == one.kind
            }
            assert costs.whole + sum(changes.values()) == after[kind]
            if (row, one.kind, one.name) in (("Flux", "attn", "swa"), ("SD3.5, no square", "attn", "none")):
                assert len(set(changes.values())) == 2, "other in a single stream, or where text ends, than elsewhere"
            assert costs.change(one) == pytest.approx(sum(changes.values()) / len(changes))


@pytest.mark.parametrize("row", ["SD3.5, no square", "Flux dev, no square"])
def test_a_mask_that_a_graft_would_not_heed_is_refused(row: str) -> None:
    model, *_ = ready(row)
    handle = graft(model, Plan.all(operator="mha"), init="copy")
    x, text = torch.randn(2, 16, 32), torch.randn(2, 5, 32)
    for block in (0, len(handle.switches) - 1):
        with pytest.raises(ValueError, match="attention_mask"):
            handle.switches[Site(block, "attn")](x, encoder_hidden_states=text, attention_mask=torch.ones(2, 1, 1, 21))


@pytest.mark.parametrize("row", ["SD3.5, no square", "Flux dev, no square"])
def test_a_grafted_block_compiles_whole(row: str) -> None:
    """As diffusers compiles the blocks of a model one by one, without a break."""
    model, z, t, condition = ready(row)
    host = host_for(model)
    graft(model, Plan.all(operator="swa"), init="random")
    with torch.no_grad():
        before = host.call(model, z, t, condition)
        for block in host.blocks(model):
            block.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(host.call(model, z, t, condition), before)


def test_windows_beside_text_are_exact_to_half_precision() -> None:
    """The logarithm of a window's weights goes through a channel of queries in bfloat16, in two parts."""
    torch.manual_seed(0)
    model, *_ = ready("Flux dev, no square")
    (entry,) = Plan.explicit(operator="swa_2d", blocks=[1], window=16).resolve(model)
    made = make_stand_in(host_for(model), model, host_for(model).get(model, entry.site), entry, "copy", 0)
    x, text = 4 * torch.randn(2, 256, 32), 4 * torch.randn(2, 64, 32)
    with torch.no_grad():
        wanted = made(x, grid=(16, 16), context=text)[0]
        given = copy.deepcopy(made).bfloat16()(x.bfloat16(), grid=(16, 16), context=text.bfloat16())[0].float()
    (full,) = Plan.explicit(operator="mha", blocks=[1]).resolve(model)
    plain = make_stand_in(host_for(model), model, host_for(model).get(model, full.site), full, "copy", 0).bfloat16()
    with torch.no_grad():
        own = plain(x.bfloat16(), context=text.bfloat16())[0].float()
    assert (given - wanted).norm() < 2 * (own - wanted).norm()


def test_dev_is_told_a_guidance_of_three_and_a_half_where_none_is_said() -> None:
    model, z, t, condition = ready("Flux dev, no square")
    call, said = partial(host_for(model).call, model, z, t), condition.pop("guidance")
    told = [call({**condition, "guidance": torch.full((2,), value)}) for value in (3.5, 1.0)]
    assert torch.equal(call(condition), told[0]) and not torch.allclose(told[0], told[1])
    assert not torch.allclose(call({**condition, "guidance": said}), told[0])


def test_the_pass_is_the_pipelines() -> None:
    """Packed, with its positions and its timestep; and the gates of a pass are those of the same arguments."""
    model, z, t, condition = ready("Flux dev, no square")
    with torch.no_grad():
        wanted = model(
            hidden_states=FluxPipeline._pack_latents(z, 2, 3, 4, 16),
            timestep=t.float() / 1000,
            img_ids=FluxPipeline._prepare_latent_image_ids(2, 2, 8, z.device, z.dtype),
            txt_ids=torch.zeros(L, 3),
            **condition,
        ).sample
        assert torch.equal(host_for(model).call(model, z, t, condition), unpacked(wanted, (2, 8)))


class Told(nn.Module):
    """Answers with a constant of the input's shape, at one channel or all; of two streams for the text too."""

    def __init__(self, value: float, channel: int | None = None) -> None:
        super().__init__()
        self.value, self.channel = value, slice(channel, None if channel is None else channel + 1)

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **_: Any) -> Any:
        mine = torch.zeros_like(hidden_states)
        mine[..., self.channel] = self.value
        return mine if encoder_hidden_states is None else (mine, torch.full_like(encoder_hidden_states, 2 * self.value))


@pytest.mark.parametrize("site", [Site(DOUBLE, "attn"), Site(DOUBLE, "mlp"), Site(SINGLE, "attn")])
def test_gates_are_what_a_unit_output_adds(site: Site) -> None:
    """To picture and text. In a single stream a unit at one channel adds many: of the gate's length together."""
    model, z, t, condition = ready("Flux dev, no square")
    host, block = host_for(model), host_for(model).blocks(model)[site.block]
    for name in ("attn", "ff", "ff_context"):
        if hasattr(block, name):
            setattr(block, name, Told(0.0))
    shown: list[Any] = []
    block.register_forward_hook(lambda module, _, output: shown.append(host.streams(module, output)))
    gate = host.gates(model, z, t, condition)[site]
    assert (gate[0] - gate[1]).abs().max() > 1e-4, "the gate depends on the timestep"
    single = site.block == SINGLE
    assert gate.shape == (2, 1 if site.kind == "mlp" else 2, D)
    for channel in (0, 7, D - 1) if single else (None,):
        shown.clear()
        with torch.no_grad():
            for value in (0.0, 1.0):
                host.set(model, site, Told(value, channel))
                host.call(model, z, t, condition)
        for stream, (after, before) in enumerate(zip(*reversed(shown), strict=True)):
            added = after - before
            if single:
                assert channel is not None
                near(added.norm(dim=-1), gate[:, stream, channel, None].expand(-1, added.shape[1]))
            else:
                own = gate[:, stream : stream + 1] if stream < gate.shape[1] else torch.zeros(2, 1, D)
                near(added, (stream + 1) * own.expand_as(added))


@BOTH
def test_queries_and_keys_are_those_that_attention_takes_of_the_picture(block: int) -> None:
    site = Placed("mha", block)
    model, *_ = ready("Flux")
    q, k = host_for(model).queries_keys(site.original, site.x, {"image_rotary_emb": turns()})
    near(q, turn(site.q, site.by) / C**0.5)
    near(k, turn(site.k, site.by))
    near(host_for(model).queries_keys(site.original, site.x)[1], site.k)


@BOTH
def test_a_solved_last_layer_is_the_least_squares_one(block: int) -> None:
    """Of the picture's tokens alone, at their own places."""
    model, _, _, condition = ready("Flux")
    host, site = host_for(model), Site(block, "attn")
    z, y = torch.randn(16, 3, 8, 8), {key: torch.cat([value] * 8) for key, value in condition.items()}
    original, seen = host.get(model, site), []
    original.register_forward_hook(lambda _, args, kwargs, out: seen.append((kwargs, out)), with_kwargs=True)
    plan = Plan.explicit(operator="hyena_x", blocks=[block])
    handle = graft(model, plan, calibration=lambda _: {"z": z, "y": y}, calibration_batches=1)
    (call, out), made = seen[0], handle.operators()[site]
    assert isinstance(made, Joint) and made.operator is not None and made.balance is not None
    x, wanted = (
        t[:, L:] if block == SINGLE else t for t in (call["hidden_states"], out if block == SINGLE else out[0])
    )
    q, k = host.queries_keys(original, x, call)
    near(made.balance + math.log(N), (q @ k.mT).exp().sum(-1).log().mean((0, 2)))
    text = call["hidden_states"][:, :L] if block == SINGLE else call["encoder_hidden_states"]
    places = Places(cosines=call["image_rotary_emb"][0], sines=call["image_rotary_emb"][1])
    features = made.operator.features(x, grid=(4, 4)) + made.read(x, made.text(text, places))
    features = features.flatten(0, 1)
    design = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    best = torch.linalg.lstsq(design, wanted.flatten(0, 1).double()).solution
    assert ((design @ best) - made.out_projection(features)).abs().max() < 2e-3


def test_a_solved_start_is_of_the_picture_and_stage_one_of_both() -> None:
    model, z, t, condition = ready("Flux")
    host = host_for(model)
    y = {key: torch.cat([value] * 4) for key, value in condition.items()}
    handle = graft(
        model,
        Plan.all(operator="hyena_x"),
        calibration=lambda _: {"z": torch.randn(8, 3, 8, 8), "y": y},
        calibration_batches=1,
    )
    assert set(handle.explained) == set(handle.switches) and all(0 < share < 1 for share in handle.explained.values())
    sizes: dict[Any, Any] = {}

    def look(site: Any, inputs: torch.Tensor, outputs: Any, call: Any) -> None:
        answered = handle.pupils()[site].answer(inputs, outputs, call)
        sizes[site.block] = [(given.shape[1], wanted.shape[1]) for given, wanted in answered]

    with handle.teacher(), visit_spans({site: p.spans for site, p in handle.pupils().items()}, look, host.streams):
        host.call(model, z, t, condition)
    assert sizes == {block: [(N, N), (L, L)] for block in range(5)}
    other = graft(ready("Flux")[0], Plan.all(operator="mha"), calibration=lambda _: {"z": z, "y": condition})
    assert set(other.explained.values()) == {1.0}


def test_of_joint_attention_only_what_the_picture_reads_of_itself_is_skipped() -> None:
    """By its FLOPs, and by hand: the text goes on as before, and the picture reads it."""
    from torch.utils.flop_counter import FlopCounterMode

    model, z, t, condition = ready("Flux")
    host = host_for(model)
    blocks: Any = host.cores(model, [Site(DOUBLE, "attn"), Site(SINGLE, "attn")])
    for block, site in zip(blocks, (Placed("mha", DOUBLE), Placed("mha", SINGLE)), strict=True):
        seen = torch.cat([torch.zeros(N, N, dtype=torch.bool), torch.ones(N, L, dtype=torch.bool)], dim=1)
        block.attn = site.original
        given: dict[str, Any] = {"hidden_states": site.x, "encoder_hidden_states": site.text}
        shown: list[Any] = []
        # The block's norms come before: what its attention is given is put in the place of what they make.
        swap = {**given} if not site.single else {"hidden_states": torch.cat([site.text, site.x], dim=1)}
        hook = site.original.register_forward_pre_hook(
            lambda _, args, kwargs, swap=swap: (args, kwargs | swap), with_kwargs=True
        )
        site.original.register_forward_hook(lambda _, args, out, shown=shown: shown.append(out))
        with without_cores([block], text_first=True), torch.no_grad():
            block(**given, temb=torch.randn(2, D), image_rotary_emb=turns())
        hook.remove()
        picture, text = (shown[0][:, L:], shown[0][:, :L]) if site.single else shown[0]
        near(picture, site.softmax(seen))
        near(text, site.before()[1])
    model, *_ = ready("Flux")
    model, z, t = model.to("meta"), z.to("meta"), t.to("meta")
    condition = {key: value.to("meta") for key, value in condition.items()}

    def count(sites: list[Site]) -> int:
        cores = host.cores(model, sites)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), without_cores(cores, text_first=True):
            host.call(model, z, t, condition)
        return int(counter.get_total_flops())

    core, every = 2 * 4 * N * N * D, count([])
    chosen = [[Site(0, "attn")], [Site(4, "attn")], host.sites(model)]
    assert [every - count(sites) for sites in chosen] == [core, core, 5 * core]
    shape = shape_of({**model.config, "_class_name": "FluxTransformer2DModel", "text_tokens": L})
    cost = plan_cost(Plan.all(operator="swa"), shape)
    assert 2 * cost.flops_before * (1 - 1 / cost.core_bound) == pytest.approx(5 * core)
