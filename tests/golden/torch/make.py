"""Makes the files of this folder, by hand: python tests/golden/torch/make.py.

It needs PyTorch (2.13 made the files) and safetensors; the tests that read them do not need
PyTorch. `expected.npz` has what each file holds, as `<file>:<name>`, bfloat16 widened to float32.
"""

import argparse
import collections
import datetime
import pathlib
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    import numpy as np
    import safetensors.torch
    import torch

    torch.manual_seed(0)
    # A layout in memory that is not that of the shape.
    conv = torch.nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    model = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    weights = model.state_dict()
    half = torch.arange(6, dtype=torch.bfloat16)
    numbers = torch.arange(12.0)
    odd = {
        "bfloat16": half.view(2, 3),
        "transposed": half.view(2, 3).t(),  # and a view of the same storage
        "half": torch.tensor([0.5, -2.0]).half(),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "middle": numbers[3:7],
        "every_third": numbers[1::3],
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "bool": torch.tensor([True, False]),
        "zero_dimensions": torch.tensor(5),
        "empty": torch.zeros(0, 3),
    }
    files = {"zip.pth": weights, "legacy.pth": weights, "odd.pth": odd, "odd_legacy.pth": odd}
    for name, tensors in files.items():
        is_zip = "legacy" not in name
        torch.save(tensors, FOLDER / name, _use_new_zipfile_serialization=is_zip)
    contiguous = {name: tensor.contiguous() for name, tensor in (weights | odd).items()}
    files["all.safetensors"] = {
        name: tensor.detach().clone() for name, tensor in contiguous.items()
    }
    safetensors.torch.save_file(files["all.safetensors"], FOLDER / "all.safetensors")

    # What a training script saves: NAM's BatchNorm under DataParallel, and all around it.
    attention = torch.nn.ModuleDict({"bn2": torch.nn.BatchNorm2d(4)})
    torch.nn.init.normal_(attention["bn2"].weight)
    optimizer = torch.optim.SGD(attention.parameters(), 0.1, momentum=0.9)
    attention["bn2"](torch.ones(2, 4, 1, 1)).sum().backward()
    optimizer.step()
    state_dict = torch.nn.DataParallel(attention).state_dict()
    checkpoint = {
        "epoch": 3,
        "arch": "resnet50",
        "state_dict": state_dict,
        "best_prec1": torch.tensor(76.5),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]).state_dict(),
    }
    torch.save(checkpoint, FOLDER / "checkpoint.pth")
    files["checkpoint.pth"] = state_dict
    torch.save(attention, FOLDER / "module.pth")
    torch.jit.script(attention["bn2"]).save(FOLDER / "script.pth")

    # The weights of zip.pth once more, and beside them what is neither a tensor nor plain.
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    training = {
        "model_ema": average.state_dict(),
        "model": weights,
        "optimizer": optimizer,
        "args": argparse.Namespace(output=pathlib.PosixPath("runs"), device=torch.device("cpu")),
        "best_prec1": np.float64(76.5),
        "classes": {"cat", "dog"},
        "frozen": frozenset([1, 2]),
        "date": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "errors": np.arange(3.0),
        "phase": 1j,
        "counts": collections.Counter("abca"),
        "history": collections.defaultdict(list, loss=[1.0]),
        "recent": collections.deque([1.0], maxlen=5),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "complex": torch.ones(2, dtype=torch.complex64),
        "storage": torch.ones(2).untyped_storage(),
        "activation": torch.nn.functional.relu,
        "buffer": bytearray(b"spam"),
        "large": 2**70,
        3: "three",
        (1, 2): "pair",
        None: 1.5,
    }
    for protocol in (2, 5):
        for is_zip in (True, False):
            path = FOLDER / "training" / f"{'zip' if is_zip else 'legacy'}{protocol}.tar"
            options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_zip}
            torch.save(training, path, **options)

    expected = {
        f"{file}:{name}": (tensor.float() if tensor.dtype == torch.bfloat16 else tensor)
        for file, tensors in files.items()
        for name, tensor in tensors.items()
    }
    arrays = {name: tensor.detach().numpy() for name, tensor in expected.items()}
    np.savez_compressed(FOLDER / "expected.npz", **arrays)


if __name__ == "__main__":
    main()
