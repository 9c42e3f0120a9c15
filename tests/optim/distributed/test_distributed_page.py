"""docs/distributed.md says what the tests and tables say."""

from tests.optim.distributed.test_collectives import PER_ROW, PER_WEIGHT
from tests.pages import DOCS
from tests.tables import distributed_strategies, reduction_cost


def test_cost_table_is_the_models():
    assert reduction_cost.SECTION.read() == reduction_cost.table()
    assert (reduction_cost.PER_WEIGHT, reduction_cost.PER_ROW) == (PER_WEIGHT, PER_ROW)


def test_strategy_table_has_every_strategy_right_or_refused():
    lines = distributed_strategies.SECTION.read().splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert [row[0] for row in cells] == [s.name for s in distributed_strategies.ROWS]
    assert {row[2] for row in cells} == {"right", "refused, says why"}


def test_page_names_every_configuration():
    page = (DOCS / "distributed.md").read_text(encoding="utf-8")
    configs = (DOCS.parent / "recipes" / "accelerate_configs").glob("*.yaml")
    for path in configs:
        assert f"({path.relative_to(DOCS.parent)})".replace("(", "(../") in page, path
