"""Settings: every default passes its own checks, wrong ones are named, and a workdir belongs to one config."""

import doctest
import json
import re

import pytest

from lpt_jax import config as config_lib
from lpt_jax.config import choose, claimed, default, finish, flat, get, load, tiny
from lpt_jax.errors import InputError


def changed(**settings):
    config = default()
    for name, value in settings.items():
        group, _, key = name.replace("__", ".").rpartition(".")
        with (get(config, group) if group else config).ignore_type():
            (get(config, group) if group else config)[key] = value
    return config


def test_defaults_pass_and_are_locked():
    for config in (default(), tiny(default())):
        assert finish(config).is_locked
        with pytest.raises((AttributeError, KeyError)):
            config.polcy = 1


def test_the_examples_in_docstrings():
    assert doctest.testmod(config_lib).failed == 0


def test_every_rule_names_a_setting_that_exists():
    known = set(flat(default().to_dict()))
    own = config_lib.SYSTEMS["profiles"]
    rules = [*config_lib.CHOICES, *config_lib.LISTS, *config_lib.MAY_BE_ZERO, *own.CHOICES, *own.MAY_BE_ZERO]
    assert set(rules) <= known and len(rules) == len(set(rules))


@pytest.mark.parametrize("name", [n for n, v in flat(default().to_dict()).items() if type(v) in (int, float)])
def test_every_number_has_a_lower_bound(name):
    for number in (-2, 0):
        value = type(get(default(), name))(number)
        config = changed(**{name.replace(".", "__"): value})
        system = config_lib.SYSTEMS["profiles"]
        if number == 0 and name in [*config_lib.MAY_BE_ZERO, *system.MAY_BE_ZERO, *system.MAY_BE_NEGATIVE]:
            finish(config)
        else:
            said = "mesh: each axis" if name.startswith("mesh.") else f"{name}={value} won't do"
            with pytest.raises(InputError, match=re.escape(f"--config.{said}")):
                finish(config)


WRONG = [
    ({"policy__eta": 0.0}, r"policy\.eta=0\.0 .* greater than 0"),
    ({"policy__kl_coef": -0.1}, r"policy\.kl_coef=-0\.1 .* 0 or more"),
    ({"policy__eta": float("inf")}, r"policy\.eta=inf .* finite"),
    ({"policy__eta": "much"}, r"policy\.eta='much' .* type float"),
    ({"policy__samples": 1}, r"policy\.samples=1 .* at least 2"),
    ({"policy__users": 10, "policy__minibatches": 4}, r"policy\.minibatches=4 .* divisor"),
    ({"policy__users": 12, "policy__minibatches": 3, "policy__accumulation": 3}, r"policy\.accumulation=3 .* divisor"),
    ({"policy__lora__targets": "q|("}, r"policy\.lora\.targets='q\|\(' .* regular expression"),
    ({"policy__reward": "json:no_such"}, r"policy\.reward='json:no_such'"),
    ({"contrastive__batch": 1}, r"contrastive\.batch=1"),
    ({"evaluation__metric": "recall"}, r"evaluation\.metric='recall'"),
    ({"evaluation__baselines": "random,bm26"}, r"evaluation\.baselines='random,bm26' .* list of random"),
    ({"phases": " ,"}, r"phases=' ,'"),
    ({"phases": "contrastive;policy"}, r"phases='contrastive;policy'"),
    ({"data__test_share": 0.95}, r"data\.test_share=0\.95"),
    ({"mesh__data": 0}, r"mesh: each axis"),
    ({"mesh__data": -1, "mesh__fsdp": -1}, r"mesh: .*at most one"),
    ({"data__surce": "amazon"}, r"no setting --config\.data\.surce; the nearest is --config\.data\.source"),
]


@pytest.mark.parametrize("settings, message", WRONG)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        finish(changed(**settings))


def test_a_group_replaced_as_a_whole_misses_settings():
    config = default()
    del config.policy["eta"]
    with pytest.raises(InputError, match=r"policy\.eta is missing"):
        finish(config)


@pytest.mark.parametrize(
    "unknown, known",
    [
        ("polcy.eta", "policy.eta"),
        ("policy.eat", "policy.eta"),
        ("eta", "policy.eta"),
        ("learning_rat", "policy.learning_rate"),
        ("contrastive.learningrate", "contrastive.learning_rate"),
        ("data.kore", "data.core"),
    ],
)
def test_nearest_setting(unknown, known):
    with pytest.raises(InputError, match=rf"the nearest is --config\.{known}\."):
        config_lib.check_known(unknown)


def test_variants():
    assert choose(default(), "").name == "run"
    assert choose(default(), "tiny").name == "run_tiny"
    assert choose(default(), "long", long=lambda c: "long one") == "long one"
    with pytest.raises(InputError, match="no variant 'huge'; known are: tiny, long"):
        choose(default(), "huge", long=tiny)


def test_overrides_have_the_settings_types(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from lpt_jax.config import default as get_config\n")
    texts = {"seed": "-0", "policy.eta": "1e-3", "policy.whiten": "False", "data.path": "7", "name": "x"}
    config = load(str(file), texts)
    assert (config.seed, config.policy.eta, config.policy.whiten) == (0, 1e-3, False)
    assert (config.data.path, config.name) == ("7", "x")
    assert config.is_locked


def test_workdir_is_new_then_the_same_then_another(tmp_path):
    workdir = tmp_path / "runs" / "one"
    with claimed(workdir, finish(tiny(default()))):
        assert json.loads((workdir / "config.json").read_text())["policy"]["eta"] == 1.0
    with pytest.raises(InputError, match="There is no run in"):
        with claimed(workdir, finish(tiny(default())), new=False):
            pytest.fail("nothing is trained yet")
    with claimed(workdir, finish(tiny(default()))):
        pass
    other = tiny(default())
    other.policy.eta, other.seed = 0.5, 3
    with pytest.raises(InputError, match=r"policy\.eta was 1\.0 and is 0\.5; seed was 0 and is 3"):
        with claimed(workdir, finish(other)):
            pytest.fail("the body ran")
    assert [p.name for p in workdir.iterdir()] == ["config.json"]


def test_a_workdir_of_the_first_version_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"decoder": {"source": "tiny"}, "encoder": {"source": "tiny"}, "seed": 0}')
    with pytest.raises(InputError, match=r"a run of lpt_jax 0\.1, whose models this version can't read: give another"):
        with claimed(tmp_path, finish(tiny(default()))):
            pytest.fail("the body ran")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_wrong_input_takes_a_new_workdir_away_again_but_nothing_else(tmp_path):
    workdir = tmp_path / "a" / "b"
    with pytest.raises(InputError), claimed(workdir, finish(default())):
        raise InputError("wrong")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError), claimed(workdir, finish(default())):
        (workdir / "metrics.jsonl").touch()
        raise InputError("wrong, later")
    assert sorted(p.name for p in workdir.iterdir()) == ["config.json", "metrics.jsonl"]
