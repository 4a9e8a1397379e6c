"""Studies declared in YAML: what they mean, and what is said of mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import draw_parts, small_config, small_member

from manyeyes.data import ImageSet
from manyeyes.ensemble import load_config, with_choice
from manyeyes.errors import ConfigError
from manyeyes.experiments.declaration import Declared, StudyConfig, named_study, read_study, seeds_of
from manyeyes.experiments.leaving_out import without_each_member
from manyeyes.fusion import GlobalPcaConfig, ScoreLevelConfig

STUDY = """
sets:
  - parts
  - {path: parts, name: twice, layout: mvtec-ad}
ensembles:
  - bundled-single
  - mine.yaml
  - base: bundled
    variants: {narrow: [fusion.components=64], wide: [fusion.components=512, seed=3]}
seeds: [0, 2]
baseline: narrow
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    draw_parts(tmp_path / "parts", train=4, good=1, defective=1)
    (tmp_path / "mine.yaml").write_text(small_config(name="mine").to_yaml())
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def test_a_study_names_presets_files_and_variants(study: Path) -> None:
    found = read_study(study)
    assert [config.name for config in found.ensembles] == ["bundled-single", "mine", "narrow", "wide"]
    bundled = load_config("bundled")
    narrow, wide = found.ensembles[2:]
    assert (narrow.fusion.components, wide.fusion.components, wide.seed) == (64, 512, 3)  # type: ignore[union-attr]
    assert narrow.members == bundled.members
    assert [(item.name, item.layout) for item in found.sets] == [("parts", "mvtec-ad"), ("twice", "mvtec-ad")]
    assert (found.seeds, found.folds, found.baseline) == ((0, 2), 0, "narrow")
    assert read_study(study, ["seeds=[5]", "folds=2"]).seeds == (5,)
    assert found.but(seeds=(7,), baseline="wide") == read_study(study, ["seeds=[7]", "baseline=wide"])


def test_flags_of_the_file_and_of_the_command_line_add_up_and_do_not_multiply(study: Path) -> None:
    bundled = load_config("bundled")
    declared = replace(read_study(study), declared=[bundled, with_choice(bundled, "chosen")])
    once = declared.but(choose=True, leave_one_out=True)
    names = [config.name for config in once.ensembles]
    assert once.but(choose=True, leave_one_out=True) == once
    assert names[:2] == ["bundled", "chosen"]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.endswith("-auto")] == ["bundled-auto"], "chosen is a choice already"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ensembles: [bundled]", r"study.yaml: sets: this field is required"),
        ("sets: [parts]\nensembles: []", r"study.yaml: ensembles: .*at least 1 item"),
        ("sets: [parts]\nensembles: [bundled]\nsets_: 1", r"sets_: unknown field \(misspelt\? known here: sets, ensem"),
        ("sets: [{path: parts, name: a/b}]\nensembles: [bundled]", r"sets.0.name: .*pattern"),
        ("sets: [{path: parts, name: ..}]\nensembles: [bundled]", r"sets.0.name: .*pattern"),
        ("sets: [parts]\nensembles: [bundled]\nfolds: 1", r"folds: expected 0 or a number from 2 on, got 1"),
        ("sets: [parts]\nensembles: [bundled]\nseeds: [-1]", r"seeds.0: .*greater than or equal to 0"),
        ("sets: [{path: parts, layout: nope}]\nensembles: [bundled]", r"layout: unknown kind 'nope'; allowed: .*mvtec"),
        (
            "sets: [parts]\nensembles: [nope]",
            r"ensembles.0.base: .*nope: neither a file nor a preset; presets",
        ),
        (
            "sets: [parts]\nensembles: [bundled, {base: bundled, variants: {wide: [fusion.component=5]}}]",
            r"ensembles.1.variants.wide: preset bundled: fusion.independent_pca.component: unknown field",
        ),
        (
            "sets: [parts]\nensembles: [{base: bundled, variants: {wide: [fusion]}}]",
            r"variants.wide: --set 'fusion': expected field=value",
        ),
        ("sets: [parts]\nensembles: [{base: bundled, variant: {}}]", r"ensembles.0.variant: unknown field"),
        ("sets: [parts]\nensembles: [{base: bundled, variants: {a b: []}}]", r"ensembles.0.variants.a b.*pattern"),
        ("members: []", r"study.yaml: declares an ensemble, not a study; .*--data"),
    ],
)
def test_mistakes_name_file_and_field(study: Path, text: str, expected: str) -> None:
    study.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_study(study)
    assert "study.yaml" in str(caught.value)


def test_names_with_data_or_one_file_without(study: Path, parts: ImageSet) -> None:
    found = named_study(["bundled", "bundled-score"], [parts.root], ["grid=16"])
    assert [config.grid for config in found.ensembles] == [16, 16]
    assert found.sets[0].train == parts.train
    assert named_study([str(study)], None) == read_study(study)
    for names in (["bundled"], [str(study), "bundled"]):
        with pytest.raises(ConfigError, match=r"name the pictures to compare on with --data, or one YAML file"):
            named_study(names, None)
    with pytest.raises(ConfigError, match=r"study.yaml: is a study and names its own sets; leave out --data"):
        named_study([str(study)], [parts.root])
    with pytest.raises(ConfigError, match=r"--seeds '1;2': expected whole numbers with commas"):
        seeds_of("1;2")


def test_without_each_member() -> None:
    whole = small_config(name="whole", fusion=GlobalPcaConfig(components=8))
    found = without_each_member([whole])
    assert [config.name for config in found] == ["whole-without-one", "whole-without-two"]
    assert [[member.name for member in config.members] for config in found] == [["two"], ["one"]]
    assert all(config.fusion == whole.fusion and config.heads == whole.heads for config in found)
    # Nothing is left to judge where the only member with heads is gone.
    scores = small_config(name="scores", fusion=ScoreLevelConfig(), heads=())
    silent = scores.model_copy(
        update={"members": (scores.members[0], scores.members[1].model_copy(update={"heads": ()}))}
    )
    assert [config.name for config in without_each_member([silent])] == ["scores-without-two"]
    assert without_each_member(found) == []
    with pytest.raises(ConfigError, match="leave_one_out: no ensemble can spare a member"):
        _ = Declared([small_config(members=(small_member("one"),))], [], leave_one_out=True).ensembles


def test_the_example_in_the_documentation_is_a_study() -> None:
    path = Path(__file__).parents[2] / "docs/examples/study.yaml"
    config = StudyConfig.from_yaml(path)
    assert len([ensemble for entry in config.ensembles for ensemble in entry.build(path.parent)]) >= 4
