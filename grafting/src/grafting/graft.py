"""Grafting: put new operators into a pretrained model, beside the ones they replace, and take them out again.

    handle = graft(model, plan, init="solve", calibration=batches)
    with handle.teacher():
        model(...)                 # the untouched pretrained model
    model(...)                     # the hybrid
    ungraft(model)                 # the very same modules as before

Every check runs before the first edit, so a refusal leaves the model as it was. Teacher and student share one copy of
all weights that are not grafted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .activations import Streams
from .conventions import conventions
from .diffusion import Schedule
from .hashes import named, tensors_hash
from .hosts import Host, Site, host_for
from .hosts.registry import schedule_of
from .initialise import STARTS, Batches, make_stand_in, solve_all
from .parallel import Parallel, Student, make_student
from .plan import Plan
from .precision import widened
from .restructure import Group
from .switch import Raster, Switch

if TYPE_CHECKING:
    from .lora import Adapters


class GraftError(ValueError):
    """A graft, or its removal, that cannot be done; the model is as it was."""


Answered = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""By stream, what the student gives (B, N, D) and what it should give; the picture's first."""


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """What stage 1 teaches: ``parameters``, by what the teacher does on ``spans`` of its modules, first to last.

    answer: of the span's inputs, streams of outputs and further arguments, by stream what the student gives and what it
    should give, the picture's first.
    """

    parameters: dict[str, nn.Parameter]
    spans: tuple[tuple[nn.Module, nn.Module], ...]
    answer: Callable[[torch.Tensor, Streams, Mapping[str, Any]], Answered]


@dataclass(kw_only=True)
class Grafted:
    """A grafted model: its plan, its switches by site, and how it was started.

    switches: where the teacher's pass goes through, in a private copy where the student's does. inner: by site within a
    group of a restructured model, the student's own switch to the same operator. groups: that model's new blocks.
    raster: where all of them read the token grid of the pass at hand.
    facts: its constants that neither weights nor configuration hold, by module path of the pretrained model.

    source_hash: of the pretrained tensors in float32. rounded: by type of half precision, of their roundings to it;
    empty where that is not known. copied: by site, whether the operator began with anything of the original's weights,
    where it was to. explained: by site, the share of the original's output variance on the calibration
    activations that the start explains (empty where nothing was solved). private: the student has its own copy of every
    weight, so there is no teacher inside and nothing to take out. required: by name, whether each parameter of the
    pretrained model required a gradient. adapters: of :func:`grafting.lora.add_lora`, where there are any.
    """

    model: nn.Module
    plan: Plan
    host: Host
    switches: dict[Site, Switch]
    raster: Raster
    init: str
    seed: int
    source_hash: str
    rounded: dict[str, str] = field(default_factory=dict)
    copied: dict[Site, bool] = field(default_factory=dict)
    explained: dict[Site, float] = field(default_factory=dict)
    private: bool = False
    required: dict[str, bool] = field(default_factory=dict)
    groups: dict[Group, Parallel] = field(default_factory=dict)
    inner: dict[Site, Switch] = field(default_factory=dict)
    student_blocks: Student | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    adapters: Adapters | None = None

    @contextmanager
    def teacher(self) -> Iterator[nn.Module]:
        """While open, the model is the pretrained one. Raises GraftError where the graft has its own copy."""
        if self.private:
            raise GraftError(
                f"there is no teacher in this model, whose weights are its own: load the model of hash "
                f"{self.source_hash[:12]}"
            )
        with self._set(grafted=False) as model:
            yield model

    @contextmanager
    def student(self) -> Iterator[nn.Module]:
        """While open, the model is the hybrid (its state outside of both contexts)."""
        with self._set(grafted=True) as model:
            yield model

    @contextmanager
    def _set(self, *, grafted: bool) -> Iterator[nn.Module]:
        before = {site: switch.grafted for site, switch in self.switches.items()}
        blocks = self.host.blocks(self.model)
        for switch in self.switches.values():
            switch.grafted = grafted
        if self.student_blocks is not None and self.student_blocks.originals is not None:
            self.host.set_blocks(self.model, self.student_blocks if grafted else self.student_blocks.originals)
        try:
            with nullcontext() if self.adapters is None else self.adapters.switched(grafted):
                yield self.model
        finally:
            self.host.set_blocks(self.model, blocks)
            for site, switch in self.switches.items():
                switch.grafted = before[site]

    def parts(self) -> tuple[nn.Module, ...]:
        """The model and, of a restructured one, both sets of blocks: of these only one at a time is in the model."""
        blocks = self.student_blocks
        both = () if blocks is None else (blocks, blocks.originals)
        return (self.model, *(part for part in both if part is not None))

    def running(self) -> dict[int, nn.Module]:
        """The blocks that the student runs with, by their numbers in the pretrained model."""
        layout = self.plan.layout(self.model)
        if layout is None:
            return dict(enumerate(self.host.blocks(self.model)))
        assert self.student_blocks is not None
        found: dict[int, nn.Module] = {}
        for group, block in zip(layout.places, self.student_blocks, strict=True):
            kept = group.kind == "keep"
            branches = [self.host.bare_block(block)] if kept else self.groups[group].branches
            found |= zip(group.branches, branches, strict=True)
        return found

    def operators(self) -> dict[Site, nn.Module]:
        """The new modules by site."""
        return {site: switch.operator for site, switch in self.switches.items()}

    @property
    def tied(self) -> bool:
        """Whether an operator makes it run at the model's own number of tokens alone."""
        return any(getattr(operator, "needs_tokens", False) for operator in self.operators().values())

    def learnable(self) -> dict[Site | Group, dict[str, nn.Parameter]]:
        """By site and group, the parameters that both stages may train and that a delta stores; each is in one only.

        An operator within a group belongs to its site.
        """
        found: dict[Site | Group, dict[str, nn.Parameter]] = {
            site: dict(operator.named_parameters()) for site, operator in self.operators().items()
        }
        taken = {id(parameter) for parameters in found.values() for parameter in parameters.values()}
        for group, module in self.groups.items():
            found[group] = {
                name: parameter
                for name, parameter in module.named_parameters()
                if id(parameter) not in taken and (group.train == "all" or name.startswith("combine."))
            }
        return {key: parameters for key, parameters in found.items() if parameters}

    def new(self) -> list[nn.Parameter]:
        """All that is not the pretrained model's: of operators, groups and adapters."""
        adapters = {} if self.adapters is None else self.adapters.parameters()
        parts = [*self.learnable().values(), adapters]
        return [parameter for parameters in parts for parameter in parameters.values()]

    def pupils(self) -> dict[Site | Group, Pupil]:
        """What can be taught beside the teacher, by site and group."""
        found: dict[Site | Group, Pupil] = {}
        for key, parameters in self.learnable().items():
            if isinstance(key, Site):
                switch = self.switches[key]
                found[key] = Pupil(
                    parameters=parameters, spans=((switch, switch),), answer=_site_answer(self.host, switch)
                )
            else:
                assert self.student_blocks is not None and self.student_blocks.originals is not None
                blocks = self.student_blocks.originals
                spans = tuple((blocks[first], blocks[last]) for first, last in key.spans)
                found[key] = Pupil(parameters=parameters, spans=spans, answer=_group_answer(self.groups[key]))
        return found

    @property
    def originals(self) -> nn.ModuleList:
        """The blocks that the teacher runs through. Raises GraftError where the graft has its own copy."""
        with self.teacher() as model:
            return self.host.blocks(model)

    def meetings(self, originals: Iterable[nn.Module]) -> list[tuple[nn.Module, nn.Module]]:
        """(student's, teacher's) blocks that should return the same, in the order in which they run.

        originals: the teacher's blocks.
        """
        layout, theirs = self.plan.layout(self.model), list(originals)
        blocks = self.host.blocks(self.model) if self.student_blocks is None else self.student_blocks
        if layout is None:
            return list(zip(blocks, theirs, strict=True))
        return [(blocks[place], theirs[block]) for place, block in layout.meetings]

    def train_grafted(self, *, adapters: bool = False) -> None:
        """Let only the new operators and groups require gradients, and the adapters where that is asked for."""
        self.model.requires_grad_(False)
        if self.student_blocks is not None and self.student_blocks.originals is not None:
            self.student_blocks.originals.requires_grad_(False)
        for parameters in self.learnable().values():
            for parameter in parameters.values():
                parameter.requires_grad_(True)
        if adapters and self.adapters is not None:
            for parameter in self.adapters.parameters().values():
                parameter.requires_grad_(True)

    def own_copy(self, device: torch.device | str | None = None) -> Grafted:
        """A hybrid whose every weight is its own and trains, without the teacher: what full finetuning edits.

        Adapters are merged into its weights: equal but for the rounding of a sum. In float32 where what is new is,
        whatever the other weights were held in. device: where the copy is made; by default where the model is.
        """
        # Neither the originals nor this handle are copied: the memo says that they are nothing.
        left_out: list[Any] = [self, *(switch.original for switch in self.switches.values())]
        if self.student_blocks is not None:
            left_out.append(self.student_blocks.originals)
        memo: dict[int, Any] = {id(thing): None for thing in left_out}
        if device is not None:
            memo |= _moved(self.model, device, [thing for thing in left_out if isinstance(thing, nn.Module)])
        with self.student():
            model = copy.deepcopy(self.model, memo)
        model.requires_grad_(True)
        mine = Grafted(
            model=model,
            plan=self.plan,
            host=self.host,
            switches={site: memo[id(self.inner.get(site, switch))] for site, switch in self.switches.items()},
            raster=memo[id(self.raster)],
            init=self.init,
            seed=self.seed,
            source_hash=self.source_hash,
            rounded=dict(self.rounded),
            copied=dict(self.copied),
            explained=dict(self.explained),
            groups={group: memo[id(module)] for group, module in self.groups.items()},
            student_blocks=None if self.student_blocks is None else memo[id(self.student_blocks)],
            facts=dict(self.facts),
            adapters=None if self.adapters is None else self.adapters.copied(memo),
        )
        mine.settle()
        remember(mine)
        return mine

    def settle(self) -> None:
        """Keep the hybrid alone, every weight its own: in float32 where what is new is, adapters merged, and the
        teacher gone, with the pretrained model that this was put into."""
        if len({parameter.dtype for parameter in self.model.parameters()}) > 1:
            widened(self.model)
        if self.adapters is not None:
            self.adapters.merge()
            self.adapters = None
        self.forget_teacher()

    def forget_teacher(self) -> None:
        """Keep the student alone: its weights are its own from now on, and there is no way back."""
        self.switches = {site: self.inner.get(site, switch) for site, switch in self.switches.items()}
        self.inner, self.private = {}, True
        for switch in self.switches.values():
            switch.original, switch.grafted = None, True
        if self.student_blocks is not None:
            self.student_blocks.forget()


def _moved(model: nn.Module, device: torch.device | str, left_out: list[nn.Module]) -> dict[int, Any]:
    """The memo of a deep copy whose tensors are on ``device``; but for weights that are packed, and no numbers."""
    idle = {id(tensor) for part in left_out for tensor in (*part.parameters(), *part.buffers())}
    moved: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        weight = isinstance(tensor, nn.Parameter)
        if id(tensor) not in idle and (tensor.is_floating_point() or not weight):
            copied = tensor.detach().to(device, copy=True)
            moved[id(tensor)] = nn.Parameter(copied) if weight else copied
    return moved


def _site_answer(host: Host, switch: Switch) -> Callable[..., Answered]:
    return lambda inputs, outputs, call: tuple(
        zip(host.streams(switch, switch.stand_in(inputs, **call)), outputs, strict=True)
    )


def _group_answer(module: Parallel) -> Callable[..., Answered]:
    """Of updates: what is added to the residual stream."""
    return lambda inputs, outputs, call: ((module(inputs, **call) - inputs, outputs[0] - inputs),)


def null_identity(null: Any) -> int | str:
    """What stands for a dropped condition, as JSON: the class, or the hash of a dictionary of one row."""
    return tensors_hash(null) if isinstance(null, Mapping) else int(null)


SAVING = ("save_pretrained", "push_to_hub")
"""Of diffusers' models, which would write a graft that nothing loads again: its own loader drops the new operators."""


def remember(handle: Grafted) -> None:
    """Keep the handle beside its model, as a plain attribute that no state dict sees, and refuse diffusers' saving."""
    object.__setattr__(handle.model, "_grafted", handle)
    for name in SAVING:
        if hasattr(type(handle.model), name):
            object.__setattr__(handle.model, name, MethodType(partial(_saved, name), handle.model))


def _saved(name: str, model: nn.Module, *given: Any, **options: Any) -> Any:
    """What diffusers' method of that name does, of a model that is as its class has it. Raises GraftError of others."""
    handle = handle_of(model)
    if handle is None or (handle.plan.bare and handle.adapters is None):
        return getattr(type(model), name)(model, *given, **options)
    back = "" if handle.private else ", ungraft(model) gives the pretrained model back"
    raise GraftError(
        "this model is grafted, and diffusers would load what it saves of it without the new operators or adapters: "
        f"grafting.save(handle, folder) keeps them{back}"
    )


def handle_of(model: nn.Module) -> Grafted | None:
    """The handle of a grafted model, None of a plain one."""
    handle = model.__dict__.get("_grafted")
    return handle if isinstance(handle, Grafted) and handle.model is model else None


def graft(
    model: nn.Module,
    plan: Plan,
    *,
    init: str = "default",
    seed: int = 0,
    calibration: Batches | None = None,
    calibration_batches: int = 4,
    calibration_room: int | None = None,
    diffusion: Schedule | None = None,
    dtype: torch.dtype | None = None,
    source_hash: str | None = None,
) -> Grafted:
    """Put the operators of ``plan`` into ``model`` and restructure its blocks, in place.

    ``Plan()``, without edits, gives a handle on the pretrained model as it is, for adapters alone.

    Args:
        init: ``random`` (the paper's; per-site seed = ``seed`` + block), ``copy``, ``solve``, or ``default``: solve
            where there is calibration, copy elsewhere. What cannot be copied stays random, and
            :attr:`Grafted.copied` says so.
        calibration: batch(step) giving ``z`` (B, C, H, W) clean latents and their condition ``y``, labels (B,) or as in
            :mod:`grafting.conditions`; ``calibration_batches`` of them are noised by ``diffusion``, by default as
            the model was taught, and shown to it once for all sites together, at most ``calibration_room`` samples at a
            time.
        dtype: of what is new; the model's own by default. In float32 it can learn beside weights in bfloat16, which do
            not: both stages, held-out losses, samples, analyses and pipelines of diffusers run such a model, a search
            does not.
        source_hash: of the model's tensors in float32, where it is known: reading them all takes a while in large ones.
            A folder of the graft then notes nothing of their roundings to half precision.

    Raises:
        GraftError, ValueError: the plan does not fit the model, the model is grafted already, an unknown ``init``,
            ``solve`` without calibration, or calibration without a batch. The model is then as it was.
    """
    if init not in STARTS:
        raise GraftError(f"init {init!r}: one of {', '.join(STARTS)}")
    if init == "solve" and calibration is None:
        raise GraftError("init 'solve' needs calibration: batch(step) with z and y; or take init 'copy'")
    if calibration is not None and calibration_batches < 1:
        raise GraftError(f"calibration_batches {calibration_batches}: at least 1, or no calibration")
    if calibration_room is not None and calibration_room < 1:
        raise GraftError(f"calibration_room {calibration_room}: at least 1")
    if handle_of(model) is not None:
        raise GraftError("this model is grafted already: ungraft(model) first")
    if not plan.bare:
        plan.check(model).raise_if_any()
    host = host_for(model)
    chosen = plan.resolve(model)
    originals = {entry.site: host.get(model, entry.site) for entry in chosen}
    copied: dict[Site, bool] = {}
    stand_ins = {
        entry.site: make_stand_in(host, model, originals[entry.site], entry, init, seed, dtype=dtype, copied=copied)
        for entry in chosen
    }
    explained: dict[Site, float] = {}
    if calibration is not None and init in ("default", "solve"):
        noise = diffusion or schedule_of(model)
        explained = solve_all(
            host, model, originals, stand_ins, calibration, calibration_batches, seed, noise, calibration_room
        )
    source_hash, rounded = (source_hash, {}) if source_hash else named(model)
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    layout = plan.layout(model)
    facts = {} if layout is None else conventions(model)
    raster = Raster(host, model)
    switches = {site: Switch(originals[site], stand_ins[site], raster) for site in originals}
    inner: dict[Site, Switch] = {}
    student: Student | None = None
    groups: dict[Group, Parallel] = {}
    if layout is not None:

        def replace(branch: nn.Module, block: int) -> None:
            for site, stand_in in stand_ins.items():
                if site.block == block:
                    inner[site] = Switch(None, stand_in, raster)
                    host.set_in(branch, site.kind, inner[site])

        try:
            student, groups = make_student(host, model, layout, replace)
        except BaseException:
            raster.detach()
            raise
    for site, switch in switches.items():
        switch.train(originals[site].training)
        host.set(model, site, switch)
    if student is not None:
        host.set_blocks(model, student)
    handle = Grafted(
        model=model,
        plan=plan,
        host=host,
        switches=switches,
        raster=raster,
        init=init,
        seed=seed,
        source_hash=source_hash,
        rounded=rounded,
        copied=copied,
        explained=explained,
        required=required,
        groups=groups,
        inner=inner,
        student_blocks=student,
        facts=facts,
    )
    if dtype is not None:  # operators are of it; of the new blocks what learns, and no more
        for parameters in handle.learnable().values():
            for parameter in parameters.values():
                parameter.data = parameter.data.to(dtype)
    remember(handle)
    return handle


def ungraft(model: nn.Module) -> nn.Module:
    """Put the original modules back, the very same objects; parameters require gradients as they did before.

    Raises GraftError where there is nothing to put back.
    """
    handle = handle_of(model)
    if handle is None:
        raise GraftError("this model is not grafted")
    if handle.private:
        raise GraftError(
            "this model was finetuned as a whole and holds no original weights: load the model of hash "
            f"{handle.source_hash[:12]} again"
        )
    if handle.adapters is not None:
        handle.adapters.remove()
    if handle.student_blocks is not None:
        assert handle.student_blocks.originals is not None
        handle.host.set_blocks(model, handle.student_blocks.originals)
    handle.raster.detach()
    for site, switch in handle.switches.items():
        assert switch.original is not None
        handle.host.set(model, site, switch.original)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(handle.required.get(name, parameter.requires_grad))
    for name in ("_grafted", *SAVING):
        model.__dict__.pop(name, None)
    return model
