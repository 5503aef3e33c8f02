"""Writes sources that hold all mutants of cargo-mutants at once, each of which the variable MUTANT of the environment turns on.

A build of the agent's tests for each mutant takes a minute, one for all of them takes two. A mutant is what `cargo mutants --list
--json` says; it becomes an `if crate::mutant(NUMBER)` where it is. What does not compile is found by the line of the error and
left out of the next round (`failing`).
"""

import collections
import json
import re

import tree_sitter
import tree_sitter_rust

PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_rust.language()))
MARK = re.compile(rb"crate::mutant\((\d+)\)")

# Asks for the mutants, and with MUTANT_TRACE=FILE writes down which were asked for: those that a test can notice.
RUNTIME = """
/// Whether the mutant of this number is turned on.
pub fn mutant(number: usize) -> bool {
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};
    static WANTED: std::sync::OnceLock<(usize, Option<std::fs::File>)> = std::sync::OnceLock::new();
    static ASKED: [AtomicBool; %d] = [const { AtomicBool::new(false) }; %d];
    let (wanted, trace) = WANTED.get_or_init(|| {
        let wanted = std::env::var("MUTANT").ok().and_then(|it| it.parse().ok()).unwrap_or(0);
        let trace = std::env::var_os("MUTANT_TRACE").map(|it| std::fs::File::options().append(true).create(true).open(it).unwrap());
        (wanted, trace)
    });
    if let Some(mut trace) = trace.as_ref() && !ASKED[number].swap(true, Ordering::Relaxed) {
        let _ = trace.write_all(format!("{number}\\n").as_bytes());
    }
    *wanted == number
}
"""


class File:
    """One file of sources, and the mutants in it that are written."""

    def __init__(self, source, mutants):
        self.source = source
        self.done = set()
        starts = [0]
        for line in source.split(b"\n"):
            starts.append(starts[-1] + len(line) + 1)
        offset = lambda at: starts[at["line"] - 1] + len(source[starts[at["line"] - 1]:].split(b"\n", 1)[0].decode()[:at["column"] - 1].encode())
        self.tree = PARSER.parse(source)
        self.at = collections.defaultdict(list)
        for mutant in mutants:
            start, end = offset(mutant["span"]["start"]), offset(mutant["span"]["end"])
            genre = mutant["genre"]
            if genre == "FnValue":
                node = self.tree.root_node.descendant_for_byte_range(start, start + 1)
                while node.type != "function_item" or node.child_by_field_name("body").start_byte > start:
                    node = node.parent
                start = node.child_by_field_name("body").start_byte
            self.at[genre, start, end if genre == "MatchArmGuard" else 0].append(mutant)

    def take(self, genre, start, end=0):
        mutants = self.at.get((genre, start, end), [])
        self.done.update(mutant["id"] for mutant in mutants)
        return [(b"crate::mutant(%d)" % mutant["id"], mutant["replacement"].encode()) for mutant in mutants]

    def text(self, node):
        return self.source[node.start_byte:node.end_byte]

    def children(self, node, written=()):
        """The text of a node, with its children rendered; `written` are those that are rendered already."""
        out, at = b"", node.start_byte
        for child in node.children:
            out += self.source[at:child.start_byte] + (dict(written).get(child.start_byte) or self.render(child))
            at = child.end_byte
        return out + self.source[at:node.end_byte]

    def render(self, node):
        text = self.mutated(node)
        if node.parent is not None and node.parent.type == "match_pattern":
            for on, value in self.take("MatchArmGuard", node.start_byte, node.end_byte):
                text = (b"(%s || (%s))" if value == b"true" else b"(!%s && (%s))") % (on, text)
        return text

    def mutated(self, node):
        kind = node.type
        if kind == "block" and node.parent.type == "function_item":
            early = b"".join(b" if %s { return %s; }" % one for one in self.take("FnValue", node.start_byte))
            return b"{" + early + self.children(node)[1:]
        if kind in ("binary_expression", "compound_assignment_expr"):
            return self.binary(node)
        if kind == "unary_expression":
            for on, _ in self.take("UnaryOperator", node.start_byte):
                inner = self.render(node.children[1])
                if self.text(node).startswith(b"!"):
                    return b"((%s) == %s)" % (inner, on)
                return b"(if %s { %s } else { -%s })" % (on, inner, inner)
        if kind == "match_arm":
            pattern = node.child_by_field_name("pattern")
            for on, _ in self.take("MatchArm", node.start_byte) if pattern.child_by_field_name("condition") is None else ():
                return self.children(node, [(pattern.start_byte, self.render(pattern) + b" if !" + on)])
            for on, _ in self.take("MatchArm", node.start_byte):
                condition = pattern.child_by_field_name("condition")
                guarded = self.children(pattern, [(condition.start_byte, b"!%s && (%s)" % (on, self.render(condition)))])
                return self.children(node, [(pattern.start_byte, guarded)])
        if kind in ("field_initializer", "shorthand_field_initializer"):
            base = [child for child in node.parent.children if child.type == "base_field_initializer"]
            for on, _ in self.take("StructField", node.start_byte) if base else ():
                name = self.text(node.children[0]) if kind == "field_initializer" else self.text(node)
                value = self.render(node.child_by_field_name("value")) if kind == "field_initializer" else name
                return b"%s: if %s { (%s).%s } else { %s }" % (name, on, self.text(base[0].children[1]), name, value)
        return self.children(node)

    def binary(self, node):
        operator = node.child_by_field_name("operator") or node.children[1]
        sign = self.text(operator)
        mutants = self.take("BinaryOperator", operator.start_byte)
        if not mutants:
            return self.children(node)
        left, right = self.render(node.child_by_field_name("left")), self.render(node.child_by_field_name("right"))
        if sign in (b"==", b"!=") and len(mutants) == 1:
            return b"((%s %s %s) != %s)" % (left, sign, right, mutants[0][0])
        if sign in (b"&&", b"||") and len(mutants) == 1:
            # And with or, or with and, and the right side written once: it holds other mutants.
            meet = b"left != on" if sign == b"&&" else b"left == on"
            return b"{ let left: bool = %s; let on = %s; if %s { %s } else { left } }" % (left, mutants[0][0], meet, right)
        # Both sides once for each mutant, and what is in them with the original alone.
        plain = [self.text(node.child_by_field_name(side)) for side in ("left", "right")]
        others = b"".join(b"if %s { %s %s %s } else " % (on, plain[0], new, plain[1]) for on, new in mutants)
        return b"(%s{ %s %s %s })" % (others, left, sign, right)


def write(mutants, source_root, target_root, left_out):
    """Writes the files of these mutants into the second tree; returns the numbers of those that are in them."""
    files = collections.defaultdict(list)
    for mutant in mutants:
        files[mutant["file"]].append(mutant)
    done = set()
    for name, those in files.items():
        file = File((source_root / name).read_bytes(), [one for one in those if one["id"] not in left_out])
        (target_root / name).write_bytes(file.render(file.tree.root_node))
        done |= file.done
    return done


def failing(messages, root):
    """The mutants that the errors of `cargo check --message-format=json` are about, and errors that are about none."""
    found, others = set(), []
    for line in messages.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") != "compiler-message" or message["message"]["level"] != "error":
            continue
        error, before = message["message"], len(found)
        spans = error["spans"] + [span for child in error["children"] for span in child["spans"]]
        numbers = set()
        for span in spans:
            path = root / span["file_name"]
            if not path.exists():
                continue
            text = path.read_bytes()
            inside = MARK.findall(text[span["byte_start"]:span["byte_end"]])
            line_start = text.rfind(b"\n", 0, span["byte_start"]) + 1
            numbers |= {int(one) for one in inside if len(inside) < 4}
            if span["is_primary"] and (error["code"] or {}).get("code") == "E0004":
                numbers |= {int(one) for one in re.findall(rb" if !crate::mutant\((\d+)\) =>", text[span["byte_end"]:])[:1]}
            elif span["is_primary"] and not inside:
                numbers |= {int(one) for one in MARK.findall(text[line_start:span["byte_start"]])[-1:]}
        found |= numbers
        if not numbers:
            others.append(error["rendered"])
    return found, others
