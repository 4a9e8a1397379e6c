"""The patch description networks against the tables of EfficientAD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from manyeyes.backbones import PdnTrunkConfig
from manyeyes.backbones.bundled import pdn_file
from manyeyes.backbones.pdn import PdnTrunk, patch_description_network
from manyeyes.errors import ConfigError, WeightsError
from manyeyes.maps import to_grid


def random(**fields: Any) -> PdnTrunkConfig:
    return PdnTrunkConfig(weights="random", **fields)


# (kernel, in, out), relu after it, pool after it
TABLE = {
    "small": [((4, 3, 128), True, True), ((4, 128, 256), True, True), ((3, 256, 256), True, False), ((4, 256, 384),)],
    "medium": [
        ((4, 3, 256), True, True),
        ((4, 256, 512), True, True),
        ((1, 512, 512), True, False),
        ((3, 512, 512), True, False),
        ((4, 512, 384), True, False),
        ((1, 384, 384),),
    ],
}


@pytest.mark.parametrize("size", TABLE)
def test_layers_are_those_of_the_table(size: Any) -> None:
    expected: list[Any] = []
    for row in TABLE[size]:
        expected.append(row[0])
        expected += [name for name, wanted in zip(("relu", "pool"), row[1:], strict=False) if wanted]
    found: list[Any] = []
    for layer in patch_description_network(size):
        if isinstance(layer, nn.Conv2d):
            assert layer.stride == (1, 1)
            assert layer.bias is not None
            found.append((layer.kernel_size[0], layer.in_channels, layer.out_channels))
        elif isinstance(layer, nn.AvgPool2d):
            assert (layer.kernel_size, layer.stride) == (2, 2)
            found.append("pool")
        else:
            assert isinstance(layer, nn.ReLU)
            found.append("relu")
    assert found == expected


@pytest.mark.parametrize("size", TABLE)
def test_parameter_counts(size: Any) -> None:
    count = sum(kernel**2 * before * after + after for (kernel, before, after), *_ in TABLE[size])
    assert count == {"small": 2_694_144, "medium": 8_026_624}[size]
    assert sum(parameter.numel() for parameter in patch_description_network(size).parameters()) == count


@pytest.mark.parametrize(("padding", "side"), [(False, 56), (True, 64)])
@pytest.mark.parametrize("size", TABLE)
def test_map_of_256_px(size: Any, padding: bool, side: int) -> None:
    with torch.device("meta"):
        value = patch_description_network(size, 768, padding)(torch.zeros(1, 3, 256, 256))
    assert tuple(value.shape) == (1, 768, side, side)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("image_size", [33, 64, (70, 51), (50, 101)])
def test_declared_grid_equals_what_comes_out(image_size: Any, padding: bool) -> None:
    trunk = random(image_size=image_size, padding=padding).build()
    value = trunk(torch.rand(1, 3, 64, 64), ["teacher"])["teacher"]
    assert tuple(value.shape) == (1, 384, *trunk.stage("teacher").grid)


def test_receptive_field_is_33_px() -> None:
    image = torch.rand(1, 3, 48, 48, dtype=torch.float64, requires_grad=True)
    value = patch_description_network("small").double()(image)
    value[0, :, 1, 1].sum().backward()
    assert image.grad is not None
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 33


def averaging(padding: bool) -> PdnTrunk:
    """A PDN that only blurs: every convolution is a mean over its window and channels."""
    trunk = random(image_size=128, padding=padding).build()
    for layer in trunk.network:
        if isinstance(layer, nn.Conv2d):
            layer.weight.fill_(1 / layer.weight[0].numel())
            layer.bias.zero_()
    return trunk


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("centre", [(40, 40), (88, 40), (64, 90)])
def test_maps_are_not_displaced(centre: tuple[int, int], padding: bool) -> None:
    trunk = averaging(padding)
    image = torch.full((1, 3, 128, 128), 0.5)
    background = trunk(image, ["teacher"])["teacher"][:, :1]
    image[:, :, centre[0] - 3 : centre[0] + 3, centre[1] - 3 : centre[1] + 3] = 1
    bright = to_grid(trunk(image, ["teacher"])["teacher"][:, :1] - background, (128, 128))[0, 0]
    for axis in (0, 1):
        profile = bright.sum(dim=1 - axis)
        position = float((profile * (torch.arange(128) + 0.5)).sum() / profile.sum())
        # Half a pixel where the image is mirrored; the padded network's even kernels leave it up to two off.
        assert abs(position - centre[axis]) <= (2 if padding else 0.6)


@pytest.mark.parametrize("size", [(64, 64), (70, 51), (97, 40)])
def test_a_mirrored_map_is_the_unpadded_one_of_the_mirrored_picture(size: tuple[int, int]) -> None:
    trunk = random(image_size=size).build()
    image = torch.rand(1, 3, *size)
    found = trunk(image, ["teacher"])["teacher"]
    before, after = zip(*[((4 * (-(-side // 4) - 1) + 33 - side) // 2, 18) for side in size], strict=True)
    rows, columns = (
        torch.tensor([*range(margin, 0, -1), *range(side), *range(side - 2, side - 2 - more, -1)])
        for side, margin, more in zip(size, before, after, strict=True)
    )
    with torch.no_grad():
        expected = trunk.network(trunk.pixels(image)[:, :, rows][:, :, :, columns])
    h, w = found.shape[2:]
    torch.testing.assert_close(found, expected[:, :, :h, :w], atol=1e-5, rtol=1e-4)


def published(folder: Path, prefix: str = "", **extra: Tensor) -> tuple[Path, nn.Sequential]:
    torch.manual_seed(9)
    network = patch_description_network("small")
    path = folder / "teacher_small.pth"
    torch.save({prefix + name: value for name, value in network.state_dict().items()} | extra, path)
    return path, network


@pytest.mark.parametrize("prefix", ["", "teacher."])
def test_published_files_load(tmp_path: Path, prefix: str) -> None:
    path, network = published(tmp_path, prefix)
    assert {name.split(".")[0] for name in network.state_dict()} == {"0", "3", "6", "8"}
    trunk = PdnTrunkConfig(weights=str(path), image_size=64).build()
    images = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network((images - mean) / std)
    found = trunk.describe(trunk.pixels(images))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert trunk.weights_source == str(path)


def test_a_file_can_bring_its_output_standardisation(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 64, 64)
    plain = PdnTrunkConfig(weights=str(published(tmp_path)[0]), image_size=64).build()(images, ["teacher"])["teacher"]
    mean, std = torch.linspace(-1, 1, 384), torch.linspace(0.5, 2, 384)
    path, _ = published(tmp_path, mean=mean, std=std)
    scaled = PdnTrunkConfig(weights=str(path), image_size=64).build()(images, ["teacher"])["teacher"]
    torch.testing.assert_close(scaled, (plain - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
    for broken in ({"mean": mean}, {"mean": mean, "std": std[1:]}, {"mean": mean, "std": std - 1}):
        path, _ = published(tmp_path, **broken)
        with pytest.raises(WeightsError, match=r"teacher_small\.pth: expected .*std"):
            PdnTrunkConfig(weights=str(path)).build()


def test_weights_by_name_come_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MANYEYES_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"pdn_small: weights 'imagenet' were not found.* distill --size small"):
        PdnTrunkConfig(weights="imagenet").build()
    monkeypatch.setenv("MANYEYES_WEIGHTS", str(tmp_path))
    path = tmp_path / "pdn_small.imagenet.safetensors"
    save_file(patch_description_network("small").state_dict(), path)
    assert PdnTrunkConfig(weights="imagenet").build().weights_source == str(path)


def test_no_medium_teacher_comes_with_the_package() -> None:
    with pytest.raises(WeightsError, match=r"pdn_medium: weights 'bundled' were not found.* distill --size medium"):
        PdnTrunkConfig(size="medium").build()


def test_files_that_are_no_teacher_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "pdn.safetensors"
    state = patch_description_network("small").state_dict()

    def said(values: dict[str, Tensor]) -> str:
        save_file(values, path)
        with pytest.raises(WeightsError) as refused:
            PdnTrunkConfig(weights=str(path)).build()
        return str(refused.value)

    assert "'8.bias' is (768,), expected (384,)" in said(patch_description_network("small", 768).state_dict())
    assert "expected (128, 3, 4, 4)" in said({**state, "0.weight": torch.zeros(128, 1, 4, 4)})
    assert "'3.bias' holds NaN or infinity" in said({**state, "3.bias": torch.full((256,), torch.nan)})
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"pdn\.safetensors: is truncated or no weights file \(5,000 bytes"):
        PdnTrunkConfig(weights=str(path)).build()
    with pytest.raises(WeightsError, match="there is no such weights file"):
        PdnTrunkConfig(weights=str(tmp_path / "other.safetensors")).build()


@pytest.mark.parametrize(("weights", "file"), [("bundled", "pdn_small"), ("bundled-long", "pdn_small.long")])
def test_the_bundled_teachers_are_whole_and_small(weights: str, file: str) -> None:
    path = pdn_file(file)
    assert path is not None, "the teacher belongs to the package"
    assert path.stat().st_size < 6e6
    trunk = PdnTrunkConfig(weights=weights, image_size=64).build()
    assert trunk.weights_source == str(path)
    assert trunk(torch.rand(1, 3, 64, 64), ["teacher"])["teacher"].isfinite().all()


def test_unknown_stages_are_named() -> None:
    with pytest.raises(ConfigError, match="stage 'student' does not exist; this trunk has teacher"):
        random().build().stage("student")
