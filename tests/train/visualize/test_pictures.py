"""Images to look at: as an evaluation has them, with their names and classes."""

import numpy as np
import pytest

from configs import digits_resnet20
from tests.helpers import imagenet, tfds_writer
from train.core.data import crop
from train.core.data.sources import registry
from train.core.errors import ConfigError
from train.visualize.images import class_names, of_files, of_split


def digits():
    return digits_resnet20.get_config()


def test_files_are_cropped_as_in_evaluation(tmp_path):
    config = imagenet.config(tmp_path)
    [image] = imagenet.pictures(1)
    (tmp_path / "a.png").write_bytes(tfds_writer.encode(image))
    [picture] = of_files([str(tmp_path / "a.png")], config.data, (16, 16, 3))
    ratio, interpolation = config.data.eval_crop_ratio, config.data.interpolation
    assert ratio < 1
    expected = crop.center(image, (16, 16, 3), ratio, crop.INTERPOLATIONS[interpolation])
    np.testing.assert_array_equal(picture.image, expected)
    assert (picture.name, picture.label) == ("a.png", None)


def test_images_of_a_dataset_its_names_and_bad_records(tmp_path, capsys):
    files = imagenet.jpegs(4)
    files[1] = b"no image"
    target = imagenet.write(tmp_path, files, "validation")
    names = [f"name {i}" for i in range(1000)]
    (target / "label.labels.txt").write_text("\n".join(names))
    data = imagenet.config(tmp_path).data
    found = of_split("validation", 2, data, (16, 16, 3))
    assert [(picture.name, picture.label) for picture in found] == [
        ("n00000000_0.JPEG", 0),
        ("n00000002_2.JPEG", 2),
    ]
    assert "bad record: validation record 1 (n00000001_1.JPEG): no whole" in capsys.readouterr().err
    assert len(of_split("validation", 9, data, (16, 16, 3))) == 3
    assert class_names(data) == names


def test_class_names_of_a_dataset_that_is_not_there(tmp_path):
    assert class_names(imagenet.config(tmp_path).data) is None
    assert class_names(digits().data) is None


def test_digits():
    found = of_split("test", 1000, digits().data, (8, 8, 1))
    images, labels = registry.open_split(digits().data, "test").load()
    np.testing.assert_array_equal([picture.image for picture in found], images)
    assert [picture.label for picture in found] == labels.tolist()
    assert [picture.name for picture in found[:2]] == ["test 0", "test 1"]


def test_split_without_a_single_good_image(tmp_path):
    imagenet.write(tmp_path, [b"no image"] * 3, "validation")
    data = imagenet.config(tmp_path).data
    with pytest.raises(ConfigError, match="--split: 'validation' of imagenet2012 has no image"):
        of_split("validation", 2, data, (16, 16, 3))
