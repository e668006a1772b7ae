"""Tables: whole lines in a pipe, and records turned on their side where they are wider than a line."""

from cambrian.cli.console import print_records, print_table


def test_a_piped_table_is_never_folded(capsys):
    print_table(["name", "text"], [["a", "word " * 60], ["b", "short"]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and len(lines[1].rstrip()) > 290


def test_wide_records_get_a_line_for_each_field(capsys):
    record = {f"a rather long name {i}": i / 3 for i in range(12)}
    print_records([record, record])
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 12 and [part.strip() for part in lines[1] if part.strip()] == [
        "a rather long name 1",
        "0.3333",
        "0.3333",
    ]
    print_records([{"a": 1, "b": 2}])
    assert capsys.readouterr().out.split() == ["a", "b", "1", "2"]
