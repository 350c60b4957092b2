"""The page of a GAN, on images of every number of channels."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxadv.reports import report


@pytest.mark.parametrize("image_shape", [(4, 4, 1), (3, 5, 2), (4, 4, 3), (8, 2, 4)])
def test_neighbours_of_every_shape_of_image(tmp_path, image_shape):
    (tmp_path / "config.json").write_text(json.dumps({}))
    images = np.random.default_rng(0).integers(0, 256, (6, *image_shape)).astype(np.uint8)
    names = ("samples", "by_pixels", "by_features")
    np.savez(tmp_path / "neighbours.npz", **dict.fromkeys(names, images))
    html = report.write_gan_report(tmp_path).read_text()
    pngs = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pngs) == len(names)
    for png in pngs:
        row = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
        height, width, _ = image_shape
        assert row.shape == (height + 1, 6 * (width + 1), 3)
        np.testing.assert_array_equal(row[:-1, :width, 0], images[0, :, :, 0])
