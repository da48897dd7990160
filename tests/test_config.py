"""Settings are read strictly: an unknown name, wrong type or value out of range is named in the error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from seqvae import config
from seqvae.config import (
    ModelConfig,
    ObjectiveConfig,
    Recipe,
    RefineConfig,
    TrainConfig,
    from_dict,
    load_recipe,
    to_dict,
)
from seqvae.errors import ConfigError
from seqvae.modality import MODALITIES

RECIPES = sorted(path.stem for path in (Path(config.__file__).parent / "recipes").glob("*.toml"))
SECTIONS = (config.TokenizerConfig, ModelConfig, ObjectiveConfig, RefineConfig, TrainConfig)

TOML = """
name = "small"
[model]
width = 64
encoder = "transformer"
[objective]
beta = 1  # an integer for a float setting
[train]
learning_rate = 2e-3
compile = true
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TOML)
    return path


def test_toml_is_read_over_the_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe == Recipe(
        name="small",
        model=ModelConfig(width=64, encoder="transformer"),
        objective=ObjectiveConfig(beta=1.0),
        train=TrainConfig(learning_rate=2e-3, compile=True),
    )
    assert isinstance(recipe.objective.beta, float)


def test_json_gives_the_same_recipe(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    path = tmp_path / "small.json"
    path.write_text(json.dumps(to_dict(recipe)))
    assert load_recipe(path) == recipe
    assert from_dict(Recipe, to_dict(recipe), "here") == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_built_in_recipe_is_read_by_its_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe != Recipe(name=name), "an empty recipe is an error"
    assert from_dict(Recipe, to_dict(recipe), name) == recipe


def test_there_is_a_recipe_for_every_modality() -> None:
    assert "music" in RECIPES
    kinds = {load_recipe(name).tokenizer.kind for name in RECIPES}
    assert kinds == MODALITIES.keys() == {"midi", "text", "events"}


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "named"), [
    ("colour = 3", ["unknown setting 'colour'", "name, tokenizer, model, objective, refine, train"]),
    ("[model]\nwidht = 3", [".model", "unknown setting 'widht'", "width"]),
    ("[model]\nwidth = 'wide'", [".model.width", "expected int", "'wide'"]),
    ("[model]\nwidth = 64.0", [".model.width", "expected int", "64.0"]),
    ("[model]\nwidth = true", [".model.width", "expected int", "True"]),
    ("[train]\nlearning_rate = '1e-3'", [".train.learning_rate", "expected float", "'1e-3'"]),
    ("[train]\ncompile = 1", [".train.compile", "expected bool", "1"]),
    ("[train]\nlearning_rate = nan", [".train.learning_rate", "nan"]),
    ("[train]\nlearning_rate = inf", [".train.learning_rate", "inf"]),
    ("[model]\nencoder = 'mamba'", [".model.encoder", "'mamba'", "recurrent, transformer, set"]),
    ("[model]\nencoder = ['set']", [".model.encoder", "['set']"]),
    ("model = 3", [".model", "expected a table", "3"]),
    ("name = 3", [".name", "expected str", "3"]),
    ("[model]\nwidth = 0", [".model.width", "0 is out of range", "from 1"]),
    ("[train]\nsteps = -5", [".train.steps", "-5 is out of range"]),
    ("[train]\nsave_every = 0", [".train.save_every", "0 is out of range"]),
    ("[train]\nseed = -1", [".train.seed", "-1 is out of range"]),
    ("[objective]\nword_dropout = 1.5", [".objective.word_dropout", "1.5 is out of range", "from 0 to 1"]),
    ("[objective]\nbeta = -0.1", [".objective.beta", "-0.1 is out of range"]),
    ("[tokenizer]\nkind = 'events'\noverlap = -1", [".tokenizer.overlap", "-1 is out of range"]),
    ("[tokenizer]\nkind = 'events'\noverlap = 0.5", [".tokenizer.overlap", "expected int", "0.5"]),
    ("[model\nwidth = 3", ["cannot be read", "line 1"]),
])  # fmt: skip
def test_the_wrong_setting_of_a_file_is_named(tmp_path: Path, text: str, named: list[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert all(part in str(caught.value) for part in ["bad.toml", *named]), str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"music"', "null", '["name"]'])
def test_json_other_than_an_object_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json"):
        load_recipe(path)


def test_invalid_utf_8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(path)


@pytest.mark.parametrize("source", ["musik", "no/such/file.toml", "no.json"])
def test_an_unknown_recipe_lists_the_recipes(source: str) -> None:
    with pytest.raises(ConfigError, match=r"no such recipe.*music"):
        load_recipe(source)


def test_names_given_in_python_are_strict_too() -> None:
    with pytest.raises(ConfigError, match="here: unknown setting 'beat'"):
        from_dict(ObjectiveConfig, {"beat": 1.0}, "here")


# --- changes from the command line ------------------------------------------------------------------------------------


def test_changes_override_the_file(recipe_file: Path) -> None:
    changes = ["model.width=384", "objective.beta=0.25", "model.encoder=set", "train.compile=false"]
    changes += ["name=other", "train.precision=fp32"]
    recipe = load_recipe(recipe_file, changes)
    assert (recipe.model.width, recipe.objective.beta, recipe.model.encoder) == (384, 0.25, "set")
    assert (recipe.train.compile, recipe.name, recipe.train.precision) == (False, "other", "fp32")
    assert recipe.train.learning_rate == 2e-3, "the rest stays"


def test_the_last_change_wins(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["model.width=32", "model.width=48"]).model.width == 48


@pytest.mark.parametrize(("change", "named"), [
    ("model.width", "section.name=value"),
    ("model.widht=3", "unknown setting 'widht'"),
    ("width=3", "unknown setting 'width'"),
    ("model.width=wide", "expected int, found 'wide'"),
    ("model.width=0", "out of range"),
    ("name.first=x", "'name' is not a section"),
    ("model.width.x=3", "'width' is not a section"),
    ("model=3", "expected a table"),
    ("=3", "unknown setting ''"),
])  # fmt: skip
def test_the_wrong_setting_of_a_change_is_named(recipe_file: Path, change: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file, [change])
    assert named in str(caught.value)


# --- the house rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_the_defaults_are_valid_and_frozen(section: type[Any]) -> None:
    default = section()
    assert from_dict(section, to_dict(default), "default") == default
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(default, dataclasses.fields(section)[0].name, 1)


@pytest.mark.parametrize("section", [*SECTIONS, Recipe])
def test_every_setting_has_a_docstring(section: type[Any]) -> None:
    import ast
    import inspect

    body = ast.parse(inspect.getsource(section)).body[0].body  # type: ignore[attr-defined]
    for field, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), ast.unparse(field)
            assert isinstance(after.value, ast.Constant), ast.unparse(field)
            assert isinstance(after.value.value, str), ast.unparse(field)


def test_ranges_belong_to_a_field_and_not_to_its_name() -> None:
    """`train.steps` must be positive, and 0 steps of refinement are allowed."""
    assert from_dict(Recipe, {"refine": {"steps": 0}}, "here").refine.steps == 0
    with pytest.raises(ConfigError, match=r"here\.train\.steps: 0 is out of range; choose a number from 1 to"):
        from_dict(Recipe, {"train": {"steps": 0}}, "here")


def test_settings_of_refinement_are_read_from_the_objective_too() -> None:
    old = {"objective": {"bag": 0.5, "beta": 0.02, "refine": 20, "refine_most": 60, "refine_beta": 0.2}}
    refine = RefineConfig(steps=20, most_steps=60, beta=0.2, bag=0.5)
    recipe = from_dict(Recipe, old, "old")
    assert recipe == Recipe(objective=ObjectiveConfig(bag=0.5, beta=0.02), refine=refine)
    assert from_dict(Recipe, to_dict(recipe), "new") == recipe
    assert from_dict(Recipe, {"objective": {"bag": 0.5}}, "old").refine == RefineConfig()
    with pytest.raises(ConfigError, match=r"old\.refine\.steps: -1 is out of range"):
        from_dict(Recipe, {"objective": {"refine": -1}}, "old")


@pytest.mark.parametrize("name", ["hdfs", "syscalls"])
def test_released_checkpoints_are_refined_as_their_files_say(name: str) -> None:
    path = Path(config.__file__).parents[1] / "checkpoints" / name / "config.json"
    values = json.loads(path.read_text())["recipe"]
    old, refine = values["objective"], from_dict(Recipe, values, name).refine
    assert (refine.steps, refine.most_steps, refine.beta) == (old["refine"], old["refine_most"], old["refine_beta"])
    assert refine.bag == old["bag"]


def test_an_earlier_option_changes_a_current_recipe() -> None:
    recipe = load_recipe("music")
    changed = load_recipe("music", ["objective.refine=40"])
    assert changed == dataclasses.replace(recipe, refine=dataclasses.replace(recipe.refine, steps=40))


def test_a_grid_of_twelve_steps_is_the_only_one_and_need_not_be_named() -> None:
    old = {"kind": "midi", "steps_per_beat": 12, "max_steps": 48}
    assert from_dict(config.TokenizerConfig, old, "old") == config.TokenizerConfig()
    with pytest.raises(ConfigError, match="unknown setting 'steps_per_beat'"):
        from_dict(config.TokenizerConfig, {**old, "steps_per_beat": 6}, "old")


def test_a_removed_setting_is_ignored_in_a_checkpoint_and_refused_in_a_recipe() -> None:
    for value in (0, 5):
        assert from_dict(Recipe, {"train": {"transpose": value}}, "checkpoint") == Recipe()
    assert load_recipe("music", ["train.transpose=0"]) == load_recipe("music")
    with pytest.raises(ConfigError, match=r"music\.train\.transpose: made no difference and is gone"):
        load_recipe("music", ["train.transpose=5"])


def test_earlier_names_of_settings_and_recipes_are_read() -> None:
    for old, new in (("hdfs", "logs-short"), ("syscalls", "logs-long")):
        assert load_recipe(old) == load_recipe(new)
    assert load_recipe("music", ["objective.fade=0.25"]).objective.track_dropout == 0.25
    kept = {"objective": {"fade": 0.9}}
    assert from_dict(Recipe, kept, "kept").objective.track_dropout == 0.9
