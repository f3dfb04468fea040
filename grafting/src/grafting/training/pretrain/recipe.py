"""What a pretraining run is told: one model, its data and its loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...diffusion import Levels
from ...files import read_json
from ...scenes.prompts import DEFAULT
from ...scenes.world import World
from ...settings import SettingsError, build, read_recipe
from ..loop import LoopConfig

KINDS = ("autoencoder", "transformer", "classifier")
DIT, PIXART = "DiTTransformer2DModel", "PixArtTransformer2DModel"
SCENES = "scenes"
"""The name of the data that are drawn, not read: :mod:`grafting.scenes`."""
LEARNS = f"{PIXART} learns from {SCENES}, {DIT} from classes"


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """One model, its data and its loop.

    model: its diffusers configuration; a transformer's may name its class, ``_class_name``, DiT by default. data:
    ``scenes``, or a folder of Fashion-MNIST's files (None: where they usually lie). start: the folder of an earlier
    model of the same shape to go on from, whose configuration it is where ``model`` is left out. label_dropout: the
    share of conditions replaced by none. world: what scenes hold, and how often each task is drawn. pool: how many
    scenes a transformer sees, encoded once. weight_power, weight_cap: the noise's error is weighted by one over
    alpha_bar of the level to this power, up to this; a cap of 1 leaves it as it is. levels: how often a
    transformer's training draws each noise level; None draws all alike. whiten, fresh_text, semantics: what helps a
    text-to-image transformer to learn which thing is where (:mod:`grafting.training.pretrain.scaffold`): captions
    whose directions are of one size; all that reads captions begins anew; the weight of telling what lies where.
    """

    kind: str
    loop: LoopConfig
    batch: int
    model: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: str = "fp32"
    data: str | None = None
    autoencoder: str | None = None
    start: str | None = None
    label_dropout: float = 0.1
    kl_weight: float = 1e-4
    world: World = DEFAULT
    pool: int = 65_536
    weight_power: float = 1.0
    weight_cap: float = 1.0
    levels: Levels | None = None
    whiten: bool = False
    fresh_text: bool = False
    semantics: float = 0.0
    notes: str = field(default="", compare=False)

    @classmethod
    def from_dict(cls, content: dict[str, Any], where: str = "recipe") -> PretrainRecipe:
        """Build from parsed YAML. Raises SettingsError naming every unknown key and bad value at once."""
        problems: list[str] = []
        if "kind" in content and content["kind"] not in KINDS:
            problems.append(f"{where}: kind {content['kind']!r}: one of {', '.join(KINDS)}")
        told = content.get("model")
        if content.get("kind") == "transformer" and told and isinstance(told, dict):
            named = told.get("_class_name", DIT)
            if named not in (DIT, PIXART):
                problems.append(f"{where}: model: _class_name {named!r}: {DIT} or {PIXART}")
            elif (named == PIXART) != (content.get("data") == SCENES):
                problems.append(f"{where}: data {content.get('data')!r}: {LEARNS}")
        made = build(cls, content, where, problems)
        if made and made.helped and (made.kind != "transformer" or made.data != SCENES):
            problems.append(
                f"{where}: whiten, fresh_text and semantics are for a transformer that learns from {SCENES}"
            )
        if made and made.semantics < 0:
            problems.append(f"{where}: semantics {made.semantics}: a weight of 0 or more")
        if not content.get("model") and not content.get("start"):
            problems.append(f"{where}: model is missing: its configuration, or start, a model to go on from")
        if problems or made is None:
            raise SettingsError(problems)
        return made

    @classmethod
    def from_yaml(cls, source: str | Path, overrides: Sequence[str] = (), where: str = "recipe") -> PretrainRecipe:
        """From a YAML file (a Path, or one line that ends in ``.yaml`` or ``.yml``) or YAML text.

        overrides: ``key=value`` with dots between levels. where: what the text is called in errors. Raises
        SettingsError, also for a recipe of a study.
        """
        content, where = read_recipe(source, overrides, where)
        if not isinstance(content, dict):
            raise SettingsError([f"{where}: {content!r} is no mapping of settings"])
        if "teacher" in content and "kind" not in content:
            raise SettingsError([f"{where} is the recipe of a study and trains no teacher: give it to grafting run"])
        return cls.from_dict(content, where)

    def completed(self) -> PretrainRecipe:
        """With the configuration of the model that it goes on from, where it has none itself.

        Raises ValueError where that is not there, or learns from other data.
        """
        if self.model:
            return self
        path = Path(self.start or "") / "config.json"
        if not path.is_file():
            raise ValueError(f"start {self.start}: no model to go on from, for there is no {path}")
        config = read_json(path)
        named = config.get("_class_name", DIT)
        if self.kind == "transformer" and (named == PIXART) != (self.data == SCENES):
            raise ValueError(f"start {self.start} is {named}, data {self.data!r}: {LEARNS}")
        return replace(self, model={key: value for key, value in config.items() if not key.startswith("_")})

    @property
    def helped(self) -> bool:
        """Whether something stands around the model while it learns."""
        return self.whiten or self.fresh_text or self.semantics > 0

    @property
    def folder(self) -> Path | None:
        """Where the data were said to lie."""
        return Path(self.data) if self.data else None
