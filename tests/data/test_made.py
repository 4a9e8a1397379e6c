"""Made defects: visible, where their mask says, the same for the same seed, whole on disk whatever was killed."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import picture, save
from numpy.typing import NDArray

from manyeyes.data import Frame, Sample, ground_truth_mask, read_image
from manyeyes.data.made import KINDS, Kind, Subject, made_frame, make_defects, spoil, subject
from manyeyes.errors import DataError

FRAME = Frame(size=64)


def labelled_part(rng: np.random.Generator, grey: bool = False) -> NDArray[np.uint8]:
    """A grainy disc with two labels on a plain ground: it has a part and regions."""
    y, x = np.mgrid[:96, :96]
    values = np.full((96, 96, 3), 230.0)
    values[(y - 48) ** 2 + (x - 48) ** 2 < 40**2] = (60, 90, 120)
    values[30:42, 30:50] = (220, 200, 40)
    values[58:70, 44:66] = (250, 140, 140)
    values += rng.normal(0, 4, values.shape)
    image = np.clip(values, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) if grey else image


@pytest.fixture
def disc() -> Subject:
    rng = np.random.default_rng(0)
    return subject(labelled_part(rng), labelled_part(rng))


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    rng = np.random.default_rng(1)
    return tuple(Sample(save(tmp_path / f"good/{index}.png", picture(rng)[0])) for index in range(4))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_kind_changes_the_picture_only_near_its_mask_and_draws_by_seed_alone(kind: Kind, disc: Subject) -> None:
    before = disc.picture.copy()
    made = spoil(kind, disc, np.random.default_rng(3))
    again = spoil(kind, disc, np.random.default_rng(3))
    assert made is not None
    assert again is not None
    changed, mask = made
    assert changed.dtype == np.uint8
    assert changed.shape == disc.picture.shape
    assert mask.dtype == bool
    assert mask.shape == disc.part.shape
    np.testing.assert_array_equal(disc.picture, before)
    np.testing.assert_array_equal(changed, again[0])
    np.testing.assert_array_equal(mask, again[1])
    difference = np.abs(changed.astype(int) - before).max(axis=2)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    assert difference[mask].max() >= 10
    assert difference[~near].max() <= 2


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_defects_fall_mostly_on_the_part(kind: Kind, disc: Subject) -> None:
    rng = np.random.default_rng(5)
    shares = [(made[1] & disc.part).sum() / made[1].sum() for _ in range(8) if (made := spoil(kind, disc, rng))]
    assert np.mean(shares) > 0.6


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_grey_pictures_stay_grey(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    grey = subject(labelled_part(rng, grey=True), labelled_part(rng, grey=True))
    made = spoil(kind, grey, rng)
    assert made is not None
    assert (made[0] == made[0][..., :1]).all()


def test_the_part_and_its_pieces_are_found(disc: Subject) -> None:
    y, x = np.mgrid[:96, :96]
    truth = (y - 48) ** 2 + (x - 48) ** 2 < 40**2
    assert (disc.part & truth).sum() / (disc.part | truth).sum() > 0.9
    labels = [slice_mask(30, 42, 30, 50), slice_mask(58, 70, 44, 66)]
    for label in labels:
        assert max((region & label).sum() / (region | label).sum() for region in disc.regions) > 0.7


def slice_mask(top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((96, 96), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_texture_is_all_part_without_pieces_and_still_gets_logical_defects() -> None:
    rng = np.random.default_rng(2)
    light = np.linspace(60, 180, 96)[None, :, None]  # a slow change of light is no outline
    texture = np.clip(light + rng.normal(0, 5, (96, 96, 3)), 0, 255).astype(np.uint8)
    found = subject(texture, texture)
    assert found.part.all()
    assert not found.regions
    assert spoil(KINDS["moved"], found, rng) is not None
    assert spoil(KINDS["swapped"], found, rng) is None


@pytest.mark.parametrize("size", [(8, 8), (8, 200), (9, 31)])
def test_tiny_and_narrow_pictures_can_be_spoilt(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    tiny = subject(*(rng.integers(0, 255, (*size, 3)).astype(np.uint8) for _ in range(2)))
    spoilt = [made for kind in KINDS.values() if (made := spoil(kind, tiny, rng)) is not None]
    assert spoilt, "some kind can do something with any picture"
    for changed, mask in spoilt:
        assert changed.shape == (*size, 3)
        assert mask.any()
        assert (changed != tiny.picture).any()


def test_written_samples_are_on_the_canvas_with_masks(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    made = make_defects(samples, FRAME, tmp_path / "made", count=18, seed=0)
    assert len(made) == 18
    assert sum(sample.group == "structural" for sample in made) == 9
    assert {sample.group for sample in made} == {"structural", "logical"}
    for sample in made:
        assert sample.label == 1
        assert KINDS[sample.defect].group == sample.group
        image, mask = read_image(sample.path), ground_truth_mask(sample)
        assert image.shape == (64, 64, 3)
        assert mask.shape == (64, 64)
        assert mask.any()
        np.testing.assert_array_equal(made_frame(FRAME).place(image), image)


@pytest.mark.parametrize("sources", [2, 3, 4])
def test_every_picture_is_spoilt_in_both_ways(sources: int, samples: tuple[Sample, ...], tmp_path: Path) -> None:
    """With an even number of pictures each had got one group alone."""
    made = make_defects(samples[:sources], FRAME, tmp_path / "made", count=4 * sources, seed=0)
    groups: dict[str, set[str]] = {}
    for sample in made:
        groups.setdefault(sample.path.stem.split("-")[0], set()).add(sample.group)
    assert list(groups.values()) == [{"structural", "logical"}] * sources


def test_a_region_of_interest_is_cut_once(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    frame = Frame(size=64, region=(0.25, 0.25, 0.75, 0.75))
    made = make_defects(samples[:1], frame, tmp_path / "made", count=1, seed=0)
    placed, image = frame.place(read_image(samples[0].path)), read_image(made[0].path)
    untouched = ~ground_truth_mask(made[0])
    assert np.median(np.abs(placed.astype(int) - image)[untouched]) == 0
    assert made_frame(frame).region is None


def test_order_does_not_matter_the_seed_does(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    make_defects(samples, FRAME, first, count=6, seed=0)
    make_defects(samples[::-1], FRAME, second, count=6, seed=0)
    make_defects(samples, FRAME, other, count=6, seed=1)
    assert content(first) == content(second)
    assert content(first) != content(other)


def test_what_a_killed_run_left_is_kept_and_completed(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = make_defects(samples, FRAME, whole, count=6, seed=0)
    made = make_defects(samples, FRAME, killed, count=6, seed=0)
    os.utime(made[0].path, ns=(1, 1))
    made[3].path.unlink()
    made[4].regions[0].path.unlink()
    again = make_defects(samples, FRAME, killed, count=6, seed=0)
    assert content(killed) == content(whole)
    assert [sample.path.relative_to(killed) for sample in again] == [s.path.relative_to(whole) for s in expected]
    assert made[0].path.stat().st_mtime_ns == 1


def test_bad_pictures_are_named_or_left_out(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    samples[2].path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2\.png"):
        make_defects(samples, FRAME, tmp_path / "made", count=8, seed=0)
    made = make_defects(samples, FRAME, tmp_path / "kept", count=8, seed=0, skip_bad=True)
    assert len(made) == 6
    assert not any(sample.path.name.startswith("2-") for sample in made)
    with pytest.raises(DataError, match=r"2\.png"):
        make_defects(samples[2:3], FRAME, tmp_path / "none", count=8, seed=0, skip_bad=True)


def test_pictures_of_one_colour_still_get_a_spot(tmp_path: Path) -> None:
    plain = Sample(save(tmp_path / "plain.png", np.full((32, 32, 3), 128, np.uint8)))
    made = make_defects([plain], FRAME, tmp_path / "made", count=2, seed=0)
    assert all(read_image(sample.path).std() > 0 for sample in made)


def test_no_pictures_no_defects(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no good picture"):
        make_defects([], FRAME, tmp_path / "made", count=8, seed=0)
