"""The presets: functions and files say the same, and every one of them can be declared."""

import pytest
import yaml

from manyeyes.ensemble import PRESETS, EnsembleConfig, load_config
from manyeyes.ensemble.presets import preset_yaml
from manyeyes.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_the_file_in_the_package_is_what_the_function_gives(name: str) -> None:
    built = PRESETS[name].build()
    assert EnsembleConfig.parse(yaml.safe_load(preset_yaml(name)), name) == built
    assert built.name == name


@pytest.mark.parametrize("name", PRESETS)
def test_full_yaml_reads_back_equal(name: str) -> None:
    config = load_config(name)
    assert EnsembleConfig.parse(yaml.safe_load(config.to_yaml()), name) == config


def test_overrides_reach_a_preset() -> None:
    assert load_config("bundled", ["fusion.components=64", "seed=3"]).fusion.components == 64
    with pytest.raises(ConfigError, match=r"preset bundled: fusion\.independent_pca\.component: unknown field"):
        load_config("bundled", ["fusion.component=64"])


def test_a_name_that_is_neither_file_nor_preset_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match="presets: bundled, "):
        load_config("bundeld")
