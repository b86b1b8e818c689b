"""The command that prints the size of a network, by layer and by attention."""

import re

import pytest

from nam_jax import models
from nam_jax.models.size import Layer, Size, layers
from tests.helpers.commands import call
from tests.helpers.torch_weights import networks
from train import summary

DIGITS = ("--config", "configs/digits_resnet20.py")
NETWORK = [
    Layer(("conv",), (32, 32, 16), Size(432, 442368)),
    Layer(("block", "attention"), (32, 32, 16), Size(1000, 2000)),
    Layer(("fc",), (10,), Size(170, 160)),
    Layer((), (10,), Size(0, 7)),
]


def test_table_of_layers():
    assert summary.layer_table(NETWORK).splitlines() == [
        "layer                    output  parameters  multiply-adds",
        "----------------------------------------------------------",
        "conv               32 × 32 × 16         432        442,368",
        "block/attention    32 × 32 × 16       1,000          2,000",
        "fc                           10         170            160",
        "outside of layers            10           0              7",
        "----------------------------------------------------------",
        "total                                 1,602        444,535",
        "attention alone                       1,000          2,000",
    ]


def test_comparison_is_with_none_wherever_it_stands():
    networks = {"se": NETWORK, "none": NETWORK[:1], "bam": [Layer(("bam2",), (), Size(7, 8))]}
    assert summary.comparison_table(networks).splitlines() == [
        "attention  parameters  of attention  vs none  multiply-adds  of attention   vs none",
        "-----------------------------------------------------------------------------------",
        "se              1,602         1,000   +1,170        444,535         2,000    +2,167",
        "none              432             0        0        442,368             0         0",
        "bam                 7             7     -425              8             8  -442,360",
    ]


def test_comparison_without_none_is_with_the_first():
    lines = summary.comparison_table({"se": NETWORK, "nam": NETWORK[1:]}).splitlines()
    assert lines[0].count("vs se") == 2
    assert lines[2].split() == ["se", "1,602", "1,000", "0", "444,535", "2,000", "0"]
    assert lines[3].split() == ["nam", "1,170", "1,000", "-432", "2,167", "2,000", "-442,368"]


@pytest.mark.slow
def test_tables_fit_in_100_columns():
    networks = {
        name: layers(models.create("resnet50", num_classes=1000, attention=name), (224, 224, 3))
        for name in ("nam_channel", "cbam")
    }
    tables = summary.layer_table(networks["cbam"]), summary.comparison_table(networks)
    assert all(len(line) <= 100 for table in tables for line in table.splitlines())


@pytest.mark.parametrize("names", [",", "se,sé", "none,se,none", "none,sae"])
def test_wrong_list_of_attentions_is_refused_in_one_line(names):
    result = call("summary", *DIGITS, f"--attention={names}")
    assert (result.code, result.out) == (2, "")
    reason = r"with none twice\.|there is no attention .*; choose one of none, .*tam, .*"
    assert re.fullmatch(rf"error: --attention: got {names!r}[,:] ({reason})\n", result.err)


def test_wrong_hyperparameter_of_an_attention_is_refused_in_one_line():
    result = call("summary", *DIGITS, "--attention=none,nam+gate_scale=-1")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: --attention: got 'none,nam+gate_scale=-1': config.model.")


def test_command_lists_the_layers_of_a_network_without_its_dataset(tmp_path):
    config = "--config=configs/cifar100_resnet20.py"
    result = call("summary", config, f"--config.data.dir={tmp_path}")
    assert (result.code, result.err) == (0, "")
    title, table = result.out.rstrip().split("\n\n")
    assert title == ("resnet20, attention nam_channel, stem cifar, images 32 × 32 × 3, 100 classes")
    model = models.create("resnet20", num_classes=100, attention="nam_channel", stem="cifar")
    assert table == summary.layer_table(layers(model, (32, 32, 3)))


def test_weights_are_held_against_the_network(tmp_path):
    model = models.create("resnet20", num_classes=10, attention="se", stem="cifar")
    networks.save(tmp_path / "w.npz", model, (8, 8, 1))
    given = f"--config.model.pretrained={tmp_path / 'w.npz'}", "--config.optimizer.sparsity=0"
    result = call("summary", *DIGITS, *given, "--config.model.attention=se")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"weights from {tmp_path / 'w.npz'}; fresh: nothing\n")
    result = call("summary", *DIGITS, *given, "--config.model.attention=none")
    assert result.code == 2
    assert "w.npz does not fit the network: its attention is se, and not none" in result.err
    missing = call("summary", *DIGITS, "--config.model.pretrained=nowhere.pth")
    assert (missing.code, missing.out) == (2, "")


def test_command_compares_attentions():
    result = call("summary", *DIGITS, "--attention", "none,se", "--config.data.image_size=16")
    assert (result.code, result.err) == (0, "")
    title, table = result.out.rstrip().split("\n\n")
    assert title == "resnet20, stem cifar, images 16 × 16 × 1, 10 classes"
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["none", "se"]
