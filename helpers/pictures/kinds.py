"""What a file is by its first bytes, in words: for pictures that cannot be read."""

from __future__ import annotations

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # PIL would run Ghostscript on an EPS
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef",
                   ".arw", ".raf", ".orf", ".rw2", ".exr", ".hdr", ".psd", ".tga", ".svg", ".ppm",
                   ".pfm")
BRANDS = {"HEIC": (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"mif1", b"msf1"),
          "AVIF": (b"avif", b"avis")}
STARTS = (
    (b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "PostScript"), (b"%PDF", "a PDF"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"v/1\x01", "OpenEXR"), (b"#?RADIANCE", "Radiance HDR"), (b"8BPS", "a Photoshop file"),
    (b"PK\x03\x04", "a zip archive"), (b"version https://git-lfs", "a pointer of Git LFS"),
    (b"<svg", "SVG"), (b"<?xml", "XML or SVG"), (b"<!doctype html", "a web page"),
    (b"<html", "a web page"), (b"{", "a text"), (b"FUJIFILMCCD-RAW", "a raw photograph"),
    (b"ply\n", "a PLY file"), (b"\x1f\x8b", "a gzip archive"))


def foreign_kind(content: bytes) -> str | None:
    """What a file that is no picture of FORMATS is; None if its first bytes say nothing."""
    if not content:
        return "an empty file"
    if content[4:8] == b"ftyp":
        brand = content[8:12]
        return next((name for name, brands in BRANDS.items() if brand in brands), "a film")
    if not any(content[:64]):
        return "a file of zeros"
    start = content[:64].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    return next((name for mark, name in STARTS
                 if content.startswith(mark) or start.startswith(mark.lower())), None)
