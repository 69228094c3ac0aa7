"""GGUF files that are wrong: each refused with what was found, what is allowed, and what to do."""

from __future__ import annotations

import re
import struct

import pytest

from fewbits.checkpoint.gguf_constants import ValueType
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CheckpointError
from model_files import GgufFile, GgufTensor, gguf_string, gguf_tensor, gguf_value, small_gguf

V = ValueType
A = gguf_tensor("a", (2, 8), "F32")
B = gguf_tensor("b", (2, 8), "F32")


def with_(tensor: GgufTensor, **lies: object) -> GgufTensor:
    return GgufTensor(**{**vars(tensor), **lies})


def array_head(element: int, count: int, rest: bytes = b"") -> bytes:
    return struct.pack("<IIQ", V.ARRAY, element, count) + rest


AGAIN = "download or copy it again"

CASES = {
    "magic": (
        GgufFile(magic=b"GGML"),
        r"not a GGUF file: found it begins with b'GGML'; allowed: b'GGUF'",
        "Check the path",
    ),
    "version 1": (GgufFile(version=1), r"GGUF version: found 1; allowed: 2 or 3", "Make the file again"),
    "version 77": (GgufFile(version=77), r"GGUF version: found 77; allowed: 2 or 3", "Make the file again"),
    "big-endian": (GgufFile(byte_order=">"), r"big-endian.*allowed: little-endian", "gguf-convert-endian"),
    "2**60 tensors": (
        GgufFile({}, [A], tensor_count=1 << 60),
        r"tensor count.*found 1152921504606846976; allowed: at most \d",
        AGAIN,
    ),
    "2**64-1 values": (
        GgufFile({}, [A], value_count=(1 << 64) - 1),
        r"count of metadata values.*found 18446744073709551615",
        AGAIN,
    ),
    "one tensor too many": (
        GgufFile({}, [A], tensor_count=2),
        r"past the end|more than|unknown|dimensions",
        AGAIN,
    ),
    "string length": (
        GgufFile({"k": struct.pack("<IQ", V.STRING, 1 << 40)}),
        r"length of the value of k.*found 1099511627776",
        AGAIN,
    ),
    "one value too many": (GgufFile({}, [A], value_count=1), r"more than the file has room for", AGAIN),
    "array length": (
        GgufFile({"k": array_head(V.UINT32, 1 << 50)}),
        r"length of the array k.*found 1125899906842624",
        AGAIN,
    ),
    "string array length": (
        GgufFile({"k": array_head(V.STRING, 1 << 50)}),
        r"length of the array k.*found 1125899906842624",
        AGAIN,
    ),
    "string in an array": (
        GgufFile({"k": array_head(V.STRING, 2, gguf_string("a") + struct.pack("<Q", 1 << 33))}),
        r"length of a string of k.*found 8589934592",
        AGAIN,
    ),
    "nested array": (
        GgufFile({"k": array_head(V.ARRAY, 1, array_head(V.UINT8, 1, b"a")[4:])}),
        r"k is an array of arrays",
        "make it again",
    ),
    "value type": (
        GgufFile({"k": struct.pack("<I", 13)}),
        r"k has an unknown value type: found 13; allowed: 0 \(uint8\)",
        AGAIN,
    ),
    "truth value": (
        GgufFile({"k": struct.pack("<IB", V.BOOL, 7)}),
        r"k is a truth value: found 7; allowed: 0 or 1",
        AGAIN,
    ),
    "truth values": (
        GgufFile({"k": array_head(V.BOOL, 2, b"\0\2")}),
        r"k is an array of truth values.*allowed: 0 or 1",
        AGAIN,
    ),
    "alignment": (
        GgufFile({"general.alignment": gguf_value(V.UINT32, 24)}),
        r"general\.alignment.*found 24.*power of two",
        AGAIN,
    ),
    "alignment 0": (
        GgufFile({"general.alignment": gguf_value(V.UINT32, 0)}),
        r"general\.alignment.*found 0",
        AGAIN,
    ),
    "alignment's type": (
        GgufFile({"general.alignment": gguf_value(V.STRING, "32")}),
        r"general\.alignment.*string",
        AGAIN,
    ),
    "two tensors of a name": (GgufFile({}, [A, A]), r"the tensor a occurs twice", AGAIN),
    "name": (GgufFile({}, [with_(A, name=b"\xff\xfe")]), r"name of a tensor is not UTF-8", AGAIN),
    "no dimensions": (
        GgufFile({}, [with_(A, dimensions=0)]),
        r"number of dimensions of a: found 0; allowed: 1 to 4",
        AGAIN,
    ),
    "5 dimensions": (
        GgufFile({}, [with_(A, shape=(1, 1, 1, 2, 8))]),
        r"number of dimensions of a: found 5; allowed: 1 to 4",
        AGAIN,
    ),
    "2**32 dimensions": (
        GgufFile({}, [with_(A, dimensions=(1 << 32) - 1)]),
        r"number of dimensions of a: found 4294967295",
        AGAIN,
    ),
    "shape overflows": (
        GgufFile({}, [with_(A, shape=(1 << 40, 1 << 40))]),
        r"shape of a: found \[1099511627776, 1099511627776\]",
        AGAIN,
    ),
    "empty shape": (GgufFile({}, [with_(A, shape=(0, 8))]), r"shape of a: found \[0, 8\]", AGAIN),
    "type": (
        GgufFile({}, [with_(A, type_number=999)]),
        r"tensor a has an unknown type: found 999; allowed: 0 \(F32\), 1 \(F16\)",
        "original model",
    ),
    "retired type": (
        GgufFile({}, [with_(A, type_number=31)]),
        r"tensor a has an unknown type: found 31 \(Q4_0_4_4",
        "original model",
    ),
    "rows": (
        GgufFile({}, [with_(A, type_number=2)]),
        r"rows of a don't fit its type Q4_0: found rows of 8; allowed: a multiple of 32",
        AGAIN,
    ),
    "unaligned": (
        GgufFile({}, [with_(A, offset=16)]),
        r"a is not aligned: found offset 16; allowed: a multiple of 32",
        AGAIN,
    ),
    "overlap": (
        GgufFile({}, [A, with_(B, offset=32)]),
        r"tensors a and b overlap: found b starts at \d+, a ends at",
        AGAIN,
    ),
    "offset": (
        GgufFile({}, [A, with_(B, offset=1 << 62)]),
        r"shorter than its header says: the tensor b.*found \d+ bytes; allowed: at least",
        AGAIN,
    ),
}


@pytest.mark.parametrize(("file", "said", "action"), CASES.values(), ids=CASES.keys())
def test_refused(file, said, action, tmp_path):
    path = file.write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)

    assert message.startswith(str(path))
    assert re.search(said, message)
    assert action in message
    assert caught.value.exit_status == 2


def test_two_values_of_a_key(tmp_path):
    one = gguf_string("k") + gguf_value(V.UINT8, 1)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + one + one)
    with pytest.raises(CheckpointError, match="the metadata key k occurs twice"):
        open_checkpoint(tmp_path / "m.gguf")


def test_every_truncation_is_refused(tmp_path):
    whole = small_gguf().encode().rstrip(b"\0")
    path = tmp_path / "m.gguf"
    for length in [*range(0, len(whole) - 64, 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_a_file_cut_short_after_opening_gives_an_error(tmp_path):
    path = small_gguf().write(tmp_path / "m.gguf")
    tensor = open_checkpoint(path).tensors["blk.1.c"]
    with path.open("r+b") as file:
        file.truncate(1200)
    with pytest.raises(CheckpointError, match=r"cut short since it was opened: found 1200 bytes"):
        tensor.read()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*No such file"):
        tensor.read()


def test_a_read_outside_the_tensor_is_a_programming_error(tmp_path):
    tensor = open_checkpoint(small_gguf().write(tmp_path / "m.gguf")).tensors["blk.0.a"]
    for start, stop in ((0, 3), (-1, 1), (2, 1)):
        with pytest.raises(IndexError):
            tensor.rows(start, stop)
