"""Checkpoint folders: what a whole one holds, and one clear message for each kind of broken one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.errors import UserError
from onebase.model import checkpoint
from onebase.model.hf import HFCausalLM
from onebase.model.transformer import Transformer
from onebase.tokenizer import ChatTokenizer


@pytest.fixture
def folder(make_config: Any, make_model: Any, tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "checkpoint", make_model(make_config(), 1), tiny_tokenizer)
    return tmp_path / "checkpoint"


def edit_config(folder: Path, **changes: Any) -> None:
    """Replace fields; a field set to None is taken out."""
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in (config | changes).items() if k not in changes or v is not None}
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path | str, dtype: str = "float32") -> str:
    """The message of the error that loading gives."""
    with pytest.raises(UserError) as error:
        checkpoint.load(folder, dtype=dtype)
    return str(error.value)


# -- whole folders


def test_a_saved_folder_is_complete(folder: Path, tiny_tokenizer: ChatTokenizer) -> None:
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    for field, value in {
        "model_type": "deepseek_v3", "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "moe_router_dtype": "float32", "torch_dtype": "float32", "eos_token_id": tiny_tokenizer.eos_id,
        "bos_token_id": tiny_tokenizer.bos_id, "pad_token_id": tiny_tokenizer.pad_id,
        "num_key_value_heads": config["num_attention_heads"],
    }.items():  # fmt: skip
        assert config[field] == value, field
    again = ChatTokenizer.load(str(folder))
    chat = [{"role": "user", "content": "12 plus 3?"}]
    assert again.prompt_ids(chat) == tiny_tokenizer.prompt_ids(chat)
    assert again.hf.chat_template == tiny_tokenizer.hf.chat_template
    assert not [p for p in folder.parent.iterdir() if p != folder]  # nothing is left aside


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_trip_keeps_every_bit(
    dtype: str, make_config: Any, make_model: Any, tiny_tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    model = checkpoint.to_dtype(make_model(make_config(), 2), checkpoint.DTYPES[dtype])
    checkpoint.save(tmp_path / "c", model, tiny_tokenizer)
    assert json.loads((tmp_path / "c" / "config.json").read_text())["torch_dtype"] == dtype
    again, _ = checkpoint.load(tmp_path / "c", dtype=dtype)
    assert isinstance(again, Transformer) and again.config == model.config
    for name, tensor in model.state_dict().items():
        ours = again.state_dict()[name]
        assert ours.dtype == tensor.dtype and torch.equal(ours, tensor), name
    biases = [n for n in again.state_dict() if n.endswith("e_score_correction_bias")]
    assert biases and all(again.state_dict()[n].dtype == torch.float32 for n in biases)


def test_saving_again_replaces_the_folder_and_a_failure_leaves_it(
    folder: Path, make_config: Any, make_model: Any, tiny_tokenizer: ChatTokenizer
) -> None:
    other = make_model(make_config(), 5)
    checkpoint.save(folder, other, tiny_tokenizer)
    before = (folder / "model.safetensors").read_bytes()
    again, _ = checkpoint.load(folder)
    assert torch.equal(again.head_weight, other.head_weight)

    class Broken:
        bos_id = eos_id = pad_id = 0

        def save(self, where: Path) -> None:
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        checkpoint.save(folder, make_model(make_config(), 6), Broken())  # type: ignore[arg-type]
    assert (folder / "model.safetensors").read_bytes() == before
    assert not [p for p in folder.parent.iterdir() if p != folder]


def test_a_folder_without_the_prediction_block_is_read_without_it(folder: Path) -> None:
    def without(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.3.")]:
            del tensors[name]

    edit_weights(folder, without)
    model, _ = checkpoint.load(folder)
    assert isinstance(model, Transformer) and model.mtp is None
    assert model.config.num_nextn_predict_layers == 0


def test_weights_in_several_files_are_read(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole, _ = checkpoint.load(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for i in range(3):
        save_file({n: tensors[n] for n in names[i::3]}, folder / f"model-{i + 1:05d}-of-00003.safetensors")
    again, _ = checkpoint.load(folder)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["llama", "qwen2 tied"])
def test_any_causal_lm_folder_is_an_init(
    kind: str, randomise_weights: Any, tiny_tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    """Loaded through transformers, saved by us, and loaded by both again: the same logits."""
    from transformers import (
        AutoModelForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    shape: dict[str, Any] = {
        "vocab_size": 288, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    made = (
        LlamaForCausalLM(LlamaConfig(**shape))
        if kind == "llama"
        else Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
    ).eval()
    randomise_weights(made, 3, 0.0)
    made.save_pretrained(tmp_path / "theirs")
    tiny_tokenizer.save(tmp_path / "theirs")
    model, tokenizer = checkpoint.load(tmp_path / "theirs")
    assert isinstance(model, HFCausalLM)
    checkpoint.save(tmp_path / "ours", model, tokenizer)
    again, _ = checkpoint.load(tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = made(ids).logits
        for m in (model, again):
            m.eval()
            torch.testing.assert_close(m(ids).hidden_BTD @ m.head_weight.T, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-5, atol=1e-5)


# -- broken folders


@pytest.mark.parametrize("keep", [0, 7, 900, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    """Cut in the length field, in the header, and one byte before the end."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in refusal(folder)


def test_garbage_in_place_of_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 12) + b"not json at all" * 9)
    assert str(file) in refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    def wider(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.o_proj.weight"] = torch.zeros(32, 99)

    edit_weights(folder, wider)
    told = refusal(folder)
    assert str(folder) in told and "model.layers.1.self_attn.o_proj.weight" in told
    assert "99" in told and "12" in told


def test_a_weight_that_would_broadcast_is_refused(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"model.norm.weight": torch.ones(1)}))
    assert "model.norm.weight" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.layers.2.mlp.experts.7.up_proj.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "lm_head.weight",
        "model.layers.3.hnorm.weight",
    ],
)
def test_a_missing_weight(folder: Path, name: str) -> None:
    edit_weights(folder, lambda tensors: tensors.__delitem__(name))
    told = refusal(folder)
    assert str(folder) in told and "missing" in told
    assert name.rsplit(".", 2)[0] in told


def test_weights_that_have_no_place(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"model.layers.1.self_attn.k_norm.weight": torch.ones(4)}))
    assert "model.layers.1.self_attn.k_norm.weight" in refusal(folder)


def test_one_expert_too_many_in_the_config(folder: Path) -> None:
    edit_config(folder, n_routed_experts=10)
    told = refusal(folder)
    assert str(folder) in told and "missing" in told or "shape" in told


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    told = refusal(folder)
    assert str(folder) in told and "safetensors" in told


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    told = refusal(folder)
    assert str(folder) in told and "config.json" in told


def test_an_empty_folder_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(tmp_path / "empty")
    told = refusal(tmp_path / "nowhere" / "checkpoint")
    assert str(tmp_path / "nowhere" / "checkpoint") in told


@pytest.mark.parametrize("content", ["", '{"model_type": "deep', "[]", "null", '"deepseek_v3"', "\x80\x81"])
def test_a_damaged_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert str(folder / "config.json") in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"n_group": 3}, "groups"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"type": "yarn", "factor": "much"}}, "factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"num_key_value_heads": 1}, "num_key_value_heads"),
    ],
)
def test_a_config_that_asks_for_what_this_model_is_not(
    folder: Path, changes: dict[str, Any], told: str
) -> None:
    edit_config(folder, **changes)
    message = refusal(folder)
    assert str(folder / "config.json") in message and told in message


def test_another_architecture_that_transformers_does_not_know(folder: Path) -> None:
    edit_config(folder, model_type="megabyte_x", architectures=["MegabyteXForCausalLM"])
    assert str(folder) in refusal(folder)


def test_an_architecture_that_is_no_causal_lm(folder: Path) -> None:
    edit_config(folder, model_type="t5", architectures=["T5ForConditionalGeneration"])
    assert str(folder) in refusal(folder)


def test_weights_of_one_architecture_under_the_config_of_another(
    folder: Path, tiny_tokenizer: ChatTokenizer
) -> None:
    """transformers fills what is missing with random numbers and warns; a run must not start from those."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=288, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2
    ).save_pretrained(folder)
    assert str(folder) in refusal(folder)


@pytest.fixture
def llama_folder(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"vocab_size": 288, "hidden_size": 16, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1, num_attention_heads=2))
    model.save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save(tmp_path / "llama")
    checkpoint.load(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_transformers_folder_cut_short(llama_folder: Path) -> None:
    file = llama_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    assert str(llama_folder) in refusal(llama_folder)


def test_a_transformers_folder_with_a_weight_missing(llama_folder: Path) -> None:
    """transformers only warns and fills in random numbers; a run must not start from those."""
    edit_weights(llama_folder, lambda t: t.__delitem__("model.layers.0.self_attn.o_proj.weight"))
    told = refusal(llama_folder)
    assert str(llama_folder) in told and "o_proj" in told


def test_a_transformers_folder_with_a_weight_of_another_shape(llama_folder: Path) -> None:
    edit_weights(llama_folder, lambda t: t.update({"model.norm.weight": torch.ones(17)}))
    assert str(llama_folder) in refusal(llama_folder)


def test_a_tokenizer_of_another_vocabulary(folder: Path) -> None:
    from onebase.tokenizer import train

    larger = train((f"{w}ing and {w}ed\n" for w in ("walk", "talk", "jump", "count", "reason") * 40), 340)
    assert larger.size > 288
    larger.save(folder)
    told = refusal(folder)
    assert str(folder) in told and str(larger.size) in told and "288" in told


@pytest.mark.parametrize("damage", ["missing", "cut short", "not json"])
def test_a_damaged_tokenizer(folder: Path, damage: str) -> None:
    file = folder / "tokenizer.json"
    if damage == "missing":
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / name).unlink(missing_ok=True)
    else:
        file.write_text(file.read_text()[:300] if damage == "cut short" else "tokens!")
    told = refusal(folder)
    assert str(folder) in told and "tokenizer" in told
