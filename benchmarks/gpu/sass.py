"""Reads nvdisasm's listing of a cubin: a kernel's instructions, and how many run per iteration of its main loop."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\.text\.(\S+):")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+)?\s*([A-Z][\w.]*)(.*);")
_CONDITION = re.compile(r"\s*!?U?P\d+,")  # a predicate as the first operand, as in BRA.U !UP0
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")

# What is counted, and the pattern of its opcodes.
COUNTED = {
    "hmma": re.compile(r"HMMA"),
    "ldgsts_128": re.compile(r"LDGSTS.*\.128"),
    "ldsm": re.compile(r"LDSM"),
    "ldg_128": re.compile(r"LDG\..*128"),
    "stg_128": re.compile(r"STG\..*128"),
    "exp": re.compile(r"MUFU\.EX2"),
    "local": re.compile(r"(LDL|STL)"),
}


@dataclass(frozen=True)
class Instruction:
    """One machine instruction; `target` is the index of its branch target."""

    opcode: str
    predicated: bool
    target: int | None


@dataclass(frozen=True)
class Code:
    """Summary of a kernel's machine code."""

    instructions: int
    counts: dict[str, int]
    loop: dict[str, int] | None  # of one turn of the main loop: instructions, exp, hmma
    once: int | None  # instructions before and after the main loop


def parse(listing: str) -> dict[str, list[Instruction]]:
    """Mangled kernel name -> its instructions."""
    kernels: dict[str, list[Instruction]] = {}
    raw: list[tuple[str, bool, str | None]] = []
    labels: dict[str, int] = {}
    name = ""

    def finish() -> None:
        if name and raw:
            kernels[name] = [
                Instruction(opcode, predicated, labels.get(label) if label else None)
                for opcode, predicated, label in raw
            ]

    for line in listing.splitlines():
        if found := _FUNCTION.match(line):
            finish()
            name, raw, labels = found[1], [], {}
        elif found := _LABEL.match(line):
            labels[found[1]] = len(raw)
        elif found := _INSTRUCTION.match(line):
            target = _TARGET.search(found[3]) if found[2].startswith("BRA") else None
            conditional = found[1] is not None or _CONDITION.match(found[3]) is not None
            raw.append((found[2], conditional, target[1] if target else None))
    finish()
    return kernels


def _has(code: Sequence[Instruction], *prefixes: str) -> bool:
    return any(instruction.opcode.startswith(prefixes) for instruction in code)


def executed_turn(code: Sequence[Instruction], begin: int, end: int) -> list[Instruction]:
    """The instructions of code[begin:end + 1], e.g. of a loop, that most warps run once through, when not causal.

    A rule of thumb for these kernels: of an if and its else, the one that starts copies is taken, else the shorter one
    (the longer one hides keys after the query); a block without an else is skipped unless it loads or multiplies (the
    class row, which one warp writes; rows of very large scores).
    """
    run: list[Instruction] = []
    index = begin
    while index <= end:
        branch = code[index]
        run.append(branch)
        index += 1
        if branch.target is None or not branch.predicated or not index < branch.target <= end:
            continue
        first, last = code[index : branch.target], code[branch.target - 1]
        joined = last.target if last.opcode == "BRA" and not last.predicated else None
        if joined is not None and branch.target < joined <= end + 1:
            second = code[branch.target : joined]
            copies = [arm for arm in (first, second) if _has(arm, "LDGSTS", "STS")]
            run += copies[0] if copies else min(first, second, key=len)
            index = joined
        elif not _has(first, "LDG", "LDSM", "HMMA", "BAR"):
            index = branch.target
    return run


def summarize(code: Sequence[Instruction]) -> Code:
    """Counts over the whole kernel, and over the loop with tensor-core instructions if there is one."""
    counts = {
        name: sum(bool(pattern.match(instruction.opcode)) for instruction in code) for name, pattern in COUNTED.items()
    }
    loops = [
        (instruction.target, index)
        for index, instruction in enumerate(code)
        if instruction.target is not None and instruction.target < index
        if _has(code[instruction.target : index], "HMMA")
    ]
    loop = once = None
    if loops:
        begin, end = max(loops, key=lambda span: span[1] - span[0])
        turn = executed_turn(code, begin, end)
        loop = {
            "instructions": len(turn),
            "exp": sum(bool(COUNTED["exp"].match(instruction.opcode)) for instruction in turn),
            "hmma": sum(bool(COUNTED["hmma"].match(instruction.opcode)) for instruction in turn),
        }
        last = end  # what lies behind the exit is called from elsewhere
        while last < len(code) - 1 and (code[last].opcode != "EXIT" or code[last].predicated):
            last += 1
        once = len(executed_turn(code, 0, begin - 1)) + len(executed_turn(code, end + 1, last))
    return Code(len(code), counts, loop, once)
