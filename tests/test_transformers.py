"""Networks of the transformers library: tiny random ones in memory, and one real checkpoint in float16."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, SHARED, assert_groups_run_in_forward_order
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from thaw import schema
from thaw.errors import UserError
from thaw.model.network import Network, Steps
from thaw.model.tokenizer import Tokenizer, byte_tokenizer
from thaw.model.transformer_body import pooled
from thaw.model.transformers import transformers_network

MINILM = SHARED / "weights" / "minilm"
needs_minilm = pytest.mark.skipif(not MINILM.is_dir(), reason="$THAW_SHARED/weights/minilm is not there")

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
CONVOLUTIONS = {"conv_dim": [16, 16, 16], "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2]}
POSITIONS = {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
SPEECH = SIZE | CONVOLUTIONS | POSITIONS
WHISPER = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48}
TINY: dict[str, dict[str, Any]] = {
    "bert": SIZE,
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48},
    "roberta": SIZE,
    "deberta-v2": SIZE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": SIZE | {"mlp_dropout": 0.1},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2},
    "t5": {"d_model": 32, "num_layers": 3, "d_kv": 16, "num_heads": 2, "d_ff": 48},
    "wav2vec2": SPEECH,
    "wav2vec2 masked": SPEECH | {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "hubert": SPEECH,
    "whisper": WHISPER | DECODER | {"max_source_positions": 50, "dropout": 0.1},
    "audio-spectrogram-transformer": SIZE | {"max_length": 64, "hidden_dropout_prob": 0.1},
    "vit": SIZE | {"image_size": 32, "hidden_dropout_prob": 0.1},
}
TEXTS = ["thaw", "a longer text, so that the other is padded", "größer als ein Byte"]


def build(model: str, outputs: int | None = 3, seed: int = 0, **arguments: Any) -> Network:
    torch.manual_seed(seed)
    options = {**TINY.get(model, {}), **arguments.pop("options", {})}
    return transformers_network(model.split()[0], outputs, weights="none", options=options, **arguments)


def waves(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, length).astype(np.float32) for length in lengths]


def text_batch(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Tensor]:
    ids = tokenizer.encode(texts)["input_ids"]
    length = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [tokenizer.pad_id] * (length - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids]),
    }


def speech_batch(network: Network, sounds: list[np.ndarray]) -> dict[str, Tensor]:
    values, lengths = zip(*map(network.preprocessing["extract"], sounds), strict=True)
    return {
        "input_values": nn.utils.rnn.pad_sequence(list(values), batch_first=True),
        "lengths": torch.tensor(lengths),
    }


def samples(network: Network, count: int = 3) -> Any:
    kind = network.preprocessing["kind"]
    if kind == "text":
        return text_batch(network.preprocessing["tokenizer"], TEXTS[:count])
    if kind == "waveform":
        return speech_batch(network, waves(900, 2000, 1500)[:count])
    size = network.preprocessing["size"]
    return torch.randn(count, network.preprocessing["channels"], size, size)


def rows(inputs: Any, index: int) -> Any:
    return inputs[[index]] if isinstance(inputs, Tensor) else {key: value[[index]] for key, value in inputs.items()}


@pytest.fixture(scope="module", params=TINY)
def network(request: pytest.FixtureRequest) -> Network:
    return build(request.param).eval()


def test_groups_are_a_partition_of_the_parameters(network: Network) -> None:
    grouped = [id(p) for parameters in network.groups.values() for p in parameters.values()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in network.parameters()}
    assert list(network.groups) == ["stem", "block00", "block01", "block02", "head"]
    assert all(network.groups.values())


def test_groups_run_in_forward_order(network: Network) -> None:
    assert_groups_run_in_forward_order(network, samples(network))


def test_head_of_features_is_forward(network: Network) -> None:
    inputs = samples(network)
    with torch.no_grad():
        features = network.features(inputs)
        assert features.shape == (3, network.head.linear.in_features)
        assert features.dtype == torch.float32
        assert features.isfinite().all()
        assert torch.equal(network.head(features), network(inputs))


def test_frozen_groups_are_in_eval_mode_and_the_others_in_train_mode_though_handed_over_in_eval(
    network: Network,
) -> None:
    network.eval()
    groups = list(network.groups)
    network.train_groups(groups[-2:])
    network.train()
    last = {id(p) for p in network.groups[groups[-2]].values()} | {id(p) for p in network.head.parameters()}
    for name, module in network.named_modules():
        own = {id(p) for p in module.parameters()}
        if own:
            assert module.training == bool(own & last), name
        if own and not own & last:
            assert not any(child.training for child in module.modules()), name
    inputs = samples(network)
    first, second = network.features(inputs), network.features(inputs)
    assert not torch.equal(first, second)  # dropout of the last block is active
    network.train_groups(["head"])
    assert torch.equal(network.features(inputs), network.features(inputs))
    network.train_groups(groups)
    assert all(module.training for module in network.modules())
    network.eval()


def test_every_parameter_gets_a_gradient(network: Network) -> None:
    network.train_groups(list(network.groups))
    network.train()
    network(samples(network)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]
    network.zero_grad()
    network.eval()


def test_a_batch_gives_what_its_samples_give_alone(network: Network) -> None:
    norms = getattr(network.body.model.config, "feat_extract_norm", None)
    if norms == "group":
        pytest.skip("group norm over the whole padded wave: such models were pretrained so, without a mask")
    if network.preprocessing["kind"] == "waveform":
        sounds = waves(900, 2000, 1500)
        alone = [network.features(speech_batch(network, [sound])) for sound in sounds]
    elif network.preprocessing["kind"] == "text":
        alone = [network.features(text_batch(network.preprocessing["tokenizer"], [text])) for text in TEXTS]
    else:
        pytest.skip("images have no padding")
    together = network.features(samples(network))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_building_leaves_the_random_state_to_the_initialisation_alone() -> None:
    first, second = build("bert"), build("bert")
    after = torch.get_rng_state()
    build("bert", blocks=r"encoder\.layer\.\d+")
    assert torch.equal(after, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_pooling_against_plain_python(pool: str) -> None:
    values, lengths = torch.randn(3, 5, 4), [5, 2, 1]
    values[1, 2:] = float("nan")  # padding must not even be multiplied
    expected = []
    for sample, length in zip(values.tolist(), lengths, strict=True):
        real = sample[:length]
        mean = [sum(column) / length for column in zip(*real, strict=True)]
        expected.append({"mean": mean, "first": real[0], "last": real[-1]}[pool])
    torch.testing.assert_close(pooled(values, torch.tensor(lengths), pool), torch.tensor(expected))


@pytest.mark.parametrize("model", ["gpt2", "bert"])
def test_gpt_pools_the_last_real_token_whatever_the_batch(model: str) -> None:
    network = build(model, pool="last").eval()
    tokenizer = network.preprocessing["tokenizer"]
    texts = [word * count for count, word in enumerate(["ice ", "thaw ", "water ", "x"] * 2, start=1)]
    together = network(text_batch(tokenizer, texts))
    alone = torch.cat([network(text_batch(tokenizer, [text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    steps = build(model, per_step=True).eval().features(text_batch(tokenizer, texts))
    assert steps.lengths.tolist() == tokenizer.encode(texts)["full_length"]
    last = torch.stack([values[length - 1] for values, length in zip(*steps, strict=True)])
    torch.testing.assert_close(network.features(text_batch(tokenizer, texts)), last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["wav2vec2", "wav2vec2 masked", "hubert"])
def test_speech_steps_follow_the_strides_of_the_convolutions(model: str) -> None:
    network = build(model, per_step=True).eval()
    lengths = [900, 2000, 1500, 7]
    expected = []
    for samples_ in [900, 2000, 1500, 40]:  # 40 samples are the receptive field of one step
        steps = samples_
        for kernel, stride in zip(CONVOLUTIONS["conv_kernel"], CONVOLUTIONS["conv_stride"], strict=True):
            steps = (steps - kernel) // stride + 1
        expected.append(steps)
    outputs = network(speech_batch(network, waves(*lengths)))
    assert isinstance(outputs, Steps)
    assert outputs.lengths.tolist() == expected
    assert outputs.values.shape == (4, max(expected), 3)
    assert expected[-1] == 1


def test_whisper_pools_over_what_was_said_and_not_over_the_silence_behind() -> None:
    network = build("whisper", per_step=True).eval()
    values, length = network.preprocessing["extract"](waves(8000)[0])
    assert values.shape == (80, 100)
    assert length == 50
    steps = network.features(speech_batch(network, waves(8000, 20_000)))
    assert steps.lengths.tolist() == [25, 50]
    assert "embed_positions.weight" in dict(network.body.model.named_buffers())


@pytest.mark.parametrize("model", ["wav2vec2", "whisper", "audio-spectrogram-transformer"])
@pytest.mark.parametrize("length", [1, 900, 40_000])
def test_extract_is_deterministic_and_goes_to_other_processes(model: str, length: int) -> None:
    extract = build(model).preprocessing["extract"]
    wave = waves(length)[0]
    values, steps = extract(wave)
    assert values.dtype == torch.float32
    assert steps >= 1
    assert values.isfinite().all()
    again, _ = pickle.loads(pickle.dumps(extract))(wave.copy())
    assert torch.equal(values, again)
    if model == "wav2vec2" and length == 900:
        torch.testing.assert_close(values, torch.from_numpy((wave - wave.mean()) / wave.std()), atol=1e-4, rtol=0)


def test_spectrum_masking_is_off_unless_asked_for() -> None:
    assert not hasattr(build("wav2vec2").body.model, "masked_spec_embed")
    asked = build("wav2vec2", options={"apply_spec_augment": True, "layerdrop": 0.1})
    assert "body.model.masked_spec_embed" in asked.groups["stem"]
    assert asked.body.model.config.layerdrop == 0.1


def test_the_convolution_of_deberta_joins_the_first_block(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("deberta-v2", **TINY["deberta-v2"], vocab_size=258)
    (tmp_path / "config.json").write_text(
        json.dumps(config.to_dict() | {"conv_kernel_size": 3, "norm_rel_ebd": "layer_norm"})
    )
    byte_tokenizer()._tokenizer.save_pretrained(tmp_path)
    network = transformers_network(str(tmp_path), 2, weights="none").eval()
    assert "body.model.encoder.conv.conv.weight" in network.groups["block00"]
    assert "body.model.encoder.rel_embeddings.weight" in network.groups["stem"]
    tokenizer = network.preprocessing["tokenizer"]
    alone = [network(text_batch(tokenizer, [text])) for text in TEXTS]
    torch.testing.assert_close(network(text_batch(tokenizer, TEXTS)), torch.cat(alone), atol=1e-5, rtol=0)


def test_final_norm_joins_the_last_block() -> None:
    assert "body.model.ln_f.weight" in build("gpt2").groups["block02"]
    assert "body.model.encoder.layer_norm.weight" in build("wav2vec2 masked").groups["block02"]
    assert "body.model.encoder.layer_norm.weight" in build("wav2vec2").groups["stem"]


def test_the_limit_of_a_text_is_the_models_own() -> None:
    limits = {model: build(model).preprocessing["max_length"] for model in ("bert", "roberta", "gpt2", "t5")}
    assert limits == {"bert": 512, "roberta": 511, "gpt2": 1024, "t5": None}  # roberta counts from padding + 1
    network = build("roberta", options={"max_position_embeddings": 20}).eval()
    tokenizer, limit = network.preprocessing["tokenizer"], network.preprocessing["max_length"]
    ids = torch.tensor(tokenizer.encode(["x" * 50], max_length=limit)["input_ids"])
    assert network({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).shape == (1, 3)


def test_language_modelling_keeps_the_pretrained_head() -> None:
    network = build("gpt2", outputs=None, head="pretrained").eval()
    assert list(network.groups) == ["stem", "block00", "block01", "block02"]  # tied weights count once, in the stem
    assert network.head.linear.weight is network.body.model.wte.weight
    assert not network.new_head
    assert sum(len(ps) for ps in network.groups.values()) == len(list(network.parameters()))
    outputs = network(samples(network))
    assert isinstance(outputs, Steps)
    assert outputs.values.shape[-1] == network.preprocessing["tokenizer"].vocab_size
    assert build("gpt2").new_head
    untied = build("gpt2", outputs=None, head="pretrained", options={"tie_word_embeddings": False})
    assert list(untied.groups["head"]) == ["head.linear.weight"]


def test_a_language_model_comes_back_with_its_head(tmp_path: Path) -> None:
    for tied in (True, False):
        config = transformers.AutoConfig.for_model(
            "gpt2", **TINY["gpt2"], vocab_size=258, pad_token_id=0, tie_word_embeddings=tied
        )
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        whole, body = tmp_path / f"whole-{tied}", tmp_path / f"body-{tied}"
        for part, path in ((model, whole), (model.base_model, body)):
            part.save_pretrained(path)
            byte_tokenizer()._tokenizer.save_pretrained(path)
        network = transformers_network(str(whole), head="pretrained").eval()
        inputs = samples(network)
        assert torch.equal(network(inputs).values, model(**inputs).logits)
        new = transformers_network(str(whole), 3, pool="last").eval()
        again = transformers_network(str(body), 3, pool="last").eval()
        assert torch.equal(new.features(inputs), again.features(inputs))
        if tied:
            assert "head" not in transformers_network(str(body), head="pretrained").groups
        else:
            with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
                transformers_network(str(body), head="pretrained")


def test_of_an_encoder_decoder_the_encoder_is_loaded(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("whisper", **TINY["whisper"])
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    build("whisper").preprocessing["extract"].extractor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not"):  # the file knows whole seconds only: 30 of them
        transformers_network(str(tmp_path), 3)
    transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained(tmp_path)
    network = transformers_network(str(tmp_path), 3, per_step=True).eval()
    inputs = samples(network)
    expected = model.encoder(inputs["input_values"]).last_hidden_state
    assert torch.equal(network.features(inputs).values, expected)
    assert not [name for name, _ in network.named_parameters() if "decoder" in name]


@pytest.mark.parametrize(
    ("model", "reason"),
    [("bert", "'bert' looks ahead"), ("distilbert", "no causal language"), ("vit", "no causal language")],
)
def test_what_looks_ahead_is_no_language_model(model: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        build(model, outputs=None, head="pretrained")
    assert "model=gpt2" in str(error.value)


def test_blocks_can_be_named_and_wrong_ones_are_refused() -> None:
    assert list(build("bert", blocks=r"encoder\.layer\.[01]").groups) == ["stem", "block00", "block01", "head"]
    for blocks in ("nothing", "pooler"):
        with pytest.raises(UserError, match="matches none") as error:
            build("bert", blocks=blocks)
        assert r"model.blocks='encoder\.layer\.\d+'" in str(error.value)
    with pytest.raises(UserError, match="'albert' has no such list"):
        build("albert", options=SIZE | {"embedding_size": 16})
    with pytest.raises(UserError, match="largest list in 'albert' is not one"):
        build("albert", options=SIZE | {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "clip"}, "vision_config and text_config"),
        ({"model": "bert", "options": {"hiden_size": 32}}, "Did you mean 'hidden_size'"),
        ({"model": "bert", "options": {"hidden_size": 33}}, "must suit 'bert'.*33"),
        ({"model": "bert", "options": {"hidden_size": "big"}}, "must suit 'bert'.*'big'"),
        ({"model": "bert", "options": {"vocab_size": 100}}, "tokenizer's 258 tokens"),
        ({"model": "berd"}, "Did you mean 'bert'"),
        ({"model": "fnet", "options": {"hidden_size": 32, "num_hidden_layers": 2}}, "must not read padding"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(**arguments)
    assert len(str(error.value).splitlines()) <= 6


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none", "a/b/c", "model.safetensors/", "../none", ""])
def test_a_path_that_does_not_exist_is_refused_before_anything_runs(name: str) -> None:
    annotation = schema.signature(transformers_network)["name"].annotation
    assert "must be an existing folder" in schema.check_value("model.name", name, annotation)[0]
    for good in ("bert", "google-bert/bert-base-uncased", "MIT/ast-finetuned-audioset-10-10-0.4593", str(ROOT)):
        assert not schema.check_value("model.name", good, annotation)
    blocks = schema.signature(transformers_network)["blocks"].annotation
    assert "regular expression" in schema.check_value("model.blocks", "(", blocks)[0]
    assert not schema.check_value("model.blocks", None, blocks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as `save_pretrained` leaves it, with a tokenizer."""
    path = tmp_path_factory.mktemp("bert")
    build("bert").body.model.save_pretrained(path)
    byte_tokenizer(token_types=True)._tokenizer.save_pretrained(path)
    return path


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


def test_saved_and_loaded_again_every_bit_is_the_same(folder: Path) -> None:
    saved, loaded = build("bert", seed=0), transformers_network(str(folder), 3)
    assert loaded.groups.keys() == saved.groups.keys()
    for (name, one), other in zip(saved.body.named_parameters(), loaded.body.parameters(), strict=True):
        assert torch.equal(one, other), name
    inputs = samples(saved.eval())
    assert torch.equal(saved.features(inputs), loaded.eval().features(inputs))
    assert loaded.preprocessing["tokenizer"].encode(TEXTS) == saved.preprocessing["tokenizer"].encode(TEXTS)


def test_options_change_the_configuration_of_a_checkpoint(folder: Path) -> None:
    network = transformers_network(str(folder), 3, options={"hidden_dropout_prob": 0.4})
    assert network.body.model.embeddings.dropout.p == 0.4
    with pytest.raises(UserError, match=r"encoder\.layer\.3.* and 15 more is missing"):
        transformers_network(str(folder), 3, options={"num_hidden_layers": 4})
    with pytest.raises(UserError, match="has another shape"):
        transformers_network(str(folder), 3, options={"intermediate_size": 64})


def test_a_hole_in_the_weights_is_never_filled_at_random(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path) / "model.safetensors"
    state = load_file(path)
    del state["encoder.layer.1.attention.self.query.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.attention\.self\.query\.weight is missing"):
        transformers_network(str(path.parent), 3)


@pytest.mark.fault("S8", "S9")
def test_faulty_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    weights = path / "model.safetensors"
    for damaged in (weights.read_bytes()[:3000], b"xx"):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            transformers_network(str(path), 3)
    weights.rename(path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has only pytorch_model\.bin, a format that can run code"):
        transformers_network(str(path), 3)
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="has none"):
        transformers_network(str(path), 3)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).unlink(missing_ok=True)
    with pytest.raises(UserError, match="must have a tokenizer"):
        transformers_network(str(path), 3)
    (path / "config.json").write_text('{"model_type": "zzz", "auto_map": {"AutoConfig": "evil.Config"}}')
    with pytest.raises(UserError, match="is never run"):
        transformers_network(str(path), 3)
    (path / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        transformers_network(str(path), 3)


def test_a_speech_checkpoint_must_say_how_its_sound_is_prepared(tmp_path: Path) -> None:
    network = build("wav2vec2 masked")
    network.body.model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        transformers_network(str(tmp_path), 3, options={"mask_time_prob": 0.0})
    network.preprocessing["extract"].extractor.save_pretrained(tmp_path)
    loaded = transformers_network(str(tmp_path), 3)  # its mask embedding is not there, and not needed
    assert loaded.body.mask_waveform
    inputs = samples(network)
    assert torch.equal(loaded.eval().features(inputs), network.eval().features(inputs))


def test_an_image_checkpoint_brings_its_own_preprocessing(tmp_path: Path) -> None:
    build("vit").body.model.save_pretrained(tmp_path)
    assert transformers_network(str(tmp_path), 3).preprocessing["mean"] == [0.5, 0.5, 0.5]
    processor = transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2)
    processor.save_pretrained(tmp_path)
    preprocessing = transformers_network(str(tmp_path), 3).preprocessing
    assert preprocessing == {
        "kind": "image",
        "channels": 3,
        "size": 32,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }


@pytest.mark.fault("H10")
def test_a_hub_name_without_network_or_cache_names_three_ways_out(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        transformers_network("google-bert/bert-base-uncased", 2)
    assert len(str(error.value).splitlines()) <= 3
    for way in ("connect to the network", "model.name=/path/to/folder", "model.weights=none"):
        assert way in str(error.value)


@needs_minilm
def test_a_float16_checkpoint_trains_in_float32() -> None:
    assert {tensor.dtype for tensor in load_file(MINILM / "model.safetensors").values()} == {torch.float16}
    network = transformers_network(str(MINILM), 2)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert list(network.groups) == ["stem", *(f"block{index:02d}" for index in range(6)), "head"]
    assert network.preprocessing["max_length"] == 512
    inputs = text_batch(network.preprocessing["tokenizer"], ["It was fun.", "It was no fun at all, I left."])
    network.train_groups(list(network.groups))
    network.eval()
    alone = [network.features(text_batch(network.preprocessing["tokenizer"], [text])) for text in ["It was fun."]]
    torch.testing.assert_close(network.features(inputs)[:1], alone[0], atol=1e-5, rtol=0)
    network.train()
    before = copy.deepcopy(network.body.model.encoder.layer[0].output.dense.weight)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    nn.functional.cross_entropy(network(inputs), torch.tensor([1, 0])).backward()
    optimizer.step()
    moved = (network.body.model.encoder.layer[0].output.dense.weight - before).abs()
    assert 0 < moved.max() < 2e-6  # too small a step for most float16 weights


def test_every_yaml_binds_to_the_signature_and_is_short() -> None:
    paths = [path for path in (ROOT / "conf" / "model").glob("*.yaml") if "transformers" in path.read_text()]
    assert len(paths) >= 13
    known = schema.signature(transformers_network)
    for path in paths:
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert path.read_text().startswith("# ")
        assert len(path.read_text().splitlines()) <= 10
        for key, value in node.items():
            if key not in ("defaults", "_target_") and value != "???":
                assert not schema.check_value(f"model.{key}", value, known[key].annotation), path.name


def test_what_a_fixed_window_cuts_off_is_known() -> None:
    models = ("wav2vec2", "audio-spectrogram-transformer", "whisper")
    found = {model: build(model).preprocessing["extract"].seconds for model in models}
    assert found["wav2vec2"] is None
    assert 0 < found["audio-spectrogram-transformer"] < 60
    assert 0 < found["whisper"] < 60


def test_the_padding_token_stands_in_the_models_own_configuration() -> None:
    network = build("gpt2")
    assert network.body.model.config.pad_token_id == network.preprocessing["tokenizer"].pad_id
