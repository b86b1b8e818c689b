"""A real imagenet2012, which TFDS builds from tars like the originals and the loader reads.

TensorFlow is needed to build it: `pip install '.[train,dev,prepare]'`.
"""

import importlib.util
import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from tests.helpers.image_datasets import imagenet
from train.core.data import crop
from train.core.data.on_host.batches import BatchMaker
from train.core.data.sources.records import decode
from train.core.data.sources.registry import source_of

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
    ),
    # TFDS asks for an attribute that is deprecated in the protobuf that TensorFlow brings along.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SYNSETS = ("n01440764", "n01443537", "n15075141")  # the labels 0, 1 and 999
TRAIN, VALIDATION = 12, 5


def tar(files):
    """The bytes of a tar of files, a dictionary from name to content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def names_of(synset):
    place = SYNSETS.index(synset)
    return {f"{synset}_{i}.JPEG": i for i in range(TRAIN) if i % 3 == place}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    tars = directory / "downloads" / "manual"
    tars.mkdir(parents=True)
    train, validation = imagenet.jpegs(TRAIN), imagenet.jpegs(VALIDATION, seed=1)
    classes = {
        f"{synset}.tar": tar({name: train[i] for name, i in names_of(synset).items()})
        for synset in SYNSETS
    }
    (tars / "ILSVRC2012_img_train.tar").write_bytes(tar(classes))
    names = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(VALIDATION)]
    files = dict(zip(names, validation, strict=True))
    (tars / "ILSVRC2012_img_val.tar").write_bytes(tar(files))
    command = (
        "import sys; from tensorflow_datasets.scripts.cli.main import launch_cli; launch_cli()"
    )
    arguments = ["build", "imagenet2012", "--file_format=array_record", f"--data_dir={directory}"]
    built = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=directory, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-4000:]
    return directory


def test_every_record_holds_its_file_and_label(directory):
    config = imagenet.config(directory).data
    opened = source_of(config).open_split("train")
    assert (opened.num_examples, opened.num_classes) == (TRAIN, 1000)
    labels = {SYNSETS[0]: 0, SYNSETS[1]: 1, SYNSETS[2]: 999}
    train, found = imagenet.jpegs(TRAIN), opened.open_records()
    names = {name: i for synset in SYNSETS for name, i in names_of(synset).items()}
    for index in range(TRAIN):
        record = found[index]
        assert record.encoded == train[names.pop(record.file_name)]
        assert record.label == labels[record.file_name.partition("_")[0]]
    assert not names


def test_loader_reads_it(directory):
    config = imagenet.config(directory)
    rows = np.arange(8)
    validation = source_of(config.data).open_split("validation")
    with BatchMaker(validation, config, rows) as maker:
        batch = maker.eval_batch(0)
    np.testing.assert_array_equal(batch.mask, rows < VALIDATION)
    opened = validation.open_records()
    for row in range(VALIDATION):
        image = decode(opened[row], 3)
        expected = crop.center(image, (16, 16, 3), 0.875, "bilinear")
        np.testing.assert_array_equal(batch.images[row], expected)
    with BatchMaker(source_of(config.data).open_split("train"), config, rows) as maker:
        assert maker.train_batch(0, np.arange(TRAIN)).mask.all()
