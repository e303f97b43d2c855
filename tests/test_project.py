"""The project keeps its own rules: examples run, names are public, facts have sources."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import opgraph
from frontends import list_models

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CODE = [p for folder in ("hardware", "opgraph", "frontends", "validation")
        for p in (ROOT / folder).rglob("*.py")]  # fmt: skip
# the largest file of a package that still is one noun, by lines of any kind
LONGEST_FILE = 500


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_print_what_stands_beside_them(example):
    if "from_onnx" in example.read_text():
        pytest.importorskip("onnx")
    if "import torch" in example.read_text():
        pytest.importorskip("torch")
    out = subprocess.run(  # noqa: S603
        [sys.executable, example], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout == example.with_suffix(".out").read_text()


def test_public_names_exist():
    for name in opgraph.__all__:
        assert getattr(opgraph, name).__module__.startswith("opgraph.")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = opgraph.nonsense


@pytest.mark.parametrize("name", list_models())
def test_models_name_their_source(name):
    spec = tomllib.loads((ROOT / f"frontends/data/models/{name}.toml").read_text())
    assert spec["source"].strip()
    assert spec["family"].strip()
    assert "model_type" in spec["config"]
    if "published" in spec:
        assert spec["published"]["source"].strip()


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_one_noun(path):
    text = path.read_text()
    assert text.startswith('"""'), "a file opens with one sentence saying what it is"
    assert text.count("\n") <= LONGEST_FILE
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


def test_only_the_command_line_prints():
    for path in CODE:
        if path.parent.name != "cli" and path.name not in ("cli.py", "console.py"):
            assert not re.search(r"^\s*print\(", path.read_text(), re.M), path


def test_the_platform_of_the_manual_loads(tmp_path):
    from hardware import load_platform

    text = (ROOT / "docs/networks.md").read_text()
    (tmp_path / "two-tori.toml").write_text(re.findall(r"```toml\n(.*?)```", text, re.S)[1])
    platform = load_platform(str(tmp_path / "two-tori.toml"))
    assert platform.num_chips == 16 * 64
    assert platform.collective("all_reduce", 1e6, 128).time > 0


def test_the_chip_of_the_manual_loads_and_is_one_of_gddr(tmp_path):
    from hardware import load_platform
    from opgraph.kernels import kernel_chip

    text = (ROOT / "docs/networks.md").read_text()
    (tmp_path / "gamer.toml").write_text(re.findall(r"```toml\n(.*?)```", text, re.S)[0])
    platform = load_platform(f"{tmp_path / 'gamer.toml'}:8")
    assert [level.size for level in platform.levels] == [8]
    assert platform.levels[0].link.through_host
    assert kernel_chip(platform.chip).has_gddr


def test_the_snippets_of_the_manual_run():
    text = (ROOT / "docs/networks.md").read_text()
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(snippet, names)  # noqa: S102


def test_the_manual_names_every_topology_and_tier():
    from hardware import list_tiers
    from hardware.topology import TOPOLOGIES

    text = (ROOT / "docs/networks.md").read_text()
    for word in (*TOPOLOGIES, *list_tiers()):
        assert f"`{word}`" in text
