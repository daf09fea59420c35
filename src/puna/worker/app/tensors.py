"""KServe v2 tensors to Python values and back, as JSON and as bytes behind it. No I/O."""

from __future__ import annotations

import math
import struct
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from puna.worker import protocol
from puna.worker.app.schema import KINDS, NUMPY_NAMES, AppInput, AppSchema

NOT_SUPPORTED = "Output %s is of type dictionary or tuple which is currently not supported. You can try json.dumps(%s)"
MISSING = "Requried Output %s not found in the inference response; infer returned %s"  # the platform's spelling
EMPTY_LIST = (
    "Output %s is empty list which cannot be used to infer the data type. Please provide a non-empty list as output."
)
DATATYPES = {name: datatype for datatype, name in NUMPY_NAMES.items() if datatype != "BF16"}
DATATYPES.update(bool="BOOL", bfloat16="BF16")
Tensor = Tuple[str, List[int], List[Any]]  # datatype, shape, data flattened row-major


class BadRequest(Exception):
    """The request does not fit the schema: HTTP 400 with this text."""


class BadOutput(Exception):
    """The outputs of `infer` cannot be sent: HTTP 500 with this text."""


# -- requests ---------------------------------------------------------------------------------------------------------


def read_inputs(schema: AppSchema, document: Any, numpy: Any = None) -> Dict[str, Any]:
    """The dict for `infer` from a request `{"inputs": [{"name", "shape", "datatype", "data"}]}`.

    Numbers become scalars of the declared type when `numpy` is the module, plain Python numbers when it is None.

    Raises:
        BadRequest: the text names the input and says what was expected.
    """
    tensors = document.get("inputs", []) if isinstance(document, dict) else None
    if not isinstance(tensors, list) or not all(
        isinstance(t, dict) and isinstance(t.get("name"), str) for t in tensors
    ):
        raise BadRequest('the body must be {"inputs": [{"name": ..., "shape": ..., "datatype": ..., "data": ...}]}')
    sent = {t["name"]: t for t in tensors}
    refuse_unknown(schema, list(sent))
    values = {}
    for declared in schema.inputs:
        tensor = sent.get(declared.name)
        if tensor is None or (not declared.required and tensor.get("data") in (None, [None])):
            if declared.required:
                raise BadRequest("input '%s' is required and missing" % declared.name)
            continue  # the contract: absent and optional means no key; the example is no default
        values[declared.name] = _read(declared, tensor, schema.batch_size > 0, numpy)
    return values


def read_parameters(schema: AppSchema, document: Any, numpy: Any = None) -> Dict[str, Any]:
    """The dict for `infer` from a generate request: `{"parameters": {"TEXT": "..."}}`, or names at the top."""
    if isinstance(document, dict) and "inputs" in document:
        return read_inputs(schema, document, numpy)
    if not isinstance(document, dict) or not isinstance(document.get("parameters", {}), dict):
        raise BadRequest('the body must be {"parameters": {"NAME": value}}')
    pairs = {k: v for k, v in document.items() if k not in ("parameters", "id")}
    pairs.update(document.get("parameters", {}))
    tensors = [{"name": k, "data": v if isinstance(v, list) else [v]} for k, v in pairs.items()]
    return read_inputs(schema, {"inputs": tensors}, numpy)


def refuse_unknown(schema: AppSchema, names: List[str]) -> None:
    """Raise BadRequest when a name is not declared."""
    known = [i.name for i in schema.inputs]
    unknown = sorted({name for name in names if name not in known})
    if unknown:
        declared = "declared are: " + ", ".join(known) if known else "the app declares no inputs (no input_schema.py)"
        raise BadRequest("unknown input%s %s; %s" % ("s" * (len(unknown) > 1), ", ".join(map(repr, unknown)), declared))


def _read(declared: AppInput, tensor: Dict[str, Any], batched: bool, numpy: Any) -> Any:
    name, kind = declared.name, KINDS[declared.datatype]
    datatype = tensor.get("datatype", declared.datatype)
    if KINDS.get(datatype) != kind:
        raise BadRequest("input '%s' was sent as %s, but is declared as %s" % (name, datatype, declared.datatype))
    if "data" not in tensor and isinstance(tensor.get("parameters"), dict):
        refuse_binary(tensor["parameters"], name)
    data = _flatten(tensor.get("data"))
    shape = _shape(declared, tensor, len(data), batched)
    convert = _converter(declared, numpy)
    values = [convert(v) for v in data]
    return values[0] if shape == [1] else _nest(values, shape)


def refuse_binary(parameters: Dict[str, Any], name: str) -> None:
    """Raise BadRequest when a tensor's values are said to be elsewhere, and are not."""
    if "shared_memory_region" in parameters:
        raise BadRequest("input '%s' has shared_memory_region: shared memory is not taken here" % name)
    if "binary_data_size" in parameters:
        raise BadRequest(
            "input '%s' has binary_data_size, and the header Inference-Header-Content-Length, which says where the "
            "tensors' bytes begin, is missing" % name
        )


def _shape(declared: AppInput, tensor: Dict[str, Any], size: int, batched: bool) -> List[int]:
    shape = tensor.get("shape")
    if shape is None:
        shape = declared.concrete(size)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadRequest("input '%s': the shape must be a list of numbers" % declared.name)
    if math.prod(shape) != size:
        raise BadRequest(
            "input '%s': shape %s takes %d values, %d sent" % (declared.name, shape, math.prod(shape), size)
        )
    if batched and len(shape) == len(declared.shape) + 1 and shape[0] == 1:
        shape = shape[1:]  # clients of batched apps send a leading batch dimension
    if len(shape) != len(declared.shape) or any(declared.shape[i] not in (-1, n) for i, n in enumerate(shape)):
        raise BadRequest("input '%s': shape %s does not fit the declared %s" % (declared.name, shape, declared.shape))
    return shape


def _flatten(data: Any) -> List[Any]:
    if not isinstance(data, list):
        return [data]
    if not any(isinstance(v, list) for v in data):
        return data
    return [leaf for v in data for leaf in _flatten(v)]


def _nest(values: List[Any], shape: List[int]) -> List[Any]:
    for n in reversed(shape[1:]):
        values = [values[i : i + n] for i in range(0, len(values), n)] if n else []
    return values


def _converter(declared: AppInput, numpy: Any) -> Callable[[Any], Any]:
    kind, name = KINDS[declared.datatype], declared.name

    def refuse(value: Any, wanted: str) -> BadRequest:
        return BadRequest("input '%s' takes %s, not %s" % (name, wanted, repr(value)[:80]))

    def text(value: Any) -> str:
        if not isinstance(value, str):
            raise refuse(value, "text")
        return value

    def boolean(value: Any) -> Any:
        if not isinstance(value, bool):
            raise refuse(value, "true or false")
        return numpy.bool_(value) if numpy else value

    def number(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refuse(value, "numbers")
        if declared.datatype.startswith(("INT", "UINT")):
            if value != value or value in (float("inf"), float("-inf")) or int(value) != value:
                raise refuse(value, "whole numbers")
            value = int(value)
        else:
            value = float(value)
        return _numpy_scalar(declared.datatype, value, numpy) if numpy else value

    return {"text": text, "bool": boolean, "number": number}[kind]


def _numpy_scalar(datatype: str, value: Any, numpy: Any) -> Any:
    kind = getattr(numpy, NUMPY_NAMES[datatype])
    if isinstance(value, int):
        limits = numpy.iinfo(kind)
        if not limits.min <= value <= limits.max:
            # Schemas in the wild declare INT8 and send 768: the number matters more than its width.
            return numpy.int64(value) if -(2**63) <= value < 2**63 else value
    return kind(value)


# -- replies ----------------------------------------------------------------------------------------------------------


def write_outputs(result: Any, strict: bool = False, declared: Sequence[str] = ()) -> List[Dict[str, Any]]:
    """The result of `infer` as KServe outputs; `strict` (validation) refuses empty lists, whose type is unknown.

    `declared` are the outputs that must be there: those of output.json, and those that validation saw.

    Raises:
        BadOutput: the result is no dict, or an output cannot be sent.
    """
    if not isinstance(result, dict):
        raise BadOutput("infer must return a dict of outputs, it returned %s: %.80r" % (_article(result), result))
    for name in declared:
        if name not in result:
            raise BadOutput(MISSING % (name, ", ".join(map(str, result)) or "none"))
    outputs = []
    for name, value in result.items():
        datatype, shape, data = _tensor(str(name), value, strict)
        outputs.append({"name": str(name), "datatype": datatype, "shape": shape, "data": data})
    return outputs


def write_event(result: Any) -> Dict[str, Any]:
    """One event of a stream: name -> value, or a list where the output has another shape than [1]."""
    return {o["name"]: o["data"][0] if o["shape"] == [1] else o["data"] for o in write_outputs(result)}


def _tensor(name: str, value: Any, strict: bool) -> Tensor:
    if isinstance(value, list):
        datatype, shape, data = _list(name, value)
        if datatype is None:
            if strict:
                raise BadOutput(EMPTY_LIST % name)
            datatype = "BYTES"
        return datatype, shape, data
    if _is_array(value):
        datatype, shape, data = _array(name, value)
        return datatype, [1] + shape, data  # the platform sends np.array([value])
    datatype, leaf = _leaf(name, value)
    return datatype, [1], [leaf]


def _list(name: str, values: List[Any]) -> Tuple[Optional[str], List[int], List[Any]]:
    if values and all(type(v) is float for v in values):
        return "FP64", [len(values)], values
    datatype: Optional[str] = None
    inner: Optional[List[int]] = None
    data: List[Any] = []
    for value in values:
        kind: Optional[str]
        if isinstance(value, list):
            kind, shape, leaves = _list(name, value)
        elif _is_array(value):
            kind, shape, leaves = _array(name, value)
        else:
            kind, leaf = _leaf(name, value)
            shape, leaves = [], [leaf]
        if inner is not None and shape != inner:
            raise BadOutput("Output %s is a ragged list: parts of shape %s and %s" % (name, inner, shape))
        inner, datatype = shape, _wider(name, datatype, kind)
        data.extend(leaves)
    return datatype, [len(values)] + (inner or []), data


def _wider(name: str, first: Optional[str], second: Optional[str]) -> Optional[str]:
    if first is None or second is None or first == second:
        return first or second
    if KINDS[first] == KINDS[second] == "number":
        return "FP64" if "FP" in first + second or "BF" in first + second else "INT64"
    raise BadOutput("Output %s mixes %s and %s in one list" % (name, first, second))


def _leaf(name: str, value: Any) -> Tuple[str, Any]:
    if isinstance(value, bool):
        return "BOOL", value
    if isinstance(value, str):
        return "BYTES", str(value)
    if isinstance(value, (bytes, bytearray)):
        try:
            return "BYTES", bytes(value).decode()
        except UnicodeDecodeError:
            raise BadOutput("Output %s is bytes that are no UTF-8 text; send base64 of it instead" % name) from None
    dtype = getattr(getattr(value, "dtype", None), "name", None)
    if dtype in DATATYPES and getattr(value, "shape", ()) == ():  # numpy's and tf.bfloat16's scalars
        return DATATYPES[dtype], float(value) if dtype == "bfloat16" else value.item()
    if isinstance(value, int):
        return _int_type(name, value), int(value)
    if isinstance(value, float):
        return "FP64", float(value)
    if isinstance(value, (dict, tuple)):
        raise BadOutput(NOT_SUPPORTED % (name, name))
    hint = "; try .tolist()" if hasattr(value, "tolist") else ""
    raise BadOutput("Output %s is %s, which cannot be sent%s" % (name, _article(value), hint))


def _int_type(name: str, value: int) -> str:
    if -(2**63) <= value < 2**63:
        return "INT64"
    if 0 <= value < 2**64:
        return "UINT64"
    raise BadOutput("Output %s is a number of more than 64 bits; send it as text" % name)


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def _array(name: str, value: Any) -> Tensor:
    dtype = value.dtype.name
    if dtype in DATATYPES:
        return DATATYPES[dtype], list(value.shape), value.ravel().tolist()
    leaves = [_leaf(name, v) for v in value.ravel().tolist()]
    if any(kind != "BYTES" for kind, _ in leaves):
        raise BadOutput("Output %s is an array of dtype %s, which cannot be sent" % (name, dtype))
    return "BYTES", list(value.shape), [leaf for _, leaf in leaves]


def _article(value: Any) -> str:
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else kind.__module__ + "." + kind.__name__
    return ("an " if name[0] in "aeiou" else "a ") + name


# Little-endian, as the extension says; a BOOL is a byte, BF16 the upper half of an FP32.
FORMATS = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B", "UINT16": "H", "UINT32": "I",
    "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d", "BF16": "H",
}  # fmt: skip
LENGTH = struct.Struct("<I")
BINARY_SIZE = "binary_data_size"


def with_binary(document: Any, rest: bytes) -> Any:
    """The request's document with the values of its binary tensors as `data`; `rest` is what follows the JSON.

    Raises:
        BadRequest: sizes and bytes do not fit each other.
    """
    tensors = document.get("inputs") if isinstance(document, dict) else None
    at = 0
    for tensor in tensors if isinstance(tensors, list) else []:
        size = _binary_size(tensor)
        if size is None:
            continue
        if at + size > len(rest):
            raise BadRequest(
                "input '%s' has %s %d, %d bytes are left" % (tensor["name"], BINARY_SIZE, size, len(rest) - at)
            )
        tensor["data"] = _unpacked(tensor, rest[at : at + size])
        at += size
    if at != len(rest):
        raise BadRequest("%d bytes follow the JSON; its tensors' %s say %d" % (len(rest), BINARY_SIZE, at))
    return document


def _binary_size(tensor: Any) -> Any:
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    size = parameters.get(BINARY_SIZE) if isinstance(parameters, dict) else None
    if size is not None and (type(size) is not int or size < 0 or not isinstance(tensor.get("name"), str)):
        raise BadRequest("%s is %r: it must be a number of bytes, of a tensor with a name" % (BINARY_SIZE, size))
    return size


def _unpacked(tensor: Dict[str, Any], raw: bytes) -> List[Any]:
    name, datatype, shape = tensor["name"], tensor.get("datatype"), tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadRequest("input '%s': the shape must be a list of numbers" % name)
    count = math.prod(shape)
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


def names_outputs(document: Any) -> bool:
    """True when a request says anything of its outputs; most want all of them, as JSON."""
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
        described, parts = [], []
        for output in outputs:
            if self.binary.get(output["name"], self._every):
                part = _packed(output)
                parts.append(part)
                output = {k: v for k, v in output.items() if k != "data"}
                output["parameters"] = {BINARY_SIZE: len(part)}
            described.append(output)
        return described, b"".join(parts)


def _flag(entry: Any, name: str, otherwise: bool) -> bool:
    parameters = entry.get("parameters") if isinstance(entry, dict) else None
    return bool(parameters.get(name, otherwise)) if isinstance(parameters, dict) else otherwise


def _packed(output: Dict[str, Any]) -> bytes:
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


def binary_body(document: Dict[str, Any], rest: bytes) -> Tuple[bytes, int]:
    """`(body, json_bytes)` of a reply whose tensors' bytes are `rest`."""
    head = protocol.dumps(document)
    return head + rest, len(head)
