"""Weights: where they are looked for, what is wrong with a bad file, and that a digest follows the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from manyeyes.backbones import TimmTrunkConfig, bundled, find_weights, weights
from manyeyes.errors import WeightsError

SMALL = "test_resnet"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return dict(timm.create_model(SMALL).state_dict())


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach for the network, and none depends on the caller's folder."""

    def refuse(architecture: str, tag: str) -> dict[str, Tensor]:
        raise OSError("no route to the hub\nand a second line")

    monkeypatch.setattr(weights, "download", refuse)
    monkeypatch.delenv(weights.FOLDER, raising=False)


def test_a_folder_is_searched_from_the_tag_to_the_architecture(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    names = [f"{SMALL}.pth", f"{SMALL}.safetensors", f"{SMALL}.mine.pth", f"{SMALL}.mine.safetensors"]
    for name in names:  # each is preferred to those before it
        tag = "mine" if "mine" in name else "r160_in1k"
        if name.endswith(".pth"):
            torch.save(state, tmp_path / name)
        else:
            save_file(state, tmp_path / name)
        assert find_weights(SMALL, tag).source == str(tmp_path / name)
    assert find_weights(SMALL, "r160_in1k").source == str(tmp_path / f"{SMALL}.safetensors")
    torch.save(state, tmp_path / SMALL)
    assert find_weights(SMALL, str(tmp_path / SMALL)).source == str(tmp_path / SMALL), "a path is no tag"
    with pytest.raises(WeightsError, match=r"no weights 'other', .*one of r160_in1k, .*named test_resnet\.other"):
        find_weights(SMALL, "other")


def test_a_path_from_another_machine_stands_for_its_name_in_the_folder(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state, str(tmp_path / "trunk.safetensors"))
    with pytest.raises(WeightsError, match="or a file of that name in the folder that MANYEYES_WEIGHTS names"):
        find_weights(SMALL, "/elsewhere/trunk.safetensors")
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    found = find_weights(SMALL, "/elsewhere/trunk.safetensors")
    assert found.source == str(tmp_path / "trunk.safetensors")
    assert weights.state_digest(found.state) == weights.state_digest(state)


def test_a_folder_comes_before_the_bundled_package_and_that_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = find_weights(bundled.ARCHITECTURE, "in1k")
    assert packaged.source == find_weights(bundled.ARCHITECTURE, "bundled").source
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    save_file({"weight": torch.ones(2)}, tmp_path / f"{bundled.ARCHITECTURE}.in1k.safetensors")
    found = find_weights(bundled.ARCHITECTURE, "in1k")
    assert found.source.endswith(".in1k.safetensors")
    assert found.mean is None
    found = find_weights(bundled.ARCHITECTURE, "bundled")
    assert weights.state_digest(found.state) == weights.state_digest(packaged.state), "bundled means bundled"


def test_a_failed_lookup_says_in_one_line_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError) as caught:
        find_weights("resnet18", "tv_in1k")
    for words in [
        "MANYEYES_WEIGHTS (not set)",
        "bundled package",
        "no route to the hub",
        "resnet18.tv_in1k.safetensors",
    ]:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="nowhere, which is no folder"):
        find_weights("resnet18", "tv_in1k")


def test_bundled_is_one_architecture() -> None:
    with pytest.raises(WeightsError, match="tf_efficientnet_lite0 only"):
        find_weights("resnet18", "bundled")


def test_a_download_is_timms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def create(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        return nn.Linear(2, 2)

    monkeypatch.undo()
    monkeypatch.delenv(weights.FOLDER, raising=False)
    monkeypatch.setattr(timm, "create_model", create)
    found = find_weights("resnet18", "tv_in1k")
    assert asked == [("resnet18.tv_in1k", {"pretrained": True})]
    assert set(found.state) == {"weight", "bias"}
    assert "resnet18.tv_in1k" in found.source


def test_bundled_names_are_those_of_timm() -> None:
    raw = torch.load(bundled.package_file(), weights_only=True)
    renamed = bundled.to_timm_names(raw)
    assert renamed.keys() == timm.create_model(bundled.ARCHITECTURE).state_dict().keys()
    # Norms of one block have like shapes, so that only names can tell a swap.
    for ours, theirs in {
        "conv_stem.weight": "_conv_stem.weight",
        "bn1.running_mean": "_bn0.running_mean",
        "bn2.bias": "_bn1.bias",
        "classifier.weight": "_fc.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.0.0.bn2.weight": "_blocks.0._bn2.weight",
        "blocks.1.1.conv_pw.weight": "_blocks.2._expand_conv.weight",
        "blocks.3.1.bn1.running_var": "_blocks.6._bn0.running_var",
        "blocks.3.1.bn2.running_mean": "_blocks.6._bn1.running_mean",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "blocks.6.0.bn3.bias": "_blocks.15._bn2.bias",
    }.items():
        assert torch.equal(renamed[ours], raw[theirs]), (ours, theirs)


def test_a_damaged_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundled, "package_file", lambda: tmp_path / "lite0.pth")
    with pytest.raises(WeightsError, match=r"lite0\.pth: is missing"):
        find_weights(bundled.ARCHITECTURE, "bundled")
    torch.save({"_blocks.99._bn0.weight": torch.ones(1)}, tmp_path / "lite0.pth")
    with pytest.raises(WeightsError, match="another network"):
        find_weights(bundled.ARCHITECTURE, "bundled")


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_wrapped_and_prefixed_files_load_alike(
    tmp_path: Path, state: dict[str, Tensor], wrapper: str, prefix: str
) -> None:
    plain, path = tmp_path / "plain.safetensors", tmp_path / "weights.pth"
    save_file(state, plain)
    named = {prefix + name: value for name, value in state.items()}
    torch.save({wrapper: named, "epoch": 3} if wrapper else named, path)
    images = torch.rand(1, 3, 32, 32)
    trunks = [TimmTrunkConfig(architecture=SMALL, weights=str(file), size=32).build() for file in (plain, path)]
    a, b = (trunk(images, ["2"])["2"] for trunk in trunks)
    assert torch.equal(a, b)
    assert trunks[0].key != trunks[1].key


def test_half_precision_other_classes_and_old_files_load(tmp_path: Path) -> None:
    state = timm.create_model(SMALL, num_classes=7).state_dict()
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    # Files older than torch 0.4.1 have no batch counters.
    save_file({k: v for k, v in halves.items() if "num_batches" not in k}, tmp_path / "half.safetensors")
    trunk = TimmTrunkConfig(architecture=SMALL, weights=str(tmp_path / "half.safetensors"), size=32).build()
    assert {parameter.dtype for parameter in trunk.parameters()} == {torch.float32}
    torch.testing.assert_close(trunk.network.conv1[0].weight, halves["conv1.0.weight"].float())


def test_a_transformer_file_of_another_size_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("test_vit").eval()  # trained at 160 px
    save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    config = TimmTrunkConfig(architecture="test_vit", weights=str(tmp_path / "vit.safetensors"), size=160)
    images = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        expected = whole.forward_intermediates((images - 0.5) / 0.5, indices=[5], norm=True, intermediates_only=True)
    torch.testing.assert_close(config.build()(images, ["5"])["5"], expected[0], atol=1e-5, rtol=1e-4)
    for size in (96, (208, 64)):
        trunk = config.model_copy(update={"size": size}).build()
        assert trunk(images, ["5"])["5"].shape[2:] == trunk.stage("5").grid == tuple(s // 16 for s in trunk.input_size)


def broken_files(folder: Path, state: dict[str, Tensor]) -> dict[str, str]:
    """Files by name, with words that must be in the error."""
    folder.mkdir()
    save_file(state, folder / "whole.safetensors")
    torch.save(state, folder / "whole.pth")
    for suffix in (".safetensors", ".pth"):
        content = (folder / f"whole{suffix}").read_bytes()
        (folder / f"half{suffix}").write_bytes(content[: len(content) // 2])
        (folder / f"empty{suffix}").touch()
        (folder / f"junk{suffix}").write_bytes(b"<html>404</html>" * 9)
    torch.save(nn.Linear(2, 2), folder / "code.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"epoch": 3}, folder / "epoch.pth")
    name = "layer1.0.conv1.weight"
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, folder / "nan.safetensors")
    save_file(state | {name: torch.ones(1, 2)}, folder / "shape.safetensors")
    save_file({k: v for k, v in state.items() if k != name}, folder / "lacking.safetensors")
    save_file(dict(timm.create_model("test_vit").state_dict()), folder / "other.safetensors")
    damaged = "truncated or no weights file"
    return {
        **{f"{stem}{suffix}": damaged for stem in ("half", "empty", "junk") for suffix in (".safetensors", ".pth")},
        "code.pth": "code besides tensors",
        "list.pth": "found list",
        "epoch.pth": "found dict",
        "nan.safetensors": f"'{name}' holds NaN",
        "shape.safetensors": rf"1 keys differ .* '{name}' is \(1, 2\), expected \(",
        "lacking.safetensors": f"1 keys differ .* '{name}' is missing",
        "other.safetensors": "another network: [0-9]{3} keys differ",
        "absent.safetensors": "there is no such weights file",
    }


def test_every_broken_file_is_named_in_one_line(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for name, words in broken_files(tmp_path / "files", state).items():
        path = tmp_path / "files" / name
        with pytest.raises(WeightsError, match=words) as caught:
            TimmTrunkConfig(architecture=SMALL, weights=str(path), size=32).build()
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_the_same_weights_have_one_key_whatever_file_or_download_they_came_from(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was trained on a download is used where there are files only."""
    config = TimmTrunkConfig(architecture=SMALL, weights="tag", size=32)
    monkeypatch.setattr(weights, "download", lambda *_: state)
    downloaded = config.build()
    monkeypatch.undo()
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    plain = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    files = {
        "tag.safetensors": lambda path: save_file(state, path),
        "tag.pth": lambda path: torch.save({"state_dict": {f"module.{k}": v for k, v in plain.items()}}, path),
    }
    for name, write in files.items():
        path = tmp_path / f"{SMALL}.{name}"
        write(path)
        found = config.build()
        assert found.weights_source == str(path)
        assert (found.key, found.weights_digest) == (downloaded.key, downloaded.weights_digest), name
        path.unlink()


def test_equal_tensors_behind_another_normalisation_are_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TimmTrunkConfig(size=64, weights="in1k")
    packaged = config.build()
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    state = {name: value.contiguous() for name, value in find_weights(config.architecture, "bundled").state.items()}
    save_file(state, tmp_path / f"{config.architecture}.in1k.safetensors")
    file = config.build()
    assert not torch.equal(packaged.pixels.mean, file.pixels.mean)
    assert file.key != packaged.key


def test_other_weights_under_one_name_give_another_key(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    config = TimmTrunkConfig(architecture=SMALL, weights=str(path), size=32)
    keys = []
    for factor in (1.0, 2.0):
        save_file({k: v * factor if v.is_floating_point() else v for k, v in state.items()}, path)
        trunk = config.build()
        keys.append(trunk.key)
    assert keys[0] != keys[1]
    assert {key.partition("-")[0] for key in keys} == {config.fingerprint()}


def test_a_state_digest_follows_names_shapes_and_values() -> None:
    a, b = torch.arange(6.0), torch.tensor(3)
    digest = weights.state_digest({"a": a, "b": b})
    assert digest == weights.state_digest({"b": b.clone(), "a": a.clone()})
    for other in ({"a": a, "c": b}, {"a": a + 1, "b": b}, {"a": a.view(2, 3), "b": b}, {"a": a.int(), "b": b}):
        assert weights.state_digest(other) != digest
