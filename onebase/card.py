"""The model card: README.md of a checkpoint folder, with the front matter that the Hugging Face hub reads.

Everything in it is read from the recipe, from config.json, from the headers of the weight files and from the
stage's last numbers; nothing is claimed beyond them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onebase.files import atomic_write
from onebase.recipe import Grpo, Pretrain, Recipe, Sft, Source

KINDS = {
    "pretrain": "next-token training on packed documents",
    "sft": "supervised fine-tuning, loss on the assistant's last turn",
    "grpo": "reinforcement learning with verifiable rewards (GRPO)",
}
SHAPE = (
    ("hidden size", "hidden_size"),
    ("layers", "num_hidden_layers"),
    ("attention heads", "num_attention_heads"),
    ("rank of the cached latent", "kv_lora_rank"),
    ("routed experts", "n_routed_experts"),
    ("shared experts", "n_shared_experts"),
    ("experts per token", "num_experts_per_tok"),
    ("multi-token prediction depth", "num_nextn_predict_layers"),
    ("vocabulary", "vocab_size"),
    ("longest context it was configured for", "max_position_embeddings"),
)


def write(
    folder: Path, *, recipe: Recipe, stage: str, summary: Mapping[str, float], data: Sequence[Source]
) -> Path:
    """Write README.md into the checkpoint folder of `stage`; `summary` holds its last numbers."""
    folder = Path(folder)
    path = folder / "README.md"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    line = lineage(recipe, stage)
    origin = recipe.stages[line[0]].init
    parts = [
        _front_matter(origin),
        f"# {recipe.name}: {stage}\n\n{_what(config, stage, recipe.stages[stage].kind, line, origin)}",
        f"## Shape\n\n{_shape(config, folder)}",
        f"## Stages\n\n{_stages(recipe, line)}",
        f"## Data of the last stage\n\n{_data(data)}",
    ]
    if summary:
        told = [f"| {key} | {value:.6g} |" for key, value in summary.items() if value is not None]
        head = "Measured by the training stage itself; `report.html` of the run has the evaluation.\n\n"
        parts.append("## Last numbers\n\n" + head + "\n".join(["| number | value |", "|---|---|", *told]))
    parts += [f"## Use\n\n{_use(stage)}", f"## Licence\n\n{_licence(origin)}"]
    atomic_write(path, "\n\n".join(parts) + "\n")
    return path


def lineage(recipe: Recipe, stage: str) -> list[str]:
    """The stages whose weights led to `stage`, oldest first."""
    line = [stage]
    while (init := recipe.stages[line[0]].init) in recipe.stages:
        assert init is not None and init not in line, f"cycle at {init}"
        line.insert(0, init)
    return line


def parameters(folder: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """(all, active for one token) weights, those of the multi-token prediction block left out."""
    whole = routed = 0
    beyond = f"model.layers.{config.get('num_hidden_layers')}."
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(file).items():
            if name == "__metadata__" or name.startswith(beyond):
                continue
            count = 1
            for size in entry["shape"]:
                count *= size
            whole += count
            routed += count if ".experts." in name else 0
    share = config.get("num_experts_per_tok", 1) / (config.get("n_routed_experts") or 1)
    return whole, round(whole - routed * (1 - share)) if config.get("n_routed_experts") else whole


def _header(file: Path) -> dict[str, Any]:
    """Names and shapes: a safetensors file begins with the header's length (8 bytes) and the header."""
    with open(file, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        return json.loads(f.read(length))


def _front_matter(origin: str | None) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [onebase]"]
    lines.append("license: apache-2.0" if origin is None else "license: other")
    if origin is not None and not Path(origin).is_dir():
        lines.append(f"base_model: {json.dumps(origin)}")
    return "\n".join(["---", *lines, "---"])


def _what(config: Mapping[str, Any], stage: str, kind: str, line: Sequence[str], origin: str | None) -> str:
    form = (
        "A model of DeepSeek-V3's form: latent attention, a mixture of fine-grained experts with shared "
        "ones, balanced by a selection bias."
        if config.get("model_type") == "deepseek_v3"
        else f"A `{config.get('model_type')}` model."
    )
    way = " → ".join(f"`{name}`" for name in line)
    return (
        f"{form} Trained with onebase, from {_named(origin)}: {way}. "
        f"Last stage, `{stage}`: {KINDS.get(kind, kind)}.\n\n"
        "A thought, where the model writes one, stands between `<think>` and `</think>`; the answer follows. "
        "Outside of the data below nothing was measured: do not rely on it there."
    )


def _named(origin: str | None) -> str:
    """Where the weights began; of a local folder the name only, the rest is the user's own."""
    return "new weights" if origin is None else f"`{Path(origin).name if Path(origin).is_dir() else origin}`"


def _shape(config: Mapping[str, Any], folder: Path) -> str:
    whole, active = parameters(folder, config)
    rows = [("parameters", f"{whole:,}"), ("active for one token", f"{active:,}")]
    rows += [(label, f"{config[key]}") for label, key in SHAPE if config.get(key) is not None]
    return "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


def _stages(recipe: Recipe, line: Sequence[str]) -> str:
    told = []
    for name in line:
        stage = recipe.stages[name]
        assert isinstance(stage, Pretrain | Sft | Grpo), f"{name}: {stage.kind} makes no weights"
        if isinstance(stage, Grpo):
            rewards = ", ".join(f"{t.weight:g} × {t.verifier}" for t in stage.rewards)
            size = f"{stage.prompts} prompts × {stage.group_size} completions; reward: {rewards}"
        else:
            size = f"{stage.batch.rows} × {stage.batch.length} tokens"
        told.append(f"1. `{name}`: {KINDS[stage.kind]}; {stage.steps:,} steps of {size}; {stage.optim.name}")
    return "\n".join(told) + f"\n\nSeed {recipe.seed}, {recipe.dtype}."


ORIGINS = {
    "world": "generated problems",
    "path": "files",
    "hub": "data set",
    "stage": "rows of stage",
    "corpus": "prepared corpus",
}


def _data(data: Sequence[Source]) -> str:
    total = sum(s.weight for s in data)
    told = []
    for s in data:
        kind, name = next((k, v) for k in ORIGINS if (v := getattr(s, k)) is not None)
        text = (
            f"- {ORIGINS[kind]} `{name}`, {100 * s.weight / total:.3g} % of the documents, split `{s.split}`"
        )
        if s.world is not None and s.styles:
            text += ", styles " + ", ".join(f"{style} {weight:g}" for style, weight in s.styles.items())
        told.append(text)
    return "\n".join(told)


def _use(stage: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
```

Or `onebase chat FOLDER`, where FOLDER is this folder or the run's stage `{stage}`. With `think_open=True` the
chat template opens the thought in the prompt; earlier thoughts are dropped from later turns."""


def _licence(origin: str | None) -> str:
    if origin is None:
        return "Apache-2.0."
    return f"The weights derive from {_named(origin)}, whose licence applies."
