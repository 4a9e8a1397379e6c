"""Listing, splitting and gathering files."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manyeyes.data.images import read_image
from manyeyes.data.listing import SUFFIXES, below, listed, natural_key, paths_to_samples
from manyeyes.data.sample import Sample
from manyeyes.data.splits import hold_out
from manyeyes.errors import ConfigError, DataError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_natural_order():
    names = ["b1", "a10", "a9", "A2", "a", "10", "9", "a2b", ""]
    assert sorted(names, key=natural_key) == ["", "9", "10", "a", "A2", "a2b", "a9", "a10", "b1"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=6)), st.randoms())
def test_natural_order_is_total(names, random_source):
    shuffled = names.copy()
    random_source.shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == sorted(names, key=natural_key)


def test_listed(tmp_path):
    touch(tmp_path, "b.JPG", "a.png", ".hidden.png", "x.txt", "no_extension", "inner/c.png", "__MACOSX/d.png")
    pictures, others, folders = listed(tmp_path)
    assert [path.name for path in pictures] == ["a.png", "b.JPG"]
    assert [path.name for path in others] == ["no_extension", "x.txt"]
    assert [path.name for path in folders] == ["inner"]


def test_below_ignores_case_but_prefers_the_exact_name(tmp_path):
    touch(tmp_path, "Train/GOOD/1.png", "Test/x.png", "test/y.png")
    assert below(tmp_path, "train/good") == tmp_path / "Train/GOOD"
    assert below(tmp_path, "test") == tmp_path / "test"
    assert below(tmp_path, "train/bad") is None


def test_a_link_to_itself_is_a_picture_that_cannot_be_read(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a.png").touch()
    assert [path.name for path in listed(tmp_path)[0]] == ["a.png", "loop.png"]
    assert below(tmp_path, "LOOP.png") is None
    with pytest.raises(DataError, match=r"loop.png: .*symbolic links"):
        read_image(tmp_path / "loop.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(DataError, match="locked: cannot be listed"):
        listed(tmp_path / "locked")


def test_every_suffix_is_read_by_pillow_or_opencv():
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert set(SUFFIXES) - known <= {".hdr", ".exr"}  # OpenCV's


def test_paths_to_samples(tmp_path):
    touch(tmp_path, "b/10.png", "b/9.png", "b/deep/er/1.jpg", "b/readme.txt", "a.bin")
    found = paths_to_samples([tmp_path / "b", str(tmp_path / "a.bin"), tmp_path / "b/9.png"])
    assert [str(sample.path.relative_to(tmp_path)) for sample in found] == [
        "b/9.png",
        "b/10.png",
        "b/deep/er/1.jpg",
        "a.bin",
    ]


def test_paths_to_samples_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="gone: does not exist"):
        paths_to_samples([tmp_path / "gone"])
    with pytest.raises(DataError, match="empty: holds no picture"):
        paths_to_samples([tmp_path / "empty"])
    with pytest.raises(DataError, match="no picture was given"):
        paths_to_samples([])


def test_linked_folders_do_not_lead_in_a_circle(tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "a/again").symlink_to(tmp_path / "a")
    assert len(paths_to_samples([tmp_path / "a"])) == 1


def samples_of(count):
    return [Sample(Path(f"/set/train/good/{index}.png")) for index in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.floats(0.01, 0.99), st.integers(0, 10**6))
def test_hold_out(count, fraction, seed):
    samples = samples_of(count)
    train, held = hold_out(samples, fraction, seed)
    assert sorted([*train, *held], key=samples.index) == samples
    assert list(train) == sorted(train, key=samples.index)
    if count >= 2:
        assert len(held) == min(max(round(fraction * count), 1), count - 1)
    else:
        assert (len(train), len(held)) == (count, 0)
    shuffled = samples.copy()
    random.Random(0).shuffle(shuffled)
    assert hold_out(shuffled, fraction, seed) == (train, held)


def test_hold_out_depends_on_seed_but_not_on_where_the_set_lies():
    samples = samples_of(40)
    held = [hold_out(samples, 0.2, seed)[1] for seed in range(5)]
    assert len(set(held)) == 5
    moved = [Sample(Path("/elsewhere") / s.path.relative_to("/set")) for s in samples]
    assert [s.path.name for s in hold_out(moved, 0.2, 0)[1]] == [s.path.name for s in held[0]]


def test_hold_out_is_spread_evenly():
    counts = [0] * 20
    for seed in range(400):
        for sample in hold_out(samples_of(20), 0.25, seed)[1]:
            counts[int(sample.path.stem)] += 1
    assert min(counts) > 70
    assert max(counts) < 130


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 7])
def test_hold_out_of_a_bad_fraction(fraction):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        hold_out(samples_of(5), fraction, 0)
