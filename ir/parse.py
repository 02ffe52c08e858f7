"""The reader of the text form: tokens, then statements, straight into a graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from flowgrad.ir import OPSET
from flowgrad.ir.errors import FlowgradError, LimitError, LoadError, ValidationError, safe_text, suggestion
from flowgrad.ir.graph import (
    BUFFER,
    DEFAULT,
    INITIALIZER,
    INLINE_ELEMENTS,
    LITERAL,
    PARAMETER,
    Array,
    Graph,
    Origin,
    Value,
)
from flowgrad.ir.infer import stored_symbolic_value
from flowgrad.ir.limits import Limits, limits_or_default
from flowgrad.ir.literals import array_of, bare_dtype, digest_of
from flowgrad.ir.names import QUOTED, unquote, unquote_bytes
from flowgrad.ir.ops.registry import opdef
from flowgrad.ir.types import FLOAT64, Dim, DimLike, DType, Shape, Type, dtype_of, parse_dim

ROLES = {"params": PARAMETER, "defaults": DEFAULT, "initializers": INITIALIZER, "buffers": BUFFER, "literals": LITERAL}

_TOKENS = re.compile(
    rf"""(?P<skip>(?:[ \t\r\n]+|\#[^\n]*)+)
    |(?P<value>%(?:[A-Za-z0-9_][A-Za-z0-9_.]*|{QUOTED}))
    |(?P<type>[a-z][a-z0-9.]*\[(?:[^\]"\[\n#]|{QUOTED})*\])
    |(?P<bytes>b{QUOTED})
    |(?P<number>-?(?:0x[0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|inf\b|nan\b))
    |(?P<word>[A-Za-z_][A-Za-z0-9_.]*)
    |(?P<at>@(?:[A-Za-z0-9_][A-Za-z0-9_.]*|{QUOTED}))
    |(?P<string>{QUOTED})
    |(?P<digest><blake2b:[0-9a-f]{{32}}>)
    |(?P<mark>->|[(){{}}\[\],=:])""",
    re.VERBOSE,
)
_NUMBER_DIGITS = 400
_END = ("end", "", -1)

Token = tuple[str, str, int]


def parse_graph(text: str, data: Mapping[str, Any] | None = None, limits: Limits | None = None) -> Graph:
    """Return the graph that ``format_graph`` printed as ``text``.

    ``data`` gives, by name or digest, the constants that are printed as a digest or without data. The result is not
    verified. Raises LoadError with line and column for what is not the text form, LimitError, ValidationError.
    """
    limits = limits_or_default(limits)
    limits.check("file_bytes", len(text))
    reader = _Reader(text, dict(data or {}), limits)
    try:
        graph = reader.graph(is_top=True)
        reader.expect_end()
    except LimitError:
        raise
    except FlowgradError as error:
        if error.where.startswith("line "):
            raise
        raise type(error)(str(error), code=error.code, where=reader.place()) from error
    return graph


class _Scope:
    """What one graph of the text needs while it is read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.outputs: list[tuple[str, Value | str, Type, int]] = []
        self.origins: dict[Origin, int] = {}


class _Reader:
    """A cursor over the tokens, and one method per form of the grammar."""

    def __init__(self, text: str, data: dict[str, Any], limits: Limits) -> None:
        self.text = text
        self.data = data
        self.limits = limits
        self.tokens = list(_tokens(text, limits))
        self.at = 0
        self.depth = 0
        self.nodes = 0
        self.values = 0
        self.types: dict[str, Type] = {}

    # ---- tokens -------------------------------------------------------------------------------------------------------

    def peek(self, ahead: int = 0) -> str:
        """Return the text of the next token, or of one after it."""
        index = self.at + ahead
        return self.tokens[index][1] if index < len(self.tokens) else ""

    def take(self, kind: str, what: str) -> str:
        """Return the text of the next token, which must be of ``kind``."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else _END
        if token[0] != kind:
            raise self.error(f"expected {what}, got {safe_text(token[1], 40) or 'the end'!r}")
        self.at += 1
        return token[1]

    def kind(self) -> str:
        """Return the kind of the next token."""
        return self.tokens[self.at][0] if self.at < len(self.tokens) else "end"

    def accept(self, text: str) -> bool:
        """Step over the next token if it is ``text``."""
        if self.at < len(self.tokens) and self.tokens[self.at][1] == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Step over ``text``, which must come next."""
        if not self.accept(text):
            raise self.error(f"expected {text!r}, got {safe_text(self.peek(), 40) or 'the end'!r}")

    def expect_end(self) -> None:
        """Make sure that nothing is left."""
        if self.at < len(self.tokens):
            raise self.error(f"expected the end, got {safe_text(self.peek(), 40)!r}")

    def place(self, token: int | None = None) -> str:
        """Return line and column of a token (default: the next one)."""
        index = self.at if token is None else token
        return _place(self.text, self.tokens[index][2] if index < len(self.tokens) else len(self.text))

    def within(self, limit: str, value: int, token: int | None = None) -> None:
        """Check a limit. The place of a token costs a look through the text, hence only for the error."""
        if value > getattr(self.limits, limit):
            self.limits.check(limit, value, self.place(token))

    def error(self, message: str, token: int | None = None) -> LoadError:
        """Return a LoadError at a token (default: the next one)."""
        return LoadError(message, code="text", where=self.place(token))

    def listed(self, item: Callable[[], Any]) -> list[Any]:
        """Read ``(item, item, ...)``; a comma may follow the last."""
        self.expect("(")
        found: list[Any] = []
        while not self.accept(")"):
            found.append(item())
            if not self.accept(","):
                self.expect(")")
                break
        return found

    # ---- names and types ------------------------------------------------------------------------------------------------

    def name(self, kind: str, what: str) -> str:
        """Read ``%name`` or ``@name``."""
        return self.checked_name(_bare(self.take(kind, what)[1:]))

    def checked_name(self, name: str) -> str:
        """Return a name that is not too long."""
        if len(name) * 4 > self.limits.name_bytes:
            self.limits.check("name_bytes", len(name.encode("utf-8", "surrogatepass")), self.place(self.at - 1))
        return name

    def word(self, what: str) -> str:
        """Read a bare or quoted word."""
        return self.checked_name(_bare(self.take("string" if self.kind() == "string" else "word", what)))

    def type(self) -> Type:
        """Read ``: dtype[dims]``."""
        self.expect(":")
        text = self.take("type", "a type such as f32[2,3]")
        if text not in self.types:
            self.types[text] = self.typed(text)
        return self.types[text]

    def typed(self, text: str) -> Type:
        """Return the type of ``dtype[dims]``."""
        name, _, dims = text[:-1].partition("[")
        try:
            dtype = dtype_of(name)
            shape = None if dims.strip() == "*" else self.shape(dims)
            return Type.read(dtype, shape)
        except LimitError:
            raise
        except FlowgradError as error:
            raise self.error(str(error), self.at - 1) from error

    def shape(self, text: str) -> Shape:
        """Return the extents of a comma-separated list."""
        parts = _split_dims(text)
        self.within("rank", len(parts), self.at - 1)
        dims = tuple(_extent(part) for part in parts)
        for dim in dims:
            if isinstance(dim, Dim):
                self.within("dim_terms", dim.size, self.at - 1)
                continue
            if dim < 0:
                raise ValidationError(f"the extent {dim} is negative", code="shape")
            self.within("dim", dim, self.at - 1)
        return dims

    # ---- graphs ---------------------------------------------------------------------------------------------------------

    def graph(self, is_top: bool = False) -> Graph:
        """Read a graph."""
        self.depth += 1
        self.within("depth", self.depth)
        self.expect("graph")
        scope = _Scope(Graph(self.name("at", "the name of the graph, such as @main"), self.limits))
        self.listed(lambda: self.input(scope))
        self.expect("->")
        self.listed(lambda: self.output(scope))
        while self.peek() in ROLES:
            role = ROLES[self.take("word", "a role")]
            self.listed(partial(self.constant, scope, role))
        if is_top and self.accept("opset"):
            self.opset()
        if self.accept("metadata"):
            scope.graph.metadata = self.metadata()
        self.expect("{")
        while not self.accept("}"):
            self.statement(scope)
        self.finish(scope)
        self.depth -= 1
        return scope.graph

    def opset(self) -> None:
        """Read the number of the opset, which must be this one."""
        number = self.take("number", "the number of the opset")
        if number != str(OPSET):
            raise self.error(f"the text is written in opset {number}, this version reads opset {OPSET}", self.at - 1)

    def input(self, scope: _Scope) -> None:
        """Read ``%x: type`` as an input."""
        name = self.name("value", "an input such as %x")
        self.placed(lambda: scope.graph.add_input(name, self.counted(self.type())))

    def output(self, scope: _Scope) -> None:
        """Read ``%y: type`` or ``%name = %y: type`` as an output; the value comes later."""
        start = self.at
        name = self.name("value", "an output such as %y")
        value: Value | str = name
        if self.accept("="):
            is_name = self.kind() == "value"
            value = self.name("value", "a value") if is_name else scope.graph.add_constant(self.literal())
        scope.outputs.append((name, value, self.type(), start))

    def constant(self, scope: _Scope, role: str) -> None:
        """Read ``%w: type = data`` as a constant."""
        start = self.at
        name = self.name("value", "a constant such as %w")
        type_ = self.counted(self.type())
        array = self.constant_data(name, type_)
        if array.dtype != type_.dtype.numpy or array.shape != type_.shape:
            raise self.error(f"the data given for %{name} is {array.dtype}{list(array.shape)}, expected {type_!r}", start)
        self.placed(lambda: scope.graph.add_constant(array, name, role))

    def constant_data(self, name: str, type_: Type) -> Array:
        """Read what follows the type of a constant."""
        if not self.accept("="):
            if name in self.data:
                return np.asarray(self.data[name])
            raise self.error(f"%{name} has no data: write = and the data, or give it in data=")
        if self.kind() != "digest":
            texts, shape = self.nested()
            static = type_.static_shape
            if shape != static and not (texts == [] and 0 in static):
                raise self.error(f"the data of %{name} has the shape {list(shape)}, expected {list(static)}")
            return array_of(texts, static, type_.dtype)
        digest = self.take("digest", "a digest")[9:-1]
        given = self.data.get(digest, self.data.get(name))
        if given is None:
            raise self.error(f"the text holds only the digest of %{name}: give its array in data=", self.at - 1)
        array = np.asarray(given)
        if digest_of(array) != digest:
            raise self.error(f"the array given for %{name} is not the one that was printed", self.at - 1)
        return array

    def finish(self, scope: _Scope) -> None:
        """Connect the outputs."""
        for name, value, type_, token in scope.outputs:
            found = scope.graph.values.get(value) if isinstance(value, str) else value
            if found is None:
                raise self.error(f"nothing computes the output %{safe_text(value)}"
                                 f"{suggestion(str(value), scope.graph.values)}", token)
            if found.type != type_:
                raise self.error(f"the output {found!r} is announced as {type_!r}", token)
            scope.graph.add_output(found, name)
        scope.graph.reserve_dims()

    # ---- statements -----------------------------------------------------------------------------------------------------

    def statement(self, scope: _Scope) -> None:
        """Read one node with its subgraphs."""
        start = self.at
        self.nodes += 1
        self.within("nodes", self.nodes)
        outputs = self.outputs()
        self.expect("=")
        op = self.word("an operator")
        inputs = self.listed(lambda: self.operand(scope))
        attributes = self.attributes() if self.accept("{") else {}
        captures = self.listed(lambda: self.capture(scope)) if self.accept("captures") else []
        name = self.name("at", "a name") if self.kind() == "at" else ""
        metadata = self.metadata() if self.accept("metadata") else {}
        origin = self.origin(scope) if self.accept("from") else 0
        subgraphs = {}
        while self.kind() in ("word", "string") and self.peek() != "_":
            role = self.word("the name of a subgraph")
            self.expect("=")
            subgraphs[role] = self.graph()
        after, self.at = self.at, start
        opdef(op)
        node = scope.graph.add_node(op, inputs, outputs, attributes, captures=captures, subgraphs=subgraphs,
                                    origin=origin, name=name)
        node.metadata = metadata
        first = node.outputs[0] if node.outputs else None
        if first is not None and first.type.dtype.is_integer:
            first.symbolic = stored_symbolic_value(node)
        self.at = after

    def outputs(self) -> list[tuple[str, Type] | None]:
        """Read the outputs of a node: ``%y: type``, ``_`` for one left out, ``()`` for none at all."""
        if self.accept("("):
            self.expect(")")
            return []
        found: list[tuple[str, Type] | None] = []
        while True:
            if self.accept("_"):
                found.append(None)
            else:
                name = self.name("value", "an output such as %y, or }")
                found.append((name, self.counted(self.type())))
            if not self.accept(","):
                return found

    def counted(self, type_: Type) -> Type:
        """Return ``type_``, having counted one value more."""
        self.values += 1
        self.within("values", self.values)
        return type_

    def operand(self, scope: _Scope) -> Value | None:
        """Read an input: a value, a literal, or ``_``."""
        if self.kind() == "value":
            return self.captured(scope)
        if self.accept("_"):
            return None
        start = self.at
        array = self.literal()
        if array.size > INLINE_ELEMENTS or array.dtype == object:
            raise self.error("strings, and constants of more than 64 elements, need a name: put them among the "
                             "literals", start)
        return scope.graph.add_constant(array)

    def capture(self, scope: _Scope) -> Value:
        """Read what a node captures: a value or a literal."""
        if self.kind() == "value":
            return self.captured(scope)
        found = self.operand(scope)
        if found is None:
            raise self.error("a capture cannot be left out", self.at - 1)
        return found

    def captured(self, scope: _Scope) -> Value:
        """Read a value that is there already."""
        name = _bare(self.take("value", "a value")[1:])
        value = scope.graph.values.get(name)
        if value is None:
            raise self.error(f"%{safe_text(name)} is used before it is defined{suggestion(name, scope.graph.values)}",
                             self.at - 1)
        return value

    def origin(self, scope: _Scope) -> int:
        """Read ``pass(%names)``."""
        pass_name = self.word("the name of a pass")
        names = tuple(self.listed(lambda: self.name("value", "a name such as %x")))
        origin = Origin(pass_name, names, (0,) * len(names))
        if origin not in scope.origins:
            scope.origins[origin] = len(scope.graph.origins)
            scope.graph.origins.append(origin)
        return scope.origins[origin]

    def metadata(self) -> dict[str, str]:
        """Read ``{"key"="value", ...}``."""
        self.expect("{")
        found: dict[str, str] = {}
        while not self.accept("}"):
            key = self.word("a key")
            self.expect("=")
            self.unique(key, found)
            found[key] = unquote(self.take("string", "a string"))
            if not self.accept(","):
                self.expect("}")
                break
        return found

    def unique(self, key: str, found: Mapping[str, Any]) -> None:
        """Make sure that a key is new."""
        if key in found:
            raise self.error(f"{key!r} is given twice", self.at - 1)
        self.within("attributes", len(found) + 1)

    def placed(self, action: Callable[[], Any]) -> None:
        """Do something to the graph; an error gets the place of the token before."""
        start = self.at
        try:
            action()
        except LimitError:
            raise
        except ValidationError as error:
            raise self.error(str(error), max(start - 1, 0)) from error

    # ---- attributes and literals -------------------------------------------------------------------------------------------

    def attributes(self) -> dict[str, Any]:
        """Read ``name=value, ...}``."""
        found: dict[str, Any] = {}
        while not self.accept("}"):
            name = self.word("the name of an attribute")
            self.expect("=")
            self.unique(name, found)
            found[name] = self.attribute()
            if not self.accept(","):
                self.expect("}")
                break
        return found

    def attribute(self) -> Any:
        """Read a number, a string, bytes, a list of one of these, or an array."""
        if self.kind() == "type" or (self.kind() == "word" and self.peek(1) == "("):
            return self.literal()
        if not self.accept("["):
            return self.scalar()
        found: list[Any] = []
        while not self.accept("]"):
            found.append(self.scalar())
            if not self.accept(","):
                self.expect("]")
                break
        return tuple(found)

    def scalar(self) -> Any:
        """Read a number, a string or bytes."""
        kind, text = self.kind(), self.peek()
        if kind not in ("number", "string", "bytes"):
            raise self.error(f"expected a number, a string or a list, got {safe_text(text, 40)!r}")
        self.at += 1
        if kind == "string":
            return unquote(text)
        if kind == "bytes":
            return unquote_bytes(text)
        is_integer = text.lstrip("-").isdigit()
        return int(text) if is_integer else float(array_of([text], (), FLOAT64)[()])

    def literal(self) -> Array:
        """Read an array: ``[1,2]``, ``0.5``, ``f16(0.5)``, ``f32[0,3]([])``."""
        start = self.at
        if self.kind() == "type":
            type_ = self.typed(self.take("type", "a type"))
            texts, shape, dtype = *self.bracketed(), type_.dtype
            if texts or 0 not in type_.static_shape:
                raise self.error("only a literal without elements says its shape", start)
            return array_of([], type_.static_shape, dtype)
        if self.kind() == "word" and self.peek() not in ("true", "false"):
            named = self.dtype()
            texts, shape = self.bracketed()
            return array_of(texts, shape, named)
        texts, shape = self.nested()
        bare = bare_dtype(texts)
        if bare is None:
            raise self.error("the elements differ in kind, or need a dtype such as f32(...)", start)
        return array_of(texts, shape, bare)

    def dtype(self) -> DType:
        """Read the short name of a dtype."""
        name = self.take("word", "a dtype")
        try:
            return dtype_of(name)
        except FlowgradError as error:
            raise self.error(str(error), self.at - 1) from error

    def bracketed(self) -> tuple[list[str], tuple[int, ...]]:
        """Read nested lists in parentheses."""
        self.expect("(")
        found = self.nested()
        self.expect(")")
        return found

    def nested(self) -> tuple[list[str], tuple[int, ...]]:
        """Read an element or nested lists: the element texts in C order, and the shape."""
        texts: list[str] = []
        counts: list[int] = []
        shape: list[int] = []
        level = -1
        while True:
            if self.accept("["):
                level += 1
                self.within("rank", level + 1)
                if level == len(counts):
                    counts.append(0)
                    shape.append(-1)
                if texts and level >= len(shape):
                    raise self.error("the lists are not all equally deep")
                counts[level] = 0
                if not (level == len(counts) - 1 and self.peek() == "]"):
                    continue
            else:
                if level != len(shape) - 1:
                    raise self.error("the lists are not all equally deep")
                texts.append(self.element())
                if level < 0:
                    return texts, ()
                counts[level] += 1
            while not self.accept(","):
                self.expect("]")
                if shape[level] not in (-1, counts[level]):
                    raise self.error("the lists are not all equally long", self.at - 1)
                shape[level] = counts[level]
                level -= 1
                if level < 0:
                    return texts, tuple(shape)
                counts[level] += 1

    def element(self) -> str:
        """Read one element; a complex one as ``(real,imaginary)``."""
        kind, text = self.kind(), self.peek()
        if self.accept("("):
            real = self.take("number", "a number")
            self.expect(",")
            imaginary = self.take("number", "a number")
            self.expect(")")
            return f"({real},{imaginary})"
        if kind not in ("number", "string") and text not in ("true", "false"):
            raise self.error(f"expected a number, true, false or a string, got {safe_text(text, 40)!r}")
        self.at += 1
        return text


# ---- helpers ------------------------------------------------------------------------------------------------------------


def _tokens(text: str, limits: Limits) -> Iterator[Token]:
    at = strings = 0
    match = _TOKENS.match
    while at < len(text):
        found = match(text, at)
        if found is None:
            raise LoadError(f"cannot read {safe_text(text[at : at + 20], 20)!r}", code="text", where=_place(text, at))
        kind = found.lastgroup or ""
        end = found.end()
        if kind != "skip":
            token = found.group()
            if kind == "number" and len(token) > _NUMBER_DIGITS:
                raise LoadError("a number is too long", code="text", where=_place(text, at))
            if kind == "string" or kind == "bytes":
                strings += len(token)
                limits.check("string_bytes", strings, _place(text, at) if strings > limits.string_bytes else "")
            yield kind, token, at
        at = end


def _place(text: str, offset: int) -> str:
    line = text.count("\n", 0, offset) + 1
    return f"line {line}, column {offset - (text.rfind(chr(10), 0, offset) + 1) + 1}"


def _bare(text: str) -> str:
    return unquote(text) if text.startswith('"') else text


def _split_dims(text: str) -> list[str]:
    if not text.strip():
        return []
    if '"' not in text:
        return text.split(",")
    return [found.group() for found in re.finditer(rf"(?:[^,\"]|{QUOTED})+", text)]


def _extent(text: str) -> DimLike:
    stripped = text.strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() and len(stripped) < 40 else parse_dim(stripped)
