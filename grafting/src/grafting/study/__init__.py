"""A recipe run from end to end: hybrids and controls taught, measured beside their teacher, and shown on one page.

    out/recipe.yaml            what was run
    out/NAME/                  a model: the teacher, every hybrid, every control
        settings.json          what its training depends on, written first
        distill/ finetune/     states of a training under way, removed when it is done
        model/                 what was learnt (a graft, or a plain model for the control procedure)
        train.json             curves and FLOPs
        losses.safetensors     held-out losses, and denoise.json
        samples-…/             and sample.json; grid.png; quality.json; scenes.json
    out/speed-NAME.json        latencies
    out/results.json           the figures, and report.html

Every JSON file holds the hash of what it depends on and is written after what it stands for, so a run killed anywhere
goes on where it was, and a measurement under other settings is made again.
"""

from __future__ import annotations

from pathlib import Path

from ..files import write_text_atomic
from ..report import Results, read_results, write_page, write_results
from ..training.team import Team
from .assemble import assemble, beside, note_results, paired_with
from .bench import Say, Study
from .entries import Entry, entries
from .parts import StudyError
from .recipe import RunRecipe

__all__ = ["Entry", "RunRecipe", "Study", "StudyError", "entries", "run"]


def run(
    recipe: RunRecipe, out: Path | str, *, resume: bool = True, say: Say = print, team: Team | None = None
) -> Results:
    """Run ``recipe`` in the folder ``out``, or go on with what is there; returns what ``out/results.json`` holds.

    resume: whether ``out`` may hold a run already. say: gets a line per part. team: the processes that train together,
    and their device; as accelerate finds them by default. One of them measures and returns: the others leave by
    SystemExit 0 after the training, since a measurement may last longer than processes wait for each other.

    Raises:
        StudyError, PlanError, ModelError: the recipe does not fit the teacher or its data.
        ClaimError: ``out`` holds a model that was trained under other settings.
    """
    out = Path(out)
    if (out / "recipe.yaml").is_file() and not resume:
        raise StudyError(f"{out} holds a run: resume it, or name another folder")
    team = team or Team.current()
    study = Study(recipe, out, say if team.leads else lambda _: None, team)
    team.wait()  # all have seen whether there was a run before one says that there is
    if team.leads and not (out / "recipe.yaml").is_file():
        write_text_atomic(out / "recipe.yaml", recipe.to_yaml())
    for entry in study.entries:
        study.train(entry)
    if not team.leads:
        raise SystemExit(0)
    write_text_atomic(out / "recipe.yaml", recipe.to_yaml())  # a recipe that is refused leaves what was run
    for entry in study.entries:
        study.denoise(entry)
    for entry in study.entries:
        study.sample(entry)
        study.judge(entry)
        study.score(entry)
    if recipe.speed is not None:
        for entry in study.entries:
            study.time(entry)
    results = assemble(study)
    note_results(study, results)
    for name in recipe.beside:
        folder = study.home_of(name)
        apart = paired_with(study, folder)
        results = beside(results, read_results(folder / "results.json"), folder, out, folder.name, apart)
    write_results(out / "results.json", results)
    write_page(out / "report.html", results)
    say(f"the page: {out / 'report.html'}")
    return results
