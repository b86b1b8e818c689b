"""Ends JPEG files below a row, so that nothing is decoded that a crop does not need.

Most of the time of decoding goes into the Huffman codes, which come in rows of blocks from the
top. OpenCV has no option to stop early, but a file whose header has a smaller height makes it do
so; the rows above keep their values to the bit. benchmarks/README.md says what it gains.
"""

from typing import Literal, NamedTuple

START, END = b"\xff\xd8\xff", b"\xff\xd9"
BASELINE = (0xC0, 0xC1)
# Tables and reserved numbers among those of the frame headers.
NO_FRAME = (0xC4, 0xC8, 0xCC)
SCAN = 0xDA
RESTARTS = 0xDD
# Segments of an application, with metadata.
APPLICATION = 0xE1
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112


class Header(NamedTuple):
    """What is needed to end a file early.

    Attributes:
      height: Height of the image, in pixels.
      width: Width of the image, in pixels.
      place: Place of the two bytes with the height.
      block_rows: Height of a row of blocks, in pixels.
      is_turned: Whether the metadata say that the image is to be turned or mirrored.
    """

    height: int
    width: int
    place: int
    block_rows: int
    is_turned: bool = False


def header(encoded: bytes) -> Header | None:
    """The header of a file that can be ended early, None of any other.

    It can if it is sequential, with one scan for all channels and without restart markers, and
    not cut short already: that should be noticed.

    Args:
      encoded: Bytes of an image file.
    """
    if not (encoded.startswith(START) and encoded.endswith(END)):
        return None
    place, channels, frame, is_turned = 2, 0, None, False
    while place + 10 < len(encoded) and encoded[place] == 0xFF:
        kind, length = encoded[place + 1], _number(encoded, place + 2)
        if kind in BASELINE:
            channels = encoded[place + 9]
            frame = _header(encoded, place, channels)
        elif kind == SCAN:
            if frame is None or encoded[place + 4] != channels:
                return None
            return frame._replace(is_turned=is_turned)
        elif kind == APPLICATION:
            is_turned = is_turned or _is_turned(encoded[place + 4 : place + 2 + length])
        elif kind == RESTARTS or (0xC2 <= kind <= 0xCF and kind not in NO_FRAME):
            return None
        place += 2 + length
    return None


def _header(encoded: bytes, place: int, channels: int) -> Header | None:
    height, width = _number(encoded, place + 5), _number(encoded, place + 7)
    factors = encoded[place + 11 : place + 11 + 3 * channels : 3]
    # Of a channel, relative to the others: across in the upper four bits, down in the lower.
    downs = [factor & 15 for factor in factors]
    if not height or not width or not downs or not 1 <= min(downs) <= max(downs) <= 4:
        return None
    return Header(height, width, place + 5, 8 * max(downs))


def _is_turned(metadata: bytes) -> bool:
    """Whether the first directory of Exif has an orientation other than 1."""
    if not metadata.startswith(EXIF):
        return False
    tiff = metadata[len(EXIF) :]
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"

    def number(place: int, size: int = 2) -> int:
        return int.from_bytes(tiff[place : place + size], order)

    first = number(4, 4)
    # An entry: its tag, its type, how many values, the value itself.
    entries = range(first + 2, min(first + 2 + 12 * number(first), len(tiff)), 12)
    return any(number(e) == ORIENTATION and number(e + 8) != 1 for e in entries)


def _number(encoded: bytes, place: int) -> int:
    return 256 * encoded[place] + encoded[place + 1]


def end_below(encoded: bytes, header: Header, bottom: int) -> bytes:
    """Ends a file below a row.

    Args:
      encoded: Bytes of the file.
      header: Header of the file.
      bottom: Number of rows of pixels that are wanted, from the top.

    Returns:
      The bytes of a file with at least so many rows, or all of it.
    """
    # Colours are smoothed with those of the next row of blocks.
    rows = (-(-bottom // header.block_rows) + 1) * header.block_rows
    if rows >= header.height:
        return encoded
    place = header.place
    # Without the end marker: on its way there libjpeg would complain about the bytes between.
    return encoded[:place] + rows.to_bytes(2, "big") + encoded[place + 2 : -len(END)]
