"""Parameters, FLOPs and bounds of a plan, by formula: no weights, no diffusers.

FLOPs are those of one forward pass of one sample, two per multiply-add of matrix products and filters. The FLOP bound
is the ceiling of the speed-up at equal efficiency: an attention site cannot cost less than its four projections, unless
its operator has fewer. Attention kernels run below the speed of matrix products, so a measured speed-up can exceed it;
the time bound, from measured times, stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import joint_cost
from .hosts.shapes import EMBEDDING, HostShape, Site, shape_of
from .plan import CONTROLS, Plan, Resolved
from .restructure import Group

if TYPE_CHECKING:
    from .hosts.shapes import Source


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """FLOPs of one block of the host. ``core`` is the part of ``attn`` between its projections, which grows with N
    squared unless the host's own attention is linear."""

    attn: int
    core: int
    mlp: int
    rest: int

    @property
    def total(self) -> int:
        """All of the block."""
        return self.attn + self.mlp + self.rest


def block_cost(shape: HostShape, block: int = 0) -> BlockCost:
    """FLOPs of one block at the shape's grid: attention, the picture's MLP, and the rest: cross-attention, the text's
    own MLP, and where each block makes its own modulation, that. Of joint attention a block in which text goes on.

    block: which, where there are blocks of two kinds.
    """
    n, d, text = shape.tokens, shape.width, shape.context_tokens
    core = 4 * n * n * d
    if shape.linear:
        core, hidden = 4 * n * d * (d // shape.heads + 1), int(shape.mlp_ratio * d)
        cross = 4 * n * d * d + 4 * text * d * d + 4 * n * text * d
        mlp = n * hidden * (6 * d + 4 * 9)
        return BlockCost(attn=8 * n * d * d + core, core=core, mlp=mlp, rest=cross)
    if shape.joint:
        attn, mlp, rest = joint_cost.block_flops(shape, block)
        return BlockCost(attn=attn, core=core, mlp=mlp, rest=rest)
    rest = 12 * d * d + 2 * (EMBEDDING * d + d * d) if shape.embeds else 0
    if text:
        rest += 4 * n * d * d + 4 * text * d * d + 4 * n * text * d
    return BlockCost(attn=8 * n * d * d + core, core=core, mlp=int(4 * shape.mlp_ratio * n * d * d), rest=rest)


def host_flops(shape: HostShape) -> int:
    """FLOPs of the whole host; DiT's head runs block 0's embedder once more.

    Shared embedders of text and timestep, once a call, are left out.
    """
    n, d = shape.tokens, shape.width
    ends = 2 * n * d * (shape.patch_channels + shape.out_channels)
    head = 4 * d * d + 2 * (EMBEDDING * d + d * d) if shape.embeds else 0
    if shape.joint:
        ends += joint_cost.other_flops(shape)
    blocks = (shape.depth - shape.single) * block_cost(shape).total
    return blocks + shape.single * block_cost(shape, shape.depth - 1).total + ends + head


def site_parameters(shape: HostShape, kind: str) -> int:
    """Parameters of the host's own operator at a site."""
    own = shape.attn_parameters if kind == "attn" else shape.mlp_parameters
    if own:
        return own
    d, hidden = shape.width, int(shape.mlp_ratio * shape.width)
    return 4 * (d * d + d) if kind == "attn" else 2 * d * hidden + hidden + d


KEEPS_CORE = ("identity", "mha")
"""Operators that attend over all tokens, as most hosts' own do: with these a core is not swapped but kept."""


@dataclass(frozen=True, kw_only=True)
class SiteCost:
    """One grafted site: what was, what comes instead, and the least FLOPs that its kind of operator can do with.

    runs: how often a forward pass comes here; twice or more where its block is shared. features: of a token, that the
    operator's last layer reads; 0 where there is nothing to solve.
    """

    site: Site
    operator: str
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    flops_least: int
    runs: int = 1
    features: int = 0


@dataclass(frozen=True, kw_only=True)
class GroupCost:
    """One group of a restructured model: the FLOPs of the blocks that it stands for, its own, its operators as they
    are, and what it adds to a delta."""

    group: Group
    flops_before: int
    flops_after: int
    new_parameters: int


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """A plan on a host at one resolution.

    core_bound: the speed-up if the swapped attention sites lost their cores and nothing else changed: what a mixer
    with four D x D projections can reach at most, and what the time bound is in FLOPs. groups: of a restructured
    model; flops_spared: by its blocks that run no longer, less what its combinations cost. parameters_after: of the
    model alone, 0 where the host's were not counted. cores_after: FLOPs of the cores of attention that are left, those
    of cross-attention among them.
    """

    shape: HostShape
    sites: tuple[SiteCost, ...]
    flops_before: int
    flops_after: int
    core_bound: float
    groups: tuple[GroupCost, ...] = ()
    flops_spared: int = 0
    parameters_after: int = 0
    cores_after: int = 0

    @property
    def flop_ratio(self) -> float:
        """FLOPs before over after, by the operators' own formulas: the speed-up if all ran equally efficiently."""
        return self.flops_before / self.flops_after

    @property
    def flop_bound(self) -> float:
        """The ceiling at equal efficiency, site by site.

        An attention site is charged its four D x D projections alone, or its operator's own FLOPs where these are
        fewer or where it keeps softmax over all tokens; an MLP site its operator's own FLOPs.
        """
        spared = sum(site.runs * (site.flops_before - site.flops_least) for site in self.sites)
        return self.flops_before / (self.flops_before - self.flops_spared - spared)

    @property
    def new_parameters(self) -> int:
        """Parameters of the new operators and groups: what stage 1 trains and the delta stores."""
        return sum(site.parameters_after for site in self.sites) + sum(group.new_parameters for group in self.groups)

    @property
    def restructured(self) -> bool:
        """Whether there are other blocks than the host's, or fewer."""
        return bool(self.groups)

    @property
    def taught_flops(self) -> int:
        """FLOPs of one pass through everything that stage 1 teaches, each at its own site or group."""
        return sum(site.flops_after for site in self.sites) + sum(group.flops_after for group in self.groups)

    @property
    def delta_bytes(self) -> int:
        """Disk of the delta in float32."""
        return 4 * self.new_parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "family": self.shape.family,
            "tokens": self.shape.tokens,
            "text_tokens": self.shape.context_tokens,
            "sites": len(self.sites),
            "new_parameters": self.new_parameters,
            "delta_bytes": self.delta_bytes,
            "flops_before": self.flops_before,
            "flops_after": self.flops_after,
            "flop_ratio": self.flop_ratio,
            "flop_bound": self.flop_bound,
            "core_bound": self.core_bound,
            "groups": [group.group.name for group in self.groups],
            "parameters_before": self.shape.parameters,
            "parameters_after": self.parameters_after,
        }


def plan_cost(plan: Plan, source: Source, *, grid: tuple[int, int] | None = None) -> PlanCost:
    """Cost of ``plan`` on a model, a configuration or sizes, at its own resolution or over another ``grid`` (H, W).

    Raises:
        PlanError: the plan does not fit.
    """
    shape = shape_of(source)
    shape = shape.at(grid) if grid else shape
    if not plan.bare:
        plan.check(shape).raise_if_any()
    block, before = block_cost(shape), host_flops(shape)
    sites = tuple(_site_cost(entry, shape) for entry in plan.resolve(shape))
    layout = plan.layout(shape)
    groups: tuple[GroupCost, ...] = ()
    spared = removed = 0
    runs = shape.depth
    if layout is not None:
        sites = tuple(replace(site, runs=len(layout.owner[site.site.block].spans)) for site in sites)
        groups = tuple(_group_cost(group, shape, block, sites) for group in layout.groups)
        combined = [_combination(group, shape) for group in layout.groups]
        runs = sum(len(group.branches) for group in layout.places)
        spared = (shape.depth - runs) * block.total - sum(flops for flops, _ in combined)
        removed = (len(layout.dropped) + len(layout.borrowed)) * shape.block_parameters
        removed -= sum(parameters for _, parameters in combined)
        if 0 in layout.dropped or layout.owner[0].kind != "keep":
            removed -= shape.first_parameters
    after = before - spared - sum(site.runs * (site.flops_before - site.flops_after) for site in sites)
    swapped = [site for site in sites if site.site.kind == "attn" and site.operator not in KEEPS_CORE]
    gone = block.core * sum(site.runs for site in swapped)
    bound = before / (before - spared - gone)
    cross = 4 * shape.tokens * shape.context_tokens * shape.width
    cross += 4 * (shape.tokens + shape.context_tokens) * shape.context_tokens * shape.width if shape.joint else 0
    new = sum(site.parameters_after - site.parameters_before for site in sites)
    return PlanCost(
        shape=shape,
        sites=sites,
        flops_before=before,
        flops_after=after,
        core_bound=bound,
        groups=groups,
        flops_spared=spared,
        parameters_after=shape.parameters - removed + new if shape.parameters else 0,
        cores_after=runs * (block.core + cross) + shape.dual * block.core - gone,
    )


@dataclass(frozen=True, kw_only=True)
class AdapterCost:
    """Low-rank adapters on a plan's host. flops: of one sample's forward pass through them."""

    parameters: int
    flops: int


def adapter_cost(cost: PlanCost, rank: int, targets: Sequence[str]) -> AdapterCost:
    """Of adapters of ``rank`` on the projections ``targets`` of every block that trains in no other way.

    Attention and MLP that the plan replaces have none, nor have groups that learn as a whole.
    """
    shape, d = cost.shape, cost.shape.width
    n, text = shape.tokens, shape.context_tokens
    hidden = int(shape.mlp_ratio * d)
    # By role: inputs, outputs and tokens of every projection.
    layers: dict[str, list[joint_cost.Layer]] = {
        "attn": [(d, d, n)] * 4,
        "cross": [(d, d, n), (d, d, text), (d, d, text), (d, d, n)] if text else [],
        "mlp": [] if shape.linear else [(d, hidden, n), (hidden, d, n)],  # a Mix-FFN's are convolutions
    }
    whole = [group.group for group in cost.groups if group.group.train == "all"]
    taken = {block for group in whole for first, last in group.spans for block in range(first, last + 1)}
    replaced = {(site.site.block, site.site.kind) for site in cost.sites}
    parameters = flops = 0
    for block in range(shape.depth):
        for role in targets:
            if block in taken:
                continue
            own, beside = joint_cost.layers(shape, block, role) if shape.joint else (layers[role], [])
            adapted = beside if (block, role) in replaced else own + beside
            parameters += sum(rank * (inputs + outputs) for inputs, outputs, _ in adapted)
            flops += sum(2 * tokens * rank * (inputs + outputs) for inputs, outputs, tokens in adapted)
    return AdapterCost(parameters=parameters, flops=flops)


def _combination(group: Group, shape: HostShape) -> tuple[int, int]:
    """FLOPs and parameters of a group's P_1 to P_k; products alone count, so scales are free."""
    d, k = shape.width, len(group.branches)
    if group.combine is None:
        return 0, 0
    return (2 * k * shape.tokens * d * d, k * d * d) if group.combine == "dense" else (0, k * d)


def _group_cost(group: Group, shape: HostShape, block: BlockCost, sites: Sequence[SiteCost]) -> GroupCost:
    inside = [site for site in sites if site.site.block in group.branches]
    flops, parameters = _combination(group, shape)
    flops += len(group.branches) * block.total - sum(site.flops_before - site.flops_after for site in inside)
    if group.train == "all":  # the branches are copies, which learn; their grafted sites are counted by themselves
        parameters += len(group.branches) * shape.block_parameters - sum(site.parameters_before for site in inside)
    return GroupCost(
        group=group,
        flops_before=group.replaced * block.total,
        flops_after=flops * len(group.spans),
        new_parameters=parameters,
    )


def _site_cost(entry: Resolved, shape: HostShape) -> SiteCost:
    from .operators.arithmetic import arithmetic

    kind, number, d, heads, n = entry.site.kind, entry.site.block, shape.width, shape.heads, shape.tokens
    block, text = block_cost(shape, number), shape.joint and kind == "attn"
    flops_before, parameters_before = block.attn if kind == "attn" else block.mlp, site_parameters(shape, kind)
    if text:
        before = joint_cost.original(shape, number)
        parameters_before, flops_before = before.parameters, before.flops
    parameters_after = flops_after = features = 0
    if entry.operator == "identity":
        parameters_after, flops_after = parameters_before, flops_before
    elif entry.operator not in CONTROLS:
        operator = arithmetic(entry.operator)
        parameters_after = operator.parameters_count(d, heads, n, **entry.options)
        flops_after = operator.flops(d, heads, n, **entry.options)
        options = operator.resolve(width=d, heads=heads, tokens=n, **entry.options)
        features = operator.count_features(d, options)
    if text and entry.operator != "identity":
        made = None if entry.operator == "none" else operator
        beside = joint_cost.beside(shape, number, made, {} if made is None else options)
        parameters_after, flops_after = parameters_after + beside.parameters, flops_after + beside.flops
    least = flops_after
    if kind == "attn" and entry.operator not in KEEPS_CORE:
        least = min(flops_after, flops_before - block.core)
    return SiteCost(
        site=entry.site,
        operator=entry.operator,
        parameters_before=parameters_before,
        parameters_after=parameters_after,
        flops_before=flops_before,
        flops_after=flops_after,
        flops_least=least,
        features=features,
    )


def time_bound(whole: float, without_cores: float, grafted: int, depth: int) -> float:
    """The speed-up if ``grafted`` of ``depth`` attention cores took no time, from two times (s) measured in one run.

    Raises:
        ValueError: times that are not positive, or more grafted sites than blocks.
    """
    if not (whole > 0 and without_cores > 0 and 0 <= grafted <= depth and depth > 0):
        raise ValueError(f"times {whole}, {without_cores} s and {grafted} of {depth} sites: times and depth above 0")
    return whole / (whole - (whole - without_cores) * grafted / depth)


def table(cost: PlanCost, name: str = "") -> str:
    """The plan as people read it."""
    shape = cost.shape
    text = f", {shape.context_tokens} text tokens" if shape.context_tokens else ""
    lines = [
        f"{name or shape.family}: {shape.depth} blocks, width {shape.width}, {shape.tokens} tokens{text}",
        f"{'site':<18}{'operator':<16}{'parameters':>24}{'GFLOPs':>22}",
    ]
    for site in cost.sites:
        parameters = f"{site.parameters_before / 1e6:.2f} M -> {site.parameters_after / 1e6:.2f} M"
        flops = f"{site.flops_before / 1e9:.2f} -> {site.flops_after / 1e9:.2f}"
        lines.append(f"{site.site.name:<18}{site.operator:<16}{parameters:>24}{flops:>22}")
    for group in cost.groups:
        told = f"{group.new_parameters / 1e6:.2f} M learn"
        flops = f"{group.flops_before / 1e9:.2f} -> {group.flops_after / 1e9:.2f}"
        lines.append(f"{group.group.name:<18}{group.group.combine or '':<16}{told:>24}{flops:>22}")
    return "\n".join(
        [
            *lines,
            f"forward pass     {cost.flops_before / 1e9:.1f} -> {cost.flops_after / 1e9:.1f} GFLOPs per sample",
            f"FLOP bound       {cost.flop_bound:.2f}x, FLOP ratio with these operators {cost.flop_ratio:.2f}x",
            *(
                [f"parameters       {shape.parameters / 1e6:.2f} M -> {cost.parameters_after / 1e6:.2f} M"]
                if cost.restructured and cost.parameters_after
                else []
            ),
            f"new parameters   {cost.new_parameters / 1e6:.2f} M, {cost.delta_bytes / 2**20:.1f} MiB in float32",
        ]
    )
