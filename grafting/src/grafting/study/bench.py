"""A recipe opened on its teacher and its data: every part of every model, made once and kept."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..claims import ClaimError, claim, locked
from ..conventions import conventions, restore
from ..data.shards import is_encoded
from ..files import save_safetensors_atomic, write_bytes_atomic
from ..graft import Grafted, graft, ungraft
from ..hashes import tensors_hash
from ..hosts.registry import schedule_of, set_schedule
from ..initialise import start_versions
from ..lora import MISSING
from ..measure.denoising import Triples, denoising_losses, images_of, mean_loss
from ..measure.quality import (
    Features,
    Reference,
    collect,
)
from ..precision import learning_type
from ..progress import progress_line, progress_lines
from ..report import grid_png
from ..scenes.scorer import SCORER
from ..steps import check_walk
from ..store.folder import beside_weights, load, save, walked
from ..store.manifest import read_manifest
from ..store.models import open_model, refuse_latents, with_autoencoder
from ..tasks import Verdict
from ..training.loop import Loop
from ..training.team import Team
from .asked import Asked
from .asked import problems as unanswerable
from .drawing import draw_pairs
from .entries import Entry, entries
from .judging import Judge
from .material import Material
from .parts import StudyError, kept, key_of, part, thinned
from .recipe import RunRecipe, depended_on
from .scenes import from_text, judged, outcome
from .stages import LOOKED_AT, begin, denoiser, learns, left_unexplained, stage_one, stage_two, uncopied

Say = Callable[[str], None]
SAMPLE_CHUNK = 250
"""Samples between two saves."""
MOMENTS = {"start": "losses-start", "stage 1": "losses-stage-1"}
"""When the held-out loss of a model that is being made may be measured, and in which files it is kept."""


class Study:
    """A recipe opened on its teacher and its data; each method is one part of one model, made once."""

    def __init__(self, recipe: RunRecipe, out: Path, say: Say = print, team: Team | None = None) -> None:
        self.recipe, self.out, self.say = recipe, out, say
        self.clock: Callable[[str], Path] = lambda name: out / f"speed-{name}.json"  # where times are kept, by model
        self.team = team or Team.current()
        model = open_model(recipe.teacher, weights=recipe.weights)
        self.model = (with_autoencoder(model, recipe.vae) if recipe.vae else model).to(self.team.device)
        if self.model.graft is not None:
            raise StudyError(f"teacher {recipe.teacher} is a graft already: a study starts from a pretrained model")
        self.teacher = self.model.transformer
        self._check_recipe()
        device = next(self.teacher.parameters()).device
        self.material = Material(self.model, self._data(device)).first(recipe.images)
        self.judging = Judge(recipe.evaluate, self.model, self.material, out, device)
        self.asked = Asked(recipe.evaluate, self.model, self.material, recipe.seed, device)
        _ = self.material.identity  # hashed once, for all recipes that share it
        self.entries = entries(recipe, self.teacher)
        self.source, self.constants = tensors_hash(self.teacher.state_dict()), beside_weights(self.teacher)
        self._check_data()

    def again(self, recipe: RunRecipe) -> Study:
        """Another recipe in the same folder; what was read, encoded and measured of teacher and data is shared.

        Raises:
            StudyError: it does not fit, or its teacher, data, seed or protocol is another.
        """
        shared = ("teacher", "weights", "vae", "data", "seed", "evaluate")
        odd = [name for name in shared if getattr(recipe, name) != getattr(self.recipe, name)]
        if odd:
            raise StudyError(f"recipes of one study share {', '.join(shared)}: {', '.join(odd)} differ")
        other = copy.copy(self)
        other.recipe, other.entries = recipe, entries(recipe, self.teacher)
        other.material = self.material.first(recipe.images)
        other._check_recipe()
        other._check_data()
        return other

    def _data(self, device: torch.device) -> str | None:
        """Where that lies which the study learns from; pairs are drawn first, by one process."""
        if self.recipe.pairs is None:
            return self.recipe.data
        home = self.out / "pairs"
        if self.team.size == 1:
            pairs, seed = self.recipe.pairs, self.recipe.seed
            draw_pairs(self.model, pairs, home, seed=seed, device=device, progress=progress_lines("pairs: "))
        elif not is_encoded(home):  # processes do not wait for each other as long as this takes
            raise StudyError(f"pairs are drawn by one process: start one until they are in {home}, then several")
        return str(home)

    def _check_recipe(self) -> None:
        """What is known before any data are read or drawn."""
        problems = [
            f"plan {name}: {problem}"
            for name, plan in self.recipe.plans.items()
            for problem in plan.check(self.teacher).problems
        ]
        problems += unanswerable(self.recipe.evaluate, self.model)
        problems += [
            f"beside {run}: no results.json in {self.home_of(run)}"
            for run in self.recipe.beside
            if not (self.home_of(run) / "results.json").is_file()
        ]
        fine = self.recipe.stages[1]
        if fine is not None and fine.train == "grafted" and "procedure" in self.recipe.controls:
            problems.append("control procedure: with train: grafted nothing of the unchanged teacher trains")
        schedule = schedule_of(self.teacher)
        if fine is not None and fine.weight_power:
            problems += _refusal(schedule.level_weights, fine.weight_cap, fine.weight_power)
        if self.recipe.evaluate.drawn:
            problems += _refusal(check_walk, schedule, self.recipe.evaluate.sampling)
            problems += _refusal(refuse_latents, self.model)
        if fine is not None and fine.adapters is not None and find_spec("peft") is None:
            problems.append(f"train: {MISSING}")
        if problems:
            raise StudyError("; ".join(problems))

    def _check_data(self) -> None:
        problems = self.judging.problems()
        learnt, there = self.recipe.images, self.material.count(train=True)
        if learnt is not None and learnt > there:
            problems.append(f"images {learnt}: there are {there} to learn from")
        if problems:
            raise StudyError("; ".join(problems))

    # -- training ------------------------------------------------------------------------------------------------

    def settings(self, entry: Entry) -> dict[str, Any]:
        """What the weights of a model depend on."""
        found: dict[str, Any] = {"teacher": self.source, **self.constants}
        if entry.role == "teacher":
            return found
        one, two = self.recipe.stages if entry.learns else (None, None)
        found |= {"material": self.material.identity, "seed": self.recipe.learning_seed}
        if self.recipe.images is not None:
            found["images"] = self.recipe.images
        if entry.plan is not None:
            found |= {"plan": entry.plan.to_dict(), "init": entry.init, "calibration": self.recipe.calibration}
            found |= start_versions(entry.plan.edits, entry.init)
            found["distill"] = one and depended_on(one)
        found["finetune"] = two and depended_on(two)
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def train(self, entry: Entry) -> dict[str, Any]:
        """Make one model and save it in ``out/NAME/model``; returns curves and shares explained.

        Of several processes all train, and the one that leads writes.
        """
        if entry.role == "teacher":
            return {}
        folder, settings = self.out / entry.name, self.settings(entry)
        leads = self.team.leads
        with _claimed(folder, settings) if leads else nullcontext():
            outcome = part(folder / "train.json", settings, lambda: self._train(entry, folder), write=leads)
            for state in ("distill", "finetune") if leads else ():
                shutil.rmtree(folder / state, ignore_errors=True)
        return outcome

    def _train(self, entry: Entry, folder: Path) -> dict[str, Any]:
        recipe, seed = self.recipe, self.recipe.learning_seed
        one, two = recipe.stages if entry.learns else (None, None)
        outcome: dict[str, Any] = {"curves": {}, "explained": {}, "started": {}, "finetuned": two is not None}
        if entry.plan is None or entry.plan.bare:
            assert two is not None
            if two.still:
                return outcome | {"same": True}
        if entry.plan is None:
            assert two is not None
            self.say(f"{entry.name}: stage 2, {two.steps} steps")
            state = folder / "finetune"
            trained, loop = stage_two(self.teacher, two, self.material, seed=seed + 1, out=state, team=self.team)
            if self.team.leads:
                trained.save_pretrained(folder / "model")  # type: ignore[union-attr, operator]
            outcome["curves"]["stage 2"] = {entry.name: thinned([(row["step"], row["loss"]) for row in loop.log])}
            outcome["loss parts"] = _parts(loop)
            return outcome
        stage = one or two
        handle = begin(
            self.teacher,
            entry.plan,
            self.material,
            init=entry.init,
            seed=seed,
            calibration=recipe.calibration,
            room=None if stage is None else stage.batch,
        )
        try:
            for line in uncopied(handle):
                self.say(f"{entry.name}: {line}")
            outcome["started"] = {site.name: share for site, share in handle.explained.items()}
            if two is not None:
                self._look(entry, "start", handle.model)
            if one is not None and learns(handle):
                self.say(f"{entry.name}: stage 1, {len(handle.switches)} sites, {one.steps} steps")
                reports = stage_one(handle, one, self.material, seed=seed, out=folder / "distill", team=self.team)
                outcome["explained"] = {name: report.explained for name, report in reports.items()}
                outcome["curves"]["stage 1"] = {name: thinned(report.curve) for name, report in reports.items()}
                outcome["held out"] = {
                    name: thinned([(step, loss) for step, loss, _ in report.heldout])
                    for name, report in reports.items()
                }
                if two is not None:
                    self._look(entry, "stage 1", handle.model)
            student: Grafted | nn.Module = handle
            if two is not None and (two.train != "grafted" or learns(handle)):
                self.say(f"{entry.name}: stage 2, {two.steps} steps")
                state = folder / "finetune"
                student, loop = stage_two(handle, two, self.material, seed=seed + 1, out=state, team=self.team)
                outcome["curves"]["stage 2"] = {entry.name: thinned([(row["step"], row["loss"]) for row in loop.log])}
                outcome["loss parts"] = _parts(loop)
            else:
                outcome["finetuned"] = False
            assert isinstance(student, Grafted)
            if self.team.leads:
                save(student, folder / "model", base=recipe.teacher)
        finally:
            ungraft(self.teacher)
        return outcome

    def subject(self, entry: Entry) -> Entry:
        """Whose measurements stand for a model: the teacher's, where training could not change it, else its own."""
        return self.entries[0] if self.train(entry).get("same") else entry

    @contextmanager
    def opened(self, entry: Entry) -> Iterator[tuple[nn.Module, Grafted | None]]:
        """A model as it was saved, with its handle; a delta stands in the teacher while this is open."""
        folder = self.out / entry.name
        if entry.role == "teacher":
            yield self.teacher, None
        elif entry.plan is None:
            model = type(self.teacher).from_pretrained(folder / "model").eval()  # type: ignore[attr-defined]
            restore(model, conventions(self.teacher))  # which its files do not hold
            set_schedule(model, schedule_of(self.teacher))
            yield model.to(self.team.device), None
        else:
            base = None if read_manifest(folder / "model")["whole"] else self.teacher
            handle = load(folder / "model", base, dtype=learning_type(self.teacher))
            set_schedule(handle.model, schedule_of(self.teacher))
            try:
                yield handle.model.to(self.team.device), handle
            finally:
                if not handle.private:
                    ungraft(self.teacher)

    # -- measuring -----------------------------------------------------------------------------------------------

    @cached_property
    def triples(self) -> Triples:
        """The held-out triples that every model is judged on."""
        z, y = self.material.latents(train=False), self.material.conditions(train=False)
        n, seed = self.recipe.evaluate.triples, self.recipe.seed
        return Triples.draw(z, y, n=n, seed=seed, schedule=schedule_of(self.teacher))

    @property
    def image(self) -> torch.Tensor:
        """(triples,) which held-out image each triple is of."""
        return images_of(self.recipe.evaluate.triples, self.material.count(train=False))

    def home_of(self, run: str) -> Path:
        """The folder of a finished run of ``beside``."""
        shipped = self.model.folder and self.model.folder / "runs" / run
        return shipped if shipped and (shipped / "results.json").is_file() else Path(run)

    def _shipped(self, entry: Entry) -> Path | None:
        """The teacher's own measurements, as a bundle may bring them for the demo's settings."""
        home = self.model.folder
        return home / "measured" if entry.role == "teacher" and home is not None else None

    def denoise(self, entry: Entry) -> torch.Tensor:
        """(triples,) held-out losses of one model."""
        entry = self.subject(entry)
        folder = self.out / entry.name

        def make() -> dict[str, Any]:
            with self.opened(entry) as (model, _):
                return self._losses(model, entry.name, folder / "losses.safetensors")

        part(folder / "denoise.json", self.judged_on(entry), make, self._shipped(entry))
        return load_file(folder / "losses.safetensors")["losses"]

    def judged_on(self, entry: Entry) -> dict[str, Any]:
        """What held-out losses depend on."""
        triples = {"triples": self.recipe.evaluate.triples, "triples' seed": self.recipe.seed}
        return self.settings(entry) | triples | {"material": self.material.identity}

    def _losses(self, model: nn.Module, name: str, path: Path, write: bool = True) -> dict[str, Any]:
        self.say(f"{name}: held-out loss on {len(self.triples)} triples")
        batch, show = self.recipe.evaluate.batch, progress_line(f"{name}: held-out loss")
        losses = denoising_losses(denoiser(model), self.triples, batch_size=batch, progress=show)
        if write:
            save_safetensors_atomic(path, {"losses": losses})
        return asdict(mean_loss(losses, self.image)) | {"files": [path.name]}

    def _look(self, entry: Entry, moment: str, model: nn.Module) -> None:
        """Keep the held-out losses of a model that is being made, where the recipe asks for them."""
        if self.recipe.evaluate.stages:
            path, leads = self.out / entry.name / f"{MOMENTS[moment]}.json", self.team.leads

            def make() -> dict[str, Any]:
                return self._losses(model, f"{entry.name}, {moment}", path.with_suffix(".safetensors"), leads)

            part(path, self.judged_on(entry), make, write=leads)

    def looks(self, entry: Entry) -> dict[str, torch.Tensor]:
        """(triples,) held-out losses at the ``start`` and after ``stage 1`` of one model, where they were measured."""
        found = {}
        for moment, name in MOMENTS.items():
            path = self.out / entry.name / f"{name}.json"
            if kept(path, self.judged_on(entry)) is not None:
                found[moment] = load_file(path.with_suffix(".safetensors"))["losses"]
        return found

    def left(self, entry: Entry) -> dict[str, float]:
        """What a trained model's blocks leave unexplained of those of the teacher that they stand for, by the latter's
        number, on some of the held-out triples; empty for the teacher."""
        if entry.role == "teacher" or self.train(entry).get("same"):
            return {}

        def make() -> dict[str, Any]:
            with self.opened(entry) as (model, handle):
                return left_unexplained(model, handle, self.teacher, self.triples, self.recipe.evaluate.batch)

        settings = self.judged_on(entry) | {"looked at": LOOKED_AT}
        return part(self.out / entry.name / "left.json", settings, make)

    def labels(self) -> torch.Tensor:
        """(drawn,) asked classes, the same for every model."""
        return self.asked.labels

    def _sampling(self, entry: Entry) -> dict[str, Any]:
        config = self.recipe.evaluate
        return self.settings(entry) | {
            "sampling": asdict(config.sampling),
            "labels": config.labels,
            "drawn": config.drawn,
            "samples' seed": self.recipe.seed,
            "decoder": self.material.identity["autoencoder"],
            **self.asked.settings,
            **walked(self.teacher),
        }

    def drawn(self, entry: Entry) -> list[Path]:
        """The files that hold the samples of one model, in half precision, and its grid; none where none are drawn."""
        config, entry = self.recipe.evaluate, self.subject(entry)
        if config.drawn == 0:
            return []
        folder, settings = self.out / entry.name, self._sampling(entry)
        chunks = f"samples-{key_of(settings)[:12]}"

        def make() -> dict[str, Any]:
            self.say(f"{entry.name}: {config.drawn} samples, {config.sampling.describe()}")
            with self.opened(entry) as (model, _):
                names = self.asked.draw(model, folder / chunks, size=SAMPLE_CHUNK, name=entry.name)
            return {"n": config.drawn, "files": [f"{chunks}/{name}" for name in names]}

        files = part(folder / "sample.json", settings, make, self._shipped(entry))["files"]
        for old in folder.glob("samples-*"):
            if old.is_dir() and not any(name.startswith(f"{old.name}/") for name in files):
                shutil.rmtree(old, ignore_errors=True)
        return [folder / name for name in files]

    def images(self, entry: Entry, count: int) -> Iterator[torch.Tensor]:
        """The first ``count`` samples of one model, (B, C, H, W) at a time."""
        for path in self.drawn(entry):
            if count <= 0:
                return
            for part_ in load_file(path)["images"][:count].split(SAMPLE_CHUNK):
                yield part_.float()
                count -= len(part_)

    def sample(self, entry: Entry) -> torch.Tensor | None:
        """Draw the samples of one model and their grid; returns the first of them, None where none are drawn."""
        config = self.recipe.evaluate
        if config.drawn == 0:
            return None
        first = next(self.images(entry, config.drawn))
        if config.grid:
            shown = torch.cat(list(self.images(entry, config.grid)))
            shown = shown[:, : 3 if shown.shape[1] >= 3 else 1]
            picture = grid_png(shown, columns=self.asked.columns, titles=self.asked.texts[: len(shown)])
            write_bytes_atomic(self.out / self.subject(entry).name / "grid.png", picture)
        return first

    def glimpse(self, entry: Entry, count: int) -> torch.Tensor:
        """(count, C, H, W) the first samples of a model of which no more are wanted."""
        with self.opened(self.subject(entry)) as (model, _):
            return self.asked.first(model, count)

    @property
    def reference(self) -> Reference:
        """Of real images, what FID and KID compare to."""
        return self.judging.reference

    def features(self, entry: Entry) -> Features:
        """Features of one model's samples, kept beside them."""
        n, entry = self.recipe.evaluate.samples, self.subject(entry)
        folder = self.out / entry.name
        settings = self._sampling(entry) | {"n": n, "judge": self.judging.identity}

        def make() -> dict[str, Any]:
            found = collect(self.judging.extractor, self.images(entry, n))
            tensors = {name: x for name, x in vars(found).items() if x is not None}
            save_safetensors_atomic(folder / "features.safetensors", tensors)
            return {"files": ["features.safetensors"]}

        part(folder / "features.json", settings, make, self._shipped(entry))
        return Features(**load_file(folder / "features.safetensors"))

    @cached_property
    def _teacher_features(self) -> Features:
        # Of several processes that judge rows of one folder, one draws the teacher's samples; the others wait for them.
        with locked(self.out / "teacher" / "features.lock", wait=True) if self.team.size == 1 else nullcontext():
            return self.features(self.entries[0])

    def judge(self, entry: Entry) -> dict[str, Any] | None:
        """FID, KID and recognition of one model's samples beside the floor; None where none are asked for."""
        n, entry = self.recipe.evaluate.samples, self.subject(entry)
        if n == 0:
            return None
        settings = self._sampling(entry) | {"n": n} | self.judging.settings
        return part(self.out / entry.name / "quality.json", settings, lambda: self._judge(entry, n))

    def _judge(self, entry: Entry, n: int) -> dict[str, Any]:
        self.say(f"{entry.name}: quality of {n} samples")
        features, seed, classes = self.features(entry), self.recipe.seed, self.asked.classes
        outcome = self.judging.quality(features, None if classes is None else classes[:n], seed)
        if entry.role != "teacher":
            for name, apart in self.judging.minus(features, self._teacher_features, seed).items():
                outcome["figures"][f"{name.upper()} − teacher's"] = asdict(apart)
        return outcome

    def score(self, entry: Entry) -> dict[str, Any] | None:
        """What the judge of scenes says of one model's pictures, as :func:`~grafting.study.scenes.outcome` has it;
        None where no prompts are asked for."""
        config, entry = self.recipe.evaluate, self.subject(entry)
        if not config.prompts:
            return None
        settings = self._sampling(entry) | {"prompts asked": [config.prompts, config.held_out], "scorer": SCORER}

        def make() -> dict[str, Any]:
            self.say(f"{entry.name}: {config.drawn} scenes judged")
            mine = judged(self.asked.scenes, self.images(entry, config.drawn))
            theirs = None if entry.role == "teacher" else self.verdicts(self.entries[0])
            protocol = f"{config.sampling.describe()}, seed {self.recipe.seed}"
            return outcome(mine, theirs, config.prompts, protocol)

        return part(self.out / entry.name / "scenes.json", settings, make, self._shipped(entry))

    def verdicts(self, entry: Entry) -> list[Verdict]:
        """Which of one model's pictures of scenes are right, for paired differences; empty where none are asked for."""
        found = self.score(entry)
        return [] if found is None else from_text(self.asked.scenes, found["correct"])

    # -- speed ---------------------------------------------------------------------------------------------------

    def time(self, entry: Entry) -> list[dict[str, Any]]:
        """Latency of one hybrid beside its teacher, interleaved, with the time bound; empty for other models."""
        from .timing import speed_rows

        speed = self.recipe.speed
        if entry.role != "hybrid" or speed is None:
            return []

        def make() -> dict[str, Any]:
            self.say(f"{entry.name}: speed, {speed.rounds} rounds")
            assert entry.plan is not None
            handle = graft(self.teacher, entry.plan, init="random")  # no weight changes a time; adapters are merged
            try:
                return {"rows": speed_rows(handle, self.teacher, speed)} | of
            finally:
                ungraft(self.teacher)

        settings = self._timing(entry)
        of = {"of": key_of(settings)}
        settings["threads"] = torch.get_num_threads()
        if self.team.device.type != "cpu":
            settings["device"] = self.team.device.type
        found: list[dict[str, Any]] = part(self.clock(entry.name), settings, make)["rows"]
        return found

    def timed(self, entry: Entry) -> list[dict[str, Any]]:
        """What :meth:`time` found, with however many threads and wherever, which each row tells; empty where it was
        not asked."""
        found = kept(self.clock(entry.name)) or {}
        return list(found["rows"]) if found.get("of") == key_of(self._timing(entry)) else []

    def _timing(self, entry: Entry) -> dict[str, Any]:
        """What a timing is of."""
        speed = {} if self.recipe.speed is None else asdict(self.recipe.speed)
        found = {"plan": entry.plan and entry.plan.to_dict(), "teacher": self.source, **speed}
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain


def _parts(loop: Loop) -> dict[str, Any]:
    """By name, the curves of what stage 2's loss is the sum of."""
    names = [name for name in (loop.log[-1] if loop.log else {}) if name not in ("step", "loss")]
    return {name: thinned([(row["step"], row[name]) for row in loop.log if name in row]) for name in names}


@contextmanager
def _claimed(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """A model's folder for this process alone. Raises ClaimError where another is at it, or for other settings."""
    with locked(folder / "train.lock", wait=False) as mine:
        if not mine:
            raise ClaimError(f"{folder}: another process is training this model")
        made = [(folder / name).is_file() for name in ("finetune/state.json", "train.json", "distill/distill.json")]
        # A stage 1 that is there is of no stage 2 yet: a batch that did not fit may be made smaller.
        claim(folder / "settings.json", settings, begun=any(made), free=() if any(made[:2]) else ("finetune",))
        yield


def _refusal(check: Callable[..., Any], *given: Any) -> list[str]:
    """The sentence of a check that refuses what it is given, or nothing."""
    try:
        check(*given)
    except ValueError as error:
        return [str(error)]
    return []
