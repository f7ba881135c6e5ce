"""Record, seeds, registry and recipe: the core that everything else rests on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymize import recipe as recipes
from anonymize import registry, seeds
from anonymize.errors import ConfigError
from anonymize.recipe import Recipe, TrainRecipe
from anonymize.record import Record

KEY = bytes(range(32))


def test_withholding_a_record_drops_its_output() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    record = Record("a", None, image, output=image, encoded=b"x").withhold("no face found")
    assert record.output is record.encoded is None
    assert record.withheld == "no face found"


def test_a_new_output_does_not_keep_the_file_of_the_old_one() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    record = Record("a", None, image, output=image, encoded=b"x")
    assert record.but(identity="b").encoded == b"x"
    assert record.but(output=image[:1]).encoded is None
    assert record.but(output=image[:1], encoded=b"y").encoded == b"y"


def test_derived_bytes_depend_on_key_and_on_every_part() -> None:
    values = {
        seeds.derive(KEY, "a", "b"),
        seeds.derive(KEY, "ab"),
        seeds.derive(KEY, "a", "b", ""),
        seeds.derive(KEY, "b", "a"),
        seeds.derive(bytes(32), "a", "b"),
    }
    assert len(values) == 5


def test_derived_bytes_are_fixed_for_good() -> None:
    # HMAC-SHA256 over length-prefixed parts; a change here renames every published person
    assert seeds.handle(KEY, "person", "x") == "7d48dba5adb726e3"


@given(st.text(max_size=20))
def test_names_that_no_encoding_knows_are_accepted(name: str) -> None:
    assert len(seeds.handle(KEY, name)) == 16


def test_key_files_are_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    seeds.write_key(path, KEY)
    assert path.stat().st_mode & 0o077 == 0
    assert seeds.read_key(path) == KEY
    with pytest.raises(FileExistsError):
        seeds.write_key(path, KEY)


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError, match="key"):
        seeds.read_key(tmp_path / "key")


def test_unknown_component_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown generator 'nope'.*blur, hub, inpaint"):
        registry.load("generator", "nope")
    with pytest.raises(ConfigError, match="unknown kind"):
        registry.names("nope")


def test_components_of_third_parties_load_by_module_and_attribute() -> None:
    assert registry.load("generator", "anonymize.generators:Mask").name == "mask"
    with pytest.raises(ConfigError, match="cannot load"):
        registry.load("generator", "anonymize.generators:Absent")


def test_options_that_a_component_does_not_take_are_an_error() -> None:
    with pytest.raises(ConfigError, match="does not take"):
        registry.load("generator", "blur", colour=1)


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, v in registry.BUILTIN.items() for n in v])
def test_every_built_in_component_exists(kind: str, name: str) -> None:
    module, _, attribute = registry.BUILTIN[kind][name].partition(":")
    assert hasattr(__import__(module, fromlist=["_"]), attribute)


def test_recipe_from_file_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('region = "head"\nquality = 80\n[generator_options]\nsteps = 2\n')
    recipe = recipes.load(Recipe, path, ["quality=90", "generator=blur", "detector_options.a=1"])
    assert recipe == Recipe(
        generator="blur",
        region="head",
        quality=90,
        generator_options={"steps": 2},
        detector_options={"a": 1},
    )
    assert recipes.digest(recipe) != recipes.digest(Recipe())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("qualty=90", "unknown key 'qualty'"),
        ("quality=high", "got 'high', expected int"),
        ("quality=0", "expected 1 to 100"),
        ("region=foot", "expected face or head"),
        ("format=gif", "expected jpg or png"),
        ("context_codes=1", "expected bool"),
        ("quality", "expected KEY=VALUE"),
    ],
)
def test_wrong_settings_say_what_is_expected(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.load(Recipe, None, [setting])


def test_training_recipes_are_recipes_too() -> None:
    recipe = recipes.load(TrainRecipe, None, ["channels=[32, 64]", "rate=1", "bf16=false"])
    assert (recipe.channels, recipe.rate, recipe.bf16) == ((32, 64), 1, False)


def test_broken_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("region = ")
    with pytest.raises(ConfigError, match=r"cannot read recipe .*r\.toml"):
        recipes.load(Recipe, tmp_path / "r.toml")
    with pytest.raises(ConfigError, match="cannot read recipe"):
        recipes.load(Recipe, tmp_path / "absent.toml")
