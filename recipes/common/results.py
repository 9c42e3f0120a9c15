"""What runs came to: a file of JSON lines that a stopped grid goes on with.

    file = ResultsFile("runs/grid.jsonl")
    for job in file.missing(jobs):                    # a Result without measures
        file.add(dataclasses.replace(job, measures={"test_accuracy": 0.94, ...}))
    results = file.read()

One line is one run:

    {"arm": "adamp", "setting": {"lr": 0.01}, "seed": 1, "measures": {"test_accuracy": 0.94}}

`recipes.common.paired` makes tables of them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Result", "ResultsFile"]


@dataclass(frozen=True)
class Result:
    """One run, or one that is to be done.

    Attributes:
        arm: a key of `recipes.common.arms.ARMS`.
        setting: what was chosen beside arm and seed: `lr`, `weight_decay`, `batch`, ...
        seed: runs of one seed begin with the same weights and see the same batches.
        measures: what it came to; shares are fractions, norms those of all weights as one vector.
    """

    arm: str
    setting: Mapping[str, Any]
    seed: int
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Arm, setting and seed as one string, whatever the order of the setting."""
        return json.dumps([self.arm, dict(self.setting), self.seed], sort_keys=True)


class ResultsFile:
    """The results of a grid, one a line.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> list[Result]:
        """Return all results; none where there is no file.

        Raises:
            ValueError: a line is not a result, or one run is there twice.
        """
        if not self.path.exists():
            return []
        results: dict[str, Result] = {}
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                result = Result(**json.loads(line))
            except (TypeError, json.JSONDecodeError) as error:
                raise ValueError(f"{self.path}, line {number} is no result: {error}") from error
            if result.key in results:
                raise ValueError(f"{self.path}, line {number} repeats {result.key}; remove one.")
            results[result.key] = result
        return list(results.values())

    def add(self, result: Result) -> None:
        """Write one more line, at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def missing(self, jobs: Iterable[Result]) -> list[Result]:
        """Return the jobs without a result, each once."""
        done = {result.key for result in self.read()}
        return list({job.key: job for job in jobs if job.key not in done}.values())
