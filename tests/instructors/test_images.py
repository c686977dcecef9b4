"""Pictures that come in: the right pixels of every kind of file, and a clear error for everything else."""

import io
import random
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from instructors import images
from protocol.errors import AtelierError, InvalidRequest, PayloadTooLarge
from protocol.limits import MIB

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write. `rows` holds the lines without their filter bytes."""
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def huge_png(side: int) -> bytes:
    """A small file of side × side black pixels, written without ever holding them."""
    packer, lines = zlib.compressobj(9), []
    for _ in range(side):
        lines.append(packer.compress(bytes(side // 8 + 2)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = b"".join([*lines, packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def first(raw: bytes) -> Any:
    return images.decode(raw, "image").getpixel((0, 0))


def refused(raw: bytes, error: type[AtelierError] = InvalidRequest) -> str:
    with pytest.raises(error) as caught:
        images.decode(raw, "image")
    [item] = caught.value.details["fields"]
    assert item["field"] == "image"
    assert caught.value.message.startswith("image: ")
    return str(item["problem"])


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_files_keep_every_pixel(kind: str, options: dict[str, Any]) -> None:
    image = noise(37, 23)
    decoded = images.decode(file(image, kind, **options), "image")
    assert decoded.mode == "RGB"
    assert np.array_equal(decoded, image)


def test_a_memoryview_will_do() -> None:
    assert images.decode(memoryview(file(noise(4, 4))), "image").size == (4, 4)


def test_a_jpeg_is_what_pillow_reads() -> None:
    raw = file(noise(40, 24), "JPEG", quality=90)
    assert np.array_equal(images.decode(raw, "image"), Image.open(io.BytesIO(raw)))


def test_transparent_parts_are_white_in_pictures_and_black_in_masks() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(*RED, 255), (*RED, 0), (0, 0, 0, 127)])
    for kind in ("PNG", "WEBP"):
        raw = file(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        pixels = np.asarray(images.decode(raw, "image")).tolist()
        assert pixels == [[list(RED), [255, 255, 255], [128, 128, 128]]]
        assert np.asarray(images.decode_grey(raw, "mask_image")).tolist() == [[76, 0, 0]]


def test_palettes() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    assert np.asarray(images.decode(file(image), "image")).tolist() == [[list(RED), list(GREEN), list(BLUE)]]
    for transparency, pixels in (
        (1, [list(RED), [255, 255, 255], list(BLUE)]),
        (bytes([255, 0, 127]), [list(RED), [255, 255, 255], [128, 128, 255]]),
    ):
        raw = file(image, transparency=transparency)
        assert np.asarray(images.decode(raw, "image")).tolist() == [pixels]


def test_grey_pictures() -> None:
    assert first(file(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert first(file(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert first(file(Image.new("LA", (2, 2), (77, 255)))) == (77, 77, 77)
    assert first(file(Image.new("LA", (2, 2), (77, 0)))) == (255, 255, 255)
    assert first(file(Image.new("L", (2, 2), 77), transparency=77)) == (255, 255, 255)
    assert first(file(Image.new("RGB", (2, 2), RED), transparency=RED)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = [0, 128, 129, 255, 256, 257, 1000, 32767, 32768, 65406, 65407, 65535]
    grey = png(len(values), 1, 16, 0, struct.pack(f">{len(values)}H", *values))
    expected = [round(value * 255 / 65535) for value in values]
    assert np.asarray(images.decode(grey, "image"))[0, :, 0].tolist() == expected
    assert np.asarray(images.decode_grey(grey, "image"))[0].tolist() == expected
    with_hole = png(2, 1, 16, 0, struct.pack(">2H", 1000, 1001), chunk(b"tRNS", struct.pack(">H", 1000)))
    assert np.asarray(images.decode(with_hole, "image"))[0, :, 0].tolist() == [255, 4]
    colours = png(2, 1, 16, 2, struct.pack(">6H", 0, 32896, 65535, 65535, 0, 0))
    assert np.asarray(images.decode(colours, "image")).tolist() == [[[0, 128, 255], [255, 0, 0]]]
    grey_alpha = png(2, 1, 16, 4, struct.pack(">4H", 32896, 65535, 0, 0))
    assert np.asarray(images.decode(grey_alpha, "image"))[0, :, 0].tolist() == [128, 255]
    colour_alpha = png(2, 1, 16, 6, struct.pack(">8H", 65535, 0, 0, 65535, 0, 0, 0, 0))
    assert np.asarray(images.decode(colour_alpha, "image")).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_cmyk_jpegs_have_the_right_colours() -> None:
    for ink, colour in (((0, 255, 255, 0), RED), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255, 255, 255))):
        raw = file(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        assert b"Adobe" in raw
        assert np.abs(np.subtract(first(raw), colour)).max() <= 3


def test_exif_orientation_is_honoured() -> None:
    """Every turn of the file that EXIF can undo gives the same upright picture."""
    upright = noise(6, 4)
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, turn in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright if turn is None else upright.transpose(turn)
        for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
            raw = file(stored, kind, exif=exif, **options)
            assert np.array_equal(images.decode(raw, "image"), upright), (orientation, kind)
            assert np.array_equal(images.decode_grey(raw, "image"), upright.convert("L"))
    exif[0x0112] = 6
    assert images.decode(file(noise(16, 8), "JPEG", exif=exif), "image").size == (8, 16)


@pytest.mark.parametrize("action", ["error", "always"])
def test_damaged_exif_is_ignored(action: str) -> None:
    """With warnings as errors, as in these tests, and without, as in a worker."""
    broken = [
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + b"\xff" * 40,
        b"Exif\0\0nothing of TIFF",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
    ]
    with warnings.catch_warnings(record=action == "always") as seen:
        warnings.simplefilter(action)  # type: ignore[arg-type]
        for exif in broken:
            assert images.decode(file(noise(8, 8), "JPEG", exif=exif), "image").size == (8, 8)
            assert images.decode(file(noise(8, 8), "PNG", exif=exif), "image").size == (8, 8)
    assert not seen


def test_colours_are_taken_to_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = noise(16, 16)
    assert np.array_equal(images.decode(file(image, icc_profile=srgb), "image"), image)
    for useless in (lab.tobytes(), b"no profile", srgb[:100]):
        assert np.array_equal(images.decode(file(image, icc_profile=useless), "image"), image)
    swapped = images.decode(file(Image.new("RGB", (2, 2), RED), icc_profile=swapped_profile(srgb)), "image")
    assert np.abs(np.subtract(swapped.getpixel((0, 0)), GREEN)).max() <= 2


def swapped_profile(srgb: bytes) -> bytes:
    """sRGB with red and green swapped, under another name."""
    tags = {srgb[at : at + 4]: at for at in range(132, 132 + 12 * struct.unpack(">I", srgb[128:132])[0], 12)}
    profile = bytearray(srgb)
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    name = "sRGB".encode("utf-16-be")
    return bytes(profile).replace(name, "test".encode("utf-16-be")).replace(b"sRGB", b"test")


def test_a_small_file_of_many_pixels_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Any) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    small = huge_png(9000)
    assert len(small) < 12_000
    assert "9000 × 9000" in refused(small, PayloadTooLarge)
    assert refused(huge_png(20_000), PayloadTooLarge) == "too large"  # Pillow itself gives up


def test_sizes_at_the_limit() -> None:
    assert images.decode(file(Image.new("1", (8192, 2048))), "image").size == (8192, 2048)
    refused(file(Image.new("1", (8193, 8))), PayloadTooLarge)
    refused(file(Image.new("1", (8192, 2049))), PayloadTooLarge)
    assert images.decode(file(Image.new("RGB", (1, 1), RED)), "image").getpixel((0, 0)) == RED


def test_a_file_may_not_be_larger_than_a_frame() -> None:
    assert refused(b"\xff\xd8\xff" + bytes(64 * MIB), PayloadTooLarge) == "too large"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused_wherever_it_ends(kind: str) -> None:
    raw = file(noise(64, 64), kind, **({"lossless": True} if kind == "WEBP" else {}))
    for share in range(1, 20):
        refused(raw[: len(raw) * share // 20])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_file_is_a_picture_or_a_clear_error(kind: str) -> None:
    raw = file(noise(48, 48), kind, **({"lossless": True} if kind == "WEBP" else {}))
    generator = random.Random(5)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(raw)
        for _ in range(generator.randint(1, 6)):
            damaged[generator.randrange(len(raw))] = generator.randrange(256)
        try:
            assert images.decode(bytes(damaged), "image").mode == "RGB"
            outcomes.add("picture")
        except (InvalidRequest, PayloadTooLarge) as error:
            outcomes.add(error.details["fields"][0]["field"])
    assert outcomes <= {"picture", "image"}
    assert "image" in outcomes


def test_what_is_no_such_picture_is_refused_by_content() -> None:
    fits = b"SIMPLE  =                    T / FITS".ljust(2880)
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    others = [file(noise(8, 8), kind) for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM")]
    for raw in (b"", b"\x89PNG", fits, svg, b"%!PS-Adobe-3.0 EPSF-3.0", *others):
        assert "PNG, JPEG or WebP" in refused(raw)
    for raw in (b"\x89PNG\r\n\x1a\n" + svg, b"\xff\xd8\xff" + fits, b"RIFF\x20\0\0\0WEBP" + fits):
        assert "damaged" in refused(raw)


def test_animations_are_refused() -> None:
    frames = [noise(8, 8, seed) for seed in range(3)]
    for kind in ("WEBP", "PNG"):
        assert "animated" in refused(file(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert images.decode(file(frames[0], kind, save_all=True), "image").size == (8, 8)


def test_a_picture_of_a_phone_with_a_second_one_behind_it_is_its_first() -> None:
    first_picture, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    raw = file(first_picture, "MPO", save_all=True, append_images=[second])
    assert np.abs(np.subtract(first(raw), RED)).max() <= 2


def peak_bytes(work: Callable[[], Any]) -> int:
    """Of Python's own memory; Pillow's pixels are not in it, what it unpacks beside them is."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "prefix"), [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")])
def test_what_unpacks_to_much_beside_the_pixels_is_refused(name: bytes, prefix: bytes) -> None:
    bomb = png(1, 1, 8, 0, b"\0", chunk(name, prefix + zlib.compress(bytes(64 * MIB))))
    assert peak_bytes(lambda: refused(bomb)) < 16 * MIB


def test_a_long_recipe_in_a_png_is_no_trouble() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("atelier", "x" * 512 * 1024)
    assert images.decode(file(noise(8, 8), pnginfo=info), "image").size == (8, 8)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    raw = file(noise(32, 32), "JPEG", progressive=True)
    assert images.decode(raw, "image").size == (32, 32)
    start, end = raw.rfind(b"\xff\xda"), raw.rfind(b"\xff\xd9")
    assert "scans" in refused(raw[:end] + raw[start:end] * 300 + raw[end:])


def test_running_out_of_memory_is_not_the_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(MemoryError):
        images.decode(file(noise(8, 8)), "image")


@pytest.mark.parametrize(
    ("size", "near"),
    [((64, 64), (64, 64)), ((67, 68), (64, 72)), ((8, 11), (8, 8)), ((511, 515), (512, 512)), ((8192, 8), (8192, 8))],
)
def test_the_nearest_size_a_model_can_compute(size: tuple[int, int], near: tuple[int, int]) -> None:
    assert images.model_size(*size, 8, "image") == near


def test_sizes_that_no_model_computes() -> None:
    for size in ((1, 1), (7, 64), (64, 7)):
        with pytest.raises(InvalidRequest, match="at least 8 pixels"):
            images.model_size(*size, 8, "image")
    with pytest.raises(PayloadTooLarge):
        images.model_size(4100, 4092, 8, "image")
