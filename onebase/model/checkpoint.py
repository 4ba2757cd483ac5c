"""Checkpoint folders: Hugging Face `deepseek_v3` in and out, and any Hugging Face causal LM as `init`.

A folder holds config.json, model.safetensors, the tokenizer's files and the chat template.  Our modules
carry the format's names but for three things, mapped here and nowhere else: experts are stacked in memory
and single in the file (`experts.gate_up_proj` [E, 2F, D] <-> `experts.{e}.gate_proj`, `up_proj`), the
prediction block is layer num_hidden_layers with `shared_head.norm` and copies of embedding and head, and
`model.` stands before all but the head.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.errors import UserError
from onebase.files import atomic_folder
from onebase.model.config import ModelConfig
from onebase.model.hf import HFCausalLM
from onebase.model.transformer import Transformer
from onebase.tokenizer import ChatTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def to_format(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """(name in the file, tensor) of every weight; views, not copies."""
    last = model.config.num_hidden_layers
    for name, tensor in model.state_dict().items():
        if name.startswith("mtp."):
            rest = name.removeprefix("mtp.")
            rest = "shared_head.norm.weight" if rest == "norm.weight" else rest
            name = f"layers.{last}.{rest}"
        name = name if name.startswith("lm_head") else f"model.{name}"
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                yield f"{base}{e}.gate_proj.weight", gate
                yield f"{base}{e}.up_proj.weight", up
        elif name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            for e, down in enumerate(tensor):
                yield f"{base}{e}.down_proj.weight", down
        else:
            yield name, tensor
    if model.mtp is not None:
        yield f"model.layers.{last}.embed_tokens.weight", model.embed_tokens.weight
        yield f"model.layers.{last}.shared_head.head.weight", model.lm_head.weight


@torch.no_grad()
def load_format(model: Transformer, tensors: dict[str, Tensor], where: str) -> None:
    """Fill the model from the format's names; every weight must be there with its shape.  A file without the
    prediction block is accepted by a model that has none (`config_of` sees to that)."""
    missing = []
    for name, ours in to_format(model):
        given = tensors.pop(name, None)
        if name.endswith(
            (f"layers.{model.config.num_hidden_layers}.embed_tokens.weight", ".shared_head.head.weight")
        ):
            continue  # copies of the shared ones
        if given is None:
            missing.append(name)
        elif given.shape != ours.shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(given.shape)}, config.json asks for {tuple(ours.shape)}. "
                "The weights and the config do not belong together."
            )
        else:
            ours.copy_(given)
    if missing:
        raise UserError(
            f"{where}: {len(missing)} weights are missing, first {missing[0]}. The file is cut short."
        )
    extra = [n for n in tensors if "rotary_emb" not in n and n != "lm_head.weight"]
    if extra:
        raise UserError(f"{where}: {len(extra)} weights have no place in this model, first {extra[0]}.")


def save(folder: Path, model: Transformer | HFCausalLM, tokenizer: ChatTokenizer) -> None:
    """Write a whole checkpoint folder or nothing (written aside, synced, renamed)."""
    from safetensors.torch import save_file

    with atomic_folder(folder) as aside:
        if isinstance(model, HFCausalLM):
            model.model.save_pretrained(aside)
        else:
            tensors = {n: t.detach().to("cpu").contiguous().clone() for n, t in to_format(model)}
            save_file(tensors, str(aside / "model.safetensors"), metadata={"format": "pt"})
            dtype = str(model.head_weight.dtype).removeprefix("torch.")
            config = model.config.to_hf(
                bos_token_id=tokenizer.bos_id,
                eos_token_id=tokenizer.eos_id,
                pad_token_id=tokenizer.pad_id,
                dtype=dtype,
            )
            (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save(aside)


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json there; a checkpoint is a Hugging Face model folder.")
    try:
        config = json.loads(path.read_text())
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON ({e}). The file is damaged or cut short.") from e
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds {type(config).__name__}, expected the fields of a model's config")
    return config


def load(
    origin: str | Path, device: str = "cpu", dtype: str = "float32"
) -> tuple[Transformer | HFCausalLM, ChatTokenizer]:
    """The model and tokenizer of a folder (ours or any Hugging Face causal LM) or of a hub id."""
    folder = Path(origin)
    if not folder.is_dir():
        return HFCausalLM.from_pretrained(str(origin), device, DTYPES[dtype]), ChatTokenizer.load(str(origin))
    config = read_config(folder)
    native = config.get("model_type") == "deepseek_v3"
    shape = ModelConfig.from_hf(config, str(folder / "config.json")) if native else None
    tokenizer = ChatTokenizer.load(str(folder))
    if shape is None:
        model: Transformer | HFCausalLM = HFCausalLM.from_pretrained(str(folder), device, DTYPES[dtype])
        rows = model.head_weight.shape[0]
    else:
        model = _load_native(folder, shape, device, DTYPES[dtype])
        rows = model.config.vocab_size
    if tokenizer.size > rows:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.size} entries, the model {rows} rows. "
            "The tokenizer is another model's; put the right one into the folder."
        )
    return model, tokenizer


def _load_native(folder: Path, shape: ModelConfig, device: str, dtype: torch.dtype) -> Transformer:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no *.safetensors there; onebase reads weights in that format only.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(str(file))
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file}: cannot be read ({e}). The file is damaged or cut short.") from e
    if f"model.layers.{shape.num_hidden_layers}.eh_proj.weight" not in tensors:
        shape = shape.model_copy(update={"num_nextn_predict_layers": 0})
    model = Transformer(shape)
    load_format(model, tensors, str(folder))
    return to_dtype(model, dtype).to(device)


def to_dtype(model: Transformer, dtype: torch.dtype) -> Transformer:
    """Cast the weights; the router's selection bias and RoPE's frequencies stay float32."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    return model
