"""A whole table run row by row: one file per row, done rows skipped, the page written again after each.

    out/rows/NAME.json, NAME.png     a row's figures and samples, with the hash of what they depend on
    out/rows/NAME.over-none.json     and the like: its paired differences to other rows; NAME.speed.json: its times
    out/rows/NAME.failed.json        why it could not be made, until it is
    out/losses.safetensors           the held-out losses of every row, and what each depends on
    out/table.json, table.html       all rows that there are; the page's drawings as files in figures/
    out/work/teacher/, work/NAME/    what :class:`~grafting.study.bench.Study` keeps of every model

A table goes on without ``work``: what is finished stays, and only a paired difference in FID and KID to a row whose
samples are gone cannot be made any more.

Several processes may work on one folder (:mod:`grafting.study.making`): each row is made by whoever locked it first.
Killed anywhere, a row goes on where it was and comes to the same bits (same machine, same number of threads).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from ..files import save_safetensors_atomic, write_bytes_atomic, write_json_atomic
from ..measure.denoising import mean_loss, paired_difference
from ..report import Figure, SpeedRow, TaskScores, figures_of, grid_png
from ..report.table import HELD_OUT, RIGHT, TableRow
from ..scenes.scorer import SCORER
from ..store.folder import walked
from ..tasks import OVERALL, differences
from ..training.team import Team
from .assemble import trained_on
from .bench import Say, Study
from .entries import Entry
from .parts import StudyError, kept, key_of, part
from .rows import Row, against_of, base, none_of, rows, untrained_of
from .spending import training_flops
from .table import TableRecipe
from .timing import place

LOSSES = "losses.safetensors"
GRID = 20
"""Samples shown of each row at most: of classes in turn, or of prompts, in whole rows of a column for each task."""
BINS = 10
"""Parts of the noise schedule that losses are shown by."""


class Table:
    """A recipe opened on its teacher; each method is one thing of one row, made once."""

    def __init__(self, recipe: TableRecipe, out: Path, say: Say = print, team: Team | None = None) -> None:
        self.recipe, self.out, self.say = recipe, out, say
        self.study = Study(base(recipe), out / "work", say, team)
        self.study.clock = lambda name: out / "rows" / f"{name}.speed.json"
        samples = trained_on(self.study)
        if samples is None:
            raise StudyError(
                f"teacher {recipe.teacher}: it brings no card that says how many samples it was trained on, of which "
                "rows spend a share: give trained_on, as --set trained_on=358000000"
            )
        self.samples = samples
        self.rows = [self._checked(row) for row in rows(recipe, self.study.teacher, samples)]
        self._known: dict[str, dict[str, Any]] = {}

    @cached_property
    def training(self) -> float:
        """FLOPs of the teacher's own training."""
        return training_flops(self.study.teacher, self.samples)

    def named(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def _checked(self, row: Row) -> Row:
        """The row, with what this model or its data refuse of it as its problem."""
        try:
            self.opened(row)
        except StudyError as error:
            return replace(row, recipe=None, problem=row.problem or str(error))
        return row

    def opened(self, row: Row) -> tuple[Study, Entry]:
        """The study that makes a row, and its entry there. Raises StudyError where it cannot be made."""
        if row.recipe is None:
            raise StudyError(f"row {row.name}: {row.problem}")
        study = self.study.again(row.recipe)
        entry = next(entry for entry in study.entries if entry.name == row.entry)
        return study, replace(entry, name=row.name)  # a folder of its own for each

    def _settings(self, row: Row) -> dict[str, Any]:
        """What a row's figures depend on. Raises StudyError where it cannot be made."""
        if row.name not in self._known:
            self._known[row.name] = self._found_settings(row)
        return self._known[row.name]

    def _key(self, row: Row) -> str:
        """A hash of the same; of a row that is refused, of the refusal."""
        try:
            return key_of(self._settings(row))
        except ValueError as error:
            return key_of({"refused": str(error)})

    def _found_settings(self, row: Row) -> dict[str, Any]:
        study, entry = self.opened(row)
        config = study.recipe.evaluate
        protocol: dict[str, Any] = {"triples": config.triples, "seed": study.recipe.seed}
        judge: dict[str, Any] = {}
        if row.samples:
            protocol |= asdict(config.sampling) | walked(study.teacher)
        if row.samples and config.prompts:
            protocol |= {"prompts": config.prompts, "held_out": config.held_out}
            judge = {"scorer": SCORER} | study.asked.settings
        elif row.samples:
            protocol |= {"labels": config.labels, "samples": config.samples, "bootstraps": config.bootstraps}
            judge = study.judging.settings
        return {
            "model": study.settings(entry),
            "protocol": protocol,
            "judge": judge,
            "shown": [row.label, row.role, row.site, row.share, row.budget, row.description],
        }

    def done(self, row: Row) -> TableRow | None:
        """A finished row, from its file; None where there is none, or one of other settings, or a broken one."""
        path = self.out / "rows" / f"{row.name}.json"
        if row.recipe is None or not path.is_file():
            return None
        try:
            outcome = kept(path, self._settings(row))
            found = None if outcome is None else TableRow.from_dict(outcome)
        except ValueError:  # a plan that does not fit is told when the row is made
            return None
        return None if found is None or (found.grid and not (self.out / found.grid).is_file()) else found

    def make(self, row: Row) -> TableRow:
        """Train, measure and judge one row, from wherever it stands.

        Raises:
            ValueError: it cannot be made (StudyError, PlanError), or its folder holds another model (ClaimError).
        """
        found = self.done(row)
        if found is not None:
            self._failure(row).unlink(missing_ok=True)
            return found
        _ = self.study.triples  # before the row's study is opened, which shares it
        if not self.recipe.evaluate.prompts:
            _ = self.study.reference
        study, entry = self.opened(row)
        home = study.out / entry.name
        fresh, began = not home.exists(), time.monotonic()
        learnt = study.train(entry)
        trained = time.monotonic()
        losses = study.denoise(entry)
        images = study.sample(entry) if row.samples else study.glimpse(entry, GRID)
        assert images is not None  # a table draws two of each at least
        judged = measured(study.judge(entry), study.score(entry)) if row.samples else Measured({}, {}, "")
        if fresh and entry is study.subject(entry):
            threads = torch.get_num_threads()
            took = {"train": trained - began, "measure": time.monotonic() - trained, "threads": threads}
            write_json_atomic(home / "seconds.json", took | {"place": place(study.team.device, threads)})
        apart: dict[str, Figure] = {}
        stages: dict[str, Figure] = {}
        bins: tuple[Figure, ...] = ()
        if row.role != "teacher":
            theirs = self.study.denoise(self.study.entries[0])
            apart = {"loss": Figure(**asdict(paired_difference(losses, theirs, study.image))), **judged.differences}
            looks = study.looks(entry).items()
            stages = {moment: Figure(**asdict(paired_difference(then, theirs, study.image))) for moment, then in looks}
            bins = by_timestep(losses, theirs, self.study.triples.t, study.image)
        made = TableRow(
            name=row.name,
            label=row.label,
            role=row.role,
            description=row.description,
            site=row.site,
            operator=row.operator,
            share=row.share,
            budget=row.budget,
            images=row.images,
            learnt_from=row.images or self.study.material.count(train=True),
            seed=row.seed,
            variant=row.variant,
            changed=row.changed,
            steps=row.steps,
            parts=row.parts,
            teacher_training=self.training,
            flops=1.0 if row.cost is None else row.cost.flops_after / row.cost.flops_before,
            parameters=_parameters(row),
            loss=Figure(**asdict(mean_loss(losses, study.image))),
            differences=apart,
            stages=stages,
            by_timestep=bins,
            left=study.left(entry),
            explained=learnt.get("explained") or learnt.get("started") or {},
            figures=judged.figures,
            protocol=judged.protocol,
            grid=f"rows/{row.name}.png",
            note=_note(bool(learnt.get("same")), stages.get("start")),
        )
        columns = study.asked.columns if study.asked.scenes else min(10, GRID)
        shown = images[: GRID // columns * columns, : 3 if images.shape[1] >= 3 else 1]
        grid = grid_png(shown, columns=columns, titles=study.asked.texts[: len(shown)], zoom=1)
        write_bytes_atomic(self.out / "rows" / f"{row.name}.png", grid)
        part(self.out / "rows" / f"{row.name}.json", self._settings(row), lambda: asdict(made))
        self._failure(row).unlink(missing_ok=True)
        return made

    def _beside(self, row: Row, what: str) -> Path:
        """A file beside a row's own; a name holds no dot."""
        return self.out / "rows" / f"{row.name}.{what}.json"

    def _failure(self, row: Row) -> Path:
        return self._beside(row, "failed")

    def fail(self, row: Row, error: Exception) -> None:
        """Note why a row could not be made, for every process and for the page."""
        noted = {"reason": str(error), "at": time.time(), "key": self._key(row)}
        write_json_atomic(self._failure(row), noted)

    def failed(self, row: Row, since: float = 0.0) -> str:
        """Why a row could not be made under these settings; empty where nothing was noted since then.

        since: seconds after the epoch.
        """
        if row.problem:
            return row.problem
        try:
            noted = json.loads(self._failure(row).read_text())
            fresh = noted["at"] >= since and noted["key"] == self._key(row)
            return str(noted["reason"]) if fresh else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def over_none(self, row: Row) -> dict[str, Figure]:
        """A finished hybrid minus its finished control *none*.

        Empty where there is no such control; of the loss alone where the samples of either are no longer kept.
        """
        return self._over(row, none_of(row, self.rows), "none")

    def over_untrained(self, row: Row) -> dict[str, Figure]:
        """The same minus *untrained*."""
        return self._over(row, untrained_of(row, self.rows), "untrained")

    def over_other(self, row: Row) -> dict[str, Figure]:
        """The same minus the row that it is compared with beside the controls."""
        return self._over(row, against_of(row, self.rows), "against")

    def time(self, row: Row) -> None:
        """Time a finished row beside the teacher, where the recipe asks for it and it was not done."""
        study, entry = self.opened(row)
        if study.recipe.speed is not None and entry.role == "hybrid" and not study.timed(entry):
            study.time(entry)

    def timed(self, row: Row) -> tuple[SpeedRow, ...]:
        """How a finished row was timed; empty where it was not."""
        study, entry = self.opened(row)
        return tuple(SpeedRow(model=row.name, run="", **found) for found in study.timed(entry))

    def losses(self) -> dict[str, torch.Tensor]:
        """(triples,) float32 held-out losses of every finished row by its name, for comparisons that no page has.

        Of a row whose folder in ``work`` is gone they are those that were published before.
        """
        found = {row.name: self._losses(row) for row in self.rows if self.done(row) is not None}
        return {name: losses for name, losses in found.items() if losses is not None}

    def publish_losses(self) -> None:
        """Write :meth:`losses` to ``losses.safetensors``, each with the hash of what it depends on."""
        found = self.losses()
        keys = {name: key_of(self._settings(self.named(name))) for name in found}
        save_safetensors_atomic(self.out / LOSSES, found, {"keys": json.dumps(keys)})

    def _losses(self, row: Row) -> torch.Tensor | None:
        """Of a finished row."""
        if self._measured(row, "denoise.json"):
            study, entry = self.opened(row)
            return study.denoise(entry).float()
        path = self.out / LOSSES
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            keys = json.loads((file.metadata() or {}).get("keys", "{}"))
            same = keys.get(row.name) == key_of(self._settings(row))
            return file.get_tensor(row.name) if same else None

    def _measured(self, row: Row, by: str) -> bool:
        """Whether what a row was measured by is still in ``work``; asking trains nothing."""
        study, entry = self.opened(row)
        subject = entry
        if row.role != "teacher":
            trained = kept(study.out / entry.name / "train.json", study.settings(entry))
            if trained is None:
                return False
            subject = study.subject(entry)
        return (study.out / subject.name / by).is_file()

    def _over(self, row: Row, control: Row | None, name: str) -> dict[str, Figure]:
        if control is None or any(self.done(each) is None for each in (row, control)):
            return {}
        path, settings = self._beside(row, f"over-{name}"), {"rows": [self._settings(each) for each in (row, control)]}
        judged = "scenes.json" if self.recipe.evaluate.prompts else "quality.json"
        found = kept(path, settings)
        if found is None and all(self._measured(each, judged) for each in (row, control)):
            found = part(path, settings, lambda: self._minus(row, control))
        if found is None:
            mine, theirs = self._losses(row), self._losses(control)
            if mine is not None and theirs is not None:
                found = {"loss": asdict(paired_difference(mine, theirs, self.study.image))}
        return {key: Figure(**figure) for key, figure in (found or {}).items()}

    def _minus(self, row: Row, control: Row) -> dict[str, Any]:
        """Paired differences of two rows, as plain data."""
        (mine, entry), (theirs, other) = self.opened(row), self.opened(control)
        loss = asdict(paired_difference(mine.denoise(entry), theirs.denoise(other), mine.image))
        if count := self.recipe.evaluate.prompts:
            right = differences(mine.verdicts(entry)[:count], theirs.verdicts(other)[:count]).overall
            return {"loss": loss, RIGHT: {"value": right.value, "low": right.low, "high": right.high}}
        apart = self.study.judging.minus(mine.features(entry), theirs.features(other), self.recipe.seed)
        return {"loss": loss} | {name: asdict(figure) for name, figure in apart.items()}


def _parameters(row: Row) -> float | None:
    """Over the teacher's."""
    if row.cost is None:
        return 1.0
    return row.cost.parameters_after / row.cost.shape.parameters if row.cost.parameters_after else None


def _note(same: bool, start: Figure | None) -> str:
    if same:
        return "the teacher, bit for bit: on its own output as target no step moves it"
    if start is not None and start.value == 0:
        return "starts as the teacher exactly"
    return ""


class Measured(NamedTuple):
    """What a row's samples are worth: its figures, their paired differences to the teacher's, and how it was drawn."""

    figures: Mapping[str, Figure]
    differences: Mapping[str, Figure]
    protocol: str


def measured(quality: Mapping[str, Any] | None, judged: Mapping[str, Any] | None) -> Measured:
    """Of FID and KID, or of prompts judged: the share that is right, by task and of combinations never shown too.

    The procedure that moves nothing is the teacher, which has no difference to itself.
    """
    if judged is not None:
        scored = TaskScores.from_dict(judged["scenes"])
        figures = {RIGHT if task == OVERALL else task: figure for task, figure in scored.scores.items()}
        if judged["held_out"]:
            figures[HELD_OUT] = TaskScores.from_dict(judged["held_out"]).scores[OVERALL]
        apart = {RIGHT: scored.differences[OVERALL]} if scored.differences else {}
        return Measured(figures, apart, scored.protocol)
    assert quality is not None
    told = {"fid": "FID − teacher's", "kid": "KID − teacher's"}
    apart = {name: Figure(**quality["figures"][key]) for name, key in told.items() if key in quality["figures"]}
    return Measured(figures_of(quality), apart, quality["protocol"]["text"])


def by_timestep(
    mine: torch.Tensor, theirs: torch.Tensor, t: torch.Tensor, image: torch.Tensor, steps: int = 1000
) -> tuple[Figure, ...]:
    """Paired loss differences (n,) in equal parts of the schedule, each triple of an ``image``; a part of fewer than
    two images is 0 without interval."""
    found = []
    for k in range(BINS):
        inside = (t * BINS // steps).clamp(max=BINS - 1) == k  # a flow's last level is ``steps`` itself
        few = len(image[inside].unique()) < 2
        apart = None if few else paired_difference(mine[inside], theirs[inside], image[inside])
        found.append(Figure(value=0.0) if apart is None else Figure(**asdict(apart)))
    return tuple(found)
