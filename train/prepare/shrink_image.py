"""A smaller JPEG file of an image: a short side of at most 400 pixels, quality 90."""

import cv2
import numpy as np

from train.core.data.crop import resize
from train.core.data.sources.records import Record, decode

SHORT_SIDE = 400
QUALITY = 90


def shrink_image(record: Record) -> bytes:
    """Scales an image down to SHORT_SIDE, and encodes it as JPEG with QUALITY.

    Args:
      record: Record with the image.

    Returns:
      The bytes of a JPEG file; the old ones where they are fewer and the image small enough.

    Raises:
      BadRecordError: it is no image.
    """
    image = decode(record, channels=3)
    scale = SHORT_SIDE / min(image.shape[:2])
    if scale < 1:
        size = (round(image.shape[0] * scale), round(image.shape[1] * scale))
        image = resize(image, size, "area")
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, shrunk = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    is_smaller = scale < 1 or len(shrunk) < len(record.encoded)
    return shrunk.tobytes() if is_smaller else record.encoded
