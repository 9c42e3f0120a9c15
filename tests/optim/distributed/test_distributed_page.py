"""docs/distributed.md says what the tests and tables say."""

from tests.optim.distributed.test_collectives import PER_ROW, PER_WEIGHT
from tests.pages import DOCS
from tests.tables import distributed_strategies, reduction_cost, zero_strategies


def test_cost_table_is_the_models():
    assert reduction_cost.SECTION.read() == reduction_cost.table()
    assert (reduction_cost.PER_WEIGHT, reduction_cost.PER_ROW) == (PER_WEIGHT, PER_ROW)


def _cells(section):
    lines = section.read().splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]


def test_zero_table_has_every_stage_right():
    cells = _cells(zero_strategies.SECTION)
    assert [(row[0], int(row[1])) for row in cells] == zero_strategies.CASES
    assert {row[2] for row in cells} == {"right"}


def test_strategy_table_has_every_strategy_right_or_refused():
    cells = _cells(distributed_strategies.SECTION)
    assert [row[0] for row in cells] == [s.name for s in distributed_strategies.ROWS]
    assert {row[2] for row in cells} == {"right", "refused, says why"}


def test_page_names_every_configuration():
    page = (DOCS / "distributed.md").read_text(encoding="utf-8")
    configs = (DOCS.parent / "recipes" / "accelerate_configs").glob("*.yaml")
    for path in configs:
        assert f"({path.relative_to(DOCS.parent)})".replace("(", "(../") in page, path
