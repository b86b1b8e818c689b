"""What kind of file it is, told by its content: the suffixes of weights say nothing."""

import re
import zipfile
from pathlib import Path

from nam_jax.torch_import.torch_save import LEGACY_MAGIC
from nam_jax.torch_import.wording import NotWeightsError

# The mark of a tar archive is the last, at 257.
_START = 512
_MOST_NAMES = 3

_SAVE = "save the network's state_dict() with torch.save"
# What is often taken for a file of weights: how it begins, what it is and what to do.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (
        rb"(\xef\xbb\xbf)?\s*(?i:<!doctype|<html|<\?xml)",
        "a web page, not the file that it is about: download that one",
    ),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes: save its arrays by PyTorch's names, as .npz"),
    (rb"\x93NUMPY", "one NumPy array: save all arrays by their names, with numpy.savez"),
    (rb".{4}TFL3", "a TensorFlow Lite model: save its arrays by PyTorch's names, as .npz"),
    (
        rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]",
        f"an ONNX model: {_SAVE}, where it was made",
    ),
    (
        rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar",
        "a compressed file or an archive: unpack it",
    ),
    (
        rb"\x80[\x02-\x05]",
        f"a pickle, but not one of torch.save: load it where it was written, and {_SAVE}",
    ),
)


def kind(path: Path) -> str:
    """Tells what kind of file of weights it is.

    Args:
      path: File.

    Returns:
      `torch`, `npz` or `safetensors`.

    Raises:
      ValueError: it is none of them; says what it is, as far as can be seen.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        raise NotWeightsError("it is empty: fetch it again")
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if LEGACY_MAGIC.to_bytes(10, "little") in start[:40]:
        return "torch"
    # After the length of the header, which is JSON.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors"
    raise NotWeightsError(f"it is {_described(start)}")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise NotWeightsError(
            "it is a zip archive that is damaged or cut short: fetch it again"
        ) from error
    if any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in names):
        raise NotWeightsError(
            f"it is a TorchScript archive: load it with torch.jit.load, and {_SAVE}"
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.endswith(".weights.h5") for name in names):
        raise NotWeightsError("it is a Keras model: save its arrays by PyTorch's names, as .npz")
    listed = ", ".join(names[:_MOST_NAMES]) or "nothing"
    raise NotWeightsError(
        f"it is a zip archive, neither of torch.save nor of NumPy: unpack it; it holds {listed}"
    )


def _described(start: bytes) -> str:
    for pattern, description in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            return description
    if re.fullmatch(rb"[\t\r\n -~]+", start):
        return f"a text that begins with {start[:60].decode()!r}, and no weights: fetch them again"
    return "no file of torch.save, safetensors or NumPy (.npz)"
