"""Mutation testing: the mutants of a module that its tests do not detect.

    python benchmarks/mutants.py                       # the modules below, and a table; 10 to 15 minutes
    python benchmarks/mutants.py style.translation --survivors   # one module, with the surviving mutants
    python benchmarks/mutants.py style.translation --only 17 203 # two of its mutants again

The mutations are mutmut's (`pip install 'seqvae[mutants]'`): another operator, number, name or string, or an omitted
argument. As in mutmut, annotations, calls of `len` and `isinstance`, and code that runs on import (constants, fields,
decorated functions) are not mutated. Mutations inside a `raise` are counted separately: few tests should check the
wording of a message.

The runner is our own, because mutmut starts pytest for each mutant, and our tests train models first. Here all tests
run once, with coverage by test. Then each mutant gets a fork of that process, which keeps the trained models. In the
fork the mutant replaces the function's code, and the tests that cover its lines run, fast ones first, until one fails.
No file is changed. Effects of a mutant on the training of shared models are therefore not seen: a mutant may survive
here that the whole suite would kill, but not the reverse. A mutant that exceeds SECONDS of processor time or MEMORY is
killed as well.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import FunctionType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # this tree's package, not an installed one

import coverage  # noqa: E402
import libcst as cst  # noqa: E402
import pytest  # noqa: E402
from _pytest.runner import runtestprotocol  # noqa: E402
from hypothesis import Phase, settings  # noqa: E402
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider  # noqa: E402
from mutmut.mutation.file_mutation import MutationVisitor  # noqa: E402
from mutmut.mutation.mutators import mutation_operators  # noqa: E402
from mutmut.mutation.pragma_handling import IgnoredCode  # noqa: E402

MODULES = (
    "nn.posterior",
    "nn.loss",
    "style.gaussian",
    "style.exemplars",
    "style.translation",
    "style.styles_file",
    "anomaly.scores",
    "nn.sampling",
)
SECONDS = 30  # processor time for the tests of a mutant: several times that of all tests of a module
MEMORY = 4 << 30  # bytes of data of a mutant's process
SURVIVED, KILLED = range(2)  # exit codes of a mutant's process


@dataclass(frozen=True)
class Mutant:
    """A mutation of one function."""

    function: str
    """Name of the function in the module, `Class.method` for a method."""
    code: str
    """Source of the mutated function."""
    before: str
    """Source of the original function."""
    lines: range
    """Lines of the mutation."""
    body: range
    """Lines of the function; its tests are used if no test covers `lines`, as for a default argument."""
    wording: bool
    """Whether the mutation is inside a `raise`."""


def mutants(path: Path) -> list[Mutant]:
    """All mutants of a module, in line order."""
    wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
    visitor = MutationVisitor(mutation_operators, IgnoredCode(set(), set(), set()))
    wrapper.visit(visitor)
    places, parents = wrapper.resolve(PositionProvider), wrapper.resolve(ParentNodeProvider)

    def above(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        while node in parents:
            yield node
            node = parents[node]

    found = []
    for change in visitor.mutations:
        function = change.contained_by_top_level_function
        if not isinstance(function, cst.FunctionDef):
            continue
        classes = [node.name.value for node in above(function) if isinstance(node, cst.ClassDef)]
        changed = cst.ensure_type(function.deep_replace(change.original_node, change.mutated_node), cst.FunctionDef)
        before, code = (cst.Module([node.with_changes(leading_lines=[])]).code for node in (function, changed))
        spans = places[change.original_node], places[function]
        lines, body = (range(span.start.line, span.end.line + 1) for span in spans)
        wording = any(isinstance(node, cst.Raise) for node in above(change.original_node))
        found.append(Mutant(".".join([*classes, function.name.value]), code, before, lines, body, wording))
    return sorted(found, key=lambda mutant: mutant.lines.start)


def become(module: Any, mutant: Mutant) -> None:
    """Replace the code of a module's function by the mutant's, in place: modules that imported it see the mutant."""
    space = dict(vars(module))
    exec(mutant.code, space)  # annotations stay unevaluated, by this file's __future__ import
    changed = space[mutant.function.rpartition(".")[2]]
    function = reduce(getattr, mutant.function.split("."), module)
    assert isinstance(function, FunctionType)
    function.__code__ = changed.__code__
    function.__defaults__, function.__kwdefaults__ = changed.__defaults__, changed.__kwdefaults__


class Runner:
    """Replacement of pytest's loop: run all tests once, then for each mutant the tests that cover it."""

    def __init__(self, name: str, only: Sequence[int]) -> None:
        self.path, self.name = (ROOT / "seqvae" / name.replace(".", "/")).with_suffix(".py"), f"seqvae.{name}"
        self.mutants = mutants(self.path)
        self.only = only or range(len(self.mutants))
        self.outcome: dict[int, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Switch off hypothesis's shrinking: only failure matters, not the least example."""
        settings.register_profile("mutants", parent=settings.default, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run both rounds."""
        module = importlib.import_module(self.name)
        seen = coverage.Coverage(data_file=None, config_file=False, include=[str(self.path)])
        seconds: dict[pytest.Item, float] = {}
        seen.start()
        for item in session.items:
            seen.switch_context(item.nodeid)
            seconds[item] = -time.process_time()
            assert passed(item), f"{item.nodeid} fails without a mutation"
            seconds[item] += time.process_time()
        seen.stop()
        runs = seen.get_data().contexts_by_lineno(str(self.path.resolve()))
        for number in self.only:
            mutant = self.mutants[number]
            lines, body = ({test for n in span for test in runs.get(n, ())} for span in (mutant.lines, mutant.body))
            quick = sorted((i for i in session.items if i.nodeid in (lines or body)), key=seconds.__getitem__)
            self.outcome[number] = fate(module, mutant, quick)
            if sys.stderr.isatty():
                print(f"\r{self.name} {len(self.outcome)}/{len(self.only)}", end="", file=sys.stderr)
        return True


def passed(item: pytest.Item) -> bool:
    """Whether a test passes or is skipped; fixtures of its file stay set up."""
    item.session._setupstate.teardown_exact(item.parent)  # fixtures of another file
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=item.parent))


def fate(module: Any, mutant: Mutant, tests: Sequence[pytest.Item]) -> str:
    """Outcome of a mutant: `killed`, `survived`, or `stopped` if it exceeded the time or memory limit."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + int(time.process_time()),) * 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            become(module, mutant)
            os._exit(SURVIVED if all(map(passed, tests)) else KILLED)
        except BaseException:  # also mutants that do not compile
            os._exit(KILLED)
    _, status = os.waitpid(child, 0)
    return "stopped" if os.WIFSIGNALED(status) else "survived" if os.WEXITSTATUS(status) == SURVIVED else "killed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "modules", nargs="*", default=list(MODULES), metavar="MODULE", help="modules of seqvae, such as nn.loss"
    )
    parser.add_argument("--only", type=int, nargs="+", default=[], help="numbers of mutants of one module")
    parser.add_argument("--survivors", action="store_true", help="print the surviving mutants")
    args = parser.parse_args()
    table = []
    for name in args.modules:
        package, _, leaf = name.rpartition(".")
        tests = sorted(map(str, (ROOT / "tests" / package).glob(f"test_*{leaf}*.py")))
        runner = Runner(name, args.only)
        pytest.main([*tests, "-q", "-s", "-m", "not slow", "-p", "no:cacheprovider"], plugins=[runner])
        for number, outcome in runner.outcome.items():
            mutant = runner.mutants[number]
            if outcome == "survived" and (args.survivors or args.only):
                print(f"\n{number}  {mutant.function}, line {mutant.lines.start}{', a message' * mutant.wording}")
                lines = difflib.unified_diff(mutant.before.splitlines(), mutant.code.splitlines(), n=0, lineterm="")
                print("\n".join([*lines][3:]))
        fates = [[fate != "survived" for n, fate in runner.outcome.items() if all_ or not runner.mutants[n].wording]
                for all_ in (False, True)]  # fmt: skip
        table.append(f"{name:<14}" + "".join(f"{len(f):>13}{sum(f):>8}{sum(f) / max(len(f), 1):>8.1%}" for f in fates))
    print(f"\n{'module':<14}" + "".join(f"{name:>13}{'killed':>8}{'share':>8}" for name in ("mutants", "+ messages")))
    print("\n".join(table))


if __name__ == "__main__":
    main()
