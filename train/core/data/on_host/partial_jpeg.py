"""Ends JPEG files below a row, so that nothing is decoded that a crop does not need.

Most of the time of decoding goes into the Huffman codes, which come in rows of blocks from the
top. OpenCV has no option to stop early, but a file whose header has a smaller height makes it do
so; the rows above keep their values to the bit. benchmarks/README.md says what it gains.
"""

from typing import NamedTuple

START, END = b"\xff\xd8\xff", b"\xff\xd9"
BASELINE = (0xC0, 0xC1)
# Tables and reserved numbers among those of the frame headers.
NO_FRAME = (0xC4, 0xC8, 0xCC)
SCAN = 0xDA
RESTARTS = 0xDD


class Header(NamedTuple):
    """What is needed to end a file early.

    Attributes:
      height: Height of the image, in pixels.
      width: Width of the image, in pixels.
      place: Place of the two bytes with the height.
      block_rows: Height of a row of blocks, in pixels.
    """

    height: int
    width: int
    place: int
    block_rows: int


def header(encoded: bytes) -> Header | None:
    """The header of a file that can be ended early, None of any other.

    It can if it is sequential, with one scan for all channels and without restart markers, and
    not cut short already: that should be noticed.

    Args:
      encoded: Bytes of an image file.
    """
    if not (encoded.startswith(START) and encoded.endswith(END)):
        return None
    place, channels, frame = 2, 0, None
    while place + 10 < len(encoded) and encoded[place] == 0xFF:
        kind, length = encoded[place + 1], _number(encoded, place + 2)
        if kind in BASELINE:
            channels = encoded[place + 9]
            frame = _header(encoded, place, channels)
        elif kind == SCAN:
            return frame if encoded[place + 4] == channels else None
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
