"""The command line as its users meet it: a process, its output, its exit code."""

import json
import subprocess
import sys
from importlib import resources

import pytest

from opgraph import cli

DEMO = ["simulate", "llama-3.1-8b", "--platform", "dgx-h100", "--tp", "2", "--batch", "4"]
REPORT_KEYS = {
    "ttft_ms", "tpot_ms", "throughput_tokens_per_s", "throughput_tokens_per_s_per_chip",
    "memory_GB_per_chip", "weights_GB_per_chip", "kv_cache_GB_per_chip", "fits", "num_chips",
}  # fmt: skip
OPERATOR_KEYS = {
    "name", "kind", "count", "time_us", "share", "limiter", "flop", "bytes_read",
    "bytes_written", "bytes_sent", "stream", "slack_us",
}  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["opgraph", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def test_simulate_prints_the_report(run):
    code, out, err = run(*DEMO)
    assert (code, err) == (0, "")
    for word in ("TTFT", "TPOT", "tokens/s", "fits", "layer.gate_up", "decode", "memory"):
        assert word in out


def test_json_has_every_key_and_nothing_else_is_printed(run):
    code, out, err = run(*DEMO, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report.keys() >= REPORT_KEYS
    for phase in ("prefill", "decode"):
        answer = report["phases"][phase]
        assert answer.keys() >= {"time_ms", "limiter_shares", "operators"}
        assert sum(answer["limiter_shares"].values()) == pytest.approx(1, rel=1e-12)
        for operator in answer["operators"]:
            assert operator.keys() >= OPERATOR_KEYS
        # one stream after another: the shares of a step without overlap are all of it
        assert sum(row["share"] for row in answer["operators"]) == pytest.approx(1, rel=1e-9)


def test_json_agrees_with_hand_arithmetic(run):
    report = json.loads(run(*DEMO, "--prompt", "1000", "--output", "24", "--json")[1])
    # Llama-3.1-8B: 8,030,261,248 parameters, of which the norms (65 × 4096) are on both chips
    split = (8_030_261_248 - 65 * 4096) / 2 + 65 * 4096
    assert report["weights_GB_per_chip"] == pytest.approx(split * 2 / 1e9, rel=1e-12)
    # 32 layers, keys and values, 8 heads over 2 chips, 128 wide, 2 bytes, 4 sequences of 1024
    assert report["kv_cache_GB_per_chip"] == pytest.approx(32 * 2 * 4 * 128 * 2 * 4 * 1024 / 1e9)
    assert report["num_chips"] == 2


def test_a_model_that_does_not_fit_is_an_answer(run):
    code, out, _ = run("simulate", "llama-3.1-405b", "--platform", "dgx-h100", "--tp", 8)
    assert code == 0
    assert "does not fit" in out
    assert "too much" in out
    report = json.loads(run("simulate", "llama-3.1-405b", "-p", "dgx-h100", "--tp", 8, "--json")[1])
    assert report["fits"] is False


def test_plot_and_trace_are_written(run, tmp_path):
    plot, trace = tmp_path / "decode.png", tmp_path / "steps.json.gz"
    assert run(*DEMO, "--plot", plot, "--trace", trace)[0] == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    from opgraph.trace import check

    assert check(trace) > 32 * 10
    assert {path.name for path in tmp_path.iterdir()} == {"decode.png", "steps.json.gz"}


def test_trace_of_one_phase(run, tmp_path):
    path = tmp_path / "decode.json"
    words = ["trace", "llama-3.1-8b", "-p", "dgx-h100", "--out", path, "--phase", "decode"]
    assert run(*words)[0] == 0
    assert "prefill" not in path.read_text()


def test_op_prices_a_product_as_the_roofline_does(run):
    words = ["op", "gemm", "--chip", "h100-sxm", "--m", 4096, "--n", 8192, "--k", 8192, "--json"]
    answer = json.loads(run(*words)[1])
    assert answer["flop"] == 2 * 4096 * 8192 * 8192
    assert answer["bytes"] == 2 * (4096 * 8192 + 8192 * 8192 + 4096 * 8192)
    assert answer["time_us"] == pytest.approx(answer["flop"] / 989.4e12 * 1e6)
    assert answer["limiter"] == "compute"
    words = {"time_us", "limiter", "low_us", "high_us", "flop", "bytes", "provenance"}
    assert answer.keys() == words


def test_a_row_of_a_json_table_has_its_shape_and_a_wrong_one_its_line(run, tmp_path):
    table = tmp_path / "in.csv"
    head = "tokens,hidden,ffn,experts,topk,ep,distribution\n"
    table.write_text(head + "64,4096,1024,32,4,1,balanced\n64,4096,1024,32,4,8,power_law_1.2\n")
    code, out, _ = run("op", "moe", "--chip", "h200-sxm", "--table", table, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["ep"], row["distribution"]) for row in rows] == [
        ("1", "balanced"), ("8", "power_law_1.2")]  # fmt: skip
    for row in rows:
        assert row.keys() >= {"time_us", "limiter", "low_us", "high_us", "flop", "bytes",
                              "provenance"}  # fmt: skip
    for wrong, words in {
        "64,4096,1024,32,64,1,balanced": "topk 64 is more than 32 experts",
        "64,4096,1024,32,4,1,zipf": "distribution is 'zipf'",
        "64,4096,-1,32,4,1,balanced": "ffn is -1",
    }.items():
        table.write_text(f"{head}64,4096,1024,32,4,1,balanced\n{wrong}\n")
        code, _, error = run("op", "moe", "--chip", "h200-sxm", "--table", table)
        assert code == 2
        assert f"{table} line 3: " in error
        assert words in error


def test_op_prices_a_table(run, tmp_path):
    table, out = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("m,n,k,dtype\n1,8192,8192,bf16\n4096,8192,8192,bf16\n16,8192,8192,fp8\n")
    assert run("op", "gemm", "--chip", "h100-sxm", "--table", table, "--out", out)[0] == 0
    header, *rows = out.read_text().splitlines()
    assert header == "m,n,k,dtype,time_us,limiter,low_us,high_us,flop,bytes,provenance"
    assert [row.split(",")[5] for row in rows] == ["memory", "compute", "memory"]
    # one row: weights 8192² and 2 × 8192 of activations, 2 bytes each, at 3.35 TB/s
    moved = 2 * (8192 * 8192 + 2 * 8192)
    assert float(rows[0].split(",")[4]) == pytest.approx(moved / 3.35e12 * 1e6, rel=1e-12)


def test_op_attention_decode_reads_the_cache_once(run):
    words = "op attention --chip h100-sxm --phase decode --batch 8 --context 4096 --heads 64"
    answer = json.loads(run(*words.split(), "--kv_heads", 8, "--head_dim", 128, "--json")[1])
    cache = 2 * 8 * 4096 * 8 * 128 * 2
    queries = 2 * 8 * 64 * 128 * 2
    new = 2 * 8 * 8 * 128 * 2  # the new key and value are read as they come, and written
    assert answer["bytes"] == cache + queries + new
    assert answer["flop"] == 4 * 8 * 64 * 128 * 4096


def test_op_all_reduce_names_the_limit(run):
    words = ["op", "all_reduce", "-p", "dgx-h100", "--chips", 8, "--json", "--bytes"]
    assert json.loads(run(*words, 1024)[1])["limiter"] == "network latency"
    assert json.loads(run(*words, 2**30)[1])["limiter"] == "network bandwidth"


def test_one_chip_has_nothing_to_reduce(run):
    words = ["op", "all_reduce", "-p", "dgx-h100", "--chips", 1, "--bytes", 1024]
    answer = json.loads(run(*words, "--json")[1])
    assert (answer["time_us"], answer["limiter"]) == (0, None)
    assert "network" not in run(*words)[1]


def table(out, phase):
    """The rows of a phase's table: the operator's name → its words."""
    _, _, after = out.partition(f"{phase}: ")
    rows = [line.split() for line in after.partition("ms  ")[2].splitlines()[2:]]
    return {row[0]: row[1:] for row in rows[:9]}


@pytest.mark.parametrize(
    ("words", "operator", "count"),
    [
        ("gemma-3-27b --tp 2", "layers.gate_up", 62),
        ("jamba-1.5-large --tp 8", "layer.experts_gate_up", 36),
        # a microbatch each for four stages
        ("llama-3.1-70b --tp 2 --pp 4 --batch 64", "layer.gate_up", 4 * 80),
    ],
)
def test_operators_of_unlike_layers_and_of_stages_are_one_row(run, words, operator, count):
    command = ("simulate", *words.split(), "-p", "dgx-h100")
    phases = json.loads(run(*command, "--json")[1])["phases"]
    _, out, _ = run(*command)
    for phase in ("prefill", "decode"):
        rows = table(out, phase)
        each = [row for row in phases[phase]["operators"]
                if row["name"].endswith("." + operator.partition(".")[2])]  # fmt: skip
        assert sum(row["count"] for row in each) == count
        assert int(rows[operator][0]) == count
        time = sum(row["time_us"] * row["count"] for row in each) / count
        assert float(rows[operator][1].replace(",", "")) == pytest.approx(time, rel=1e-3)
        shares = [float(word[:-1]) for row in rows.values() for word in row if word[-1] == "%"]
        assert sum(shares) < 100.5
    assert "e+0" not in out


@pytest.mark.parametrize("what", ["models", "chips", "platforms"])
def test_list(run, what):
    rows = json.loads(run("list", what, "--json")[1])
    assert len({row["name"] for row in rows}) == len(rows) > 15
    code, out, _ = run("list", what)
    assert code == 0
    assert rows[0]["name"] in out


def test_listed_models_have_their_figures(run):
    rows = {row["name"]: row for row in json.loads(run("list", "models", "--json")[1])}
    assert rows["llama-3.1-70b"]["num_parameters"] == 70_553_706_496
    assert rows["llama-3.1-70b"]["kv_bytes_per_token"] == 320 * 1024


BAD = {
    "simulate llama-3.1-7b -p dgx-h100": "llama-3.1-70b",
    "simulate llama-3.1-8b -p dgx-h10": "dgx-h100",
    "simulate llama-3.1-8b": "platform",
    "simulate": "model",
    "simulate llama-3.1-8b -p dgx-h100 --tp 16": "16",
    "simulate llama-3.1-8b -p dgx-h100 --tp 3": "heads",
    "simulate llama-3.1-8b -p dgx-h100 --tp 0": "tp=0",
    "simulate llama-3.1-8b -p dgx-h100 --tier host-pcie5": "--offload-weights",
    "simulate llama-3.1-8b -p dgx-h100 --lora-count 5": "--lora-rank",
    "plan llama-3.1-8b -p dgx-h100 --top 0": "--top=0",
    "simulate llama-3.1-8b -p dgx-h100 --tp -1": "tp=-1",
    "simulate llama-3.1-8b -p dgx-h100 --tp 2 --tp 4": "--tp is given twice",
    "simulate llama-3.1-8b -p dgx-h100 --sp --no-sp": "--sp is given twice",
    "op all_reduce -p dgx-h100 --bytes 9 --chips 2 --chips 4": "--chips is given twice",
    "simulate llama-3.1-8b -p dgx-h100 --lora-count 4": "no effect without --lora-rank",
    "simulate llama-3.1-8b -p dgx-h100 --interleave 2": "no effect without --pp",
    "simulate llama-3.1-8b -p dgx-h100 --chunks 8": "no effect without --overlap",
    "simulate llama-3.1-8b -p dgx-h100 --skew 1": "no experts",
    "plan llama-3.1-8b -p dgx-h100 --skew 1": "no experts",
    "simulate llama-3.1-8b -p dgx-h100 --absorb": "no latent attention",
    "simulate llama-3.1-8b -p dgx-h100 --weights=": "no number format ''",
    "simulate llama-3.1-8b -p dgx-h100 --plot /proc/a.png": "opgraph: /proc/a.png cannot be",
    "simulate llama-3.1-8b -p dgx-h100 --tpx 3": "(see opgraph simulate --help)",
    "op gemm --chip": "(see opgraph op --help)",
    "compare trace.json --batch -4": "(see opgraph compare --help)",
    "op mla --chip h100-sxm --phase decode --seq 5 --batch 1 --heads 8": "seq is 5, but a decode",
    "simulate llama-3.1-8b -p dgx-h100 --dp 9": "9",
    "simulate llama-3.1-8b -p dgx-h100 --batch 0": "batch=0",
    "simulate llama-3.1-8b -p dgx-h100 --batch -5": "batch=-5",
    "simulate llama-3.1-8b -p dgx-h100 --batch nan": "nan",
    "simulate llama-3.1-8b -p dgx-h100 --batch 1.5": "1.5",
    "simulate llama-3.1-8b -p dgx-h100 --prompt 99999999999999999999": "prompt",
    "simulate llama-3.1-8b -p dgx-h100 --output 0": "output=0",
    "simulate llama-3.1-8b -p dgx-h100 --cost best": "best",
    "simulate llama-3.1-8b -p dgx-h100 --plot x.gif": "x.gif",
    "simulate llama-3.1-8b -p dgx-h100 --plot /nowhere/x.png": "/nowhere/x.png",
    "simulate llama-3.1-8b -p dgx-h100 --trace x.txt": "x.txt",
    "simulate llama-3.1-8b -p dgx-h100 --trace /nowhere/x.json": "/nowhere/x.json",
    "simulate llama-3.1-8b -p dgx-h100 --batc 3": "--batc",
    "simulate llama-3.1-8b -p h100-sxm:0": "0",
    "simulate llama-3.1-8b -p h100-sxm:x": "x",
    "simulate missing.json -p dgx-h100": "missing.json",
    "simulate {folder} -p dgx-h100": "config.json",
    "simulate {binary} -p dgx-h100": "garbage.json",
    "simulate {broken} -p dgx-h100": "broken.json",
    "simulate {deep} -p dgx-h100": "deep.json",
    "simulate {listed} -p dgx-h100": "listed.json",
    "simulate {nan} -p dgx-h100": "NaN",
    "simulate {negative} -p dgx-h100": "-4",
    "simulate {huge} -p dgx-h100": "hidden_size",
    "simulate {partial} -p dgx-h100": "num_hidden_layers",
    "simulate {unknown} -p dgx-h100": "gpt9",
    "simulate llama-3.1-8b -p {folder}": "folder",
    "simulate llama-3.1-8b -p {toml}": "empty.toml",
    "simulate llama-3.1-8b -p {badtoml}": "bad.toml",
    "op gem --chip h100-sxm": "gemm",
    "op gemm --chip h100-sxm --m 1 --n 2": "'k'",
    "op gemm --chip h100-sxm --m 1 --n 2 --k": "--k",
    "op gemm --chip h100-sxm --m 1 --n 2 --k 0": "k is 0",
    "op gemm --chip h100-sxm --m 1 --n 2 --k nan": "nan",
    "op gemm --chip h100-sxm --m 1 --n 2 --k x": "'x'",
    "op gemm --chip h100-sxm --m 1 --n 2 --k 3 --q 4": "'q'",
    "op gemm --chip h100-sxm --m 1 --n 2 --k 3 --dtype bf61": "bf16",
    "op gemm --m 1 --n 2 --k 3": "--chip",
    "op gemm --chip h100 --m 1 --n 2 --k 3": "h100-sxm",
    "op gemm --chip h100-sxm --table missing.csv": "missing.csv",
    "op gemm --chip h100-sxm --table {empty}": "empty.csv",
    "op gemm --chip h100-sxm --table {ragged}": "line 3",
    "op gemm --chip h100-sxm --table {folder}": "{folder}",
    "op gemm --chip h100-sxm --table {binary}": "garbage.json",
    "op all_reduce -p dgx-h100 --bytes 1000 --chips 9": "9",
    "op attention --chip h100-sxm --batch 1 --seq 9 --context 3 --heads 8 --head_dim 64": "longer",
    "op attention --chip h100-sxm --batch 1 --seq 9 --heads 8 --kv_heads 3 --head_dim 64": "3 KV",
    "list model": "models",
    "simulat": "(see opgraph --help)",
    "trace llama-3.1-8b -p dgx-h100": "out",
}


@pytest.fixture
def files(tmp_path):
    """Files that are not what they should be, by name."""
    texts = {
        "broken": ("broken.json", '{"model_type": "llama",'),
        "deep": ("deep.json", "[" * 100_000),
        "listed": ("listed.json", "[1, 2]"),
        "nan": ("nan.json", '{"model_type": "llama", "hidden_size": NaN}'),
        "negative": ("negative.json", '{"model_type": "llama", "num_hidden_layers": -4}'),
        "huge": (
            "huge.json",
            '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 1000000000000000}',
        ),
        "partial": ("partial.json", '{"model_type": "llama", "hidden_size": 64}'),
        "unknown": ("unknown.json", '{"model_type": "gpt9"}'),
        "toml": ("empty.toml", 'name = "x"\n'),
        "badtoml": ("bad.toml", "name = = 3"),
        "empty": ("empty.csv", "m,n,k\n"),
        "ragged": ("ragged.csv", "m,n,k\n1,2,3\n1,2,3,4\n"),
    }
    for name, text in texts.values():
        (tmp_path / name).write_text(text)
    (tmp_path / "garbage.json").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "folder").mkdir()
    places = {key: tmp_path / name for key, (name, _) in texts.items()}
    return places | {"binary": tmp_path / "garbage.json", "folder": tmp_path / "folder"}


@pytest.mark.parametrize("words", BAD)
def test_nonsense_gets_one_line_that_names_it(run, files, words):
    code, out, err = run(*words.format(**files).split())
    assert (code, out) == (2, "")
    assert err.startswith("opgraph: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert BAD[words].format(**files) in err


def test_no_command_prints_the_help(run):
    code, out, _ = run()
    assert code == 0
    assert "simulate" in out


def test_help_loads_nothing_heavy():
    heavy = {"numpy", "pandas", "matplotlib", "networkx", "pydantic", "onnx", "torch"}
    script = (
        "import sys; sys.argv = ['opgraph', '--help']\n"
        "from opgraph.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        f"print('loaded:', sorted({heavy!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert out.stdout.endswith("loaded: []\n")


def test_spreadsheets_write_a_mark_and_spaces(run, tmp_path):
    table = tmp_path / "shapes.csv"
    table.write_text("\ufeffm, n ,k\n1,2,3\n", encoding="utf-8")
    code, out, _ = run("op", "gemm", "--table", str(table), "--chip", "h100-sxm")
    assert code == 0
    assert out.splitlines()[0].startswith("m,n,k,time_us")


def test_a_column_is_given_once(run, tmp_path):
    table = tmp_path / "shapes.csv"
    table.write_text("m,n,k,m\n1,2,3,4\n")
    code, _, error = run("op", "gemm", "--table", str(table), "--chip", "h100-sxm")
    assert code == 2
    assert "two columns 'm'" in error


def test_a_fitted_step_says_what_it_rests_on(run):
    where = ("simulate", "deepseek-v3", "-p", "dgx-h200:2", "--tp", "16")
    _, out, _ = run(*where, "--cost", "corrected")
    line = next(line for line in out.splitlines() if "rests on" in line)
    assert "measured" in line
    assert "ideal" in line
    _, out, _ = run(*where)
    assert "rests on" not in out


def test_a_chip_file_is_a_platform(run, tmp_path):
    chip = tmp_path / "mine.toml"
    source = resources.files("hardware") / "data" / "chips" / "h100-sxm.toml"
    chip.write_text(source.read_text())
    where = ("simulate", "llama-3.1-8b", "--json", "--tp", "2", "-p")
    code, mine, _ = run(*where, f"{chip}:2")
    assert code == 0
    _, theirs, _ = run(*where, "h100-sxm:2")
    assert json.loads(mine)["tpot_ms"] == json.loads(theirs)["tpot_ms"]


def test_layers_without_end_are_refused(run, tmp_path):
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1024}
    config = {"model_type": "llama", "vocab_size": 1000, "num_hidden_layers": 10**9, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, error = run("simulate", tmp_path, "-p", "h100-sxm:1")
    assert code == 2
    assert "'num_hidden_layers' is 1000000000" in error


def test_energy_and_cost_are_printed_and_in_json(run):
    code, out, err = run(*DEMO, "--price", "2.5")
    assert (code, err) == (0, "")
    assert "J/token, per chip" in out
    assert "$ per million tokens at 2.5 $ per chip-hour (as given)" in out
    answer = json.loads(run(*DEMO, "--price", "2.5", "--json")[1])
    assert answer["price_dollars_per_chip_hour"] == pytest.approx(2.5)
    seconds = 1e6 / answer["throughput_tokens_per_s"]
    by_hand = 2 * 2.5 / 3600 * seconds
    assert answer["dollars_per_million_tokens"] == pytest.approx(by_hand)
    assert answer["energy_J_per_token"] > 0
    for phase in answer["phases"].values():
        assert 80 < phase["power_W"] < 700
        assert all(row["energy_mJ"] > 0 for row in phase["operators"])


@pytest.mark.parametrize("price", ["cheap", "-3", "nan", "0", "inf"])
def test_a_price_that_is_none_is_one_line(run, price):
    code, out, err = run(*DEMO, "--price", price)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "price" in err


def test_package_prints_and_plots(run, tmp_path):
    spec, picture = "examples/package.toml", tmp_path / "map.png"
    code, out, err = run("package", spec, "--plot", picture)
    assert (code, err) == (0, "")
    for word in ("left", "hottest_C", "shoreline_mm", "of the clock", "bow", "interposer"):
        assert word in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    answer = json.loads(run("package", spec, "--interposer", "glass", "--json")[1])
    assert answer["interposer"] == "glass"
    assert 0.9 < answer["slowdown"] < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no.toml",), "cannot read 'no.toml'"),
        (("examples/package.toml", "--interposer", "wood"), "unknown interposer 'wood'"),
        (("examples/package.toml", "--plot", "map.gif"), "--plot map.gif"),
        (("hardware/data/chips/h100-sxm.toml",), "h100-sxm.toml: unknown key"),
    ],
)
def test_a_package_that_is_none_is_one_line(run, words, message):
    code, out, err = run("package", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
