"""Heatmap shading: where colour begins, whatever the strongest value is."""

import numpy as np
import pytest

from manyeyes.experiments.pictures import heatmap, shade


@pytest.mark.parametrize("ceiling", [6.0, 50.0, 1000.0])
def test_good_parts_stay_calm_however_strong_the_strongest_defect_is(ceiling):
    # A single straight line through (threshold, 0.5) and (ceiling, 1) once coloured whole good parts green.
    shaded = shade(np.array([[-1.0, 0.0, 2.0, 4.0, ceiling, 2 * ceiling]], np.float32), 4.0, ceiling)
    assert shaded[0] == pytest.approx([0, 0, 0, 0.5, 1, 1])


def test_shading_rises_with_the_map_and_survives_a_ceiling_under_the_threshold():
    shaded = shade(np.linspace(-5, 20, 101, dtype=np.float32)[None], 4.0, 1.0)[0]
    assert (np.diff(shaded) >= 0).all()
    assert shaded[-1] == 1


def test_nothing_is_coloured_where_the_shading_is_zero():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    drawn = heatmap(image, np.zeros((8, 8), np.float32))
    grey = image.mean(axis=2, keepdims=True) * 0.6 + image * 0.4
    assert np.abs(drawn - grey).max() <= 1
