"""Tells where decoding of H.264 can begin, by the first slice of a key frame."""

from __future__ import annotations

from typing import Literal

_OTHER, _IDR = 1, 5  # kinds of units that hold a slice


def key_frame_kind(packet: memoryview, extradata: bytes | None) -> Literal["idr", "whole", "refresh"] | None:
    """Returns how decoding begins at a packet that a container marks as a key frame; None where it cannot be seen.

    idr      no picture from here on refers to one before it
    whole    this picture refers to none, later ones may refer to some before it (open GOP)
    refresh  the picture becomes whole little by little, in this one and those that follow (intra refresh)
    """
    for kind, first in _units(packet, extradata):
        if kind == _IDR:
            return "idr"
        if kind == _OTHER:
            # The number of its first macroblock, 0, is the bit 1. Then comes the slice's type, 2 or 7 where it refers
            # to no other picture: the bits 011 or 0001000.
            return "whole" if first >> 4 == 0b1011 or first == 0b10001000 else "refresh"
    return None


def _units(packet: memoryview, extradata: bytes | None):
    """Yields the kind and the first byte of each unit."""
    if extradata and len(extradata) > 4 and extradata[0] == 1:  # MP4, Matroska, FLV: its length stands before each
        size, at = (extradata[4] & 3) + 1, 0
        while at + size + 1 < len(packet):
            yield packet[at + size] & 31, packet[at + size + 1]
            at += size + int.from_bytes(packet[at : at + size], "big")
        return
    content = bytes(packet)
    at = content.find(b"\0\0\1")
    while 0 <= at < len(content) - 4:
        yield content[at + 3] & 31, content[at + 4]
        at = content.find(b"\0\0\1", at + 3)
