"""
Runs an experiment, or rebuilds its report from the stored results.

```bash
python -m training.experiments induction
python -m training.experiments induction --report
python -m training.experiments --report
```

A folder is one claim: `arms.py` says what differs, `run.py` turns jobs into rows, `report.py` turns rows into tables,
figures and the numbers for the sentences of `prose.md`. Finished jobs are kept, so that a stopped experiment goes on
where it was.
"""

import difflib
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

from training.command import run as run_command
from training.experiments.common.arguments import CommandArguments, ReportArguments, parse
from training.experiments.common.jobs import read_results
from training.experiments.common.readme import Claim, fill_file, fill_prose, make_claim_table, wrap


HERE = Path(__file__).parent
README = HERE.parent.parent / "README.md"
# In the order of the README's table.
EXPERIMENTS = ["tinystories", "prism_steps", "head_specialisation", "banks", "induction", "recall_scaling", "bode"]
EXPERIMENTS += ["grokking"]


@dataclass
class AllArguments:
    """Options without the name of an experiment."""

    report: bool = field(default=False, metadata={"help": "Rebuild all reports, and the README's table of results."})


def module_of(name: str, part: str):
    return importlib.import_module(f"training.experiments.{name}.{part}")


def with_results() -> list[str]:
    """The experiments whose results are stored in their folders."""
    return [name for name in EXPERIMENTS if (HERE / name / "results.jsonl").is_file()]


def prose_of(name: str, rows: list[dict]) -> dict[str, str]:
    """The parts of an experiment's prose.md, with numbers."""
    file = HERE / name / "prose.md"
    return fill_prose(file, module_of(name, "report").numbers(rows)) if file.is_file() else {}


def readme_blocks(name: str, rows: list[dict]) -> dict[str, str]:
    """What the README of an experiment shows of the results: tables, and the sentences of prose.md."""
    prose = {key: wrap(text) for key, text in prose_of(name, rows).items() if key != "claims"}
    return {f"{name}:{key}": block for key, block in {**module_of(name, "report").blocks(rows), **prose}.items()}


def claims_of(name: str, rows: list[dict]) -> list[Claim]:
    """The claims of an experiment, a line each in prose.md: claim | verdict | number."""
    report = module_of(name, "report")
    if hasattr(report, "claims"):
        return report.claims(rows)
    return [Claim(*line.split(" | "), name) for line in prose_of(name, rows)["claims"].splitlines()]


def write_report(name: str, folder: Path) -> None:
    """Tables and figures of one experiment into `folder`, and its README where it has one."""
    report, rows = module_of(name, "report"), read_results(folder)
    table = report.make_tables(rows)
    (folder / "table.md").write_text(table, encoding="utf-8")
    print(table)
    for stem, figure in report.make_figures(rows).items():
        figure.savefig(folder / f"{stem}.png", dpi=200)
    if folder == HERE / name:
        fill_file(folder / "README.md", readme_blocks(name, rows))


def results_block() -> str:
    """The table "Results" of the project's README."""
    return make_claim_table([claim for name in with_results() for claim in claims_of(name, read_results(HERE / name))])


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    known = ", ".join(EXPERIMENTS)
    if argv and not argv[0].startswith("-"):
        name, *options = argv
        if name not in EXPERIMENTS:
            close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
            raise ValueError(
                f"There is no experiment {name!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"there are {known}.")
            )
        if "--report" in options:
            (command,) = parse(name, options, ReportArguments)
        else:
            run = module_of(name, "run")
            arguments, command = parse(name, options, run.Arguments, CommandArguments)
            command.output_dir = command.output_dir or f"outputs/{name}"
        results = Path(command.results_dir or HERE / name)
        if not command.report:
            folder = Path(command.output_dir)
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            try:
                run.run(arguments, folder, results, command.jobs)
            except ValueError:
                # A refused command leaves nothing behind.
                if is_new and not any(folder.iterdir()):
                    folder.rmdir()
                raise
        write_report(name, results)
        if results != HERE / name:
            return
    else:
        (command,) = parse("", argv, AllArguments, epilog=f"Experiments: {known}.")
        if not command.report:
            raise ValueError(f"Name an experiment ({known}), or give `--report` for the reports of all.")
        for name in with_results():
            write_report(name, HERE / name)
    fill_file(README, {"results": results_block()})


if __name__ == "__main__":
    run_command(main)
