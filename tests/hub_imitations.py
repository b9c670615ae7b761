"""Imitations of the repositories on the hub that the pages name, at small size and with random weights.

Their form is that of transformers 4.27 to 4.47: configurations with every setting written out and without
`image_token_index`, `preprocessor_config.json` without `processor_config.json`, sharded float32 safetensors beside
pickles, and the files of slow tokenizers beside tokenizer.json. A token is a letter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.models.blip2.model import NETWORK_CLASSES
from blip2cap.models.registry import recognise

LETTERS = [*"abcdefghijklmnopqrstuvwxyzAQS?:.0123456789"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """The differences between repositories."""

    text: str
    """opt, t5 or llama; bert: image-text matching, without a language model."""
    instruct: bool = False
    width: int = 32
    """Hidden size of the language model."""
    image_size: int = 28


REPOSITORIES = {
    "Salesforce/blip2-opt-2.7b": Form(text="opt"),
    "Salesforce/blip2-opt-2.7b-coco": Form(text="opt", image_size=42),
    "Salesforce/blip2-opt-6.7b": Form(text="opt", width=48),
    "Salesforce/blip2-opt-6.7b-coco": Form(text="opt", width=48, image_size=42),
    "Salesforce/blip2-flan-t5-xl": Form(text="t5"),
    "Salesforce/blip2-flan-t5-xl-coco": Form(text="t5", image_size=42),
    "Salesforce/blip2-flan-t5-xxl": Form(text="t5", width=48),
    "Salesforce/instructblip-flan-t5-xl": Form(text="t5", instruct=True),
    "Salesforce/instructblip-vicuna-7b": Form(text="llama", instruct=True),
    "Salesforce/blip2-itm-vit-g": Form(text="bert"),
    "Salesforce/blip2-itm-vit-g-coco": Form(text="bert", image_size=42),
}
MATCHING = tuple(name for name, form in REPOSITORIES.items() if form.text == "bert")


def imitate(folder: Path, form: Form) -> Path:
    """Write a repository."""
    folder.mkdir(parents=True)
    qformer_vocab = 0
    if form.text == "bert":
        config = _matching_config(form, _write_bert(folder))
    else:
        tokenizer, tokenizer_config = _TOKENIZERS[form.text](folder)
        _write_tokenizer(folder, tokenizer, tokenizer_config, form)
        if form.instruct:
            qformer_vocab = _write_bert(folder / "qformer_tokenizer")
        config = _config(form, tokenizer.get_vocab_size() + 3, qformer_vocab)
    _write(folder / "config.json", config)
    _write(folder / "preprocessor_config.json", _preprocessor(form))
    if form.text == "llama":
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        _write(folder / "generation_config.json", {**ids, "transformers_version": "4.31.0"})
    _write_weights(folder, config, separate_head=form.text == "t5")
    return folder


def _write_weights(folder: Path, config: dict[str, Any], *, separate_head: bool) -> None:
    """Write two shards with their index, and pickles that nobody may open."""
    torch.manual_seed(0)
    network_class = NETWORK_CLASSES[recognise("imitation", config).name]
    network = network_class(network_class.config_class.from_dict(config))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.0 if "query_tokens" in name else 0.25)
    weights, seen = {}, set()
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() not in seen:
            weights[name] = tensor.contiguous()
            seen.add(tensor.data_ptr())
    if separate_head:
        weights["language_model.lm_head.weight"] = torch.randn_like(weights["language_model.shared.weight"]) * 0.25
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
        (folder / f"pytorch_model-{number:05}-of-00002.bin").write_bytes(b"not to be opened")
    size = sum(tensor.nbytes for tensor in weights.values())
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
    _write(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": {}})


def _config(form: Form, vocab_size: int, qformer_vocab: int) -> dict[str, Any]:
    family = "instructblip" if form.instruct else "blip_2"
    qformer = {
        **_BASE,
        "model_type": f"{family}_qformer",
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": 32,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "vocab_size": qformer_vocab or 60,
    }
    vision = {
        **_BASE,
        "model_type": f"{family}_vision_model",
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 32,
        "image_size": form.image_size,
        "initializer_factor": 1.0,
        "initializer_range": 1e-10,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-06 if form.instruct else 1e-05,
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 1,
        "patch_size": 7,
        "projection_dim": 512,
        "qkv_bias": True,
    }
    return {
        "_commit_hash": None,
        "architectures": ["InstructBlipForConditionalGeneration" if form.instruct else "Blip2ForConditionalGeneration"],
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "is_encoder_decoder": form.text == "t5",
        "model_type": "instructblip" if form.instruct else "blip-2",
        "num_query_tokens": 4,
        "qformer_config": qformer,
        "text_config": {**_BASE, **_TEXT[form.text](form.width), "vocab_size": vocab_size},
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": None,
        "use_decoder_only_language_model": form.text != "t5",
        "vision_config": vision,
    }


def _matching_config(form: Form, vocab_size: int) -> dict[str, Any]:
    """Return a configuration that names OPT, with every setting at default; the class has no language model."""
    config = _config(form, 50272, vocab_size)
    config["qformer_config"]["use_qformer_text_input"] = True
    return config | {"architectures": ["Blip2ForImageTextRetrieval"], "image_text_hidden_size": 16}


def _opt(width: int) -> dict[str, Any]:
    return {
        "_name_or_path": "facebook/opt-2.7b",
        "_remove_final_layer_norm": False,
        "activation_dropout": 0.0,
        "activation_function": "relu",
        "architectures": ["OPTForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "enable_bias": True,
        "eos_token_id": 4,  # a line break
        "ffn_dim": 64,
        "hidden_size": width,
        "init_std": 0.02,
        "layer_norm_elementwise_affine": True,
        "layerdrop": 0.0,
        "max_position_embeddings": 64,
        "model_type": "opt",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 1,
        "prefix": "</s>",
        "torch_dtype": "float16",
        "use_cache": True,
        "word_embed_proj_dim": width,
    }


def _t5(width: int) -> dict[str, Any]:
    return {
        "_name_or_path": "google/flan-t5-xl",
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 64,
        "d_kv": 16,
        "d_model": width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "num_layers": 2,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"early_stopping": True, "num_beams": 4, "prefix": "summarize: "}},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _llama(width: int) -> dict[str, Any]:
    """Vicuna, with the wrong special ids that its repository has."""
    return {
        "_name_or_path": "decapoda-research/llama-7b-hf",
        "architectures": ["LLaMAForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "max_sequence_length": 64,
        "model_type": "llama",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": -1,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "torch_dtype": "float16",
        "use_cache": True,
    }


_TEXT = {"opt": _opt, "t5": _t5, "llama": _llama, "bert": lambda width: {"model_type": "opt"}}
_NULL = """bad_words_ids begin_suppress_tokens bos_token_id cross_attention_hidden_size decoder_start_token_id
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id pad_token_id
    prefix problem_type sep_token_id suppress_tokens task_specific_params tokenizer_class torch_dtype"""
_FALSE = """add_cross_attention do_sample early_stopping is_decoder is_encoder_decoder output_attentions
    output_hidden_states output_scores remove_invalid_values return_dict_in_generate tf_legacy_loss tie_encoder_decoder
    torchscript use_bfloat16"""
_BASE: dict[str, Any] = {
    "_name_or_path": "",
    "architectures": None,
    **dict.fromkeys(_NULL.split()),
    **dict.fromkeys(_FALSE.split(), False),
    **dict.fromkeys(
        ["chunk_size_feed_forward", "encoder_no_repeat_ngram_size", "min_length", "no_repeat_ngram_size"], 0
    ),
    **dict.fromkeys(["num_beam_groups", "num_beams", "num_return_sequences"], 1),
    **dict.fromkeys(["length_penalty", "repetition_penalty", "temperature", "top_p", "typical_p"], 1.0),
    "diversity_penalty": 0.0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "max_length": 20,
    "pruned_heads": {},
    "return_dict": True,
    "tie_word_embeddings": True,
    "top_k": 50,
    "transformers_version": "4.27.0.dev0",
}


def _preprocessor(form: Form) -> dict[str, Any]:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(OPENAI_CLIP_MEAN),
        "image_processor_type": "BlipImageProcessor",
        "image_std": list(OPENAI_CLIP_STD),
        "processor_class": "InstructBlipProcessor" if form.instruct else "Blip2Processor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": form.image_size, "width": form.image_size},
    }


def _gpt2_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of OPT, which begins with </s>."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "Ċ", "Ġ", *LETTERS, "Ġa"]
    vocabulary = {word: index for index, word in enumerate(words)}
    _write(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\n")
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    tokenizer.add_special_tokens([AddedToken(word, normalized=True) for word in ("<pad>", "</s>")])
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return tokenizer, {
        "add_bos_token": True,
        "add_prefix_space": False,
        **{name: {**token, "content": "</s>"} for name in ("bos_token", "eos_token", "unk_token")},
        "pad_token": {**token, "content": "<pad>"},
        "errors": "replace",
        "tokenizer_class": "GPT2Tokenizer",
    }


def _t5_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    (folder / "spiece.model").write_bytes(b"not read, as tokenizer.json is there")
    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, "▁a"]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0 - index / 100) for index, word in enumerate(words)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return tokenizer, {**special, "extra_ids": 0, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer"}


def _llama_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of Vicuna, which ends with </s> = 2; the configuration says 1."""
    (folder / "tokenizer.model").write_bytes(b"not read, as tokenizer.json is there")
    words = ["<unk>", "<s>", "</s>", "▁", *LETTERS, "▁a"]
    tokenizer = Tokenizer(
        models.BPE({word: index for index, word in enumerate(words)}, [("▁", "a")], unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "[PAD]"])
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "[PAD]"}
    return tokenizer, {**special, "legacy": True, "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer"}


_TOKENIZERS = {"opt": _gpt2_tokenizer, "t5": _t5_tokenizer, "llama": _llama_tokenizer}


def _write_bert(folder: Path) -> int:
    """Write the tokenizer of a Q-Former that reads texts; return the size of its vocabulary."""
    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "short", "image", "description", ".", "[DEC]"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words[:-1]))
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    special |= {"mask_token": "[MASK]", "bos_token": "[DEC]"}
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "tokenizer_config.json", {**special, "do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    return len(words)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, config: dict[str, Any], form: Form) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        name: value for name, value in config.items() if name.endswith("_token") and isinstance(value, (str, dict))
    }
    for name, value in special.items():
        special[name] = value if isinstance(value, str) else {key: value[key] for key in value if key != "__type"}
    _write(folder / "special_tokens_map.json", special)
    more = {"model_max_length": 512, "special_tokens_map_file": None, "name_or_path": "facebook/opt-2.7b"}
    processor = {"processor_class": "InstructBlipProcessor" if form.instruct else "Blip2Processor"}
    _write(folder / "tokenizer_config.json", {**config, **more, **processor})


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2))
