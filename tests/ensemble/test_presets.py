"""The presets: functions and files say the same, and every one of them can be declared."""

from pathlib import Path

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


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_yaml_reads_back_equal(name: str, compact: bool, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "mine.yaml"
    path.write_text(config.to_yaml(compact=compact))
    assert load_config(str(path)) == config


def test_overrides_reach_a_preset() -> None:
    assert load_config("bundled", ["fusion.components=64", "seed=3"]).fusion.components == 64
    with pytest.raises(ConfigError, match=r"preset bundled: fusion\.independent_pca\.component: unknown field"):
        load_config("bundled", ["fusion.component=64"])


def test_a_name_that_is_neither_file_nor_preset_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match="presets: bundled, "):
        load_config("bundeld")
