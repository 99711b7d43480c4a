from sparsity_lab.settings.markup import cell, number, table


def test_numbers():
    assert number(-0.004) == "0.00"
    assert number(-0.5) == "−0.50"
    assert cell(None) == "–"
    assert cell(True) == "yes"
    assert cell(0.12345) == "0.123"


def test_tables_escape_and_align():
    page = table(["<h>", "n"], [("<script>", 1), ("b", None)])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert '<th scope="col" class="number">n</th>' in page
    assert '<td class="number">–</td>' in page
