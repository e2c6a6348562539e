"""What a pickle can do at its worst: nothing of it runs, and the file is read or refused in one line."""

import io
import os
import pickle
import pickletools
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2skd.errors import CheckpointError
from w2skd.weights.load import load_weights
from w2skd.weights.pickle_reader import Opaque, PickleError, read_pickle

STATE = {"weight": torch.arange(6.0).view(2, 3)}


def archive_of(pickled: bytes, path: Path) -> Path:
    """Write a file in torch's zip format around a pickle, with one storage of six numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", STATE["weight"].numpy().tobytes())
        archive.writestr("archive/version", b"3\n")
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def weights_and(hostile: bytes) -> bytes:
    """A pickle of ``{"state_dict": {"weight": tensor}, "x": <hostile>}``."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89}tR"
    return b"\x80\x02}(" + text("state_dict") + b"}" + text("weight") + tensor + b"s" + text("x") + hostile + b"u."


def mkdir(path: Path, opcode: str) -> bytes:
    """Opcodes that make a folder in Python's unpickler."""
    function, argument = b"cposix\nmkdir\n", text(str(path))
    classes = b"cbuiltins\nobject\n"
    return {
        "REDUCE": function + argument + b"\x85R",
        "INST": b"(" + argument + b"iposix\nmkdir\n",
        "OBJ": b"(" + function + argument + b"o",
        "NEWOBJ": function + argument + b"\x85\x81",
        "NEWOBJ_EX": function + argument + b"\x85}\x92",
        "STACK_GLOBAL": b"\x8c\x05posix\x8c\x05mkdir\x93" + argument + b"\x85R",
        "through getattr": b"cbuiltins\ngetattr\ncposix\nmkdir\n" + text("__call__") + b"\x86R" + argument + b"\x85R",
        "BUILD calls __setstate__": classes + b")\x81}" + text("__setstate__") + function + b"sb" + argument + b"b",
        "BUILD of slots": classes + b")\x81N}" + text("__class__") + function + b"s\x86b",
        "APPEND calls append": classes + b")\x81}" + text("append") + function + b"sb" + argument + b"a",
        "SETITEM calls __setitem__": classes + b")\x81" + argument + function + b"s",
        "ADDITEMS calls add": classes + b")\x81(" + argument + b"\x90",
        "partial": b"cfunctools\npartial\n" + function + argument + b"\x86R)R",
        "a tensor that is rebuilt by it": b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + function
        + b"ctorch\nTensor\n"
        + argument
        + b"\x85}tR",
        "a hook of a parameter": b"ctorch._utils\n_rebuild_parameter\n" + argument + b"\x88" + function + b"\x87R",
    }[opcode]


OPCODES = (
    "REDUCE",
    "INST",
    "OBJ",
    "NEWOBJ",
    "NEWOBJ_EX",
    "STACK_GLOBAL",
    "through getattr",
    "BUILD calls __setstate__",
    "BUILD of slots",
    "APPEND calls append",
    "SETITEM calls __setitem__",
    "ADDITEMS calls add",
    "partial",
    "a tensor that is rebuilt by it",
    "a hook of a parameter",
)


@pytest.mark.parametrize("opcode", OPCODES)
def test_nothing_that_stands_beside_weights_is_called(opcode: str, tmp_path: Path) -> None:
    pickled = weights_and(mkdir(tmp_path / "was-run", opcode))
    assert pickletools.dis(pickled, io.StringIO()) is None, "a valid pickle"
    weights = load_weights(archive_of(pickled, tmp_path / "evil.pt"))
    assert torch.equal(weights.state["weight"], STATE["weight"])
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("opcode", OPCODES)
def test_nothing_is_called_where_there_are_no_weights(opcode: str, tmp_path: Path) -> None:
    pickled = b"\x80\x02" + mkdir(tmp_path / "was-run", opcode) + b"."
    for path in (archive_of(pickled, tmp_path / "zip.pt"), tmp_path / "bare.pt"):
        if path.name == "bare.pt":
            path.write_bytes(pickled)
        with pytest.raises(CheckpointError):
            load_weights(path)
    assert not (tmp_path / "was-run").exists()


def test_the_weapons_are_sharp(tmp_path: Path) -> None:
    for number, opcode in enumerate(("REDUCE", "INST", "OBJ", "STACK_GLOBAL", "through getattr", "partial")):
        pickle.loads(b"\x80\x02" + mkdir(tmp_path / str(number), opcode) + b".")
        assert (tmp_path / str(number)).exists(), opcode


HARMLESS = {
    "extension registry": b"\x82\x01",
    "extension registry, four bytes": b"\x84\x01\x00\x00\x00",
    "persistent id as text": b"Pevil\n",
    "unknown persistent id": b"(" + text("code") + text("import os") + b"tQ",
    "persistent id of a function": b"cposix\nsystem\nQ",
    "storage of an unknown class": b"(" + text("storage") + b"cevil\nStorage\n" + text("0") + text("cpu") + b"K\x06tQ",
    "a set of lists": b"\x8f(]]\x90",
    "a list as key": b"}]K\x01s",
    "a deep tuple as key": b"}" + b")" + b"\x85" * 1_000_000 + b"K\x01s",
    "deep lists": b"(" * 0 + b"]" * 50_000 + b"a" * 49_999,
    "itself": b"]q\x07h\x07a",
    "a large index of the memo": b"Nr\xff\xff\xff\x7f",
    "a dictionary shared by a million paths": b"}q\x09"
    + b"".join(
        b"}(" + text("a") + b"h" + bytes([9 + i]) + text("b") + b"h" + bytes([9 + i]) + b"uq" + bytes([10 + i])
        for i in range(60)
    ),
    "an integer of many digits": b"L" + b"9" * 3000 + b"L\n",
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_is_only_strange_is_ignored(kind: str, tmp_path: Path) -> None:
    weights = load_weights(archive_of(weights_and(HARMLESS[kind]), tmp_path / "strange.pt"))
    assert torch.equal(weights.state["weight"], STATE["weight"])


DAMAGED = {
    "more bytes than there are": b"\x8e" + struct.pack("<Q", 2**60) + b"x",
    "a byte array of an exabyte": b"\x96" + struct.pack("<Q", 2**60) + b"x",
    "a long of two gigabytes": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x",
    "nothing to pop": b"0" * 50,
    "no mark": b"t",
    "an unknown place in the memo": b"h\xee",
    "an unknown opcode": b"\xff",
    "an integer of too many digits": b"L" + b"9" * 9000 + b"L\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_stream_that_lies_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lies\.pt: damaged"):
        load_weights(archive_of(weights_and(DAMAGED[kind]), tmp_path / "lies.pt"))


def tensor_of(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Opcodes of a tensor on the storage, beside a class that torch's own reader refuses."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06tQ"
    function = b"ctorch._utils\n_rebuild_tensor_v2\n("
    view = function + storage + numbers((offset,))[1:-1] + numbers(size) + numbers(stride) + b"\x89}tR"
    return b"}(" + text("odd") + view + text("y") + b"cevil\nClass\n)Ru"


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (7,), (1,)), (6, (1,), (1,)), (-1, (2,), (1,)), (0, (2, 3), (4, 1)), (0, (10**12,), (0,)), (0, (-1,), (1,)),
     (0, (2,), (-1,)), (0, (2, 2), (1,)), (2**62, (1,), (1,)), (0, (2**40, 2**40), (0, 0))],
)  # fmt: skip
def test_a_tensor_outside_of_its_storage_is_refused(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"lies\.pt: damaged"):
        load_weights(archive_of(weights_and(tensor_of(offset, size, stride)), tmp_path / "lies.pt"))


def test_a_compressed_or_missing_storage_is_refused(tmp_path: Path) -> None:
    pickled = weights_and(b"cevil\nClass\n)R")
    for name, entries in (("bomb.pt", {"archive/data/0": bytes(24)}), ("none.pt", {})):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickled, zipfile.ZIP_STORED)
            for entry, content in entries.items():
                archive.writestr(entry, content)
        with pytest.raises(CheckpointError, match=f"{name}: "):
            load_weights(tmp_path / name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused_and_runs_nothing(data: st.DataObject, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    pickled = bytearray(weights_and(mkdir(mark, data.draw(st.sampled_from(OPCODES)))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(pickled) - 1))
        match data.draw(st.sampled_from(("change", "insert", "delete", "repeat"))):
            case "change":
                pickled[place] = data.draw(st.integers(0, 255))
            case "insert":
                pickled[place:place] = data.draw(st.binary(min_size=1, max_size=4))
            case "delete":
                del pickled[place : place + data.draw(st.integers(1, 9))]
            case "repeat":
                pickled[place:place] = pickled[place : place + 9]
        pickled = pickled or bytearray(b".")
    with suppress(CheckpointError):
        load_weights(archive_of(bytes(pickled), tmp_path / "x.pt"))
    assert not mark.exists()


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5)
        | st.binary(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
        ),
        max_leaves=20,
    ),
    protocol=st.integers(0, 5),
)
def test_plain_values_come_back_from_every_protocol(value: object, protocol: int) -> None:
    assert read_pickle(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_a_class_is_opaque_and_a_cut_stream_an_error() -> None:
    found = read_pickle(io.BytesIO(pickle.dumps(os.stat_result(range(10)))))
    assert isinstance(found, Opaque)
    assert str(found.made_by) == "os.stat_result"
    with pytest.raises(PickleError):
        read_pickle(io.BytesIO(pickle.dumps([1, 2])[:-1]))
