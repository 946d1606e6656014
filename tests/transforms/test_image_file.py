"""Image files: whole ones decode upright, anything else is named."""

import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.transforms.image_file import decode_image, jpeg_is_whole, read_bytes


def picture(height=24, width=36):
    """Smooth colours, so that JPEG keeps them: blue grows to the right, green downwards."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 60)], axis=-1).astype(np.uint8)


def encode(form, img=None, **options):
    buffer = io.BytesIO()
    Image.fromarray((picture() if img is None else img)[..., ::-1]).save(buffer, form, **options)
    return buffer.getvalue()


def thumbnailed():
    """A JPEG that carries another one in its EXIF segment, as cameras write it."""
    thumbnail = encode("JPEG", picture(8, 12))
    segment = b"Exif\0\0" + thumbnail
    body = encode("JPEG")
    return body[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + body[2:], len(segment) + 6


FILES = {
    "jpeg": lambda: encode("JPEG", quality=95),
    "progressive": lambda: encode("JPEG", progressive=True),
    "restart markers": lambda: encode("JPEG", restart_marker_blocks=1),
    "thumbnail": lambda: thumbnailed()[0],
    "png": lambda: encode("PNG"),
    "bmp": lambda: encode("BMP"),
    "webp": lambda: encode("WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("backend", ["cv2", "pillow"])
def test_whole_files_decode(kind, backend):
    img = decode_image(FILES[kind](), "a.img", backend=backend)
    assert img.shape == (24, 36, 3)
    # Only JPEG loses anything, and little of so smooth a picture.
    assert np.abs(img.astype(int) - picture()).max() <= (0 if kind in ("png", "bmp", "webp") else 24)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("keep", [-1, -2, -9, 0.9, 0.5, 20])
def test_cut_off_files_are_refused(kind, keep):
    content = FILES[kind]()
    part = content[: keep if keep < 0 or keep > 1 else int(len(content) * keep)]
    # JPEG and PNG are refused before the decoder sees them: some versions of it fill them up.
    reason = {"png": "the PNG file is cut off", "bmp": "damaged", "webp": "damaged"}.get(
        kind, "the JPEG file is cut off"
    )
    with pytest.raises(ValueError, match=rf"^dir/a\.img: .*{reason}"):
        decode_image(part, "dir/a.img")


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "restart markers", "thumbnail"])
def test_a_jpeg_is_judged_without_a_decoder(kind):
    content = FILES[kind]()
    assert jpeg_is_whole(content)
    # What phones append after the image does not matter, whatever it looks like.
    for appendix in (b"\0", b"\xff\xd8\xff\xe0 a second picture", b"\xff\xd9 \xff\xd9"):
        assert jpeg_is_whole(content + appendix)
    start = content.rindex(b"\xff\xda") + 20
    cuts = range(start, len(content))
    assert not any(map(jpeg_is_whole, (content[:cut] for cut in cuts)))


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image():
    content, thumbnail_end = thumbnailed()
    assert content[thumbnail_end - 2 : thumbnail_end] == b"\xff\xd9"
    assert not jpeg_is_whole(content[: thumbnail_end + 300])
    assert not jpeg_is_whole(content[:thumbnail_end])


def test_a_jpeg_may_have_things_after_it():
    assert decode_image(encode("JPEG") + b"camera notes", "a.jpg").shape == (24, 36, 3)
    assert decode_image(encode("PNG") + b"camera notes" * 10, "a.png").shape == (24, 36, 3)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\0" * 500, b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("backend", ["cv2", "pillow"])
def test_what_is_no_image_is_named(content, backend):
    with pytest.raises(ValueError, match=r"^dir/a\.jpg: .*(not an image|cut off|cannot be decoded)"):
        decode_image(content, "dir/a.jpg", backend=backend)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("backend", ["cv2", "pillow"])
def test_exif_orientation_is_applied(orientation, backend):
    # The stored picture that each orientation turns into picture(): EXIF 2.32, tag 0x0112.
    upright = picture()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode("JPEG", np.ascontiguousarray(stored), exif=exif, quality=95)
    img = decode_image(content, "a.jpg", backend=backend)
    assert img.shape == upright.shape
    assert np.abs(img.astype(int) - upright).max() <= 24
    left_as_stored = decode_image(content, "a.jpg", "color_ignore_orientation", backend)
    assert left_as_stored.shape == stored.shape


def test_grey_and_alpha():
    grey = cv2.imencode(".png", picture()[..., 0])[1].tobytes()
    assert decode_image(grey, "a.png").shape == (24, 36, 3)
    assert decode_image(grey, "a.png", "grayscale").shape == (24, 36)
    alpha = cv2.imencode(".png", np.dstack([picture(), picture()[..., 0]]))[1].tobytes()
    assert decode_image(alpha, "a.png").shape == (24, 36, 3)
    assert decode_image(alpha, "a.png", "unchanged").shape == (24, 36, 4)


def test_missing_and_empty_files_are_named(tmp_path):
    path = str(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=rf"^{re.escape(path)}: the image file does not exist"):
        read_bytes(path)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^{re.escape(path)}: the image file is empty \(0 bytes\)"):
        read_bytes(path)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        read_bytes(str(tmp_path))
