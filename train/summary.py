r"""The size of a network: layer by layer, or with several attentions side by side.

Parameters, and multiply-adds of convolutions and linear layers for one image.
Nothing is computed, and the dataset need not be on disk. Weights that are named
by config.model.pretrained are held against the network.

Example:
  python -m train.summary --config configs/cifar100_resnet50.py \
      --attention none,se,bam,cbam,tam,nam_channel,nam_spatial,nam

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence

from nam_jax.models.size import Layer, Size, layers, total
from train.core import command_line
from train.core.config.attentions import attention_name, with_attentions
from train.core.data.sources.registry import source_of
from train.core.devices.busy import busy
from train.core.engine.experiment import create_model
from train.core.engine.pretrained import planned
from train.core.tables import Table


def layer_table(network: Sequence[Layer]) -> str:
    """A line for every layer, then the sums."""
    rows = []
    for path, shape, size in network:
        name = "/".join(path) or "outside of layers"
        rows.append((name, _format_shape(shape), *_format_size(size)))
    rows.append(("total", "", *_format_size(total(network))))
    rows.append(("attention alone", "", *_format_size(total(network, attention_only=True))))
    return Table(("layer", "output", "parameters", "multiply-adds"), rows, sums=2).text()


def comparison_table(networks: Mapping[str, Sequence[Layer]]) -> str:
    """A line for every attention.

    Args:
      networks: Layers by name of the attention; differences are to `none`, or to the first.
    """
    base = "none" if "none" in networks else next(iter(networks))
    columns = ("of attention", f"vs {base}")
    rows = []
    for name, network in networks.items():
        sizes = total(network), total(network, attention_only=True), total(networks[base])
        cells = [name]
        for whole, own, other in zip(*sizes, strict=True):
            cells += f"{whole:,}", f"{own:,}", f"{whole - other:+,}" if whole != other else "0"
        rows.append(cells)
    return Table(("attention", "parameters", *columns, "multiply-adds", *columns), rows).text()


def _format_shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _format_size(size: Size) -> tuple[str, str]:
    return f"{size.parameters:,}", f"{size.multiply_adds:,}"


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(__doc__, "python -m train.summary --config FILE [OPTION ...]")
    parser.add_config()
    parser.add_attention("in place of the config's; several are compared")
    return parser


def main(options: Namespace) -> None:
    """Prints the layers of one network, or compares several."""
    config = options.config
    configs = with_attentions(config, options.attention or [attention_name(config)])
    source = source_of(config.data)
    num_classes, image_shape = source.num_classes, source.image_shape
    networks = {}
    with busy("tracing", len(configs), "networks") as work:
        for name, varied in configs.items():
            model = create_model(varied, num_classes)
            networks[name] = layers(model, image_shape)
            if config.model.pretrained:
                planned(config.model, model, image_shape)
            work.advance()
    first, *others = networks
    attention = "" if others else f"attention {first}, "
    print(
        f"{config.model.name}, {attention}stem {config.model.stem}, "
        f"images {_format_shape(image_shape)}, {num_classes} classes\n"
    )
    print(comparison_table(networks) if others else layer_table(networks[first]))


if __name__ == "__main__":
    command_line.run(main, parser())
