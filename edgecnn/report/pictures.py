"""Small pictures of scored images for the HTML page, from the prepared arrays: the originals may be gone by then."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from edgecnn.data import images
from edgecnn.data.letterbox import Letterbox
from edgecnn.report.detection import ChangedImage

SIDE = 360  # pixels of a picture's longer side
QUALITY = 78  # of JPEG: some 20 kB a picture


def pictures(data: Path, wanted: Iterable[ChangedImage]) -> dict[int, str]:
    """`data:` addresses by image number, of letterboxed images cut to what they show."""
    from PIL import Image

    scored, found = images(data, "scored"), {}
    for one in wanted:
        pixels = scored[one.number]
        box = Letterbox(one.height, one.width, (pixels.shape[0], pixels.shape[1]))
        (top, left), (height, width) = box.corner, box.inner
        shown = pixels[top : top + height, left : left + width]
        picture = Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        found[one.number] = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found
