"""SANA: linear attention and a convolved MLP as sites, by its own operators, closed forms and torch's counter."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hosts_table import ready
from torch import nn

from grafting.activations import as_tokens, visit_spans
from grafting.conditions import MASK, TEXT, each, rows
from grafting.cost import adapter_cost, block_cost, host_flops, plan_cost, site_parameters
from grafting.diffusion import Denoiser, Flow
from grafting.graft import Grafted, graft, ungraft
from grafting.hosts import HostError, Site, host_for, schedule_of, shape_of
from grafting.hosts.shapes import ROLES, bundled_config, with_text
from grafting.initialise import make_stand_in
from grafting.lora import Lora, LoraError, add_lora
from grafting.measure.analysis import analyze
from grafting.measure.denoising import Triples, denoising_losses
from grafting.measure.speed import flops, without_cores
from grafting.operators import arithmetic, list_operators
from grafting.plan import Plan
from grafting.sampling import Pipeline, Sampling
from grafting.store.folder import load, save
from grafting.study import RunRecipe, entries
from grafting.training.distill import DistillConfig, distill
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig

ROWS = ["SANA", "SANA 1.5, no square"]
N = 12
NULL = {TEXT: torch.full((1, 1, 12), 0.5), MASK: torch.ones(1, 1, dtype=torch.int64)}


def captions() -> dict[str, torch.Tensor]:
    """Of one to five tokens."""
    source = torch.Generator().manual_seed(1)
    mask = (torch.arange(5) < torch.arange(N)[:, None] % 5 + 1).long()
    return {TEXT: torch.randn(N, 5, 12, generator=source) * mask[:, :, None], MASK: mask}


def latents() -> torch.Tensor:
    return torch.randn(N, 3, 2, 8, generator=torch.Generator().manual_seed(2))


def batches(step: int) -> dict[str, Any]:
    index = (torch.arange(4) + 4 * step) % N
    return {"z": latents()[index], "y": rows(captions(), index)}


def denoiser(model: nn.Module) -> Denoiser:
    return lambda z, t, y: host_for(model).call(model, z, t, y)


def test_its_own_operators_are_the_original() -> None:
    """A copied start of both kinds in every block gives the model's own output, and solving leaves it alone."""
    model, z, t, condition = ready("SANA")
    call = partial(host_for(model).call, model, z, t, condition)
    before = call().detach()
    own = Plan.all(operator="linear", feature_map="relu") + Plan.all(site="mlp", operator="mix_ffn")
    handle = graft(
        model, own, calibration=lambda step: {"z": torch.randn(2, 3, 4, 4), "y": condition}, calibration_batches=1
    )
    torch.testing.assert_close(call(), before, rtol=1e-4, atol=1e-5)
    assert set(handle.explained.values()) == {1.0}


@pytest.mark.parametrize("row", ["SANA", "DiT"])
def test_the_control_self_is_of_the_teacher_s_own_operators(row: str) -> None:
    """Copied they would be the model; of another host they stay what they were, to the settings that are kept."""
    model, z, t, condition = ready(row)
    call = partial(host_for(model).call, model, z, t, condition)
    plan = Plan.all(operator="swa", window=2) + Plan.all(site="mlp", operator="mlp", ratio=3)
    (control,) = entries(RunRecipe(teacher="it", plans={"hybrid": plan}, controls=("self",)), model)[2:]
    assert control.plan is not None and (control.name, control.init) == ("self", "random")
    if row == "DiT":
        assert control.plan == Plan.all(operator="mha") + Plan.all(site="mlp", operator="mlp")
    before = call().detach()
    graft(model, control.plan, init="copy")
    torch.testing.assert_close(call(), before, rtol=1e-4, atol=1e-5)


def test_of_normed_queries_and_keys_the_norms_weights_are_copied() -> None:
    """What is left is what each key is divided by: with keys of one length, the copy is the original."""
    model, *_ = ready("SANA 1.5, no square")
    attention: Any = host_for(model).get(model, Site(1, "attn"))
    for norm in (attention.norm_q, attention.norm_k):
        nn.init.uniform_(norm.weight, 0.2, 3.0)
    (entry,) = Plan.explicit(operator="linear", blocks=[1], feature_map="relu").resolve(model)
    made = make_stand_in(host_for(model), model, attention, entry, "copy", 0)
    x = torch.randn(2, 40, 32)
    lengths = attention.to_k(x).square().mean(-1, keepdim=True).sqrt()
    near = (lengths - lengths.mean()).abs().flatten().topk(16, largest=False).indices % 40
    x = x[:, near[:1].repeat(16)] + 0.0  # one token again and again: keys of one length
    torch.testing.assert_close(made(x), attention(x), rtol=1e-4, atol=1e-5)
    x = torch.randn(2, 40, 32)
    wanted, whole = attention(x), made(x)
    plain = copy.deepcopy(attention)
    nn.init.ones_(plain.norm_q.weight)
    nn.init.ones_(plain.norm_k.weight)
    without = make_stand_in(host_for(model), model, plain, entry, "copy", 0)(x)
    assert (whole - wanted).square().mean() < 0.2 * (without - wanted).square().mean()


@pytest.mark.parametrize("row", ROWS)
def test_its_attention_is_its_map_times_its_values(row: str) -> None:
    model, z, t, condition = ready(row)
    host = host_for(model)
    attention: Any = host.get(model, Site(1, "attn"))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    spans = {0: ((attention, attention),)}
    with visit_spans(spans, lambda _, x, y, call: seen.append((x, *y))), torch.no_grad():
        host.call(model, z, t, condition)
        ((x, y),) = seen
        values = attention.to_v(x).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        pairs = host.attention_map(attention, x)
        assert (pairs >= 0).all()
        made = attention.to_out[0]((pairs @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(made, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ["SANA", "SANA 1.5, no square"])
def test_its_sums_over_all_tokens_stay_in_float32(row: str) -> None:
    """As its own pipeline in bfloat16 has them, whatever autocast would make of them."""
    model, z, t, condition = ready(row)
    model.to(torch.bfloat16)
    attention = model.transformer_blocks[0].attn1
    seen: dict[str, torch.Tensor] = {}
    for name in ("to_q", "to_k", "to_v"):
        attention.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    attention.to_out[0].register_forward_pre_hook(lambda _, given: seen.update(mixed=given[0]))
    host_for(model).call(model, z, t, condition)
    q, k = seen["to_q"], seen["to_k"]
    with torch.autocast("cpu", torch.bfloat16):
        q, k = (x if norm is None else norm(x) for x, norm in ((q, attention.norm_q), (k, attention.norm_k)))
    q, k, v = (x.transpose(1, 2).unflatten(1, (attention.heads, -1)).float() for x in (q, k, seen["to_v"]))
    scores = torch.relu(k).transpose(2, 3) @ torch.relu(q)
    wanted = (v @ scores / (scores.sum(2, keepdim=True) + 1e-15)).flatten(1, 2).transpose(1, 2)
    torch.testing.assert_close(seen["mixed"].float(), wanted.to(seen["mixed"].dtype).float(), rtol=8e-3, atol=1e-6)


@pytest.mark.parametrize("row", ROWS)
def test_a_graft_of_its_mlp_works_on_the_tokens_of_the_grid(row: str) -> None:
    model, z, t, condition = ready(row)
    handle = graft(model, Plan.all(site="mlp", operator="mix_ffn", kernel=5), init="random")
    seen: dict[Site, Any] = {}
    spans = {site: ((switch, switch),) for site, switch in handle.switches.items()}
    see: Any = lambda site, x, y, call: seen.update({site: (as_tokens(x), *y)})  # noqa: E731
    with visit_spans(spans, see, handle.host.streams), torch.no_grad():
        handle.host.call(model, z, t, condition)
    grid = (z.shape[2], z.shape[3])
    for site, (x, y) in seen.items():
        operator: Any = handle.operators()[site]
        torch.testing.assert_close(y, operator.naive(x, grid=grid), rtol=1e-4, atol=1e-5)
        assert (operator.naive(x, grid=grid[::-1]) - y).abs().max() > 1e-3 or grid[0] == grid[1]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("operator", [*list_operators(), "none"])
def test_costs_are_what_torch_counts(row: str, operator: str) -> None:
    kinds = ("attn", "mlp") if operator == "none" else ("attn" if arithmetic(operator).kind == "mixer" else "mlp",)
    for kind in kinds:
        model, z, t, condition = ready(row)
        host, plan = host_for(model), Plan.explicit(site=kind, operator=operator, blocks=[1])
        before = flops(Called(model, host), z[:1], t[:1], rows(condition, slice(1)))
        cost = plan_cost(plan, model, grid=(4, 4))
        (site,) = cost.sites
        assert site.parameters_before == sum(p.numel() for p in host.get(model, site.site).parameters())
        handle = graft(model, plan, init="random")
        z = torch.randn(2, 3, 4, 4)
        after = flops(Called(model, host), z[:1], t[:1], rows(condition, slice(1)))
        assert cost.flops_before - cost.flops_after == before - after
        assert site.parameters_after == sum(p.numel() for p in handle.operators()[site.site].parameters())


class Called(nn.Module):
    """A host's call as a module."""

    def __init__(self, model: nn.Module, host: Any) -> None:
        super().__init__()
        self.model, self.host = model, host

    def forward(self, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        found: torch.Tensor = self.host.call(self.model, z, t, c)
        return found


@pytest.mark.parametrize("name", ["sana-600m-1024", "sana1.5-4800m-1024"])
def test_flops_at_true_sizes(name: str) -> None:
    """Of two blocks on the meta device; what is left out are the embedders and the projection of the text."""
    from diffusers import SanaTransformer2DModel

    config = bundled_config(name) | {"num_layers": 2}
    with torch.device("meta"):
        model = SanaTransformer2DModel.from_config(config)
        z, t = torch.empty(1, 32, 32, 32), torch.empty(1)
    host, shape = host_for(model), shape_of(config)
    d, text = shape.width, shape.context_tokens
    left_out = 2 * (256 * d + d * d + 6 * d * d) + 2 * text * (2304 * d + d * d)
    assert flops(Called(model, host), z, t, host.example(model, 1)) == host_flops(shape) + left_out
    assert site_parameters(shape, "mlp") == sum(p.numel() for p in host.get(model, Site(0, "mlp")).parameters())


@pytest.mark.parametrize("row", ROWS)
def test_without_its_core_it_gives_its_values(row: str) -> None:
    """What the time bound is measured by: every FLOP of the core goes, and no other."""
    model, z, t, condition = ready(row)
    host, shape = host_for(model), shape_of(model)
    modules: list[Any] = [host.get(model, Site(block, "attn")) for block in (0, 1)]
    asked = (Called(model, host), z[:1], t[:1], rows(condition, slice(1)))
    before = flops(*asked)
    with without_cores(modules):
        assert before - flops(*asked) == 2 * block_cost(shape).core
        x = torch.randn(2, 16, 32)
        a = modules[0]
        torch.testing.assert_close(a(x), a.to_out[0](a.to_v(x)), rtol=1e-5, atol=1e-6)
    assert flops(*asked) == before


def test_most_of_its_cost_is_in_its_mlp() -> None:
    """All attention without its cores: next to nothing. What a narrower MLP saves is much."""
    config = bundled_config("sana-1600m-1024")
    mixed = plan_cost(Plan.all(operator="hyena_x_2d"), config)
    narrower = plan_cost(Plan.all(site="mlp", operator="mix_ffn", ratio=1.25), config)
    assert mixed.core_bound < 1.01 and narrower.flop_ratio > 1.35


PAGE = (Path(__file__).parents[1] / "docs" / "sana.md").read_text()
TABLE: dict[str, Plan] = {
    "`hyena_x_2d` in attention": Plan.all(operator="hyena_x_2d"),
    "`mha` in attention": Plan.all(operator="mha"),
    "no attention at all (`none`)": Plan.all(operator="none"),
    "`mix_ffn`, ratio 2 for 2.5": Plan.all(site="mlp", operator="mix_ffn", ratio=2),
    "`mix_ffn`, ratio 1.25": Plan.all(site="mlp", operator="mix_ffn", ratio=1.25),
    "`mlp`, ratio 2.5": Plan.all(site="mlp", operator="mlp", ratio=2.5),
    "no MLP at all (`none`)": Plan.all(site="mlp", operator="none"),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_page_s_table_is_the_formulas(row: str) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row} |")]
    told = [cell.strip() for cell in line.split("|")[2:-1]]
    wanted = []
    for name, side in (("sana-600m-1024", 32), ("sana-1600m-1024", 32), ("sana-1600m-1024", 128)):
        half = Plan(edits=tuple(replace(edit, blocks="interleaved 50%") for edit in TABLE[row].edits))
        whole, some = (
            plan_cost(plan, bundled_config(name), grid=(side, side)).flop_ratio for plan in (TABLE[row], half)
        )
        wanted.append(f"{whole:.2f}x ({some:.2f}x)")
    assert told == wanted


def test_the_page_s_shares_are_the_formulas() -> None:
    shares = []
    for name in ("sana-600m-1024", "sana-1600m-1024"):
        cost = block_cost(shape_of(bundled_config(name)))
        assert 0.5 < cost.mlp / cost.total < 0.55
        shares.append(f"{cost.core / cost.total:.1%}".replace("%", " %"))
    small, large = shares
    assert f"{small} of a block of 0.6B and {large} of one of 1.6B" in PAGE


def test_sizes_are_the_published_ones() -> None:
    for name, millions in (("sana-600m-1024", 592), ("sana-1600m-1024", 1604), ("sana1.5-4800m-1024", 4_720)):
        assert shape_of(bundled_config(name)).parameters / 1e6 == pytest.approx(millions, rel=0.01)


def stage_one(handle: Grafted, out: Path | None = None) -> Any:
    config = DistillConfig(
        steps=8, evaluate_every=2, heldout_batches=1, halve=(), warmup=0.0, save_every=1, gate_weighted=True
    )
    return distill(handle, batches, NULL, config=config, out=out)


@pytest.mark.parametrize(
    "plan",
    [
        Plan.all(operator="hyena_x_2d") + Plan.all(site="mlp", operator="mix_ffn", ratio=2),
        Plan.all(operator="mha") + Plan.all(site="mlp", operator="mlp", ratio=2),
    ],
)
def test_stage_one_teaches_both_kinds_and_resumes(plan: Plan, tmp_path: Path) -> None:
    def run() -> Any:
        handle = graft(ready("SANA 1.5, no square")[0], plan, init="copy")
        return handle, stage_one(handle, tmp_path)

    handle, reports = run()
    for site in handle.switches:
        held = reports[site.name].heldout
        assert held[-1][1] < held[0][1]
    again, other = run()
    assert other == reports
    for site, operator in handle.operators().items():
        mine = again.operators()[site].state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in operator.state_dict().items())


@pytest.mark.parametrize("combine", ["scale", "dense"])
def test_blocks_side_by_side_are_taught_with_all_that_a_block_is_called_with(combine: str) -> None:
    """A pair of which both see the same input, with another MLP in one of them."""
    plan = Plan.from_dict(
        {
            "restructure": [{"merge": "pairs", "combine": combine}],
            "edits": [{"site": "mlp", "blocks": [1], "operator": "mix_ffn"}],
        }
    )
    model, z, t, condition = ready("SANA")
    host = host_for(model)
    blocks = list(host.blocks(model))
    handle = graft(model, plan, init="copy")
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, args, out: seen.append(out - args[0])) for block in blocks]
    with torch.no_grad():
        with handle.teacher():
            host.call(model, z, t, condition)
        first = seen[0]
        for hook in hooks:
            hook.remove()
        (group,) = handle.groups.values()
        taken: list[Any] = []
        group.register_forward_hook(lambda _, args, out: taken.append((args, out)))
        host.call(model, z, t, condition)
        ((args, out),) = taken
        second = group.branches[1](*args) - args[0]
    torch.testing.assert_close(out, args[0] + first + second, rtol=1e-5, atol=1e-5)
    reports = stage_one(handle)
    held = reports[next(iter(handle.groups)).name].heldout
    assert held[-1][1] < held[0][1]


@pytest.mark.parametrize(
    ("steps", "calls"),
    [
        ([{"drop": [0]}], [1]),
        ([{"reorder": [1, 0]}], [1, 0]),
        ([{"share": [[0, 1]]}], [0, 0]),
    ],
)
def test_blocks_are_dropped_reordered_and_shared(steps: list[Any], calls: list[int]) -> None:
    """With what the blocks are called by position, as many FLOPs as the formula says, and undone."""
    model, z, t, condition = ready("SANA")
    host, plan = host_for(model), Plan.from_dict({"restructure": steps})
    asked = (Called(model, host), z[:1], t[:1], rows(condition, slice(1)))
    own, before, count = list(host.blocks(model)), host.call(model, z, t, condition), flops(*asked)
    handle = graft(model, plan, init="copy")
    cost = plan_cost(plan, with_text(model, 5))
    assert cost.flops_before - cost.flops_after == count - flops(*asked)
    with torch.no_grad():
        made = host.call(model, z, t, condition)
        blocks = nn.ModuleList([own[block] for block in calls])
        host.set_blocks(model, blocks)
        torch.testing.assert_close(made, host.call(model, z, t, condition), rtol=1e-5, atol=1e-6)
        host.set_blocks(model, handle.student_blocks)  # type: ignore[arg-type]
    ungraft(model)
    assert torch.equal(host.call(model, z, t, condition), before)


@pytest.mark.parametrize("share", [(1.0, 1.0), (0.0, 0.0)])
def test_stage_two_learns_and_is_saved_whole(share: tuple[float, float], tmp_path: Path) -> None:
    plan = Plan.all(operator="swa") + Plan.all(site="mlp", operator="mix_ffn", ratio=2)
    handle = graft(ready("SANA 1.5, no square")[0], plan, init="copy")
    mine, teach = handle.own_copy(), denoiser(handle.model)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: Any) -> torch.Tensor:
        with handle.teacher():
            return teach(z, t, y)

    held = Triples.draw(latents(), captions(), n=40, schedule=Flow())

    @torch.no_grad()
    def off() -> float:
        if not share[0]:
            return denoising_losses(denoiser(mine.model), held, Flow()).mean().item()
        asked = Flow().add_noise(held.z, held.t, held.noise), held.t, held.y
        return (denoiser(mine.model)(*asked) - teacher(*asked)).square().mean().item()

    before = off()
    loop = LoopConfig(steps=30, lr=1e-3, clip=1.0, ema=0.5, warmup=0.0, save_every=10)
    config = FinetuneConfig(
        loop=loop, checkpointing=True, teacher_share=share, features=float(share[0]), fade=0.5, label_dropout=0.0
    )
    finetune(
        mine.model,
        denoiser(mine.model),
        teacher,
        batches=batches,
        null=NULL,
        config=config,
        out=tmp_path / "run",
        pairs=mine.meetings(handle.originals),
        replaced={mine.switches[site]: switch.original for site, switch in handle.switches.items()},
    )
    assert off() < (0.7 if share[0] else 1.0) * before
    save(mine, tmp_path / "whole")
    other = load(tmp_path / "whole")
    z, t, y = latents()[:2], torch.tensor([1, 1000]), rows(captions(), slice(2))
    with torch.no_grad():
        assert torch.equal(denoiser(other.model)(z, t, y), denoiser(mine.model)(z, t, y))


def test_a_teacher_is_measured_walked_and_analysed() -> None:
    model, *_ = ready("SANA 1.5, no square")
    assert schedule_of(model) == Flow()
    held = Triples.draw(latents(), captions(), n=30, schedule=Flow())
    torch.testing.assert_close(
        denoising_losses(denoiser(model), held, Flow()), denoising_losses(denoiser(model), held, Flow(), batch_size=7)
    )
    drawn = Pipeline(model, null=NULL)(
        rows(captions(), slice(3)), sampling=Sampling(steps=3, guidance=2.0), batch_size=2
    )
    assert drawn.shape == (3, 3, 4, 4) and drawn.isfinite().all()
    found = analyze(model, conditions=captions(), samples=4, sampling=Sampling(steps=3))
    assert found.blocks == (0, 1) and found.grid == (4, 4)
    assert found.raster.sum(-1).allclose(torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_a_graft_is_walked_as_diffusers_own_pipeline_walks_it(scheduler: str) -> None:
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SanaPipeline

    model, *_ = ready("SANA")
    handle = graft(model, Plan.all(operator="swa_2d") + Plan.all(site="mlp", operator="mlp"), init="random")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0) if scheduler == "ddim" else DPMSolverMultistepScheduler(**flow)
    pipe = SanaPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=theirs)
    pipe.set_progress_bar_config(disable=True)
    ours = Pipeline(model, null=NULL)
    asked = rows(captions(), slice(2))
    noise: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: noise.append((args[0] if args else kwargs["hidden_states"]).detach().clone()),
        with_kwargs=True,
    )
    with torch.no_grad():
        made = ours.latents(asked, sampling=Sampling(steps=4, scheduler=scheduler), seed=3)
        hook.remove()
        wanted = pipe(
            prompt_embeds=asked[TEXT],
            prompt_attention_mask=asked[MASK],
            negative_prompt=None,
            guidance_scale=1.0,
            num_inference_steps=4,
            height=128,
            width=128,
            use_resolution_binning=False,
            latents=noise[0],
            output_type="latent",
        ).images
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    assert handle.host.family == "SANA"


def test_text_that_is_masked_is_not_read() -> None:
    model, z, t, condition = ready("SANA")
    call = partial(host_for(model).call, model, z, t)
    other = each(condition, torch.clone)
    other[TEXT][0, 2:] += 3
    torch.testing.assert_close(call(other), call(condition), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(call({TEXT: other[TEXT]}), call({TEXT: condition[TEXT]}), atol=1e-4)


def test_adapters_are_of_attention_and_the_text_s() -> None:
    handle = graft(ready("SANA")[0], Plan.explicit(operator="swa", blocks=[1]), init="copy")
    with pytest.raises(LoraError, match="targets mlp: the blocks of a SANA have attn, cross"):
        add_lora(handle, Lora(rank=2, targets=("attn", "mlp")))
    adapters = add_lora(handle, Lora(rank=2))
    assert adapter_cost(plan_cost(handle.plan, handle.model), 2, ROLES) == adapter_cost(
        plan_cost(handle.plan, handle.model), 2, ("attn", "cross")
    ), "roles that it has not cost nothing"
    cost = adapter_cost(plan_cost(handle.plan, handle.model), 2, ("attn", "cross"))
    assert cost.parameters == sum(p.numel() for p in adapters.parameters().values())


def test_what_is_no_flow_or_brings_no_text_is_refused() -> None:
    from diffusers import SanaTransformer2DModel

    model, z, t, condition = ready("SANA")
    with pytest.raises(HostError, match="encoder_hidden_states"):
        host_for(model).call(model, z, t, torch.tensor([1, 2]))
    told = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    sprint = SanaTransformer2DModel(**{**told, "guidance_embeds": True})
    with pytest.raises(HostError, match="Sprint"):
        host_for(sprint).call(sprint, z, t, condition)


def test_a_grid_is_read_row_by_row() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert as_tokens(x).shape == (2, 20, 3) and torch.equal(as_tokens(x)[:, 7], x[:, :, 1, 2])
