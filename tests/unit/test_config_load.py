"""Precedence, provenance, and what a user reads after a mistake."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from agentforge.config.keys import nearest, schema_keys
from agentforge.config.load import leaves, load_config, parse_value, show_rows, with_overrides
from agentforge.config.presets import preset_names, preset_path, read_toml
from agentforge.errors import ConfigError, ExitCode


def load(sets=(), env=None, preset="demo", file=None, flags=None):
    return load_config(preset=preset, file=file, env=env or {}, sets=sets, flags=flags)


def mistake(**kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**kwargs)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_is_valid(name):
    config = load(preset=name).config
    assert config.preset == name
    assert config.description


def test_the_presets_of_the_issue_are_there():
    assert set(preset_names()) == {"smoke", "demo", "laptop", "gtx1660", "full"}


def test_precedence_and_provenance(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 2\n[cognate]\nbatch_size = 3\n[cognate.base]\nsteps = 3\n")
    env = {"AGENTFORGE_COGNATE__BASE__STEPS": "4", "AGENTFORGE_COGNATE__HALTING_BETA": "1e-3"}
    loaded = load(
        file=file,
        env=env,
        sets=["cognate.halting_beta=0.5"],
        flags={"on_alert": ("--on-alert", "stop")},
    )
    config, origin = loaded.config, loaded.provenance
    assert (config.seed, origin["seed"]) == (2, f"file {file}")
    assert config.cognate.batch_size == 3
    assert config.cognate.base.steps == 4
    assert origin["cognate.base.steps"] == "env AGENTFORGE_COGNATE__BASE__STEPS"
    assert config.cognate.halting_beta == 0.5
    assert origin["cognate.halting_beta"] == "--set"
    assert (config.on_alert, origin["on_alert"]) == ("stop", "--on-alert")
    assert origin["model.d_model"] == "preset demo"
    assert origin["logging.wandb"] == "default"
    assert origin.keys() == dict(leaves(config)).keys()


def test_the_last_set_wins():
    assert load(sets=["seed=1", "seed=2"]).config.seed == 2


def test_a_file_replaces_a_mix_and_set_changes_one_share(tmp_path: Path):
    file = tmp_path / "mix.toml"
    file.write_text("[cognate.base]\nmix = { reverse = 1.0 }\n")
    loaded = load(file=file)
    assert loaded.config.cognate.base.mix == {"reverse": 1.0}
    assert loaded.provenance["cognate.base.mix.reverse"] == f"file {file}"
    one = load(sets=["cognate.base.mix.total=0.125"])
    assert one.config.cognate.base.mix == load().config.cognate.base.mix | {"total": 0.125}
    assert one.provenance["cognate.base.mix.total"] == "--set"
    assert one.provenance["cognate.base.mix.reverse"] == "preset demo"
    whole = load(sets=["cognate.base.mix={recall=1.0}"])
    assert whole.config.cognate.base.mix == {"recall": 1.0}


def test_specialists_are_merged_table_by_table():
    config = load(sets=["cognate.specialists.speed.steps=7"]).config
    speed = config.cognate.specialists["speed"]
    assert (speed.steps, speed.skill) == (7, "reverse")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("off", "off"),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"a b"', "a b"),
        ("/data/x", "/data/x"),
        ("2026-01-02", "2026-01-02"),
        ("1\nseed = 3", "1\nseed = 3"),
        ("", ""),
    ],
)
def test_values_are_toml_or_bare_text(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_text_keys_keep_the_text_and_lists_take_commas():
    config = load(
        sets=["tokenizer.path=123", "gates.not_in_run=cognate.gsm8k,cognate.arc", "data.datasets="]
    ).config
    assert config.tokenizer.path == "123"
    assert config.gates.not_in_run == ("cognate.gsm8k", "cognate.arc")
    assert config.data.datasets == ()


def test_several_mistakes_are_told_at_once_with_origin_value_bounds_and_nearest():
    text = mistake(
        sets=["modle.d_model=64", "cognate.optim.muon_lr=-1", "resources.device=gpu", "seed"],
        env={"AGENTFORGE_COGNATE__BASE__STEPS": "0"},
    )
    assert text.startswith("5 mistakes")
    assert "modle.d_model (from --set): no such key; nearest: model.d_model" in text
    assert "cognate.optim.muon_lr = -1 (from --set): allowed: number above 0" in text
    assert "at most 1.0" in text
    assert "resources.device = 'gpu' (from --set): allowed: one of auto, cpu, cuda" in text
    assert "--set seed: allowed: KEY=VALUE" in text
    assert "cognate.base.steps = 0 (from env AGENTFORGE_COGNATE__BASE__STEPS)" in text


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.d_modell", "model.d_model"),
        ("base.steps", "cognate.base.steps"),
        ("logging.wandb_projekt", "logging.wandb_project"),
        ("cognate.specialists.speeed.steps", "cognate.specialists.speed.steps"),
        ("reources", "resources"),
    ],
)
def test_nearest_key(wrong, right):
    assert nearest(wrong) == right


def test_nothing_near_is_not_guessed():
    assert nearest("zzzzqqqq") is None


def test_a_rule_across_keys_names_where_the_values_came_from():
    text = mistake(sets=["model.d_model=100"])
    assert "d_model 100 must be n_heads 4 times an even number" in text
    assert "d_model from --set, n_heads from preset demo" in text


def test_the_entry_of_a_list_is_named():
    assert "data.curriculum[1] = 5" in mistake(sets=["data.curriculum=[0.1, 5, 1]"])


@pytest.mark.parametrize("value", ["true", "1.5", "abc"])
def test_numbers_are_numbers(value):
    assert "seed = " in mistake(sets=[f"seed={value}"])


def test_numbers_in_quotes_are_refused_in_a_file(tmp_path: Path):
    file = tmp_path / "q.toml"
    file.write_text('[cognate.base]\nsteps = "10"\n')
    assert f"cognate.base.steps = '10' (from file {file}): allowed: integer" in mistake(file=file)


def test_a_section_is_not_a_value_and_a_value_not_a_section():
    assert "model = '3' (from --set): allowed: a table of keys" in mistake(sets=["model=3"])
    assert "seed = {'a': 1}" in mistake(sets=["seed={a=1}"])


def test_toml_syntax_error_names_file_line_and_column(tmp_path: Path):
    file = tmp_path / "broken.toml"
    file.write_text("seed = 1\nmodel = = 2\n")
    assert f"{file}: line 2, column 9" in mistake(file=file)


def test_not_utf8(tmp_path: Path):
    file = tmp_path / "latin.toml"
    file.write_bytes(b'description = "caf\xe9"\n')
    assert "not UTF-8" in mistake(file=file)


def test_unknown_preset_and_missing_file_name_the_nearest():
    assert "--preset lptop: no such preset; nearest: laptop" in mistake(preset="lptop")
    with pytest.raises(ConfigError, match="nearest presets: demo"):
        read_toml(Path("demoo.toml"))
    with pytest.raises(ConfigError) as caught:
        preset_path("my/own.toml")
    assert "--config my/own.toml" in caught.value.remedy


def test_a_directory_is_not_a_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)


def test_a_file_may_name_its_preset_or_stand_alone(tmp_path: Path):
    file = tmp_path / "f.toml"
    file.write_text('preset = "smoke"\nseed = 5\n')
    config = load(preset=None, file=file).config
    assert (config.preset, config.seed) == ("smoke", 5)
    file.write_text("seed = 5\n")
    assert "cognate: is required" in mistake(preset=None, file=file)


def test_the_preset_of_the_environment_and_reserved_variables():
    env = {"AGENTFORGE_PRESET": "smoke", "AGENTFORGE_TEST_DATA": "/x", "OTHER": "1"}
    assert load(preset=None, env=env).config.preset == "smoke"
    assert load(preset="demo", env=env).config.preset == "demo"
    assert "nope (from env AGENTFORGE_NOPE)" in mistake(env={"AGENTFORGE_NOPE": "1"})


def test_data_dir_alone_means_records_and_with_the_world_it_is_a_mistake():
    flags = {"data.data_dir": ("--data-dir", "/data")}
    assert load(preset=None, flags=flags).config.data.source == "records"
    assert load(preset=None).config.preset == "demo"
    assert "data.source = 'world'" in mistake(flags=flags)


def test_a_preset_is_not_chosen_by_set():
    assert "--preset" in mistake(sets=["preset=full"])


def test_configurations_are_frozen():
    config = load().config
    with pytest.raises(ValidationError):
        config.seed = 3


def test_overrides_on_a_saved_configuration_keep_the_other_origins():
    first = load(sets=["seed=7"])
    second = with_overrides(first.config, first.provenance, ["cognate.batch_size=9"])
    assert second.config.cognate.batch_size == 9
    assert second.config.seed == 7
    assert second.provenance["seed"] == "--set"
    assert second.provenance["cognate.batch_size"] == "--set"
    assert second.provenance["model.d_model"] == "preset demo"
    unchanged = with_overrides(first.config, first.provenance, [])
    assert unchanged == first


def test_every_row_has_value_and_origin():
    rows = {row.key: row for row in show_rows(load())}
    assert rows["data.use_hub"].value == "true"
    assert rows["until"].value == "-"
    assert rows["model.memory.layers"].value == "[1]"
    assert rows["cognate.base.mix.total"].origin == "preset demo"


def test_every_key_has_a_description_and_says_what_it_allows():
    for key in schema_keys().values():
        assert key.description, key.name
        assert key.allowed, key.name
