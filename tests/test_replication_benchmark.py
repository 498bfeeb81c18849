from benchmarks import replication


def test_figures_are_counted_by_file_and_by_function() -> None:
    files = [
        {"source": "a.csv", "figures": 3, "agree": 2, "explained": 1, "off": 0},
        {"source": "b.csv", "figures": 2, "agree": 1, "explained": 0, "off": 1},
    ]
    table = replication.by_file({"files": files}).splitlines()
    assert table[2] == "| `a.csv` | 3 | 2 | 1 | 0 |" and table[-1] == "| all | 5 | 3 | 1 | 1 |"
    functions = replication.by_function({"functions": {"pearson": 4}})
    assert functions.splitlines()[-1] == "| `pearson` | 4 |"
