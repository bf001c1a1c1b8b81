"""TensorBoard's event files: a row of numbers a step, written without TensorFlow, TensorBoard or torch.

A file is a row of records: the length, 8 bytes, its checksum, 4, the event, its checksum, 4. An event is a protocol
buffer, tensorflow/core/util/event.proto: 1 the time (double), 2 the step (varint), 3 the file's version or 5 a summary,
whose values, each under 1, are 1 a name and 2 a number (float).
"""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

VERSION = b"brain.Event:2"
STEP = 9  # where an event has its step: after the time, which is one byte of tag and eight of number


class EventFile:
    """A new file in `folder`, a row at a time; what the files there hold past the step `after` is cut off first."""

    def __init__(self, folder: Path, after: int):
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(folder.glob("events.out.tfevents.*"))
        for path in earlier:
            with path.open("r+b") as file:
                file.truncate(whole(file.read(), after))
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{len(earlier):04d}"
        self._file = (folder / name).open("xb")
        self._file.write(_record(_time(time.time()) + _bytes(3, VERSION)))

    def write(self, step: int, at: float, values: Mapping[str, float]) -> None:
        """The values of a step, and the time: seconds since 1970."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", value)) for name, value in values.items()
        )
        self._file.write(_record(_time(at) + b"\x10" + _varint(step) + _bytes(5, summary)))
        self._file.flush()  # so that a kill loses nothing

    def close(self) -> None:
        self._file.close()


def whole(content: bytes, after: int) -> int:
    """The length of the first part, of whole records, of a file whose steps are not past `after`."""
    end = 0
    while end + 12 <= len(content):
        (size,) = struct.unpack("<Q", content[end : end + 8])
        event = content[end + 12 : end + 12 + size]
        if end + 16 + size > len(content) or (event[STEP : STEP + 1] == b"\x10" and _number(event[STEP + 1 :]) > after):
            break
        end += 16 + size
    return end


def _time(at: float) -> bytes:
    return b"\x09" + struct.pack("<d", at)


def _bytes(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _number(content: bytes) -> int:
    """The varint at the beginning."""
    return content[0] & 127 | (_number(content[1:]) << 7 if content[0] & 128 else 0)


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def _checksum(content: bytes) -> bytes:
    """CRC-32C (RFC 3720), turned by 15 bits and moved, as TensorFlow's records have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF)


def _table() -> list[int]:
    """Of each byte, its remainder by the polynomial 0x1EDC6F41, bits reversed."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


TABLE = _table()
