"""Animated PNG files, of which a decoder may give the first frame in place of the image itself."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Length, name and checksum of a chunk, beside its content.
CHUNK = 12


def default_image(encoded: bytes) -> bytes:
    """The file of the image that is shown where animations are not known.

    Args:
      encoded: Bytes of an image file.

    Returns:
      The bytes without the chunks that make them an animation; those of other files as they are.

    Source: PNG Specification (Third Edition), https://www.w3.org/TR/png-3/, section 11.3.6.
    """
    if not encoded.startswith(SIGNATURE):
        return encoded
    kept, place = [SIGNATURE], len(SIGNATURE)
    # They stand before the image's own data; a file should have one, and may have more.
    while place + CHUNK <= len(encoded) and encoded[place + 4 : place + 8] != b"IDAT":
        end = place + CHUNK + int.from_bytes(encoded[place : place + 4])
        if encoded[place + 4 : place + 8] != b"acTL":
            kept.append(encoded[place:end])
        place = end
    return b"".join((*kept, encoded[place:]))
