"""Local rewrites: a pattern that reads like the IR, a check that says why it did not fire, and a replacement.

    @rewrite("Neg(Neg(%x))")
    def drop_double_negation(b, x):
        return x

Interior nodes of a match have one user. The replacement takes over the names of what it replaces, and its origin records
the rule and the matched nodes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from flowgrad.ir.builder import Builder
from flowgrad.ir.bulk import bulk
from flowgrad.ir.errors import PassError, ValidationError
from flowgrad.ir.graph import CONSTANT, ENTRIES, INITIALIZER, INPUT, OUTPUT, Graph, Node, Value
from flowgrad.ir.infer import describe
from flowgrad.ir.limits import check_time
from flowgrad.ir.ops.registry import Trait, opdef
from flowgrad.ir.types import Type, merge_types
from flowgrad.passes.edits import (
    all_graphs,
    is_dead,
    is_pinned,
    is_removable_constant,
    mark_bypassed,
    recompute_of,
    remove_dead,
)
from flowgrad.passes.patterns import Application, Match, matches, parse_pattern
from flowgrad.passes.registry import Kind


@dataclass(frozen=True)
class NoMatch:
    """What a rule returns when it must not fire, with the reason."""

    reason: str


def no_match(reason: str) -> Any:
    """Return the verdict that a rule does not apply here, and why."""
    return NoMatch(reason)


@dataclass(frozen=True)
class Rule:
    """A rewrite: patterns, and the function that checks a match and builds the replacement."""

    name: str
    patterns: tuple[Application, ...]
    function: Callable[..., Any]
    kind: Kind
    wanted: tuple[str, ...]
    shared: bool = False
    behind: frozenset[str] = frozenset()

    def __call__(self, b: Builder, match: Match) -> Any:
        """Return the replacement of the root's outputs, or a NoMatch."""
        given = {name: match.root if name == "node" else match.bound[name] for name in self.wanted}
        return self.function(b, **given)


def rewrite(*patterns: str, kind: Kind = "exact", shared: bool = False, behind: Collection[str] = ()
            ) -> Callable[[Callable[..., Any]], Rule]:
    """Make a rule of ``function(b, x, ...)``, whose parameters are variables of the patterns; ``node`` is the root.

    It returns a value, a tuple of values (one per output of the root, None for an absent one) or ``no_match(reason)``.
    Inner nodes of a match may have other users, and then stay, if ``shared``. Where the function itself looks behind the
    operands, ``behind`` names the ops of which one must be there: it is not called in vain.
    Raises ValidationError or UnsupportedError for a pattern that does not fit the op table.
    """

    def make(function: Callable[..., Any]) -> Rule:
        parsed = tuple(parse_pattern(p) for p in patterns)
        code = function.__code__
        wanted = code.co_varnames[1 : code.co_argcount]
        name = getattr(function, "__name__", "rule")
        for text, pattern in zip(patterns, parsed, strict=True):
            unbound = sorted(set(wanted) - set(pattern.variables()) - {"node"})
            if unbound:
                raise ValidationError(f"rule {name}: {text!r} does not bind {', '.join(unbound)}", code="pattern")
        return Rule(name, parsed, function, kind, wanted, shared, frozenset(behind))

    return make


def rules_in(namespace: dict[str, Any]) -> list[Rule]:
    """Return the rules of a module, in order of definition."""
    return [r for r in namespace.values() if isinstance(r, Rule)]


# ---- what happened ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Applied:
    """One change that a pass made: the rule, and the node it began at."""

    rule: str
    node: str

    def __str__(self) -> str:
        return f"{self.rule} at %{self.node}"


@dataclass
class Recorder:
    """Counts the changes that passes make; with a ``limit``, permits no more than that many.

    ``verbose`` also records the near misses: (rule, node, reason).
    """

    limit: int | None = None
    verbose: bool = False
    applied: list[Applied] = field(default_factory=list)
    misses: list[tuple[str, str, str]] = field(default_factory=list)

    def permits(self) -> bool:
        """Return whether another change may be made."""
        return self.limit is None or len(self.applied) < self.limit

    def counts(self) -> dict[str, int]:
        """Return how often each rule fired."""
        return dict(Counter(a.rule for a in self.applied).most_common())


_RECORDER: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Let ``recorder`` watch, and limit, the passes that run inside the block."""
    token = _RECORDER.set(recorder)
    try:
        yield recorder
    finally:
        _RECORDER.reset(token)


def may_change() -> bool:
    """Return whether a pass may make one more change."""
    recorder = _RECORDER.get()
    return recorder is None or recorder.permits()


def permitted(rule: str, node: Node) -> bool:
    """Ask whether a pass may make one more change, and record it if so."""
    recorder = _RECORDER.get()
    if recorder is None:
        return True
    if not recorder.permits():
        return False
    recorder.applied.append(Applied(rule, node.label))
    return True


# ---- the driver ---------------------------------------------------------------------------------------------------------


WIDE = 64
"""Users with more inputs than this are edited as seldom as possible."""


class RewriteBuilder(Builder):
    """A builder that notes what it made and records the origin when the first node is made."""

    def __init__(self, graph: Graph, rule: Rule, match: Match) -> None:
        super().__init__(graph)
        self.rule = rule
        self.match = match
        self.made: list[Node] = []
        self.passed_by: dict[Node, None] = {}
        """The nodes that the rule has looked past, beyond its pattern."""
        self.first_key = graph._next_key

    def add_node(self, op: str, inputs: Sequence[Any], *arguments: Any, **keywords: Any) -> Node:
        """Add a node with the origin, and the recomputation, of the match."""
        if not self.made:
            self.origin, self.prefix = self.graph.new_origin(self.rule.name, self.match.nodes), self.match.root.label
        node = super().add_node(op, inputs, *arguments, **keywords)
        if recompute_of(self.match.root):
            node.metadata["recompute"] = recompute_of(self.match.root)
        self.made.append(node)
        return node

    def made_by(self, value: Value | None, *ops: str) -> Node | None:
        """Return the node behind ``value`` if its op is one of ``ops`` and a rule may look past ``value``, else None."""
        if value is None or value.producer.op not in ops or value.name in self.graph.pinned:
            return None
        self.passed_by[value.producer] = None
        return value.producer

    def made_with(self, value: Value | None, trait: Trait) -> Node | None:
        """Return the node behind ``value`` if its op has ``trait`` and a rule may look past ``value``, else None."""
        if value is None or value.producer.op in ENTRIES or value.name in self.graph.pinned:
            return None
        if trait not in opdef(value.producer.op).traits:
            return None
        self.passed_by[value.producer] = None
        return value.producer

    def discard(self) -> None:
        """Remove what was made and is not used."""
        if self.graph._next_key == self.first_key:
            return
        remove_dead(self.graph, [n for n in reversed(self.made) if n.key in self.graph.entries and is_dead(self.graph, n)])
        for key in range(self.first_key, self.graph._next_key):
            entry = self.graph.entries.get(key)
            if entry is not None and entry.op == "Constant" and is_removable_constant(self.graph, entry):
                self.graph.remove(entry)


@bulk
def apply_rules(graph: Graph, rules: Sequence[Rule], *, cap: int = 20) -> None:
    """Apply ``rules`` to ``graph`` and its subgraphs until none fires; nodes with an adjoint rule of their own stay.

    Linear in nodes for rules that converge. Raises PassError, naming the rules that still fire, after ``cap``
    applications per node.
    """
    table = _Table(rules)
    for inner in all_graphs(graph):
        _Driver(inner, table, cap).run()


class _Table:
    """The rules with the patterns that a node may be the root of."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.depth = max((p.depth for r in rules for p in r.patterns), default=1)
        self.by_op: dict[str, list[tuple[Rule, Application]]] = {}
        for rule in rules:
            for pattern in rule.patterns:
                for op in pattern.ops:
                    self.by_op.setdefault(op, []).append((rule, pattern))
        self._asked = {n for r in rules for p in r.patterns for n in p.numbers}
        self._looked_for = {op: _looked_for(found) for op, found in self.by_op.items()}
        self._fitting: dict[Hashable, list[tuple[Rule, Application]]] = {}
        self._numbers: dict[Value, float | None] = {}

    def fitting(self, node: Node) -> list[tuple[Rule, Application]]:
        """Return the patterns that a look at a node and at what is behind its operands allows: mostly none."""
        inputs, looked_for = node.inputs, self._looked_for[node.op]
        repeats = len(inputs) > 1 and len(set(inputs)) < len(inputs)
        if looked_for is not None and not repeats:
            for given in inputs:
                if given is not None and given.producer.op in looked_for:
                    break
            else:
                return []
        behind: list[str | float | None] = []  # the maker of each operand, of a constant the number that it begins with
        for given in inputs:
            if given is not None:
                op = given.producer.op
                behind.append(op if op != CONSTANT else self._number(given))
        key = node.op, repeats, tuple(behind) if len(behind) < 4 else frozenset(behind)
        found = self._fitting.get(key)
        if found is None:
            found = self._fitting[key] = self._find(node.op, frozenset(behind), repeats)
        return found

    def _find(self, op: str, behind: frozenset[str | float | None], repeats: bool) -> list[tuple[Rule, Application]]:
        makers = frozenset([CONSTANT if maker.__class__ is not str else maker for maker in behind])
        return [(rule, pattern) for rule, pattern in self.by_op[op]
                if not any(map(makers.isdisjoint, pattern.needs)) and (repeats or not pattern.twins)
                and behind.issuperset(pattern.numbers)
                and not (rule.behind and makers.isdisjoint(rule.behind))]

    def _number(self, value: Value) -> float | None:
        """Return the number that a constant begins with, if any pattern asks for it."""
        if value not in self._numbers:
            array, dtype = value.constant, value.type.dtype
            is_number = array is not None and array.size > 0 and (dtype.is_float or dtype.is_integer)
            first = array.flat[0] if array is not None and is_number else None
            self._numbers[value] = next((n for n in self._asked if first == n), None)
        return self._numbers[value]


def _looked_for(found: Iterable[tuple[Rule, Application]]) -> frozenset[str] | None:
    """Return the makers of operands without which, and without the same operand twice, no pattern fits; None if one may."""
    makers: set[str] = set()
    for rule, pattern in found:
        if pattern.twins:
            continue
        if not pattern.needs and not rule.behind:
            return None
        makers.update(*pattern.needs, rule.behind)
    return frozenset(makers)


class _Driver:
    def __init__(self, graph: Graph, table: _Table, cap: int) -> None:
        self.graph = graph
        self.table = table
        self.queue: deque[Node] = deque()
        self.queued: set[int] = set()
        self.left = 1000 + cap * len(graph)
        self.recent: deque[str] = deque(maxlen=64)

    def run(self) -> None:
        entries, queue, queued, by_op = self.graph.entries, self.queue, self.queued, self.table.by_op
        queue.extend([n for n in self.graph.nodes() if n.op in by_op and n.adjoint_rule is None])
        queued.update([n.key for n in queue])
        while queue:
            node = queue.popleft()
            queued.discard(node.key)
            check_time()
            if node.key not in entries:
                continue
            fitting = self.table.fitting(node)
            if fitting and not is_dead(self.graph, node):
                self.visit(node, fitting)

    def push(self, node: Node) -> None:
        if node.op in self.table.by_op and node.adjoint_rule is None and node.key not in self.queued:
            self.queued.add(node.key)
            self.queue.append(node)

    def visit(self, node: Node, fitting: Sequence[tuple[Rule, Application]]) -> None:
        recorder = _RECORDER.get()
        for rule, pattern in fitting:
            for match in matches(pattern, node, shared=rule.shared, pinned=self.graph.pinned):
                if recorder is not None and not recorder.permits():
                    return
                b = RewriteBuilder(self.graph, rule, match)
                result = rule(b, match)
                if not isinstance(result, NoMatch) and self.is_held(node, result, b.made):
                    held = NoMatch("an output is pinned")
                    result = b.Identity(result) if rule.kind == "repairs" and isinstance(result, Value) else held
                if not isinstance(result, NoMatch) and self.says_less(rule, node, result, b.made):
                    result = NoMatch("an output would lose what its type says")
                if isinstance(result, NoMatch):
                    b.discard()
                    if recorder is not None and recorder.verbose:
                        recorder.misses.append((rule.name, node.label, result.reason))
                    continue
                permitted(rule.name, node)
                self.commit(b, rule, match, result)
                return

    def is_held(self, root: Node, result: Any, made: Sequence[Node]) -> bool:
        """Return whether a pinned output of the root would give way to a value that was there before."""
        return is_pinned(self.graph, root) and any(
            old.name in self.graph.pinned for old, _ in _given_way(root, result, made))

    def says_less(self, rule: Rule, root: Node, result: Any, made: Sequence[Node]) -> bool:
        """Return whether an output of the graph would be a value of a less precise type, which cannot be made more so.

        A loop without iterations has nothing but the types of its body to tell the extents of what it stacks.
        """
        return any(
            isinstance(new, Value) and (new.producer.op == INPUT or new.type.rank != old.type.rank)
            and any(u.op == OUTPUT for u in old.uses.values()) and new.type != _merged(rule, root, old.type, new.type)
            for old, new in _given_way(root, result, made))

    def commit(self, b: RewriteBuilder, rule: Rule, match: Match, result: Any) -> None:
        self.recent.append(rule.name)
        self.left -= 1
        if self.left < 0:
            firing = ", ".join(f"{name} ({n} of the last {len(self.recent)})" for name, n in Counter(self.recent).items())
            raise PassError(f"rewriting does not come to an end; still firing: {firing}", code="fixpoint",
                            where=describe(match.root))
        root = match.root
        results = _listed(result)
        around: dict[Node, None] = {}
        made_nodes = set(b.made)
        operands = [v for n in match.nodes for v in n.operands]
        adopted: set[Value] = set()
        survivors: dict[Value, Value] = {}  # a value may stand for several outputs, and gives way to the first of them
        for old, new in zip(list(root.outputs), results, strict=False):
            if old is not None:
                around.update(dict.fromkeys(old.uses.values()))
                checked = _checked(rule, root, old, new)
                survivors[checked] = replace_value(self.graph, old, survivors.get(checked, checked), made_nodes, adopted)
        if len(results) < len(root.outputs) and not is_dead(self.graph, root):
            raise PassError(f"rule {rule.name} replaced {len(results)} of {len(root.outputs)} outputs", code="rule",
                            where=describe(root))
        _carry_names(root, b.made)
        remove_dead(self.graph, [root])
        remove_dead(self.graph, match.nodes[::-1], keep_random=True)
        b.discard()
        self.let_go([v for v in operands if v not in results], b.made)
        used = {v for n in b.made for v in n.operands} | {v for v in results if v is not None}
        left = [*match.nodes, *(n for n in b.passed_by if used.isdisjoint(n.results))]
        for node in left if rule.shared else ():
            if node.key in self.graph.entries and node is not root:
                mark_bypassed(node, rule.name)
        for made in b.made:
            if made.key in self.graph.entries:
                self.push(made)
        for value in operands:
            if len(value.uses) == 1 and value.producer.key in self.graph.entries:
                around.update(dict.fromkeys((value.producer, *value.uses.values())))
        self.push_above(around)

    def let_go(self, operands: Iterable[Value], made: Sequence[Node]) -> None:
        """Take the name from weights whose values a rewrite has taken for granted: another value would change a part only."""
        used = {v for n in made if n.key in self.graph.entries for v in n.operands}
        for value in dict.fromkeys(operands):
            entry = value.producer
            if entry.role != INITIALIZER or value in used or not value.type.dtype.is_float or value.literal is not None:
                continue
            if value.uses:
                self.graph.rename(value, self.graph.unique_name(f"{value.name}_rest"))
            elif not is_pinned(self.graph, entry):
                self.graph.remove(entry)

    def push_above(self, level: Iterable[Node]) -> None:
        """Queue nodes that may match now, and those above them as deep as patterns go (inner values have one user)."""
        for _ in range(self.table.depth):
            level = [n for n in level if n.key in self.graph.entries]
            for node in level:
                self.push(node)
            single = [v for n in level for v in n.results if len(v.uses) == 1]
            level = list(dict.fromkeys(n for v in single for n in v.uses.values()))


def _listed(result: Any) -> list[Any]:
    """Return what a rule gave as one item per output of its root."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _given_way(root: Node, result: Any, made: Sequence[Node]) -> list[tuple[Value, Any]]:
    """Return the outputs of a root for which something stands that was not made for them, each with that."""
    fresh = {v for n in made for v in n.results}
    return [(old, new) for old, new in zip(root.outputs, _listed(result), strict=False) if old is not None and new not in fresh]


def _checked(rule: Rule, root: Node, old: Value, new: Any) -> Value:
    if not isinstance(new, Value):
        raise PassError(f"rule {rule.name} returned {new!r} for %{old.name}", code="rule", where=describe(root))
    _merged(rule, root, old.type, new.type)
    return new


def _merged(rule: Rule, root: Node, old: Type, new: Type) -> Type:
    try:
        return merge_types(old, new)
    except ValidationError as error:
        raise PassError(f"rule {rule.name} replaced {old!r} by {new!r}", code="rule", where=describe(root)) from error


def _carry_names(root: Node, made: Sequence[Node]) -> None:
    """Give the ONNX name and metadata of a replaced node to the node that now makes its output."""
    last = made[-1] if made else None
    if last is not None and not last.name:
        last.name = root.name
        last.metadata = {**root.metadata, **last.metadata}


def replace_value(graph: Graph, old: Value, new: Value, made: Collection[Node] = (), adopted: set[Value] | None = None
                  ) -> Value:
    """Let ``new`` stand for ``old`` everywhere; returns the value that survives.

    A node in ``made`` takes over the value ``old`` itself. So does the producer of an inner value ``new`` where ``old``
    is an output under its own name, or where users are so wide that editing them again and again would be quadratic.
    Otherwise users of ``old`` turn to ``new``.
    """
    taken = set() if adopted is None else adopted
    is_fresh = new.producer in made and new not in taken
    if is_fresh or (_gives_name(old, new) and new.name not in graph.pinned):
        merged = merge_types(old.type, new.type)
        graph.adopt(old, new)
        graph.set_type(old, merged)
        taken.add(old)
        return old
    if new.producer.op != INPUT and new.type.rank == old.type.rank:
        graph.set_type(new, merge_types(new.type, old.type))
    new.symbolic = old.symbolic if new.symbolic is None else new.symbolic
    graph.replace_uses(old, new)
    return new


def _gives_name(old: Value, new: Value) -> bool:
    if new.producer.op in ENTRIES or new.producer is old.producer:
        return False
    if len(new.uses) == 1 and any(len(u.inputs) > WIDE for u in old.uses.values()):
        return True
    is_output = any(u.op == OUTPUT and u.name == old.name for u in old.uses.values())
    return is_output and not any(u.op == OUTPUT for u in new.uses.values())
