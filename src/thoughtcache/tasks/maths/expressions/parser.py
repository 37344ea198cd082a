r"""Reads an expression into a tree.

    parse(r"\frac{1}{2} + \sqrt{3}")     # add(div(1, 2), sqrt(3))

Known are sums, products (also without a sign), quotients, powers, factorials, roots, absolute values, floor and
ceiling, binomials, the functions of `tokens.py`, mixed numbers, degrees inside a function. `f(x)` is read as a product,
on both sides of a comparison alike. Integrals, sums and limits are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from thoughtcache.tasks.maths.expressions.tokens import Token, TooLargeError, UnreadableError, tokens

MAX_DEPTH = 50
MAX_HEIGHT = 120
"""Operations upon operations: what computes a tree calls itself up to three times for each, and Python ends at 1000."""

CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: its name, what it is applied to, and the value or name of a leaf."""

    op: str
    args: tuple[Node, ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""


def parse(text: str, depth: int = 0) -> Node:
    """The tree of a tidy text that stands inside `depth` others.

    Raises:
        UnreadableError: if it is no expression.
        TooLargeError: if it is nested more than `MAX_DEPTH` times, its tree is higher than `MAX_HEIGHT`, or a number
            in it is too large.
    """
    reader = _Reader(tokens(text), depth)
    node = reader.total()
    if reader.now.kind != "end":
        raise UnreadableError(f"{reader.now.text!r} is left")
    _check_height(node)
    return node


def _check_height(root: Node) -> None:
    """Refuses a tree that is too high; signs behind a number (`3!!!`) make it high without any nesting."""
    row, height = [root], 0
    while row:
        height += 1
        if height > MAX_HEIGHT:
            raise TooLargeError(f"a tree of more than {MAX_HEIGHT} operations upon each other")
        row = [argument for node in row for argument in node.args]


def number(value: int | Fraction) -> Node:
    """A leaf with a number."""
    return Node("num", value=Fraction(value))


class _Reader:
    def __init__(self, found: list[Token], depth: int) -> None:
        self.found = found
        self.place = 0
        self.depth = depth
        self.bars = 0

    @property
    def now(self) -> Token:
        return self.found[self.place]

    def sees(self, *signs: str) -> bool:
        return self.now.kind == "sign" and self.now.text in signs

    def take(self) -> Token:
        self.place += 1
        return self.found[self.place - 1]

    def expect(self, sign: str) -> None:
        if not self.sees(sign):
            raise UnreadableError(f"{self.now.text!r} instead of {sign!r}")
        self.place += 1

    def deeper(self) -> None:
        """Count one level; whoever calls this goes back up by `self.depth -= 1`."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLargeError(f"nested more than {MAX_DEPTH} times")

    def total(self) -> Node:
        """Terms with plus and minus between them."""
        self.deeper()
        terms = [self.product()]
        while self.sees("+", "-"):
            terms.append(self.product())
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def product(self) -> Node:
        """A sign, then factors with or without a sign between them."""
        negative = False
        while self.sees("+", "-"):
            negative ^= self.take().text == "-"
        factors = [self.power()]
        while True:
            if self.sees("*"):
                self.take()
                factors.append(self.signed_power())
            elif self.sees("/") or (self.now.kind == "command" and self.now.text == "div"):
                self.take()
                factors.append(Node("inv", (self.signed_power(),)))
            elif self.begins_factor():
                if self.now.kind == "number" and self.found[self.place - 1].text not in (")", "]", "}", "|"):
                    raise UnreadableError("two numbers without a sign between them")
                factors.append(self.power())
            else:
                break
        node = factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
        return Node("neg", (node,)) if negative else node

    def begins_factor(self) -> bool:
        if self.now.kind in ("number", "name", "function", "constant"):
            return True
        if self.now.kind == "command":
            return self.now.text not in ("rfloor", "rceil", "div", "deg", "text")
        return self.sees("(", "[", "{") or (self.sees("|") and self.bars == 0)

    def signed_power(self) -> Node:
        """A power that may have a sign, as after `/` and in exponents."""
        negative = False
        while self.sees("+", "-"):
            negative ^= self.take().text == "-"
        node = self.power()
        return Node("neg", (node,)) if negative else node

    def power(self) -> Node:
        """Something with factorials, degrees and one exponent behind it."""
        first = self.now
        node = self.mixed(self.atom(), first)
        while True:
            if self.sees("!"):
                self.take()
                if self.sees("!"):
                    self.take()
                    node = Node("double_factorial", (node,))
                else:
                    node = Node("factorial", (node,))
            elif self.now.kind == "command" and self.now.text == "deg":
                self.take()
                node = Node("mul", (node, Node("const", name="degree")))
            elif self.sees("^"):
                self.take()
                self.deeper()
                node = Node("pow", (node, self.signed_power()))
                self.depth -= 1
            else:
                return node

    def mixed(self, node: Node, first: Token) -> Node:
        r"""`1\frac{4}{5}` and `1 4/5` are sums."""
        if first.kind != "number" or node.op != "num" or node.value.denominator != 1 or not first.text.isdigit():
            return node
        part: Node | None = None
        if self.now.kind == "command" and self.now.text == "frac":
            place = self.place
            part = self.atom()
            value = _proper(part)
            if value is None:
                self.place = place
                return node
        elif self.now.kind == "number" and self.now.text.isdigit():
            ahead = self.found[self.place + 1 : self.place + 3]
            if len(ahead) == 2 and ahead[0].text == "/" and ahead[1].kind == "number" and ahead[1].text.isdigit():
                below = ahead[1].value
                value = self.now.value / below if below else None
                if value is not None and value < 1:
                    self.place += 3
                    part = number(value)
        return node if part is None else Node("add", (node, part))

    def atom(self) -> Node:
        token = self.take()
        if token.kind == "number":
            return number(token.value)
        if token.kind == "name":
            return Node("sym", name=token.text)
        if token.kind == "constant":
            return Node("const", name=token.text)
        if token.kind == "function":
            return self.function(token.text)
        if token.kind == "command":
            return self.command(token.text)
        if token.kind == "sign" and token.text in CLOSING:
            return self.group(CLOSING[token.text])
        if token.kind == "sign" and token.text == "|":
            self.bars += 1
            node = self.total()
            self.bars -= 1
            self.expect("|")
            return Node("abs", (node,))
        raise UnreadableError(f"{token.text!r}")

    def group(self, closing: str) -> Node:
        bars, self.bars = self.bars, 0
        node = self.total()
        self.expect(closing)
        self.bars = bars
        return node

    def braces(self) -> Node:
        """The argument of a command: a group in braces, or one token."""
        if self.sees("{"):
            self.take()
            return self.group("}")
        self.deeper()
        node = self.atom()
        self.depth -= 1
        return node

    def command(self, name: str) -> Node:
        if name == "frac":
            above = self.braces()
            return Node("mul", (above, Node("inv", (self.braces(),))))
        if name == "binom":
            above = self.braces()
            return Node("binom", (above, self.braces()))
        if name in ("lfloor", "lceil"):
            node = self.total()
            if self.take() != Token("command", "r" + name[1:]):
                raise UnreadableError(f"\\{name} is not closed")
            return Node("floor" if name == "lfloor" else "ceil", (node,))
        raise UnreadableError(f"\\{name}")

    def function(self, name: str) -> Node:
        self.deeper()
        name, _, base = name.partition(":")
        exponent: Node | None = None
        index: Node | None = None
        if name == "sqrt" and self.sees("["):
            self.take()
            index = self.group("]")
        if self.sees("^"):
            self.take()
            exponent = self.braces()
        if name == "sqrt" and not self.sees("(", "{"):
            arguments = [self.atom()]
        else:
            arguments = self.arguments()
        if name == "sqrt":
            node = Node("pow", (arguments[0], Node("inv", (index or number(2),))))
        elif name == "log":
            node = Node("mul", (Node("ln", tuple(arguments)), Node("inv", (Node("ln", (parse(base, self.depth),)),))))
        else:
            node = Node(name, tuple(arguments))
        self.depth -= 1
        if exponent is None:
            return node
        if exponent == Node("neg", (number(1),)) and name in ("sin", "cos", "tan"):
            return Node(f"a{name}", tuple(arguments))
        return Node("pow", (node, exponent))

    def arguments(self) -> list[Node]:
        """What stands in parentheses or braces; without them, the factors up to the next sign or function."""
        if self.sees("(", "{", "["):
            closing = CLOSING[self.take().text]
            bars, self.bars = self.bars, 0
            found = [self.total()]
            while self.sees(","):
                self.take()
                found.append(self.total())
            self.expect(closing)
            self.bars = bars
            return found
        factors = [self.power()]
        while self.begins_factor() and self.now.kind not in ("function", "number"):
            factors.append(self.power())
        return [factors[0] if len(factors) == 1 else Node("mul", tuple(factors))]


def _proper(part: Node) -> Fraction | None:
    """The value of a fraction of whole numbers below one."""
    if part.op == "mul" and len(part.args) == 2 and part.args[0].op == "num" and part.args[1].op == "inv":
        below = part.args[1].args[0]
        if below.op == "num" and below.value and part.args[0].value.denominator == below.value.denominator == 1:
            value = part.args[0].value / below.value
            return value if 0 < value < 1 else None
    return None
