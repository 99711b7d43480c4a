"""What a command loads before it answers; no times."""

import subprocess
import sys

import pytest

from sparsity_lab.benchmarks import startup
from sparsity_lab.settings.lazy import load_on_first_use

HEAVY = ("matplotlib", "pandas", "peft", "polars", "scipy", "seaborn", "transformers")


def loaded(program: str) -> set[str]:
    """Modules of a new process that has run the program, which may print."""
    code = f"{program}\nimport sys\nprint('LOADED', *sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(told.splitlines()[-1].split()[1:])


def command(*arguments: str) -> str:
    return f"from sparsity_lab.cli.command_line import run\nassert run({list(arguments)}) == 0"


@pytest.mark.parametrize(
    "program",
    [
        "import sparsity_lab.analysis, sparsity_lab.studies, sparsity_lab.benchmarks, sparsity_lab.sweeps\n"
        "import sparsity_lab.interop\nfrom sparsity_lab.interop import attach",
        command("list"),
    ],
    ids=["import", "list"],
)
def test_nothing_heavy_is_loaded(program: str) -> None:
    found = loaded(program)
    assert {"torch", "sparsity_lab.models", "sparsity_lab.sweeps"} <= found
    assert found.isdisjoint(HEAVY)


def test_a_sample_needs_its_tables_alone() -> None:
    found = loaded(command("sample", "Planted"))
    assert "sparsity_lab.generators.planted" in found
    assert found.isdisjoint(set(HEAVY) - {"scipy"})
    assert "scipy.stats" not in found


def test_help_comes_without_torch() -> None:
    program = "import contextlib\nwith contextlib.suppress(SystemExit):\n    " + command("--help").replace(
        "\n", "\n    "
    )
    assert "torch" not in loaded(program)


def test_what_is_used_is_loaded() -> None:
    """The other side of the tests above: they would see a module that is loaded."""
    interop = "from sparsity_lab.interop.extra import required\nrequired('peft')"
    assert set(HEAVY) <= loaded(f"from sparsity_lab.analysis import heat_map, transfer_check\n{interop}")


def test_a_package_offers_its_names() -> None:
    import sparsity_lab.analysis  # noqa: PLC0415

    names = dir(sparsity_lab.analysis)
    assert {"drop", "heat_map", "write_report"} <= set(names)
    assert all(hasattr(sparsity_lab.analysis, name) for name in names)
    with pytest.raises(AttributeError, match=r"module 'sparsity_lab.analysis' has no attribute 'heatmaps'"):
        _ = sparsity_lab.analysis.heatmaps  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "package", ["analysis", "benchmarks", "generators", "interop", "studies", "sweeps", "training"]
)
def test_a_star_import_takes_all_names(package: str) -> None:
    program = f"from sparsity_lab.{package} import *\nimport sparsity_lab.{package} as package, types\n"
    offered = "{n for n in dir(package) if n[0] != '_' and not isinstance(getattr(package, n), types.ModuleType)}"
    loaded(f"{program}assert {offered} - {{'TYPE_CHECKING'}} <= set(globals())")


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    import sparsity_lab.analysis.drop  # noqa: PLC0415
    import sparsity_lab.generators.certify.checks  # noqa: PLC0415
    from sparsity_lab.analysis import drop  # noqa: PLC0415
    from sparsity_lab.generators import certify  # noqa: PLC0415

    assert callable(drop)
    assert callable(certify)
    load_on_first_use("sparsity_lab.analysis")  # again, as when it is reloaded
    assert callable(sparsity_lab.analysis.drop)


def test_rows_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_ROUNDS", 2)
    monkeypatch.setattr(startup, "_CASES", {"import torch": ("-c", "0"), "more": ("-c", "sum(range(10**7))")})
    frame = startup.startup()
    assert frame.columns == ["case", "CPU s", "over import torch"]
    assert frame["over import torch"][0] == 1
    ratios = frame["CPU s"] / frame["CPU s"][0]
    assert frame["over import torch"].to_list() == pytest.approx(ratios.to_list())
