"""TextWorld's text grammar for ALFWorld's games, without `eval` and with cached parsing.

A game file contains its grammar, and TextWorld passes the expressions in it to `eval`, so that a
game from an untrusted source could run any code. Here an expression may only read names of
entities, join them and choose between them (`{o.indefinite + ' ' + o.name}`), which is all that
ALFWorld's own grammars do; anything else is a `ValueError` before the game begins. The texts equal
TextWorld's exactly.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from textworld.envs.pddl import textgen
from textworld.envs.pddl.logic import GameLogic
from textworld.logic import Rule

READABLE = ("name", "indefinite", "definite", "id")
"""Attributes of an entity that expressions may read."""

LIST_RULES = ("list_empty", "list_separator", "list_last_separator")
"""The rules that a list uses besides its items."""

_CACHE_SIZE = 4096


class SafeGrammar(textgen.ContextSensitiveGrammar):  # type: ignore[misc]  # no types
    """A grammar whose expressions are checked, and that derives texts without copying contexts."""

    def __init__(self, grammar: textgen.ContextSensitiveGrammar) -> None:
        """Raises ValueError for a forbidden expression or a missing rule."""
        super().__init__()
        self.update(grammar)
        for rules in self._rules.values():
            for rule in rules:
                self.check(rule.rhs)

    def check(self, rhs: Iterable[Any]) -> None:
        """Raises ValueError unless all expressions are allowed and all rules exist."""
        for symbol in rhs:
            if isinstance(symbol, textgen.ListSymbol):
                self.check([*map(textgen.NonterminalSymbol, LIST_RULES), symbol.symbol])
            elif isinstance(symbol, textgen.ConditionalSymbol):
                self.check([symbol.expression])
            elif isinstance(symbol, textgen.EvalSymbol):
                expression(symbol.expression)
            elif isinstance(symbol, textgen.NonterminalSymbol) and not self._rules.get(str(symbol)):
                raise ValueError(f"the grammar has no rule for #{symbol}#")

    def derive(self, start: str, context: Mapping[str, Any]) -> str:
        """The text that `start`, e.g. `#look.feedback#`, derives in this state of the game."""
        return "".join(self._texts(symbols(start), context))

    def _texts(self, rhs: list[Any], context: Mapping[str, Any]) -> Iterator[str]:
        for symbol in rhs:
            if isinstance(symbol, textgen.TerminalSymbol):
                yield str(symbol)
            elif isinstance(symbol, textgen.NonterminalSymbol):
                yield from self._texts(self._chosen(str(symbol), context), context)
            elif isinstance(symbol, textgen.EvalSymbol):
                yield str(_value(expression(symbol.expression), context["variables"]))
            elif isinstance(symbol, textgen.ConditionalSymbol):
                yield from self._items(symbol, context)
            else:
                yield from self._list(list(self._items(symbol.symbol, context)), context)

    def _items(self, symbol: Any, context: Mapping[str, Any]) -> Iterator[str]:
        for each in _matching_contexts(symbol.given, context) if symbol.given else [context]:
            yield "".join(self._texts([symbol.expression], each))

    def _list(self, items: list[str], context: Mapping[str, Any]) -> Iterator[str]:
        if not items:
            yield from self._texts(self._chosen("list_empty", context), context)
        for number, item in enumerate(items):
            if number:
                kind = "list_separator" if number < len(items) - 1 else "list_last_separator"
                yield from self._texts(self._chosen(kind, context), context)
            yield item

    def _chosen(self, name: str, context: Mapping[str, Any]) -> list[Any]:
        """The right-hand side of the first rule that applies."""
        for rule in self._rules.get(name, ()):
            if not rule.condition or any(True for _ in _assignments(rule.condition, context)):
                return list(rule.rhs)
        raise LookupError(f"no rule of the grammar for #{name}# applies")


class SafeLogic(GameLogic):  # type: ignore[misc]
    """A game's actions, with templates and feedback checked, and its safe grammar."""

    def __init__(self, domain: str, grammar: str) -> None:
        """Raises ValueError for a forbidden expression or a missing rule."""
        super().__init__(domain=domain, grammar=grammar)
        self.grammar: SafeGrammar = SafeGrammar(self.grammar)
        for action in self.actions.values():
            self.grammar.check(symbols(action.template))
            self.grammar.check(symbols(action.feedback_rule))


@lru_cache(_CACHE_SIZE)
def symbols(text: str) -> list[Any]:
    """Parses a text of the grammar's language into symbols."""
    return list(textgen._parse_and_convert(text, rule_name="symbols"))


@lru_cache(_CACHE_SIZE)
def expression(text: str) -> ast.expr:
    """Parses an expression between braces; raises ValueError unless it is allowed."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"invalid expression in the grammar: {text!r}") from None
    if not _is_allowed(tree):
        raise ValueError(f"forbidden expression in the grammar: {text!r}")
    return tree


@lru_cache(_CACHE_SIZE)
def _query(condition: str) -> Any:
    return Rule.parse_conjunctive_query(condition)


def _is_allowed(tree: ast.expr) -> bool:
    match tree:
        case ast.Constant(value=str()) | ast.Name():
            return True
        case ast.Attribute(value=ast.Name(), attr=attribute):
            return attribute in READABLE
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _is_allowed(left) and _is_allowed(right)
        case ast.BoolOp(op=ast.Or(), values=values):
            return all(map(_is_allowed, values))
    return False


def _value(tree: ast.expr, variables: Mapping[str, Any]) -> Any:
    match tree:
        case ast.Constant(value=text):
            return text
        case ast.Name(id=name):
            return variables[name]
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return getattr(variables[name], attribute)
        case ast.BinOp(left=left, right=right):
            return str(_value(left, variables)) + str(_value(right, variables))
        case ast.BoolOp(values=values):
            return next(filter(None, (_value(value, variables) for value in values)), "")
    raise TypeError(f"not an expression of `expression`: {ast.dump(tree)}")


def _assignments(condition: str, context: Mapping[str, Any]) -> Iterable[Mapping[Any, Any]]:
    rule, state, known = _query(condition), context["state"], context["mapping"]
    if all(placeholder in known for placeholder in rule.placeholders):
        # A look-up is enough; the engine would sort all facts of the kind.
        holds = all(state.is_fact(fact.instantiate(known)) for fact in rule.preconditions)
        return [known] if holds else []
    assignments: Iterable[Mapping[Any, Any]] = state.all_assignments(rule, known)
    return assignments


def _matching_contexts(condition: str, context: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the context with the variables of each assignment that fulfils the condition."""
    for mapping in _assignments(condition, context):
        names = {key.name: context["entity_infos"][var.name] for key, var in mapping.items()}
        yield {
            **context,
            "variables": {**context["variables"], **names},
            "mapping": {**context["mapping"], **mapping},
        }
