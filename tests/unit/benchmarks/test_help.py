"""Every benchmark says what it can be asked for, without measuring anything."""

from importlib import import_module

import pytest

MODULES = ("autoscale", "engine", "kernels", "precision", "scheduling", "tls", "triton")


@pytest.mark.parametrize("name", MODULES)
def test_help_names_the_command_and_each_option(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        import_module(f"benchmarks.{name}").main(["--help"])
    assert ended.value.code == 0
    description = capsys.readouterr().out.partition("\n\n")[2]
    assert f"`python -m benchmarks.{name}" in description
