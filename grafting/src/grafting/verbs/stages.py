"""One stage alone, from folder to folder: ``pretrain``, ``distill`` and ``finetune``."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..progress import progress_line
from .recipes import recipe_source
from .shared import (
    MODEL,
    Verbs,
    at_least,
    base_option,
    data_option,
    device_option,
    plan_of,
    plan_options,
    pretrained_of,
    team_of,
    weights_option,
)

if TYPE_CHECKING:
    import torch

    from ..study.recipe import DistillStage, FinetuneStage
    from ..training.pretrain import PretrainRecipe
    from ..training.team import Team


def add(verbs: Verbs) -> None:
    """Declare them."""
    made = verbs.add("pretrain", pretrain, "train an autoencoder, a transformer or a classifier by a recipe", resume="")
    made.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped one")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; dots go down")
    made.add_argument("--out", type=Path, required=True, help="the run's folder; a run found there is continued")
    made.add_argument(
        "--until", type=at_least(1), metavar="STEP", help="stop after this step; the same command goes on"
    )
    made.add_argument(
        "--score",
        type=at_least(1),
        metavar="N",
        help="train nothing: judge N scenes drawn by the averaged weights saved last, while another process trains",
    )
    device_option(made)

    made = verbs.add("distill", distill, "stage 1: graft a model and teach its new operators", resume="")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    plan_options(made)
    made.add_argument("--init", default="default", help="default, random, copy or solve")
    made.add_argument(
        "--calibration", type=at_least(0), default=256, metavar="N", help="samples that a solved start sees"
    )
    _stage_options(made, steps=200, least=0, told="0 keeps the start alone ")

    made = verbs.add("finetune", finetune, "stage 2: finetune a graft end to end", resume="")
    made.add_argument("model", metavar="GRAFT", help=f"a graft; for --train lora also {MODEL}")
    base_option(made)
    made.add_argument("--train", help="all weights (default), the grafted operators alone, or lora: these and adapters")
    made.add_argument("--rank", type=at_least(1), help="of the adapters (16)")
    made.add_argument("--targets", metavar="ROLE,ROLE", help="what gets adapters: attn, cross, mlp; default: all")
    _stage_options(made, steps=300)

    made = verbs.add("merge", merge, "write a graft with its adapters merged into a copy of all weights")
    made.add_argument("model", metavar="GRAFT", help="the folder of a graft")
    base_option(made)
    made.add_argument("--out", type=Path, required=True, help="the new graft's folder")


def _stage_options(made: argparse.ArgumentParser, *, steps: int, least: int = 1, told: str = "") -> None:
    made.add_argument("--out", type=Path, required=True, help="the graft's folder; a run found there is continued")
    made.add_argument("--steps", type=at_least(least), default=steps, help=f"{told}(default {steps})")
    made.add_argument("--batch", type=at_least(1), default=64)
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the stage")
    made.add_argument("--seed", type=int, default=0)
    data_option(made)
    weights_option(made)
    device_option(made)


def pretrain(arguments: argparse.Namespace) -> None:
    """An autoencoder, a transformer or a classifier, trained by a recipe."""
    text = recipe_source(arguments.recipe)
    from ..training.pretrain import PretrainRecipe
    from ..training.pretrain import pretrain as train

    recipe = PretrainRecipe.from_yaml(text, arguments.set, arguments.recipe)
    if arguments.score is not None:
        _score(recipe, arguments.out, arguments.score)
        return
    team = team_of(arguments)
    with _held(arguments.out, team):
        train(recipe, arguments.out, until=arguments.until, team=team)


def _score(recipe: PretrainRecipe, out: Path, count: int) -> None:
    """The table by task, and a grid of the pictures judged in ``out/scored.png``."""
    from ..files import write_bytes_atomic
    from ..report import grid_png
    from ..training.pretrain import score

    found = score(recipe, out, count, progress=progress_line("drawn"))
    print(f"step {found.step}, {found.samples:,} samples seen, {count} prompts")
    for task in (*found.scores.tasks, found.scores.overall):
        print(f"{task.task:<14}{task.value:7.1%}  {task.low:.1%} to {task.high:.1%}")
    write_bytes_atomic(out / "scored.png", grid_png(found.pictures[:48], columns=12, zoom=1))
    print(out / "scored.png")


def distill(arguments: argparse.Namespace) -> None:
    """Stage 1: graft a pretrained model, teach its new operators, save the delta."""
    from ..study.recipe import DistillStage

    if arguments.set and not arguments.steps:
        raise ValueError(f"--set {arguments.set[0]}: a setting of training, and --steps 0 trains nothing")
    stage, team = _stage(DistillStage, arguments) if arguments.steps else None, team_of(arguments)
    with _held(arguments.out, team):
        _distill(arguments, stage, team)


def _distill(arguments: argparse.Namespace, stage: DistillStage | None, team: Team) -> None:
    from ..store.folder import save
    from ..store.models import open_model
    from ..study.material import Material
    from ..study.recipe import depended_on
    from ..study.stages import begin, learns, stage_one, uncopied

    out, model = _fresh(arguments.out), open_model(arguments.model, weights=arguments.weights).to(team.device)
    if model.graft is not None:
        raise ValueError(f"{arguments.model} is a graft already: stage 1 starts from a pretrained model")
    material = Material(model, arguments.data)
    handle = begin(
        model.transformer,
        plan_of(arguments),
        material,
        init=arguments.init,
        seed=arguments.seed,
        calibration=arguments.calibration,
        room=arguments.batch,
    )
    for line in uncopied(handle) if team.leads else ():
        print(line)
    for site, share in handle.explained.items() if team.leads else ():
        print(f"{site.name}: {share:.3f} of the variance explained at the start, on the images it was solved from")
    if stage is not None and learns(handle):
        depends: dict[str, Any] = {
            "model": handle.source_hash,
            "material": material.identity,
            "plan": handle.plan.to_dict(),
        }
        depends |= {"init": arguments.init, "calibration": arguments.calibration, "seed": arguments.seed}
        state = out / "state"
        with _claimed(state, depends | depended_on(stage), "distill.json", team):
            team.wait()
            reports = stage_one(handle, stage, material, seed=arguments.seed, out=state, team=team)
        for name, report in reports.items() if team.leads else ():
            print(f"{name}: {report.explained:.3f} explained on held-out images, step {report.best_step}")
    if not team.leads:
        return
    save(handle, out, base=arguments.model, protocol={} if stage is None else {"stage 1": _settings(stage)})
    shutil.rmtree(out / "state", ignore_errors=True)
    print(out)


def finetune(arguments: argparse.Namespace) -> None:
    """Stage 2: finetune a graft end to end and save it; a pretrained model too, where adapters alone learn."""
    from ..study.recipe import FinetuneStage

    stage, team = _stage(FinetuneStage, arguments, _trained(arguments)), team_of(arguments)
    with _held(arguments.out, team):
        _finetune(arguments, stage, team)


def _finetune(arguments: argparse.Namespace, stage: FinetuneStage, team: Team) -> None:
    from ..graft import Grafted, graft
    from ..hashes import tensors_hash
    from ..plan import Plan
    from ..store.configs import graft_folder
    from ..store.folder import save
    from ..store.manifest import read_manifest
    from ..store.models import open_model
    from ..study.material import Material
    from ..study.recipe import depended_on
    from ..study.stages import refuse_half_whole, stage_two

    out = _fresh(arguments.out)
    model = open_model(arguments.model, base=arguments.base, weights=arguments.weights).to(team.device)
    if model.graft is None and stage.adapters is None:
        raise ValueError(
            f"{arguments.model} is no graft: make one with grafting distill, or give it adapters with --train lora"
        )
    base: str | None = arguments.model if model.graft is None else arguments.base
    protocol: dict[str, Any] = {}
    folder = None if model.graft is None else graft_folder(arguments.model)
    if folder is not None:  # a released graft is one file, which says neither
        manifest = read_manifest(folder)
        base, protocol = base or manifest["base"]["name"], manifest["protocol"]
    handle = model.graft or graft(model.transformer, Plan())
    unchanged = handle.plan.bare and handle.adapters is None and not handle.private
    if unchanged and stage.still:
        raise ValueError(
            f"target teacher: {arguments.model} unchanged is its own teacher, and no step would move it; "
            "--set target=noise, or mixture, learns from the data"
        )
    teacher: torch.nn.Module | None = None
    if handle.private and stage.target != "noise":
        if base is None:
            raise ValueError(f"target {stage.target} needs the teacher beside {arguments.model}: give it with --base")
        refuse_half_whole(handle)
        teacher = pretrained_of(handle, arguments.model, base).to(team.device).transformer
    material = Material(model, arguments.data)
    depends: dict[str, Any] = {"model": tensors_hash(model.transformer.state_dict()), "material": material.identity}
    depends |= {
        "teacher": None if teacher is None else tensors_hash(teacher.state_dict()),
        "plan": handle.plan.to_dict(),
    }
    state = out / "state"
    with _claimed(state, depends | {"seed": arguments.seed} | depended_on(stage), "state.json", team):
        team.wait()
        trained, loop = stage_two(handle, stage, material, seed=arguments.seed, out=state, teacher=teacher, team=team)
    assert isinstance(trained, Grafted)
    if not team.leads:
        return
    save(trained, out, base=base, protocol=protocol | {"stage 2": _settings(stage)})
    shutil.rmtree(out / "state", ignore_errors=True)
    print(f"loss {loop.log[-1]['loss']:.4f} at step {loop.step}\n{out}" if loop.log else out)


def merge(arguments: argparse.Namespace) -> None:
    """A graft's adapters merged into its weights, which are saved whole."""
    from ..store.configs import graft_folder
    from ..store.folder import save
    from ..store.manifest import read_manifest
    from ..store.models import open_model

    manifest = read_manifest(graft_folder(arguments.model) or Path(arguments.model))
    out = _fresh(arguments.out)
    model = open_model(arguments.model, base=arguments.base)
    if model.graft is None or model.graft.adapters is None:
        raise ValueError(f"{arguments.model} holds no adapters to merge")
    base = arguments.base or manifest["base"]["name"]
    model.graft.settle()
    save(model.graft, out, whole=True, base=base, protocol=manifest["protocol"], results=manifest["results"])
    print(out)


def _trained(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``--train``, ``--rank`` and ``--targets`` say, as settings of the stage."""
    lora: dict[str, Any] = {} if arguments.rank is None else {"rank": arguments.rank}
    if arguments.targets is not None:
        lora["targets"] = arguments.targets.split(",")
    return ({} if arguments.train is None else {"train": arguments.train}) | ({"lora": lora} if lora else {})


def _stage(kind: Any, arguments: argparse.Namespace, more: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A stage's settings from ``--steps``, ``--batch``, ``more`` and ``--set``."""
    from ..settings import SettingsError, build, override

    content: dict[str, Any] = {"steps": arguments.steps, "batch": arguments.batch, **more}
    content |= {"precision": "bf16"} if arguments.weights == "bf16" else {}
    for assignment in arguments.set:
        override(content, assignment)
    problems: list[str] = []
    stage = build(kind, content, "settings", problems)
    if stage is None:
        raise SettingsError(problems)
    if arguments.weights == "bf16" and stage.precision != "bf16":
        raise ValueError(f"precision {stage.precision}: it is bf16 with --weights bf16")
    return stage


def _held(out: Path, team: Team) -> AbstractContextManager[None]:
    """A verb's folder for these processes alone, by the one that leads."""
    from ..claims import held

    return held(out) if team.leads else nullcontext()


def _claimed(state: Path, settings: Mapping[str, Any], made: str, team: Team) -> AbstractContextManager[None]:
    """The claim of a stage's folder, which is begun once ``made`` is in it, by the process that leads."""
    from ..claims import claimed

    if not team.leads:
        return nullcontext()
    return claimed(state / "settings.json", settings, begun=(state / made).is_file())


def _settings(stage: Any) -> dict[str, Any]:
    from dataclasses import asdict

    plain: dict[str, Any] = json.loads(json.dumps(asdict(stage)))
    return plain


def _fresh(out: Path) -> Path:
    if (out / "graft.json").is_file():
        raise ValueError(f"{out} holds a graft already: name another folder or remove it")
    return out
