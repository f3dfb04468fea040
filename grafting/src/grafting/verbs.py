"""What the commands over models do, each a thin call; :mod:`grafting.cli` parses and imports this when one runs."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .sampling import Sampling
    from .store.models import Model


def distill(arguments: argparse.Namespace) -> None:
    """Stage 1: graft a pretrained model, teach its new operators, save the delta."""
    from .claims import claim
    from .store.folder import save
    from .store.models import open_model
    from .study.recipe import DistillStage
    from .study.stages import Material, begin, learns, stage_one

    stage = _stage(DistillStage, arguments)
    out, model = _fresh(arguments.out), open_model(arguments.model)
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
    )
    for site, share in handle.explained.items():
        print(f"{site.name}: {share:.3f} of the variance explained at the start")
    if stage.steps and learns(handle):
        depends: dict[str, Any] = {
            "model": handle.source_hash,
            "material": material.identity,
            "plan": handle.plan.to_dict(),
        }
        depends |= {"init": arguments.init, "calibration": arguments.calibration, "seed": arguments.seed}
        state = out / "state"
        claim(state / "settings.json", depends | _kept(stage), begun=(state / "distill.json").is_file())
        reports = stage_one(handle, stage, material, seed=arguments.seed, out=state)
        for name, report in reports.items():
            print(f"{name}: {report.explained:.3f} explained on held-out images, step {report.best_step}")
    save(handle, out, base=arguments.model, protocol={"stage 1": _settings(stage)})
    shutil.rmtree(out / "state", ignore_errors=True)
    print(out)


def finetune(arguments: argparse.Namespace) -> None:
    """Stage 2: finetune a graft end to end and save it."""
    from .claims import claim
    from .graft import Grafted, tensors_hash
    from .store.folder import save
    from .store.models import open_model
    from .study.recipe import FinetuneStage
    from .study.stages import Material, denoiser, stage_two

    stage = _stage(FinetuneStage, arguments)
    out, model = _fresh(arguments.out), open_model(arguments.model, base=arguments.base)
    if model.graft is None:
        raise ValueError(f"{arguments.model} is no graft: make one with grafting distill")
    other: torch.nn.Module | None = None
    teacher = None
    if model.graft.private and stage.target != "noise":
        if arguments.base is None:
            raise ValueError(f"target {stage.target} needs the teacher beside {arguments.model}: give it with --base")
        other = open_model(arguments.base).transformer
        teacher = denoiser(other)
    material = Material(model, arguments.data)
    depends: dict[str, Any] = {"model": tensors_hash(model.transformer.state_dict()), "material": material.identity}
    depends |= {
        "teacher": None if other is None else tensors_hash(other.state_dict()),
        "plan": model.graft.plan.to_dict(),
    }
    state = out / "state"
    claim(
        state / "settings.json",
        depends | {"seed": arguments.seed} | _kept(stage),
        begun=(state / "state.json").is_file(),
    )
    trained, loop = stage_two(model.graft, stage, material, seed=arguments.seed, out=state, teacher=teacher)
    assert isinstance(trained, Grafted)
    manifest = json.loads((Path(arguments.model) / "graft.json").read_text())
    protocol = manifest["protocol"] | {"stage 2": _settings(stage)}
    save(trained, out, base=arguments.base or manifest["base"]["name"], protocol=protocol)
    shutil.rmtree(out / "state", ignore_errors=True)
    print(f"loss {loop.log[-1]['loss']:.4f} at step {loop.step}\n{out}" if loop.log else out)


def sample(arguments: argparse.Namespace) -> None:
    """A grid of samples as PNG."""
    import torch

    from .files import write_bytes_atomic
    from .report import grid_png
    from .sampling import Pipeline, draw_labels
    from .store.models import open_model
    from .study.stages import null_class

    model = open_model(arguments.model, base=arguments.base)
    classes = null_class(model.transformer)
    labels = torch.tensor(arguments.labels) if arguments.labels else draw_labels(arguments.count, classes)
    drawn: Any = getattr(model.transformer.config, "in_channels", None)
    if model.autoencoder is None and drawn not in (1, 3):
        raise ValueError(
            f"{arguments.model} draws latents of {drawn} channels and brings no autoencoder to make images of them: "
            "put its AutoencoderKL into a subfolder vae of its folder, beside transformer"
        )
    pipeline = Pipeline(model.transformer, model.autoencoder)
    show = _progress("sample")
    images = pipeline(labels, sampling=_sampling(arguments), seed=arguments.seed, progress=show)
    channels = 3 if images.shape[1] >= 3 else 1
    columns = arguments.columns or min(10, len(images))
    write_bytes_atomic(arguments.out, grid_png(images[:, :channels], columns=columns, zoom=arguments.zoom))
    print(arguments.out)


def evaluate(arguments: argparse.Namespace) -> None:
    """Held-out denoising loss beside the teacher's, and FID, KID and recognition of samples."""
    from .store.models import open_model
    from .study.stages import Material

    model = open_model(arguments.model, base=arguments.base)
    material = Material(model, arguments.data)
    if arguments.samples and model.classifier is None:
        raise ValueError(f"{arguments.model} brings no classifier to judge samples: take --samples 0")
    n, have = arguments.samples, len(material.images(train=False).labels)
    if n > have:
        raise ValueError(f"--samples {n}: the floor needs as many held-out images, and there are {have}")
    found: dict[str, Any] = {"model": arguments.model, "held-out loss": _denoising(model, material, arguments)}
    if n:
        found["quality"] = _quality(model, material, arguments)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, figure in found["held-out loss"].items():
        print(f"{name:<24}{_interval(figure)}")
    if "quality" in found:
        for name, figure in found["quality"]["figures"].items():
            floor = found["quality"]["floors"].get(name)
            print(f"{name:<24}{_interval(figure)}{'' if floor is None else f'   floor {floor:.5g}'}")
        print(found["quality"]["protocol"]["text"])


def _denoising(model: Model, material: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from .measure.denoising import Triples, denoising_losses, mean_loss, paired_difference
    from .store.models import open_model
    from .study.stages import denoiser

    z, y = material.latents(train=False), material.images(train=False).labels
    triples = Triples.draw(z, y, n=arguments.triples, seed=arguments.seed)

    def losses(network: Any, name: str) -> torch.Tensor:
        return denoising_losses(denoiser(network), triples, progress=_progress(f"held-out loss of {name}"))

    mine = losses(model.transformer, "the model")
    found = {"loss": asdict(mean_loss(mine))}
    other, name = None, arguments.against
    if name:
        other = losses(open_model(name).transformer, name)
    elif model.graft is not None and not model.graft.private:
        name = "teacher"
        with model.graft.teacher() as network:
            other = losses(network, name)
    if other is not None:
        found |= {f"of {name}": asdict(mean_loss(other)), f"minus {name}": asdict(paired_difference(mine, other))}
    return found


def _quality(model: Model, material: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    from .measure.quality import ClassifierExtractor, Protocol, collect
    from .measure.quality import evaluate as judge
    from .sampling import Pipeline, draw_labels
    from .study.stages import null_class

    assert model.classifier is not None
    train, held, n = material.images(train=True), material.images(train=False), arguments.samples
    labels, sampling = draw_labels(n, null_class(model.transformer)), _sampling(arguments)
    pipeline = Pipeline(model.transformer, model.autoencoder)
    images = pipeline(labels, sampling=sampling, seed=arguments.seed, progress=_progress("sample"))
    extractor = ClassifierExtractor(model.classifier)
    reference = collect(extractor, train.images)
    protocol = Protocol(
        n=n,
        sampling=sampling,
        labels="balanced",
        extractor=extractor.name,
        extractor_label=extractor.label,
        reference=f"{len(reference)} training images",
        seed=arguments.seed,
    )
    floor = collect(extractor, held.images[:n])
    return judge(collect(extractor, images), reference, floor, protocol, labels=labels).to_dict()


def profile(arguments: argparse.Namespace) -> None:
    """Parameters, FLOPs, latency, memory and the time bound at one resolution; a delta also beside its teacher."""
    import torch

    from .cost import host_flops
    from .hosts import host_for, shape_of
    from .measure.speed import latency, parameters, peak_bytes, time_bound
    from .store.models import open_model
    from .study.recipe import SpeedStage
    from .study.timing import speed_rows

    model = open_model(arguments.model, base=arguments.base)
    network, shape = model.transformer, shape_of(model.transformer)
    config: Any = network.config
    host, side = host_for(network), arguments.side or shape.grid[0]
    size = side * config["patch_size"]
    z = torch.randn(arguments.batch, config["in_channels"], size, size)
    t, y = torch.full((arguments.batch,), 500), torch.zeros(arguments.batch, dtype=torch.int64)

    def call() -> None:
        host.call(network, z, t, y)

    # The originals of a delta stand beside its operators and do not run.
    switches = [] if model.graft is None else model.graft.switches.values()
    idle = torch.nn.ModuleList(switch.original for switch in switches if switch.original is not None)
    timed = latency({"model": call}, rounds=arguments.rounds)["model"]
    found: dict[str, Any] = {
        "model": arguments.model,
        "tokens": side * side,
        "batch": arguments.batch,
        "threads": timed.threads,
        "parameters": parameters(network) - parameters(idle),
        "milliseconds": timed.minimum * 1000,
        "peak MiB": peak_bytes(call) / 2**20,
    }
    if model.graft is None:
        cores = [host.get(network, site) for site in host.sites(network) if site.kind == "attn"]
        found |= {
            "GFLOPs per sample": host_flops(shape.at((side, side))) / 1e9,
            "time bound of every core": time_bound(call, cores, rounds=arguments.rounds).speedup,
        }
    elif not model.graft.private:
        speed = SpeedStage(batch=arguments.batch, rounds=arguments.rounds, sides=(side,))
        rows = speed_rows(model.graft, network, speed)
        found |= {key: rows[0][key] for key in ("speedup", "flop_bound", "time_bound")} if rows else {}
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:<26}{f'{value:,.4g}' if isinstance(value, float) else value}")


def run(arguments: argparse.Namespace, recipe_text: str) -> None:
    """A recipe from end to end."""
    from .study import RunRecipe
    from .study import run as run_recipe

    changes = [*arguments.set, *([f"budget={arguments.budget}"] if arguments.budget is not None else [])]
    recipe = RunRecipe.from_yaml(recipe_text, changes)
    out = arguments.out or Path("out") / Path(arguments.recipe).stem
    try:
        run_recipe(recipe, out, resume=arguments.resume, say=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        again = ["grafting", "run", arguments.recipe, *(part for change in changes for part in ("--set", change))]
        print(f"\nstopped; go on with: {shlex.join([*again, '--out', str(out), '--resume'])}", file=sys.stderr)
        raise


def report(arguments: argparse.Namespace) -> None:
    """The page of a finished run again, from its ``results.json``."""
    from .report import read_results, write_page

    path = arguments.out / "results.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a finished grafting run writes it")
    write_page(arguments.out / "report.html", read_results(path))
    print(arguments.out / "report.html")


def plan_of(arguments: argparse.Namespace) -> Any:
    """The plan that ``--plan``, or ``--operator``, ``--site`` and ``--blocks``, ask for."""
    from .plan import Plan

    if arguments.plan:
        if not arguments.plan.is_file():
            raise ValueError(f"--plan {arguments.plan}: no such file")
        return Plan.from_yaml(arguments.plan)
    edit = {"site": arguments.site, "blocks": arguments.blocks, "operator": arguments.operator}
    return Plan.from_dict({"edits": [edit]})


def _stage(kind: Any, arguments: argparse.Namespace) -> Any:
    """A stage's settings from ``--steps``, ``--batch`` and ``--set``."""
    from .settings import SettingsError, build, override

    content: dict[str, Any] = {"steps": arguments.steps, "batch": arguments.batch}
    for assignment in arguments.set:
        override(content, assignment)
    problems: list[str] = []
    stage = build(kind, content, "settings", problems)
    if stage is None:
        raise SettingsError(problems)
    return stage


def _settings(stage: Any) -> dict[str, Any]:
    from dataclasses import asdict

    plain: dict[str, Any] = json.loads(json.dumps(asdict(stage)))
    return plain


def _kept(stage: Any) -> dict[str, Any]:
    """The settings that what is learnt depends on: all but when to write it."""
    return {key: value for key, value in _settings(stage).items() if key != "save_every"}


def _sampling(arguments: argparse.Namespace) -> Sampling:
    from .sampling import Sampling

    return Sampling(scheduler=arguments.scheduler, steps=arguments.steps, guidance=arguments.guidance)


def _fresh(out: Path) -> Path:
    if (out / "graft.json").is_file():
        raise ValueError(f"{out} holds a graft already: name another folder or remove it")
    return out


def _progress(name: str) -> Any:
    from .training.loop import Progress

    line: list[Progress] = []

    def show(done: int, total: int) -> None:
        if not line:
            line.append(Progress(total, 0, name))
        line[0].show(done)

    return show


def _interval(figure: dict[str, Any]) -> str:
    low, high = figure["low"], figure["high"]
    return f"{figure['value']:.5g}" + ("" if low is None else f"   ({low:.5g} … {high:.5g})")
