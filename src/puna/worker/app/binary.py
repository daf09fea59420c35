"""KServe's binary tensor data: values as bytes behind the JSON of a request, and of a reply that was asked for so."""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Sequence, Tuple

from puna.worker import protocol
from puna.worker.app.schema import size_of
from puna.worker.app.tensors import BadOutput, BadRequest

# Little-endian, as the extension says; a BOOL is a byte, BF16 the upper half of an FP32.
FORMATS = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B", "UINT16": "H", "UINT32": "I",
    "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d", "BF16": "H",
}  # fmt: skip
LENGTH = struct.Struct("<I")
SIZE = "binary_data_size"


def filled(document: Any, rest: bytes) -> Any:
    """The request's document with the values of its binary tensors as `data`; `rest` is what follows the JSON.

    Raises:
        BadRequest: sizes and bytes do not fit each other.
    """
    tensors = document.get("inputs") if isinstance(document, dict) else None
    at = 0
    for tensor in tensors if isinstance(tensors, list) else []:
        size = _size(tensor)
        if size is None:
            continue
        if at + size > len(rest):
            raise BadRequest("input '%s' has %s %d, %d bytes are left" % (tensor["name"], SIZE, size, len(rest) - at))
        tensor["data"] = _values(tensor, rest[at : at + size])
        at += size
    if at != len(rest):
        raise BadRequest("%d bytes follow the JSON; its tensors' %s say %d" % (len(rest), SIZE, at))
    return document


def _size(tensor: Any) -> Any:
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    size = parameters.get(SIZE) if isinstance(parameters, dict) else None
    if size is not None and (type(size) is not int or size < 0 or not isinstance(tensor.get("name"), str)):
        raise BadRequest("%s is %r: it must be a number of bytes, of a tensor with a name" % (SIZE, size))
    return size


def _values(tensor: Dict[str, Any], raw: bytes) -> List[Any]:
    name, datatype, shape = tensor["name"], tensor.get("datatype"), tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadRequest("input '%s': the shape must be a list of numbers" % name)
    count = size_of(shape)
    if datatype in ("BYTES", "STRING"):
        return _texts(name, raw, count)
    if datatype not in FORMATS:
        raise BadRequest("input '%s': %r has no binary form" % (name, datatype))
    form = FORMATS[datatype]
    if len(raw) != count * struct.calcsize("<" + form):
        raise BadRequest("input '%s': %d bytes are no %s of shape %s" % (name, len(raw), datatype, shape))
    values = struct.unpack("<%d%s" % (count, form), raw)
    if datatype == "BF16":
        return list(struct.unpack("<%df" % count, b"".join(b"\0\0" + struct.pack("<H", v) for v in values)))
    return list(values)


def _texts(name: str, raw: bytes, count: int) -> List[str]:
    found: List[str] = []
    at = 0
    try:
        while at < len(raw) and len(found) < count:
            (length,) = LENGTH.unpack_from(raw, at)
            at += LENGTH.size
            if at + length > len(raw):
                break
            found.append(raw[at : at + length].decode())
            at += length
    except struct.error:
        pass
    except UnicodeDecodeError:
        raise BadRequest("input '%s' is bytes that are no UTF-8 text; send base64 of it instead" % name) from None
    if at != len(raw) or len(found) != count:
        raise BadRequest("input '%s': its bytes are not %d texts, each after its length" % (name, count))
    return found


def asks(document: Any) -> bool:
    """Whether a request says anything of its outputs; most want all of them, as JSON."""
    return isinstance(document, dict) and ("outputs" in document or "parameters" in document)


class BinaryOutputs:
    """Which outputs a request asks for, and which of them as bytes."""

    def __init__(self, document: Any) -> None:
        """Raises BadRequest when `outputs` is no list of names."""
        outputs = document.get("outputs") if isinstance(document, dict) else None
        if outputs is not None and not (
            isinstance(outputs, list) and all(isinstance(o, dict) and isinstance(o.get("name"), str) for o in outputs)
        ):
            raise BadRequest('`outputs` must be [{"name": ...}], the outputs that are wanted')
        self.names = [o["name"] for o in outputs or []]
        every = _flag(document, "binary_data_output", False)
        self.binary = {o["name"]: _flag(o, "binary_data", every) for o in outputs or []}
        self._every = every

    def check(self, known: Sequence[str]) -> None:
        """Raise BadRequest when an output that is asked for is not there; nothing is known, nothing is refused."""
        missing = [name for name in self.names if known and name not in known]
        if missing:
            raise BadRequest("output '%s' is not there; the app's are: %s" % (missing[0], ", ".join(known)))

    def chosen(self, outputs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        """Those of the app's outputs that were asked for, in that order; all when none was named."""
        if not self.names:
            return outputs
        found = {output["name"]: output for output in outputs}
        self.check(list(found) or ["none"])
        return [found[name] for name in self.names]

    def split(self, outputs: List[Dict[str, Any]]) -> Tuple[List[Dict[str, Any]], bytes]:
        """`(outputs, bytes)`: outputs that go as bytes have a size instead of `data`."""
        if not self._every and not any(self.binary.values()):
            return outputs, b""
        told, parts = [], []
        for output in outputs:
            if self.binary.get(output["name"], self._every):
                part = _bytes(output)
                parts.append(part)
                output = {k: v for k, v in output.items() if k != "data"}
                output["parameters"] = {SIZE: len(part)}
            told.append(output)
        return told, b"".join(parts)


def _flag(entry: Any, name: str, otherwise: bool) -> bool:
    parameters = entry.get("parameters") if isinstance(entry, dict) else None
    return bool(parameters.get(name, otherwise)) if isinstance(parameters, dict) else otherwise


def _bytes(output: Dict[str, Any]) -> bytes:
    datatype, data = output["datatype"], output["data"]
    if datatype == "BYTES":
        texts = [text.encode() for text in data]
        return b"".join(LENGTH.pack(len(text)) + text for text in texts)
    if datatype == "BF16":
        return b"".join(struct.pack("<f", v)[2:] for v in data)
    try:
        return struct.pack("<%d%s" % (len(data), FORMATS[datatype]), *data)
    except (struct.error, OverflowError) as error:
        raise BadOutput("output '%s' does not fit %s: %s" % (output["name"], datatype, error)) from None


def written(document: Dict[str, Any], rest: bytes) -> Tuple[bytes, int]:
    """`(body, json_bytes)` of a reply whose tensors' bytes are `rest`."""
    head = protocol.dumps(document)
    return head + rest, len(head)
