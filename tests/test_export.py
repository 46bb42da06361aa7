"""Exported folders, read by the libraries they are for, are the very models that were trained."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from lpt_jax import export, report, train
from lpt_jax import run as run_lib
from lpt_jax.config import load
from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.errors import InputError
from lpt_jax.learning.loop import Part
from lpt_jax.main import main
from lpt_jax.models import decoder, weights
from lpt_jax.recommender import load_encoder
from lpt_jax.similarity import DualEncoder
from lpt_jax.systems import profiles
from tests.conftest import ROOT
from tests.systems.tiny_run import recommender
from tests.tiny_models import changed

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
sentence_transformers = pytest.importorskip("sentence_transformers")

CONFIG = f"{ROOT}/configs/movielens.py:tiny"
SETTINGS = {"evaluation.baselines": "", "policy.steps": "1", "policy.learning_rate": "0.001", "policy.optimiser": "adamw", "trackers": "",
            "contrastive.steps": "1", "contrastive.learning_rate": "0.01", "policy.keep_best": "false",
            "contrastive.keep_best": "false"}  # fmt: skip
LORA = {"phases": "policy", "policy.trains": "lora", "policy.lora.targets": "q|v|down|head"}
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # PEFT's; see TIED


def tied_model(folder, dtype="float32"):
    """A tied model in a folder, with settings of its own that nothing here reads."""
    tokenizer = tiny_tokenizer()
    spec = decoder.DecoderSpec("llama", len(tokenizer), 32, 2, 4, 2, 8, 48, rope_theta=5e5, tied=True)
    made = decoder.Decoder(spec, nnx.Rngs(params=jax.random.key(1)))
    made = changed(made, lambda a: np.asarray(3 * a, dtype))
    made.source = weights.Source(tokenizer, tokenizer.pad_token_id, frozenset({5}))
    weights.save_decoder(folder, made)
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 640, "_name_or_path": str(folder)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def untrained(r) -> decoder.Decoder:
    """The language model of a recommender as it was loaded."""
    return export.whole_decoder(r.lm, r.fresh("lm"))


class Run:
    """A run trained by the command line, its models, and its export by the command line."""

    def __init__(self, folder, settings):
        self.folder, self.workdir, self.settings = folder, folder / "run", SETTINGS | settings
        assert self.main() == 0 and self.main("--mode=export", f"--export_to={folder}/out") == 0
        config = load(CONFIG, self.settings)
        self.r, _, self.state, _ = train.trained(profiles, run_lib.Run(config, self.workdir))
        self.trained = self.r.weights(self.state, "lm")
        self.tokens = np.random.default_rng(0).integers(6, self.r.lm.spec.vocab, (8, 20))

    def main(self, *flags):
        overrides = [f"--config.{name}={value}" for name, value in self.settings.items()]
        return main(["main", f"--config={CONFIG}", f"--workdir={self.workdir}", *overrides, *flags])

    def logits(self):
        """Of what the trainer trains and the sampler samples from."""
        return np.asarray(self.r.lm.merged(self.trained)(self.tokens, np.ones(self.tokens.shape, bool)))

    def written(self):
        """Greedy profiles of the first test prompts."""
        return self.r.lm.write(self.trained, self.r.prompts["test"][:8], range(8), self.r.run.key)

    def equal(self, model):
        with torch.no_grad():
            theirs = model.eval()(torch.tensor(self.tokens)).logits.float().numpy()
        np.testing.assert_allclose(theirs, self.logits(), atol=2e-4)

    def profiles(self, model, **settings):
        """Greedy profiles of the first test prompts by transformers' generate(), by default with the folder's own settings."""
        found = []
        for ids in self.r.prompts["test"][:8]:
            ids = torch.tensor([ids])
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]
            found.append(self.r.lm.source.tokenizer.decode(out, skip_special_tokens=True).strip())
        return found


@pytest.fixture(scope="module", params=["last_layers", "lora", "tied_lora"])
def run(request, tmp_path_factory):
    folder, settings = tmp_path_factory.mktemp(request.param), {}
    if request.param == "lora":
        settings = LORA
    if request.param == "tied_lora":
        settings = LORA | {"lm.source": str(tied_model(folder / "base"))}
    return Run(folder, settings)


def causal(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_the_language_model_in_transformers(run):
    folder = run.folder / "out/lm"
    model = causal(folder)
    run.equal(model)
    ours = run.written()
    assert run.profiles(model) == ours and len(set(ours)) > 1
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), run.trained, run.r.fresh("lm"))
    assert min(jax.tree.leaves(moved["upper"])) > 1e-4
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    tokenizer, again = run.r.lm.source.tokenizer, transformers.AutoTokenizer.from_pretrained(folder)
    assert config["dtype"] == config["torch_dtype"] == "float32" and model.dtype == torch.float32
    assert generation == {"eos_token_id": [5], "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0, "do_sample": False,
                          "max_new_tokens": run.r.config.profile.max_tokens}  # fmt: skip
    assert again.chat_template == tokenizer.chat_template and again.get_vocab() == tokenizer.get_vocab()
    assert config["tie_word_embeddings"] is False  # tied_lora: its head was trained
    if "tied" in run.folder.name:  # the source's own settings are kept; rope as transformers 4 and 5 name it
        assert config["max_position_embeddings"] == 640
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5


def test_a_soft_prompt_in_peft(tmp_path):
    """The language model stays as it is, and is not written; with the base PEFT writes the same profiles.

    Not by generate(), where PEFT 0.21 leaves out the positions and gives other tokens than its own whole passes.
    """
    settings = {"phases": "policy", "policy.trains": "soft_prompt", "policy.soft_prompt.tokens": "3"}
    run = Run(tmp_path, SETTINGS | settings | {"policy.learning_rate": "0.1"})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["embedder", "items", "lm_soft_prompt"]
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), run.trained, run.r.fresh("lm"))
    assert list(moved) == ["soft_prompt"] and moved["soft_prompt"]["table"] > 1e-3
    weights.save_decoder(tmp_path / "base", untrained(run.r))
    model = peft.PeftModel.from_pretrained(causal(tmp_path / "base"), tmp_path / "out/lm_soft_prompt").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(run.tokens)).logits.numpy()[:, 3:]
    np.testing.assert_allclose(theirs, run.logits(), atol=2e-4)
    for ids, text in zip(
        run.r.prompts["test"][:8], run.written(), strict=True
    ):  # by whole passes, the greedy token each time
        ids, start = list(ids), len(ids)
        while len(ids) < start + run.r.config.profile.max_tokens and ids[-1] != 5 or len(ids) == start:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert run.r.lm.source.tokenizer.decode(ids[start:], skip_special_tokens=True).strip() == text
    assert "lm_soft_prompt" in (tmp_path / "out/lm_soft_prompt/README.md").read_text()


def test_the_adapter_in_peft(run):
    folder = run.folder / "out/lm_adapter"
    if run.r.config.policy.trains != "lora":
        assert not folder.exists()
        return
    base = run.folder / "base"
    if not base.exists():  # the untrained model, as it was loaded
        weights.save_decoder(base, untrained(run.r))
    model = peft.PeftModel.from_pretrained(causal(base), folder)
    assert not model.peft_config["default"].target_modules ^ {"q_proj", "v_proj", "down_proj", "lm_head"}
    run.equal(model)
    settings = {"max_new_tokens": run.r.config.profile.max_tokens, "eos_token_id": 5, "do_sample": False}
    assert run.profiles(model, **settings) == run.written()
    with model.disable_adapter(), pytest.raises(AssertionError):
        run.equal(model)
    card = (folder / "README.md").read_text()
    source = run.settings.get("lm.source", "tiny")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == {"tiny": "tiny"}.get(source, "base")
    assert (report.Markdown(folder).text(export.TIED) in card) == run.r.lm.spec.tied
    if not run.r.lm.spec.tied:
        run.equal(model.merge_and_unload())


def test_the_embedder_in_sentence_transformers(run, caplog):
    folder, r = run.folder / "out/embedder", run.r
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert not [record for record in caplog.records if "MISSING" in record.getMessage()]  # of weights
    trained = r.weights(run.state, "embedder")
    texts = ["space crime", "likes films of horror and romance .", r.data.catalogue.texts[3]]
    items, _ = r.embedder.embed(trained, texts, r.embedder.item_limit)
    np.testing.assert_allclose(model.encode(texts), items, atol=1e-5)
    ours, valid = r.embedder.embed_profiles(trained, texts)
    np.testing.assert_allclose(model.encode(texts, prompt_name="query"), ours, atol=1e-5)
    assert valid.all()


def test_the_query_prompt(tmp_path):
    text_encoder = load_encoder(load(CONFIG, SETTINGS))
    text_encoder.spec = dataclasses.replace(text_encoder.spec, query_prefix="name the genres : ", pooling="cls")
    weights.save_encoder(tmp_path / "e", text_encoder)
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "e"), device="cpu")
    ours = DualEncoder(text_encoder).embed(["space", "crime and horror"], profiles=True)
    np.testing.assert_allclose(model.encode(["space", "crime and horror"], prompt_name="query"), ours, atol=1e-5)
    assert abs(model.encode(["space"]) - ours[:1]).max() > 1e-2


def test_the_cards_code_runs_and_says_what_we_say(run, monkeypatch, capsys):
    out = run.folder / "out"
    shutil.copytree(out, here := run.folder / "cards")
    monkeypatch.chdir(here)
    printed = {}
    for card in sorted(here.glob("*/README.md")):
        text = card.read_text()
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
        if card.parent.name == "lm_adapter":
            if not (run.folder / "base").exists():
                continue
            shutil.copytree(run.folder / "base", here / export.named(run.r.config.lm.source))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, {})
        printed[card.parent.name] = said.getvalue(), code
        assert f'library_name: "{export.CARDS[card.parent.name][0]}"' in text and "base_model" not in text
        assert report.Markdown(here).text(run.r.data.protocol) in text
        assert "| Zero-shot profile |" in text
    said, code = printed["lm"]
    prompt = eval(re.search(r"tokenizer\((['\"].*['\"]), add_special", code)[1])
    ids = run.r.lm.source.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert "films" in prompt and said.strip() == run.r.lm.write(run.trained, [ids], [0], run.r.run.key)[0]
    assert "tensor" in printed["embedder"][0]
    r, embedder = run.r, run.r.weights(run.state, "embedder")
    queries, _ = r.queries(embedder, ["Slow science fiction with ideas."])
    items = r.catalogue(embedder)
    items = r.with_terms(items, run.state["residuals"].weights) if "residuals" in run.state else items
    scores = (queries @ np.asarray(items).T)[0, : r.run.count]
    listed = [scores[r.data.catalogue.ids.index(i)] for i in eval(printed["items"][0])]
    np.testing.assert_allclose(listed, np.sort(scores)[::-1][:10], atol=1e-5)  # the same but for equal scores
    assert report.Markdown(here).text("for each thing X that it rejects") in (here / "items/README.md").read_text()


def test_no_path_of_this_machine_is_in_any_file(run):
    files = [file for file in (run.folder / "out").rglob("*") if file.is_file()]
    assert len(files) > 10
    assert [file for file in files if str(run.folder).encode() in file.read_bytes()] == []
    assert not (run.folder / "out.part").exists()


def test_a_folder_that_is_there_and_a_run_that_is_not(run, tmp_path, capsys):
    assert run.main("--mode=export", f"--export_to={run.folder}/out") == 2
    assert "out is there already: name another --export_to, or move it away." in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run.main("--mode=export", f"--export_to={tmp_path}/file/out") == 2
    assert re.search(r"--export_to=.*can't be written \(.*\): name another folder", capsys.readouterr().err)
    config = load(CONFIG, SETTINGS)
    with pytest.raises(InputError, match="holds no checkpoint: train first"):
        export.export(profiles, config, tmp_path, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


# ---- tensors that nothing trained


@pytest.mark.parametrize("trains", ["last_layers", "lora"])
def test_untrained_tensors_are_the_sources_bytes_in_several_shards(trains, tmp_path):
    source = tied_model(tmp_path / "base", ml_dtypes.bfloat16)
    changes = {"lm.source": str(source), "lm.dtype": "bfloat16", "policy.trains": trains}
    r = recommender(load(CONFIG, SETTINGS | changes), tmp_path)
    weights.save_decoder(tmp_path / "a", untrained(r), 8, 9000)
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    count = len(files)
    assert count > 3 and files[0].name == f"model-00001-of-{count:05d}.safetensors"
    index = json.loads((tmp_path / "a/model.safetensors.index.json").read_text())
    theirs, ours = load_file(source / "model.safetensors"), {}
    for file in files:
        part = load_file(file)
        assert sum(a.nbytes for a in part.values()) <= 9000 or len(part) == 1
        assert all(index["weight_map"][key] == file.name for key in part)
        ours |= part
    assert ours.keys() == theirs.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in theirs.values())
    for key, a in theirs.items():
        assert (a.dtype, a.shape, a.tobytes()) == (ours[key].dtype, ours[key].shape, ours[key].tobytes()), key
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16" and config["tie_word_embeddings"] is True
    model, again = causal(tmp_path / "a"), causal(source)
    assert model.dtype == torch.bfloat16
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    loaded = decoder.Decoder.load(tmp_path / "a", "bfloat16")
    assert loaded.spec == decoder.Decoder.load(source, "bfloat16").spec and loaded.source.end_ids == {5}
    with safe_open(files[0], "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_bfloat16_source_computed_in_float32_keeps_its_values(tmp_path):
    source = tied_model(tmp_path / "base", ml_dtypes.bfloat16)
    r = recommender(load(CONFIG, SETTINGS | {"lm.source": str(source)}), tmp_path)
    weights.save_decoder(tmp_path / "a", untrained(r))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "a", source))
    for key, a in theirs.items():
        assert ours[key].dtype == np.float32
        np.testing.assert_array_equal(ours[key], a.astype(np.float32))


def test_the_head_alone_of_listed_layers_and_a_high_rank(tmp_path, capsys, monkeypatch):
    """An adapter of the head alone; frozen layers in a list; the warning about ranks; a text that would be markup."""
    changes = LORA | {"policy.lora.targets": "head", "policy.lora.rank": "520", "lm.layers": "listed"}
    r = recommender(load(CONFIG, SETTINGS | changes), tmp_path)
    trained = r.fresh("lm")
    trained["head"]["lora"]["b"] += 0.01
    note = {"position": 0, "step": 1}
    r.data.catalogue.titles[0] = r.data.catalogue.texts[0] = '```\n"""{prompt}\n'
    state = {"lm": Part(trained, None)}
    monkeypatch.setattr(train, "trained", lambda *a: (r, [None], state, note))
    export.export(profiles, r.config, tmp_path, tmp_path / "out")
    said = capsys.readouterr().out
    assert "warning: servers such as vLLM refuse adapters of a rank above 512, and this one's is 520" in said
    weights.save_decoder(tmp_path / "base", untrained(r))
    model = peft.PeftModel.from_pretrained(causal(tmp_path / "base"), tmp_path / "out/lm_adapter")
    tokens = torch.arange(6, 26)[None]
    with torch.no_grad():
        merged = causal(tmp_path / "out/lm")(tokens).logits
        np.testing.assert_allclose(model(tokens).logits, merged, atol=2e-4)
    card = (tmp_path / "out/embedder/README.md").read_text()
    assert "The run has not ended yet." in card and card.count("\n```") == 2
