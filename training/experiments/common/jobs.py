"""Jobs in processes of their own: a finished one is kept as a file, a stopped one goes on from its checkpoints."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from training.files import name_only
from training.model_card import code_revision


def _begun(file: Path) -> Path:
    """Beside the checkpoints of an unfinished job: the settings they were made with."""
    return file.with_suffix(".settings")


def _run_job(run: Callable, job, file: Path, settings: dict) -> None:
    torch.set_num_threads(1)
    # Programs that earlier jobs compiled count against torch's limit of eight per function.
    torch.compiler.reset()
    _begun(file).write_text(json.dumps({"settings": settings}), encoding="utf-8")
    # A row of `training.pretrain` has the revision that trained it.
    rows = [{"revision": code_revision(), **row} for row in run(job, file.with_suffix(""))]
    # Under another name until it is whole.
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "rows": rows}), encoding="utf-8")
    partial.replace(file)
    for unfinished in (*file.parent.glob(f"{file.stem}.*.pt"), file.with_suffix(".pt"), _begun(file)):
        unfinished.unlink(missing_ok=True)


def _obey_parent() -> None:
    """Leaves Ctrl-C to the parent process, and ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_jobs(run: Callable, jobs: dict, folder: Path, settings: dict, processes: int) -> list[dict]:
    """
    Runs the jobs that are not finished and returns the rows of all, in the order of `jobs`.

    Args:
        run (`Callable`): (job, stem) -> rows; a function that can be sent to another process. Its checkpoints go to
            files that begin with `stem`, and are removed when the job is finished.
        jobs (`dict`): name -> job. A finished one is kept as `<folder>/<name>.json`.
        folder (`Path`): where finished jobs and checkpoints are.
        settings (`dict`): what the rows depend on beside the job.
        processes (`int`): how many run at once.

    Raises:
        ValueError: `folder` holds a job that was finished, or begun, under other settings.
        SystemExit: interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    files = {name: folder / f"{name}.json" for name in jobs}
    for file in (path for file in files.values() for path in (file, _begun(file))):
        if file.is_file():
            old = json.loads(file.read_text(encoding="utf-8"))["settings"]
            changed = {key: (old.get(key), value) for key, value in settings.items() if old.get(key) != value}
            if changed:
                raise ValueError(
                    f"{file} was made with other settings, (then, now): {changed}. Give another `--output_dir`, or "
                    "remove the folder."
                )
    missing = [name for name in jobs if not files[name].is_file()]
    progress = tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc=folder.name, unit="job")
    # Torch's state does not survive a fork: each worker starts a fresh interpreter.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_obey_parent) as pool:
        futures = {pool.submit(_run_job, run, jobs[name], files[name], settings): name for name in missing}
        try:
            for future in as_completed(futures):
                future.result()
                progress.set_postfix_str(futures[future])
                progress.update()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            progress.close()
            print("Stopped. The same command goes on from the last checkpoints.", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
    progress.close()
    return [row for file in files.values() for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]


def write_results(folder: Path, rows: list[dict], settings: dict | None = None) -> None:
    """Writes results.jsonl, one row per line, and beside it settings.json, which all rows have in common."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if settings is not None:
        published = {key: name_only(value) for key, value in settings.items()}
        (folder / "settings.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")


def stored_rows(folder: Path, settings: dict) -> list[dict]:
    """
    The rows that a results folder holds, to which a run adds its own.

    Raises:
        ValueError: they were made under other settings.
    """
    if not (folder / "results.jsonl").is_file():
        return []
    stored = json.loads((folder / "settings.json").read_text(encoding="utf-8"))

    def without_folders(value):
        return Path(value).name if isinstance(value, str) else value

    changed = {
        key: (stored.get(key), value)
        for key, value in json.loads(json.dumps(settings)).items()
        if without_folders(stored.get(key)) != without_folders(value)
    }
    if changed:
        raise ValueError(
            f"{folder} holds results of other settings, (then, now): {changed}. Give another `--results_dir`."
        )
    return read_results(folder)


def read_results(folder: Path) -> list[dict]:
    """The rows of results.jsonl."""
    file = folder / "results.jsonl"
    if not file.is_file():
        raise ValueError(f"{folder} has no results.jsonl: run the experiment first, or give another `--results_dir`.")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
