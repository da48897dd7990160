"""What the tests of a module would not notice: its code is changed in one place at a time, and its tests are run.

    python benchmarks/mutants.py                       # the modules below, and a table; 10 to 15 minutes
    python benchmarks/mutants.py style.translation --survivors   # one, with what each change was that nothing noticed
    python benchmarks/mutants.py style.translation --only 17 203 # two of its changes again

The changes are mutmut's (`pip install 'seqvae[mutants]'`): another operator, number, name or string, an argument left
out. As there, annotations, calls of `len` and `isinstance`, and what runs on import (constants, fields, decorated
functions) stay as they are. Changes inside of a `raise` are counted apart: few tests should know a message's wording.

The runner is our own, for mutmut starts pytest for each change, and our tests train models before they test anything.
Here all tests are run once, with coverage telling what lines each one runs. Then each change gets a fork of that
process, with the models still there, in which the changed function's code takes the place of the old one's, and the
tests that run its line are run, quick ones first, until one fails. No file is changed. So what a change does to the
training of the small models that tests share is not seen, and a change may survive here that the whole suite would
notice; none is killed here that it would not. A change is killed too by what takes SECONDS of the processor or MEMORY.
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

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has none of its parent's threads
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the modules beside this file, wherever else there are some

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
SECONDS = 30  # of the processor for the tests of one change: several times what all tests of a module take
MEMORY = 4 << 30  # bytes beyond which a change is told that there are no more
SURVIVED, KILLED = range(2)  # how the process of a change ends, or by a signal


@dataclass(frozen=True)
class Mutant:
    """One change of one function."""

    function: str
    """Its name in the module, `Class.method` for a method."""
    code: str
    """The changed function."""
    before: str
    """The function as it was."""
    lines: range
    """Of what is changed."""
    body: range
    """Of the function, by whose tests a change is judged where no test runs its own lines, as of a default."""
    wording: bool
    """Whether it stands in a `raise`."""


def mutants(path: Path) -> list[Mutant]:
    """All changes of a module, in the order of its lines."""
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
    """Give the function of a module the mutant's code: whoever has imported the function has the mutant now."""
    space = dict(vars(module))
    exec(mutant.code, space)  # with annotations left alone, as in this file
    changed = space[mutant.function.rpartition(".")[2]]
    function = reduce(getattr, mutant.function.split("."), module)
    assert isinstance(function, FunctionType)
    function.__code__ = changed.__code__
    function.__defaults__, function.__kwdefaults__ = changed.__defaults__, changed.__kwdefaults__


class Runner:
    """Takes the place of pytest's loop: once over all tests, then for each mutant over those that run it."""

    def __init__(self, name: str, only: Sequence[int]) -> None:
        self.path, self.name = (ROOT / "seqvae" / name.replace(".", "/")).with_suffix(".py"), f"seqvae.{name}"
        self.mutants = mutants(self.path)
        self.only = only or range(len(self.mutants))
        self.outcome: dict[int, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """That a test fails is enough to know; by what least example is not asked."""
        settings.register_profile("mutants", parent=settings.default, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """The two rounds."""
        module = importlib.import_module(self.name)
        seen = coverage.Coverage(data_file=None, config_file=False, include=[str(self.path)])
        seconds: dict[pytest.Item, float] = {}
        seen.start()
        for item in session.items:
            seen.switch_context(item.nodeid)
            seconds[item] = -time.process_time()
            assert passed(item), f"{item.nodeid} fails without any change"
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
    """Whether a test passes, or is skipped. What it shares with others of its file stays for them."""
    item.session._setupstate.teardown_exact(item.parent)  # what an earlier one shared with its own file
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=item.parent))


def fate(module: Any, mutant: Mutant, tests: Sequence[pytest.Item]) -> str:
    """What becomes of a mutant: `killed`, `survived`, or `stopped` where it took too long or too much."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + int(time.process_time()),) * 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            become(module, mutant)
            os._exit(SURVIVED if all(map(passed, tests)) else KILLED)
        except BaseException:  # what is no code at all, too
            os._exit(KILLED)
    _, status = os.waitpid(child, 0)
    return "stopped" if os.WIFSIGNALED(status) else "survived" if os.WEXITSTATUS(status) == SURVIVED else "killed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(MODULES), metavar="MODULE", help="of seqvae, such as style")
    parser.add_argument("--only", type=int, nargs="+", default=[], help="numbers of changes of one module")
    parser.add_argument("--survivors", action="store_true", help="show what nothing noticed")
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
    print(f"\n{'module':<14}" + "".join(f"{what:>13}{'killed':>8}{'share':>8}" for what in ("changes", "+ messages")))
    print("\n".join(table))


if __name__ == "__main__":
    main()
