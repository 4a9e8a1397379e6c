"""Configs: every mistake is one line that names the file, the field and what is allowed; equal configs are equal."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.config import override, read_yaml
from manyeyes.ensemble import EnsembleConfig, load_config
from manyeyes.errors import ConfigError
from manyeyes.fusion import GlobalPcaConfig, IndependentPcaConfig

GOOD = """
members:
  - name: lite0
    extractor: {kind: patchcore, stages: [2, 3]}
    heads: [{kind: gaussian}]
fusion: {kind: independent_pca, components: 64}
heads: [{kind: discriminator}]
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(path: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("fusion: {kind: blend}", ("fusion", "'blend'", "global_pca", "independent_pca", "score_level")),
        ("fusion: {components: 64}", ("fusion", "kind", "missing")),
        ("fusion: {kind: global_pca, component: 64}", ("fusion.global_pca.component", "unknown field", "schema")),
        ("fusion: {kind: global_pca, components: -3}", ("fusion.global_pca.components", "-3")),
        ("fusion: 64", ("fusion", "64")),
        ("heads: {kind: discriminator}", ("heads", "tuple")),
        ("heads: [{kind: discriminator, steps: many}]", ("heads.0.discriminator.steps", "integer", "'many'")),
        ("heads: []", ("fusion.kind", "heads")),
        (
            "fusion: {kind: score_level}",
            ("heads judge a fused map", "fusion.kind is score_level", "give heads to the members"),
        ),
        (
            "{fusion: {kind: score_level}, heads: [], members: [{name: a, extractor: {kind: patchcore, stages: [2]}}]}",
            ("fusion.kind is score_level", "at least one member needs heads"),
        ),
        (
            "members: [{name: a, extractor: {kind: patchcore, stages: [2]}, heads: [{kind: gaussian}], fuse: false}]",
            ("no member enters the fused map", "fuse: true", "score_level"),
        ),
        (
            "combiner: {kind: fisher, scale: tail}",
            ("combiner fisher", "scale must be tail where the normaliser is tail"),
        ),
        ("{combiner: {kind: fisher, scale: z}, normaliser: {kind: tail}}", ("combiner fisher", "scale must be tail")),
        (
            "fusion: {kind: auto, candidates: [{kind: global_pca}, {kind: global_pca, components: 9}]}",
            ("fusion.auto", "candidates must be of different kinds", "global_pca, global_pca"),
        ),
        (
            "fusion: {kind: auto, candidates: [{kind: score_level}]}",
            ("fusion.candidates", "a kind besides score_level"),
        ),
        (
            "{fusion: {kind: auto}, combiner: {kind: sum}}",
            ("fusion.kind auto chooses the weights", "leave combiner out"),
        ),
        ("seed: -1", ("seed", "greater than or equal to 0", "-1")),
        ("blur: .nan", ("blur", "finite")),
        ("sed: 1", ("sed", "unknown field")),
        ("members: []", ("members", "at least 1")),
        ("name: two words", ("name", "pattern", "two words")),
        ("name: 2024-01-01", ("name", "string")),
        ("frame: {region: [0.5, 0, 0.5, 1]}", ("frame.region", "left < right")),
        ("threshold: {false_alarm_rate: 1.5}", ("threshold.false_alarm_rate", "less than 1", "1.5")),
    ],
)
def test_a_mistake_names_the_file_the_field_and_what_is_allowed(
    tmp_path: Path, change: str, expected: tuple[str, ...]
) -> None:
    values = yaml.safe_load(GOOD) | yaml.safe_load(change)
    path = write(tmp_path, yaml.safe_dump(values))
    message = error_of(path)
    for word in (str(path), *expected):
        assert word in message


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, GOOD + "sed: 1\nblurr: 2\n"))
    assert "sed: unknown field" in message
    assert "blurr: unknown field" in message


def test_a_member_whose_heads_would_have_no_map(tmp_path: Path) -> None:
    values = yaml.safe_load(GOOD)
    values["members"][0] |= {"heads": [{"kind": "memory_bank"}], "fusion": {"kind": "score_level"}}
    assert "its fusion.kind is score_level, so its heads have no map" in error_of(
        write(tmp_path, yaml.safe_dump(values))
    )


def test_members_with_one_name_and_members_called_fused(tmp_path: Path) -> None:
    values = yaml.safe_load(GOOD)
    values["members"] *= 2
    assert "lite0 stands more than once" in error_of(write(tmp_path, yaml.safe_dump(values)))
    assert "'fused'" in error_of(write(tmp_path, GOOD.replace("name: lite0", "name: fused")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xff\xfe\x00seed", "UTF-8"),
        (b"members:\n\t- name: x", "no valid YAML"),
        (b"members: [1, 2", "no valid YAML"),
        (b"seed: 1\x00", "no valid YAML"),
        (b"- members\n- fusion\n", "expected a mapping of fields, found list"),
        (b"", "expected a mapping of fields, found NoneType"),
        (b"just text", "found str"),
        (b"name: 2024-13-45", "no valid YAML"),
        (b"seed: " + b"9" * 5000, "no valid YAML"),
        (b"name: " + b"[" * 3000, "no valid YAML"),
        (b"a: &a [*a]", "a: unknown field"),
        (b"? [a, b]\n: 1", "no valid YAML"),
        (b"a: !!map [1, 2]", "no valid YAML"),
        (b"seed: 1\nname: x\nseed: 2", "the field 'seed' stands twice, again in"),
        (b"threshold: {false_alarm_rate: 0.1, false_alarm_rate: 0.2}", "'false_alarm_rate' stands twice"),
        (b"seed: !!python/object/apply:os.system [true]", "no valid YAML"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, bytes) else "",
)
def test_unreadable_yaml(tmp_path: Path, text: bytes, expected: str) -> None:
    path = write(tmp_path, text)
    message = error_of(path)
    assert str(path) in message
    assert expected in message


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "neither a file nor a preset" in (message := error_of(tmp_path / "none.yaml"))
    assert "bundled" in message
    assert "directory" in error_of(tmp_path)
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file"):
        EnsembleConfig.from_yaml(tmp_path / "none.yaml")


def test_overrides_reach_nested_fields_and_items_of_lists(tmp_path: Path) -> None:
    config = load_config(
        str(write(tmp_path, GOOD)),
        [
            "seed=7",
            "fusion.components=0.9",
            "members.0.extractor.stages=[1, 2]",
            "members.0.extractor.trunk.weights=random",
            "heads.0.steps=12",
            "frame.region=[0, 0, 0.5, 1]",
        ],
    )
    member = config.members[0]
    assert (config.seed, config.fusion.components, config.heads[0].steps) == (7, 0.9, 12)  # type: ignore[union-attr]
    assert (member.extractor.stages, member.extractor.trunk.weights) == ((1, 2), "random")  # type: ignore[union-attr]
    assert config.frame.region == (0, 0, 0.5, 1)


def test_another_kind_forgets_the_fields_of_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    config = load_config(str(path), ["heads.0.kind=memory_bank", "heads.0.ratio=0.5"])
    assert config.heads[0].kind == "memory_bank"
    # Setting the kind that is there already changes nothing.
    assert load_config(str(path), ["fusion.kind=independent_pca"]).fusion.components == 64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("fusion.components", "expected field=value"),
        ("=3", "expected field=value"),
        ("fusion.component=3", "fusion.independent_pca.component: unknown field"),
        ("fusion.kind=blend", "unknown kind 'blend'; allowed"),
        ("fusion.components.x=3", "is a value"),
        ("members.1.name=x", "a number from 0 to 0"),
        ("members.-1.name=x", "a number from 0 to 0"),
        ("members.lite1.fuse=false", "members is a list: expected a number from 0 to 0 or one of lite0 after it"),
        ("seed=[", "--set"),
        ("seed=2024-13-45", "--set"),
        ("..=1", "unknown field"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in error_of(write(tmp_path, GOOD), override)


def test_a_preset_with_heads_on_its_fused_map_says_what_score_level_needs() -> None:
    message = error_of("bundled", "fusion.kind=score_level")
    assert "preset bundled" in message
    assert "heads judge a fused map, but fusion.kind is score_level: give heads to the members" in message
    assert load_config("bundled", ["fusion.kind=score_level", "heads=[]"]).fusion.kind == "score_level"


def test_what_is_merged_may_be_overridden_however_deep_its_anchor_lies(tmp_path: Path) -> None:
    path = write(tmp_path, "base: &b {x: 1}\na:\n  deep: &m {<<: *b, x: 2}\ntop: {<<: *m, x: 3}\n")
    assert read_yaml(path) == {"base": {"x": 1}, "a": {"deep": {"x": 2}}, "top": {"x": 3}}
    assert read_yaml(write(tmp_path, "1: a\n'1': b\n")) == {1: "a", "1": "b"}


def test_a_field_of_a_members_default_block_needs_no_kind(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    found = EnsembleConfig.from_yaml(path, ["members.lite0.fusion.components=16"]).members[0].fusion
    assert found == IndependentPcaConfig(components=16, whiten=0.0)


def test_override_leaves_its_input_alone() -> None:
    values: dict[str, Any] = {"a": {"b": [1, 2]}}
    assert override(values, ["a.b.0=5"]) == {"a": {"b": [5, 2]}}
    assert values == {"a": {"b": [1, 2]}}


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_fingerprints_do_not_see_the_order_of_fields(seed: int) -> None:
    config = small_config()
    values = shuffled(config.model_dump(mode="json"), random.Random(seed))
    same = EnsembleConfig.parse(values)
    assert same == config
    assert same.fingerprint() == config.fingerprint()


def test_fingerprints_see_every_change() -> None:
    config = small_config()
    changed = [
        config.model_copy(update={"seed": 1}),
        config.model_copy(update={"members": config.members[::-1]}),
        config.model_copy(update={"blur": 0.01}),
        config.model_copy(update={"heads": config.heads[:1]}),
    ]
    assert len({each.fingerprint() for each in [config, *changed]}) == 5


def test_configs_are_frozen_and_refuse_what_is_unknown() -> None:
    config = small_config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"somewhere: sede: unknown field"):
        EnsembleConfig.parse(config.model_dump(mode="json") | {"sede": 1}, "somewhere")


def test_entries_of_lists_go_by_name_or_kind(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    changed = load_config(str(path), ["members.lite0.heads.gaussian.shrinkage=oas", "heads.discriminator.steps=7"])
    assert changed.members[0].heads[0].shrinkage == "oas"
    assert changed.heads[0].steps == 7


def test_two_entries_of_one_kind_are_not_guessed_between(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("[{kind: discriminator}]", "[{kind: memory_bank}, {kind: memory_bank}]"))
    assert "heads is a list: expected a number from 0 to 1" in error_of(path, "heads.memory_bank.ratio=0.1")


def test_a_file_may_extend_a_preset_or_another_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("base: bundled\nname: first\nfusion: {components: 64}\n")
    second.write_text("base: first.yaml\nname: second\nfusion: {kind: global_pca}\nheads: [{kind: memory_bank}]\n")
    bundled, one, two = load_config("bundled"), load_config(str(first)), load_config(str(second), ["seed=3"])
    assert one.fusion == bundled.fusion.model_copy(update={"components": 64})
    assert one.model_copy(update={"name": "bundled", "fusion": bundled.fusion}) == bundled
    assert two.fusion == GlobalPcaConfig(), "another kind does not inherit the fields of the old one"
    assert [head.kind for head in two.heads] == ["memory_bank"], "lists are replaced"
    assert (two.members, two.seed) == (bundled.members, 3)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("base: nope\n", "mine.yaml: base .*nope: neither a file nor a preset"),
        ("base: mine.yaml\n", "mine.yaml: is its own base"),
        ("base: bundled\nfusoin: {kind: global_pca}\n", "mine.yaml: fusoin: unknown field"),
        ("base: [bundled]\n", "mine.yaml: base: expected the name of a preset or of a file, got"),
    ],
)
def test_a_wrong_base_is_told(tmp_path: Path, text: str, why: str) -> None:
    assert re.search(why, error_of(write(tmp_path, text)))


def test_what_is_wrong_within_a_list_is_told_once() -> None:
    message = error_of("bundled", "members.0.fuse=maybe")
    assert message.startswith("preset bundled: members.0.fuse: Input should be a valid boolean")
    assert ";" not in message


def test_a_circle_of_bases_through_folders_is_told(tmp_path: Path) -> None:
    for one, other in (("a/x", "b/y"), ("b/y", "a/x")):
        path = tmp_path / f"{one}.yaml"
        path.parent.mkdir()
        path.write_text(f"base: ../{other}.yaml\n")
    assert "is its own base, by way of" in error_of(tmp_path / "a/x.yaml")
